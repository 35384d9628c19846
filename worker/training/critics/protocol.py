"""What every critic is to the reference pass."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from worker.training.critics.features import Features

Votes = tuple[tuple[int | None, ...], ...]
"""Per piece of a text the scores, 1 to 5, that a judge gave it; None for a vote that failed."""
Status = Literal["ok", "constant", "judged", "fallback"]


class Assessment(NamedTuple):
    """What a critic says of one row, with what a record needs to repeat it."""

    log_odds: Mapping[str, float]
    """By the digest of each fitted critic that read the row, itself, as a part of a combination or filling in for a
    judge: its calibrated log-odds of what it was fitted to find, the highest of the row's turns."""
    s: float
    """The risk that steers, in [0, 1]."""
    status: Status
    """judged: by votes. fallback: votes were missing and an activation critic filled in."""
    votes: Votes = ()
    """Empty without a judge."""


class Critic(Protocol):
    """Judges a row by its text, or by the reference's states before and in each of its assistant turns."""

    @property
    def needs_features(self) -> bool:
        """Tell whether `assess` looks at the states at all."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides an assessment, in hex."""

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Assess the row of this index in its file. Raises where it cannot, never guesses.

        `features` is None only for critics that need none.
        """
