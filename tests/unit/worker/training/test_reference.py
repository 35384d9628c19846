"""The reference pass: risks, features and the cache."""

import numpy as np
import pytest
import torch

from worker.training.batching import collate
from worker.training.critics.activation import load_activation, save_critic
from worker.training.critics.constant import ConstantCritic
from worker.training.critics.probe import collect_features, fit_probe
from worker.training.critics.protocol import Assessment
from worker.training.data import tokenize_row, tokenize_rows
from worker.training.models import apply_head, full_logits, reference, template_digest
from worker.training.reference import RowRisk, run_reference_pass

CPU = torch.device("cpu")
PLENTY = 10**9


@pytest.fixture
def rows(make_tokenizer, training_rows):
    return tokenize_rows(make_tokenizer(), training_rows, max_seq_length=256, overlength="error").rows


class RecordingCritic:
    """Says the given log-odds row by row, in the order asked; an exception in their place is raised."""

    needs_features = True
    digest = ""

    def __init__(self, answers=()):
        self.answers = list(answers)
        self.seen = []

    def assess(self, features):
        self.seen.append(features)
        answer = self.answers.pop(0) if self.answers else 0.5
        if isinstance(answer, Exception):
            raise answer
        return Assessment(answer, 0.25, "ok")


def test_features_are_the_references_states_before_each_reply(make_model, make_base, rows):
    critic = RecordingCritic()
    run_reference_pass(make_model(drift=0.2), rows, critic, cache_budget_bytes=0, micro_batch_tokens=10_000)
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place].input_ids), place))
    base = make_base()
    for place, seen in zip(order, critic.seen, strict=True):
        row = rows[place]
        with torch.no_grad():
            states = base(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[1:]
        expected = np.stack([[layer[0, end].numpy() for layer in states] for end in row.prompt_ends])
        np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)
    assert critic.seen[order.index(9)].shape[0] == 2


def test_a_critic_that_fails_makes_its_row_as_risky_as_can_be(make_model, rows):
    answers = [ValueError("broken"), float("nan"), float("inf"), RuntimeError("broken"), 0.5]
    found = run_reference_pass(make_model(), rows[:5], RecordingCritic(answers), cache_budget_bytes=0)
    by_status = sorted(found.risks, key=lambda risk: risk.status)
    assert [(risk.s, risk.status, risk.log_odds) for risk in by_status[:4]] == [(1.0, "failed", None)] * 4
    assert by_status[4][1:] == (0.5, 0.25, "ok")


def test_constant_and_missing_critics(make_model, rows):
    found = run_reference_pass(make_model(), rows, ConstantCritic(0.4), cache_budget_bytes=0)
    assert found.risks == tuple(RowRisk(row.index, None, 0.4, "constant") for row in rows)
    found = run_reference_pass(make_model(), rows, None, cache_budget_bytes=0)
    assert found.risks == tuple(RowRisk(row.index, None, None, "unmeasured") for row in rows)


@pytest.mark.parametrize("critic", [None, RecordingCritic()])
def test_the_cached_reference_equals_the_live_one(make_model, rows, critic):
    model = make_model(torch.float64, drift=0.2)
    cache = run_reference_pass(model, rows, critic, cache_budget_bytes=PLENTY, micro_batch_tokens=70).cache
    batch = collate(rows[:4], CPU)
    states = cache.gather([row.index for row in rows[:4]])
    assert states is not None
    with reference(model):
        live = full_logits(model, batch.input_ids, batch.attention_mask).flatten(0, 1)[batch.predecessors]
        torch.testing.assert_close(apply_head(model, states), live, rtol=1e-12, atol=1e-12)


def test_a_critic_from_its_fitting_to_the_risk_of_a_row(make_base, make_tokenizer, tmp_path):
    def prompt(label, topic, n):
        return {"role": "user", "content": f"{topic} {n} {'!!!!!!' if label else '......'}"}

    model, tokenizer = make_base(hidden_size=64), make_tokenizer()
    topics = ("bread", "seeds", "paint", "stars")
    data = [
        (prompt(label, topic, n), label, topic) for label in (0, 1) for topic in topics for n in range(15)
    ]
    features = collect_features(model, tokenizer, [{"messages": [message]} for message, _, _ in data])
    report, weights = fit_probe(
        features, [label for _, label, _ in data], [group for _, _, group in data], seed=0
    )
    assert report.auroc > 0.95
    digests = {"base_digest": "b", "template_digest": template_digest(tokenizer)}
    save_critic(tmp_path, weights, low=report.low, high=report.high, report=report.to_dict(), **digests)

    critic = load_activation(tmp_path, **digests)
    reply = {"role": "assistant", "content": "Yes."}
    benign, harmful = prompt(0, "glass", 30), prompt(1, "glass", 31)
    turns = [[benign], [harmful], [harmful, reply, benign]]
    rows = [tokenize_row(tokenizer, [*turn, reply], index=index) for index, turn in enumerate(turns)]
    risks = run_reference_pass(model, rows, critic, cache_budget_bytes=0).risks
    assert [risk.status for risk in risks] == ["ok"] * 3
    assert risks[0].s < 0.2
    assert risks[1].s > 0.8
    # A conversation is as risky as its riskiest turn.
    assert risks[2].log_odds >= risks[1].log_odds - 1e-4


def test_the_cache_keeps_to_its_budget_in_file_order(make_model, rows):
    per_token = 32 * 4
    budget = per_token * (rows[0].loss_tokens + rows[1].loss_tokens) + 1
    cache = run_reference_pass(make_model(), rows, None, cache_budget_bytes=budget).cache
    assert set(cache.states) == {0, 1}
    assert cache.n_bytes <= budget
    assert cache.gather([0, 2]) is None
    assert cache.gather([1, 0]).shape == (rows[0].loss_tokens + rows[1].loss_tokens, 32)
    assert not run_reference_pass(make_model(), rows, None, cache_budget_bytes=0).cache.states


def test_the_pass_is_reproducible_and_reports_progress(make_model, rows):
    heard = []
    first, second = (
        run_reference_pass(
            make_model(),
            rows,
            RecordingCritic(),
            cache_budget_bytes=PLENTY,
            micro_batch_tokens=99,
            on_progress=heard.append,
        )
        for _ in range(2)
    )
    assert first.risks == second.risks
    assert all(torch.equal(states, second.cache.states[row]) for row, states in first.cache.states.items())
    assert heard[-1] == len(rows)
    assert [risk.row for risk in first.risks] == list(range(10))
