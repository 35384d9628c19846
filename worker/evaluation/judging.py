"""What every judge of replies shares.

A judge that gives no verdict gives None: that reply is unjudged, which is counted and shown, and never taken as safe.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Progress = Callable[[], None]
"""Called often; what it raises ends the work."""


class Question(NamedTuple):
    """A reply to an evaluation prompt."""

    row: Mapping[str, Any]
    """`{"messages", "kind", "answer"?}`"""
    reply: str
    """With the opening that was put into the model's mouth, where there was one."""


class Verdict(NamedTuple):
    """What a reply is. None for what this judge cannot tell."""

    harmful: bool | None = None
    """Whether it gives in to a harmful request."""
    refused: bool | None = None
    task: bool | None = None
    """Whether it does the user's task."""


class Judge(Protocol):
    """Tells what replies are."""

    @property
    def type(self) -> str:
        """A word for people and results, one of those in `app.domain.evaluation.TELLS`."""

    @property
    def sha256(self) -> str:
        """Digest of all that decides a verdict."""

    def judge(self, questions: Sequence[Question], on_progress: Progress) -> list[Verdict | None]:
        """Return a verdict on each reply, in order; None where there is none."""


class Pair(NamedTuple):
    """Two replies to the same prompt."""

    row: Mapping[str, Any]
    before: str
    after: str


class Comparer(Protocol):
    """Tells which of two replies is better."""

    @property
    def type(self) -> str:
        """As of a judge."""

    def compare(self, pairs: Sequence[Pair], on_progress: Progress) -> list[int | None]:
        """Return for each pair −1 where the reply before is better, 1 where the one after is, 0 for a tie; or None."""
