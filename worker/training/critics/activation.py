"""A linear probe on the reference's activations just before it answers.

On disk a critic is a folder of two files: `critic.safetensors` (the weights) and `critic.json` (what it was fitted
for, how good it is, and the weights' SHA-256).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.domain.control_law import compute_s
from app.errors import CriticUnusable
from worker.training.critics.protocol import Assessment, Features
from worker.training.jsonio import canonical_json, parse_json

WEIGHTS_FILE = "critic.safetensors"
METADATA_FILE = "critic.json"
FORMAT = "tether-activation-critic-1"


@dataclass(frozen=True, eq=False)
class ProbeWeights:
    """A standardised linear score per layer, their mean, and its calibration. float64 throughout."""

    mean: NDArray[np.float64]
    """(layers, hidden), subtracted from the states."""
    scale: NDArray[np.float64]
    """(layers, hidden), what the states are then divided by."""
    weight: NDArray[np.float64]
    """(layers, hidden)."""
    bias: NDArray[np.float64]
    """(layers,)."""
    calibration: NDArray[np.float64]
    """(2,): slope and intercept from the mean score to log-odds."""


@dataclass(frozen=True, eq=False)
class ActivationCritic:
    """A fitted probe with the two points between which its log-odds become s."""

    weights: ProbeWeights
    low: float
    """The log-odds at and below which s is 0."""
    high: float
    """The log-odds at and above which s is 1."""
    digest: str
    """SHA-256 of critic.json, which names the digest of the weights."""
    metadata: dict[str, Any]
    """All of critic.json: digests of base model and template, and the probe's report."""

    @property
    def needs_features(self) -> bool:
        """Look at the states."""
        return True

    def assess(self, features: Features) -> Assessment:
        """Return the highest log-odds of the row's turns and its s; NaN raises ValueError."""
        log_odds = float(compute_log_odds(self.weights, features).max())
        return Assessment(log_odds, compute_s(log_odds, self.low, self.high), "ok")


def layer_scores(weights: ProbeWeights, features: Features) -> NDArray[np.float64]:
    """Return each layer's own score: (n, layers, hidden) to (n, layers)."""
    if features.shape[1:] != weights.weight.shape:
        raise ValueError(
            f"features have layers and width {features.shape[1:]}, the probe {weights.weight.shape}"
        )
    standardised = (features.astype(np.float64) - weights.mean) / weights.scale
    scores: NDArray[np.float64] = np.einsum("nlh,lh->nl", standardised, weights.weight) + weights.bias
    return scores


def compute_log_odds(weights: ProbeWeights, features: Features) -> NDArray[np.float64]:
    """Return the calibrated log-odds that each prompt is harmful: (n, layers, hidden) to (n,)."""
    slope, intercept = weights.calibration
    log_odds: NDArray[np.float64] = slope * layer_scores(weights, features).mean(axis=1) + intercept
    return log_odds


def save_critic(
    folder: Path,
    weights: ProbeWeights,
    *,
    low: float,
    high: float,
    base_digest: str,
    template_digest: str,
    report: dict[str, Any],
) -> str:
    """Write a critic's two files into a folder, made where it is missing, and return the critic's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = save({name: np.ascontiguousarray(value) for name, value in vars(weights).items()})
    metadata = {
        "format": FORMAT,
        "base_digest": base_digest,
        "template_digest": template_digest,
        "weights_sha256": hashlib.sha256(payload).hexdigest(),
        "low": low,
        "high": high,
        "report": report,
    }
    text = canonical_json(metadata)
    (folder / WEIGHTS_FILE).write_bytes(payload)
    (folder / METADATA_FILE).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load_activation(folder: Path, *, base_digest: str, template_digest: str) -> ActivationCritic:
    """Load a critic that was fitted for this base model and this chat template.

    Raises CriticUnusable where it was fitted for others, or its files are missing or damaged.
    """
    try:
        text = (folder / METADATA_FILE).read_bytes()
        payload = (folder / WEIGHTS_FILE).read_bytes()
        metadata = parse_json(text)
    except (OSError, ValueError) as error:
        raise CriticUnusable(f"the critic in {folder.name} cannot be read: {error}; fit it again") from error
    if metadata.get("format") != FORMAT:
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
        weights = ProbeWeights(**load(payload))
    except (SafetensorError, TypeError) as error:
        raise CriticUnusable(f"the critic in {folder.name} holds other weights: {error}") from error
    digest = hashlib.sha256(text).hexdigest()
    return ActivationCritic(weights, metadata["low"], metadata["high"], digest, metadata)
