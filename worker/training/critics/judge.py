"""A language model as critic: it grades what each row says, and, live, what the model in training answers.

The grades of a row are read before the reference pass, all at once, because a row on the network costs a thousand
times one on the device; the pass then only looks them up. Each piece of a row is voted on several times. What a
record needs in order to repeat the arithmetic is the votes, and the log-odds of the critic that fills in.
"""

import hashlib
import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from app.domain.control_law import compute_judged_s
from app.domain.rubric import Message, Vote, judge_digest, render_pieces
from app.domain.safety_spec import JudgeCritic as JudgeFields
from app.errors import CriticUnusable, TetherError
from worker.training.critics.features import Features
from worker.training.critics.protocol import Assessment, Critic, Votes

CHECK_INTERVAL_S = 0.5
"""How long waiting for votes may keep the caller from hearing that it should stop."""
SILENT_ROWS = 16
"""A judge that has failed on this many rows and graded none is away; waiting for the rest would change nothing."""
LIVE_ROWS = 20
"""Failures of a live judge are a share of at least this many answers, so that the first one decides nothing."""

Conversation = Sequence[Message]


class JudgeFailed(TetherError):
    """No vote: the judge is away, too slow, refuses, or says something that is none. `code` tells which."""

    code = "judge_failed"


class Judge(Protocol):
    """A language model that grades texts."""

    model: str
    concurrency: int
    """How many votes may be asked for at once."""

    def ask(self, text: str) -> Vote:
        """Return one vote on a piece of a conversation. Raises JudgeFailed. Called from many threads at once."""


@dataclass(frozen=True)
class JudgeCritic:
    """A judge with what fills in for it. It reads rows; what it read is the critic of the reference pass."""

    fields: JudgeFields
    judge: Judge
    fallback: Critic | None
    """The activation critic that fills in, where there is one."""

    @property
    def needs_features(self) -> bool:
        """Look at nothing: what it reads is text."""
        return False

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a grade but the server's mood, in hex."""
        fallback = self.fallback.digest if self.fallback else None
        return judge_digest(self.fields.digest(fallback), self.judge.model)

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Raise: only the grades of what it has read assess a row."""
        raise TypeError("a judge must read the rows first; call read_texts")

    def read(
        self, rows: Mapping[int, Conversation], *, on_progress: Callable[[int], None] = lambda done: None
    ) -> "GradedRows":
        """Grade every row, by its index. `on_progress` hears often how many are done; what it raises ends the work.

        Raises CriticUnusable with code `critic_failing` once more rows have failed than `max_failed_share` allows.
        """
        graded: dict[int, Votes] = {}
        reasons: Counter[str] = Counter()
        failed = 0
        stopped = threading.Event()
        with _pool(self.judge.concurrency, stopped) as pool:
            pending = {
                pool.submit(ask_votes, self.judge, messages, self.fields.votes, stopped): index
                for index, messages in rows.items()
            }
            while pending:
                done, _ = wait(pending, timeout=CHECK_INTERVAL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    votes, codes = future.result()
                    graded[pending.pop(future)] = votes
                    reasons.update(codes)
                    failed += not compute_judged_s(votes)[1]
                    allowed = self.fields.max_failed_share
                    is_away = failed == len(graded) >= SILENT_ROWS and allowed < 1
                    if is_away or failed > allowed * len(rows):
                        raise _failing(failed, len(graded), allowed, reasons)
                on_progress(len(graded))
        return GradedRows(graded, self.fallback, self.digest)


@dataclass(frozen=True)
class GradedRows:
    """The grades of all rows of a job."""

    votes: Mapping[int, Votes]
    fallback: Critic | None
    digest: str

    @property
    def needs_features(self) -> bool:
        """Look at the states only where something must fill in."""
        return self.fallback is not None and not all(
            compute_judged_s(votes)[1] for votes in self.votes.values()
        )

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Return the grade of one row. Raises JudgeFailed where it has none and nothing can fill in."""
        votes = self.votes[row]
        s, enough = compute_judged_s(votes)
        if enough:
            return Assessment({}, s, "judged", votes)
        if self.fallback is None:
            raise JudgeFailed(f"row {row} has no verdict, and no other critic can fill in")
        found = self.fallback.assess(row, features)
        return Assessment(found.log_odds, max(s, found.s), "fallback", votes)


def ask_votes(
    judge: Judge, messages: Conversation, count: int, stopped: threading.Event
) -> tuple[Votes, list[str]]:
    """Return `count` votes on each piece of a conversation, None for each that is missing, and why votes failed.

    Once half of a piece's votes have failed the row has no verdict, whatever the rest would say, and no more are asked
    for: a judge that is away costs each row only so much time. Once `stopped` is set nobody reads them, and none is
    asked for either: a process ends only after its threads.
    """
    pieces = render_pieces(messages)
    votes: list[list[int | None]] = [[None] * count for _ in pieces]
    codes: list[str] = []
    for text, of_piece in zip(pieces, votes, strict=True):
        earlier = len(codes)
        for place in range(count):
            if stopped.is_set():
                return tuple(map(tuple, votes)), codes
            try:
                of_piece[place] = judge.ask(text).score
            except JudgeFailed as error:
                codes.append(str(error.code))
                if 2 * (len(codes) - earlier) >= count:
                    return tuple(map(tuple, votes)), codes
    return tuple(map(tuple, votes)), codes


# --- live -------------------------------------------------------------------------------------------------


class LiveScore(NamedTuple):
    """What a live judge found about one row. It counts from the step before which it is collected."""

    row: int
    s: float
    """Of the answer of the model; the row's s is the higher one of this and what it had before training."""
    status: Literal["judged", "fallback", "failed"]
    """judged, fallback (a vote was missing; the activation critic's s of the row fills in) or failed (s is 1)."""
    votes: Votes
    asked_at: int
    """The step after which the model gave the answer."""
    reference_votes: Votes
    """On the reference's answer to the same prompt. They steer nothing: they show what the training has changed."""


class LiveJudge:
    """Grades answers of the model in training in the background, a round at a time.

    The loop samples the answers; `start_round` hands them over and returns at once, and `collect` gives what has
    arrived. One round at a time: while one is under way the next is not taken, so a slow judge holds nothing up.
    """

    def __init__(
        self,
        judge: Judge,
        fields: JudgeFields,
        prompts: Mapping[int, Conversation],
        *,
        fallback: Mapping[int, float],
    ) -> None:
        """Take the prompt of each row that may be sampled, and the activation critic's s of each that it measured."""
        self._judge = judge
        self._fields = fields
        self._prompts = prompts
        self._fallback = fallback
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(judge.concurrency, thread_name_prefix="live-judge")
        self._round: list[Future[tuple[LiveScore, list[str]]]] = []
        self._graded = 0
        self._failed = 0
        self._reasons: Counter[str] = Counter()

    @property
    def is_busy(self) -> bool:
        """Whether a round is under way, so that no other is taken."""
        return bool(self._round)

    def start_round(
        self, step: int, rows: Sequence[int], answers_model: Sequence[str], answers_reference: Sequence[str]
    ) -> bool:
        """Begin to grade the answers that were given after `step`; say whether they were taken."""
        if self.is_busy:
            return False
        self._round = [
            self._pool.submit(self._grade, step, row, of_model, of_reference)
            for row, of_model, of_reference in zip(rows, answers_model, answers_reference, strict=True)
        ]
        return True

    def collect(self) -> list[LiveScore]:
        """Return the scores that have arrived since the last call, in the order of the round, without waiting.

        Raises CriticUnusable with code `critic_failing` once more answers have failed than `max_failed_share` allows.
        """
        done = [future for future in self._round if future.done()]
        self._round = [future for future in self._round if future not in done]
        scores = []
        for future in done:
            score, codes = future.result()
            self._graded += 1
            self._failed += score.status != "judged"
            self._reasons.update(codes)
            scores.append(score)
        if self._failed > self._fields.max_failed_share * max(self._graded, LIVE_ROWS):
            raise _failing(self._failed, self._graded, self._fields.max_failed_share, self._reasons)
        return scores

    def drain(self, timeout_s: float) -> list[LiveScore]:
        """Wait at most so long for the round that is under way, and return what has arrived."""
        wait(self._round, timeout=timeout_s)
        return self.collect()

    def close(self) -> None:
        """Drop what has not begun; the votes that are being asked for end by themselves within their deadline."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _grade(self, step: int, row: int, of_model: str, of_reference: str) -> tuple[LiveScore, list[str]]:
        votes, codes = self._ask(row, of_model)
        reference_votes, _ = self._ask(row, of_reference)
        s, enough = compute_judged_s(votes)
        status: Literal["judged", "fallback", "failed"] = "judged"
        if not enough:
            status = "fallback" if row in self._fallback else "failed"
            s = max(s, self._fallback.get(row, 1.0))
        return LiveScore(row, s, status, votes, step, reference_votes), codes

    def _ask(self, row: int, answer: str) -> tuple[Votes, list[str]]:
        messages = [*self._prompts[row], {"role": "assistant", "content": answer}]
        return ask_votes(self._judge, messages, self._fields.votes, self._stopped)


def choose_live_rows(rows: Iterable[int], *, count: int, step: int, seed: int) -> list[int]:
    """Return the rows whose prompts are sampled after a step: a pure function, so that a resumed run repeats it."""

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"live/{seed}/{step}/{row}".encode()).digest()

    return heapq.nsmallest(count, rows, key=rank)


@contextmanager
def _pool(size: int, stopped: threading.Event) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(size, thread_name_prefix="judge")
    try:
        yield pool
    finally:
        # Whoever stops here does not wait for votes that nobody will read.
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _failing(failed: int, graded: int, allowed: float, reasons: Counter[str]) -> CriticUnusable:
    why = ", ".join(f"{code}: {count}" for code, count in reasons.most_common())
    return CriticUnusable(
        f"the judge gave no verdict for {failed} of {graded} texts ({failed / graded:.0%}), more than"
        f" max_failed_share ({allowed:g}) allows; missing votes by cause: {why}. See to the judge's server, then let"
        " the job go on",
        code="critic_failing",
    )
