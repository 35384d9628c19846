"""Linear probes on the reference's activations: one reads where a request ends, one reads the response.

On disk a critic is a folder of two files: `critic.safetensors` (the weights) and `critic.json` (what it was fitted
for, how good it is, and the weights' SHA-256).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.domain.control_law import compute_s
from app.errors import CriticUnusable
from worker.training.critics.features import Directions, Features, Scores, window_means
from worker.training.critics.protocol import Assessment
from worker.training.jsonio import canonical_json, parse_json

WEIGHTS_FILE = "critic.safetensors"
METADATA_FILE = "critic.json"
FORMAT = "tether-activation-critic-2"
FORMAT_1 = "tether-activation-critic-1"
"""One probe, on prompts only, whose weights are those of standardised states."""

SScale = Literal["points", "probability"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear score per layer, their mean, and its calibration. float64 throughout."""

    direction: NDArray[np.float64]
    """(layers, hidden)."""
    bias: NDArray[np.float64]
    """(layers,)."""
    calibration: NDArray[np.float64]
    """(2,): slope, above 0, and intercept, from the mean score to log-odds."""

    def log_odds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated log-odds of harm: (places, layers) products with the direction to (places,)."""
        slope, intercept = self.calibration
        found: NDArray[np.float64] = slope * (scores + self.bias).mean(axis=1) + intercept
        return found


class Probes(NamedTuple):
    """What a fitted critic reads with."""

    prompt: Probe
    response: Probe | None
    """None where too few replies were labelled to fit it; the critic then reads requests only."""

    def directions(self) -> Directions:
        """Return what the states are multiplied with."""
        return Directions(self.prompt.direction, None if self.response is None else self.response.direction)


class Points(NamedTuple):
    """Where log-odds become decisions. How they are chosen: `worker.training.critics.calibration`."""

    low: float
    """The log-odds at and below which s is 0."""
    threshold: float
    """The log-odds from which a row is replayed or dropped."""
    high: float
    """The log-odds at and above which s is 1."""


@dataclass(frozen=True, eq=False)
class ActivationCritic:
    """Fitted probes with the points between which their log-odds become s."""

    probes: Probes
    points: Points
    digest: str
    """SHA-256 of critic.json, which names the digest of the weights."""
    metadata: dict[str, Any]
    """All of critic.json: digests of base model and template, and the report."""
    s_scale: SScale = "points"
    """points: s rises linearly from `low` to `high`. probability: s is the calibrated probability of harm."""

    @property
    def needs_features(self) -> bool:
        """Look at the states."""
        return True

    @cached_property
    def directions(self) -> Directions:
        """What the states are multiplied with."""
        return self.probes.directions()

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Return the highest log-odds found anywhere in the row and its s; NaN raises ValueError."""
        if features is None:
            raise ValueError("an activation critic was given no states")
        log_odds = float(compute_log_odds(self.probes, features.score(self.directions)).max())
        s = compute_s(log_odds, self.points.low, self.points.high, self.s_scale)
        return Assessment({self.digest: log_odds}, s, "ok")


def compute_log_odds(probes: Probes, scores: Scores) -> NDArray[np.float64]:
    """Return the log-odds at every place of a row: its turns' last prompt tokens, then its responses' windows."""
    found = [probes.prompt.log_odds(scores.prompts)]
    if probes.response is not None:
        found += [probes.response.log_odds(window_means(tokens)) for tokens in scores.responses]
    return np.concatenate(found)


def save_critic(
    folder: Path,
    probes: Probes,
    points: Points,
    *,
    base_digest: str,
    template_digest: str,
    report: Mapping[str, Any],
) -> str:
    """Write a critic's two files into a folder, made where it is missing, and return the critic's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = save(
        {
            f"{name}.{part}": np.ascontiguousarray(value)
            for name, probe in probes._asdict().items()
            if probe is not None
            for part, value in vars(probe).items()
        }
    )
    metadata = {
        "format": FORMAT,
        "base_digest": base_digest,
        "template_digest": template_digest,
        "weights_sha256": hashlib.sha256(payload).hexdigest(),
        **points._asdict(),
        "report": report,
    }
    text = canonical_json(metadata)
    (folder / WEIGHTS_FILE).write_bytes(payload)
    (folder / METADATA_FILE).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load_activation(
    folder: Path, *, base_digest: str, template_digest: str, s_scale: SScale = "points"
) -> ActivationCritic:
    """Load a critic that was fitted for this base model and this chat template.

    Raises CriticUnusable where it was fitted for others, or its files are missing or damaged.
    """
    try:
        text = (folder / METADATA_FILE).read_bytes()
        payload = (folder / WEIGHTS_FILE).read_bytes()
        metadata = parse_json(text)
    except (OSError, ValueError) as error:
        raise CriticUnusable(f"the critic in {folder.name} cannot be read: {error}; fit it again") from error
    if metadata.get("format") not in (FORMAT, FORMAT_1):
        raise CriticUnusable(
            f"the critic in {folder.name} has format {metadata.get('format')!r}, not {FORMAT!r}"
        )
    if hashlib.sha256(payload).hexdigest() != metadata["weights_sha256"]:
        raise CriticUnusable(f"the critic in {folder.name} is damaged: its weights are not the ones it names")
    for what, found, wanted in (
        ("base model", metadata["base_digest"], base_digest),
        ("chat template", metadata["template_digest"], template_digest),
    ):
        if found != wanted:
            raise CriticUnusable(
                f"the critic in {folder.name} was fitted for another {what} ({found[:12]}, not {wanted[:12]});"
                " fit one for this base model"
            )
    try:
        weights = load(payload)
        probes = _read_format_1(weights) if metadata["format"] == FORMAT_1 else _read_probes(weights)
        # In format 1 at most 1 % of the benign prompts exceeded `high`, however weak the probe; `low` only with a
        # good one.
        points = Points(metadata["low"], metadata.get("threshold", metadata["high"]), metadata["high"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise CriticUnusable(f"the critic in {folder.name} holds other weights: {error}") from error
    return ActivationCritic(probes, points, hashlib.sha256(text).hexdigest(), metadata, s_scale)


def _read_probes(weights: Mapping[str, NDArray[Any]]) -> Probes:
    def read(name: str) -> Probe:
        return Probe(*(weights[f"{name}.{part}"] for part in ("direction", "bias", "calibration")))

    return Probes(read("prompt"), read("response") if "response.direction" in weights else None)


def _read_format_1(weights: Mapping[str, NDArray[Any]]) -> Probes:
    direction = weights["weight"] / weights["scale"]
    bias = weights["bias"] - (weights["mean"] * direction).sum(axis=1)
    return Probes(Probe(direction, bias, weights["calibration"]), None)
