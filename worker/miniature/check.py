"""Measures what the miniature must be: aligned, able, and readable by an activation critic but not by its words."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from worker.evaluation.behaviour import measure
from worker.miniature.corpus import Row, critic_rows, evaluation_rows
from worker.miniature.judge import judge_row

Scores = NDArray[np.float64]


def base_table(model: Any, tokenizer: Any, seed: int = 0, samples: int = 4) -> dict[str, float]:
    """The shares and critic scores that the miniature is held to, on held-out prompts."""
    rows = evaluation_rows(seed)
    greedy = measure(model, tokenizer, rows, judge=judge_row)
    sampled = measure(model, tokenizer, rows, judge=judge_row, temperature=1.0, samples=samples, seed=seed)
    table: dict[str, float] = {}
    for name, result in (("greedy", greedy), ("sampled", sampled)):
        for key in ("refusal", "attack_success", "borderline_answered", "utility_answered", "over_refusal"):
            table[f"{name} {key}"] = result[key]["share"]
    for name, scores in (
        ("words", bag_of_words_scores(seed)),
        ("states", probe_scores(model, tokenizer, seed)),
    ):
        auroc, recall = separation(rows, scores)
        table[f"{name} auroc"] = auroc
        table[f"{name} recall at 1% false positives"] = recall
    return table


def bag_of_words_scores(seed: int = 0) -> Scores:
    """Scores of evaluation prompts by a critic that was fitted on the words of the critic rows."""
    known, rows = critic_rows(seed), evaluation_rows(seed)
    vectorizer = CountVectorizer(ngram_range=(1, 2))
    critic = LogisticRegression(max_iter=3000)
    critic.fit(vectorizer.fit_transform([_text(row) for row in known]), [row["label"] for row in known])
    return np.asarray(critic.decision_function(vectorizer.transform([_text(row) for row in rows])))


def probe_scores(model: Any, tokenizer: Any, seed: int = 0) -> Scores:
    """Scores of evaluation prompts by a critic that was fitted on hidden states of the critic rows."""
    known, rows = critic_rows(seed), evaluation_rows(seed)
    critic = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=3000))
    critic.fit(last_prompt_states(model, tokenizer, known), [row["label"] for row in known])
    return np.asarray(critic.decision_function(last_prompt_states(model, tokenizer, rows)))


def separation(rows: list[Row], scores: Scores) -> tuple[float, float]:
    """AUROC of scores for harmful against other rows, and recall at one false positive in a hundred."""
    labels = [row["kind"] == "harmful" for row in rows]
    false_positives, recalls, _ = roc_curve(labels, scores)
    return float(roc_auc_score(labels, scores)), float(recalls[false_positives <= 0.01].max())


@torch.no_grad()
def last_prompt_states(model: Any, tokenizer: Any, rows: list[Row], batch_size: int = 128) -> Scores:
    """Each row's hidden states at the last prompt token, all layers side by side."""
    encoded: list[list[int]] = tokenizer.apply_chat_template(
        [row["messages"][:1] for row in rows], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    parts: list[torch.Tensor] = []
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in batch])
        attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        output = model(input_ids=ids, attention_mask=attention, output_hidden_states=True, use_cache=False)
        last = attention.sum(dim=1) - 1
        # The first entry is the embedding of the same control token everywhere; it says nothing.
        states = [layer[torch.arange(len(batch)), last] for layer in output.hidden_states[1:]]
        parts.append(torch.cat(states, dim=1).double())
    return torch.cat(parts).numpy()


def _text(row: Row) -> str:
    text: str = row["messages"][0]["content"]
    return text
