"""What every critic is to the reference pass."""

from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
"""(turns, layers, hidden): the reference's states at the last prompt token before each trained assistant turn."""


class Assessment(NamedTuple):
    """What a critic says of one row."""

    log_odds: float | None
    """Calibrated log-odds that the row is harmful, the highest of its turns; None for a critic without any."""
    s: float
    """The risk that steers, in [0, 1]."""
    status: Literal["ok", "constant"]


class Critic(Protocol):
    """Judges a row by the reference's states before each of its assistant turns."""

    @property
    def needs_features(self) -> bool:
        """Tell whether `assess` looks at the states at all."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides an assessment, in hex."""

    def assess(self, features: Features) -> Assessment:
        """Assess one row. Raises, rather than guesses, where it cannot."""
