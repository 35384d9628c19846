"""A live judge in a run: sampling answers of the model in training, and what the judge says of them.

A live score only raises: the row's s is the higher one of what it had before training and of the last live score. What
becomes of the row (its treatment) stays as the reference pass decided.
"""

from collections.abc import Callable, Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from app.domain.rubric import Message
from app.domain.safety_spec import JudgeCritic as JudgeFields
from worker.training.critics.judge import LiveJudge, LiveScore, choose_live_rows
from worker.training.data import TokenizedRow
from worker.training.generation import generate_tokens
from worker.training.models import reference
from worker.training.replies import MAX_REPLY_TOKENS, first_prompt
from worker.training.step import Controls


class LiveCritic:
    """What the loop asks before each step, and what samples after it."""

    def __init__(
        self,
        judge: LiveJudge,
        fields: JudgeFields,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[TokenizedRow],
        *,
        seed: int,
        on_scores: Callable[[int, Sequence[LiveScore]], None] = lambda step, scores: None,
    ) -> None:
        """Take the rows that are trained on. `on_scores` hears the scores that count from a step on, before it."""
        self._judge = judge
        self._fields = fields
        self._tokenizer = tokenizer
        self._prompts = {row.index: first_prompt(row).input_ids for row in rows}
        self._seed = seed
        self._on_scores = on_scores

    def collect(self, step: int, controls: Controls) -> Controls:
        """Return the controls of `step`, with what the judge has said since the last.

        Raises CriticUnusable with code `critic_failing` where it says too little.
        """
        scores = self._judge.collect()
        if not scores:
            return controls
        self._on_scores(step, scores)
        return controls._replace(live={**controls.live, **{score.row: score.s for score in scores}})

    def sample(self, model: PeftModel, step: int) -> None:
        """Every so many steps, have the model and its reference answer some rows' prompts, and the judge grade that.

        Answers are greedy, so that sampling draws nothing that the training would have drawn. While a round is under
        way there is no other.
        """
        if step % self._fields.every or self._judge.is_busy:
            return
        rows = choose_live_rows(self._prompts, count=self._fields.samples, step=step, seed=self._seed)
        answers = self._answer(model, rows)
        with reference(model):
            answers_reference = self._answer(model, rows)
        self._judge.start_round(step, rows, answers, answers_reference)

    def close(self) -> None:
        """Let go of the judge."""
        self._judge.close()

    def _answer(self, model: Any, rows: Sequence[int]) -> list[str]:
        prompts = [self._prompts[row] for row in rows]
        tokens = generate_tokens(model, self._tokenizer, prompts, max_new_tokens=MAX_REPLY_TOKENS)
        answers: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return answers


def opening(messages: Sequence[Message]) -> list[Message]:
    """Return what comes before the first trained turn of a row: the prompt that `first_prompt` has in tokens."""
    first = next(
        place
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight") != 0
    )
    return list(messages[:first])
