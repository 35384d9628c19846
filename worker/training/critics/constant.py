"""A critic that gives every row the same s: a control for experiments."""

import hashlib
from dataclasses import dataclass

from worker.training.critics.features import Features
from worker.training.critics.protocol import Assessment


@dataclass(frozen=True)
class ConstantCritic:
    """Says `s` of every row, and has no log-odds."""

    s: float

    @property
    def needs_features(self) -> bool:
        """Look at nothing."""
        return False

    @property
    def digest(self) -> str:
        """SHA-256 of the type and `s`."""
        return hashlib.sha256(f"constant/{self.s!r}".encode()).hexdigest()

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Return `s` whatever the row."""
        return Assessment({}, self.s, "constant")
