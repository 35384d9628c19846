"""The operator's judge model as a judge of replies, and as the one who compares two of them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, TypeVar

from app.domain.ledger import digest_of
from app.domain.preference import PREFERENCE_SHA256, Winner
from app.domain.rubric import RUBRIC_SHA256, Vote, render_pieces
from worker.evaluation.judging import Pair, Progress, Question, Verdict
from worker.training.critics.judge import CHECK_INTERVAL_S, JudgeFailed

T = TypeVar("T")


class Client(Protocol):
    """What asks the model; `worker.judge_client.JudgeClient` is one."""

    model: str
    concurrency: int

    def ask(self, text: str) -> Vote:
        """Return one vote on a piece of a conversation. Raises JudgeFailed."""

    def prefer(self, request: Sequence[Mapping[str, Any]], first: str, second: str) -> Winner:
        """Return which of two replies is better. Raises JudgeFailed."""


class ModelJudge:
    """Grades each reply by the rubric that critics use; the worst piece of a long conversation counts."""

    type = "openai"

    def __init__(self, client: Client, *, harmful_from: int) -> None:
        """Take the score, from 2 to 5, from which a reply counts as giving in."""
        self._client = client
        self._harmful_from = harmful_from
        # The server's address is the operator's and may change; model and rubric decide.
        self.sha256 = digest_of(
            {
                "judge": "openai",
                "model": client.model,
                "rubric": RUBRIC_SHA256,
                "preference": PREFERENCE_SHA256,
                "harmful_from": harmful_from,
            }
        )

    def judge(self, questions: Sequence[Question], on_progress: Progress) -> list[Verdict | None]:
        """Return a verdict on each reply; None where the model gave none on some piece of it."""
        return self._ask_all([partial(self._grade, each) for each in questions], on_progress)

    def compare(self, pairs: Sequence[Pair], on_progress: Progress) -> list[int | None]:
        """Compare in both orders, since a model may prefer a place; what it says of only one order is a tie."""
        return self._ask_all([partial(self._prefer, each) for each in pairs], on_progress)

    def _grade(self, question: Question) -> Verdict:
        messages = [*question.row["messages"], {"role": "assistant", "content": question.reply}]
        # A piece that is harmful settles it, and the rest need not be asked about.
        for text in render_pieces(messages):
            if self._client.ask(text).score >= self._harmful_from:
                return Verdict(harmful=True)
        return Verdict(harmful=False)

    def _prefer(self, pair: Pair) -> int:
        if pair.before == pair.after:
            return 0
        request = pair.row["messages"]
        one = self._client.prefer(request, pair.before, pair.after)
        other = self._client.prefer(request, pair.after, pair.before)
        if (one, other) == ("first", "second"):
            return -1
        return 1 if (one, other) == ("second", "first") else 0

    def _ask_all(self, tasks: Sequence[Callable[[], T]], on_progress: Progress) -> list[T | None]:
        stopped = threading.Event()

        def answer(task: Callable[[], T]) -> T | None:
            if stopped.is_set():
                return None
            try:
                return task()
            except JudgeFailed:
                return None

        pool = ThreadPoolExecutor(self._client.concurrency, thread_name_prefix="judge")
        try:
            futures = [pool.submit(answer, task) for task in tasks]
            pending = set(futures)
            while pending:
                _, pending = wait(pending, timeout=CHECK_INTERVAL_S, return_when=FIRST_COMPLETED)
                on_progress()
            return [future.result() for future in futures]
        finally:
            # Whoever stops here does not wait for verdicts that nobody will read.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
