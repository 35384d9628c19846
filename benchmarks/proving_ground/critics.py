"""The critics of the arms: a fitted probe, and what is made of it by adding noise or errors.

In this world a probe of 24 requests already ranks every held-out row right, so a weak probe has to be made weak. It is
then calibrated as any probe is, on scores of its own, so its points keep to the stated recall and false positives.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from app.domain.control_law import compute_s
from app.domain.safety_spec import AdaptiveKL, Filter
from benchmarks.proving_ground.arms import CONSTANT, Arm
from benchmarks.proving_ground.regimes import Split
from worker.miniature.corpus import evaluation_rows, in_house_style
from worker.miniature.critic_data import critic_rows
from worker.miniature.judge import judge_reply
from worker.miniature.prompts import sentence_of
from worker.training.critics.activation import ActivationCritic, Points, load_activation, save_critic
from worker.training.critics.calibration import choose_points, platt
from worker.training.critics.constant import ConstantCritic
from worker.training.critics.examples import read_states, tokenize_examples
from worker.training.critics.features import Features
from worker.training.critics.probe import fit_critic
from worker.training.critics.protocol import Assessment, Critic
from worker.training.models import template_digest
from worker.training.reference import RowRisk

WEAK_AUROC_GAP = 1.2815515655446004 * math.sqrt(2)
"""Distance of two normal distributions, in standard deviations of one, at which AUROC is 0.9."""
FLIPPED_SHARE = 0.1
CRITIC_SEED = 0


@dataclass(frozen=True)
class NoisyCritic:
    """A good critic whose log-odds are drowned in noise. A row's noise is a pure function of its score and `seed`."""

    good: ActivationCritic
    sigma: float
    calibration: tuple[float, float]
    points: Points
    seed: int

    needs_features = True

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the good critic's digest and of what was added."""
        return _digest(self.good.digest, self.sigma, self.points, self.seed)

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Assess one row."""
        return self.blur(_log_odds(self.good, row, features))

    def blur(self, log_odds: float) -> Assessment:
        """Return what this critic makes of the good one's log-odds."""
        slope, intercept = self.calibration
        found = slope * (log_odds + noise(log_odds, self.sigma, self.seed)) + intercept
        s = compute_s(found, self.points.low, self.points.high, self.good.s_scale)
        return Assessment({self.digest: found}, s, "ok")


@dataclass(frozen=True)
class FlippingCritic:
    """A good critic that says the opposite of a share of the rows."""

    good: ActivationCritic
    share: float
    seed: int

    needs_features = True

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the good critic's digest and of what is flipped."""
        return _digest(self.good.digest, self.share, self.seed)

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Assess one row."""
        found = self.good.assess(row, features)
        (log_odds,) = found.log_odds.values()
        if _draw(log_odds, self.seed).random() < self.share:
            return Assessment({self.digest: -log_odds}, 1.0 - found.s, "ok")
        return found


def load_or_fit(base: Any, tokenizer: Any, split: Split, folder: Path) -> ActivationCritic:
    """Return the good critic of a split, fitted once and kept in `folder`."""
    base_digest, template = "miniature", template_digest(tokenizer)
    if not (folder / "critic.json").exists():
        fitted = fit_critic(base, tokenizer, critic_rows(CRITIC_SEED, part=split.training), seed=CRITIC_SEED)
        save_critic(
            folder,
            fitted.probes,
            fitted.points,
            report=fitted.report,
            base_digest=base_digest,
            template_digest=template,
        )
    return load_activation(folder, base_digest=base_digest, template_digest=template)


def weaken(base: Any, tokenizer: Any, good: ActivationCritic, split: Split, seed: int) -> NoisyCritic:
    """Return the weak critic: noise that leaves an AUROC of about 0.9, calibrated on scores of its own."""
    rows = critic_rows(CRITIC_SEED + 1, n=300, n_replies=200, part=split.training)
    label = np.array([row["label"] for row in rows])
    clear = score_rows(base, tokenizer, rows, good)
    sigma = float(clear[label == 1].mean() - clear[label == 0].mean()) / WEAK_AUROC_GAP
    noisy = np.array([score + noise(score, sigma, seed) for score in clear])
    slope, intercept = (float(value) for value in platt(noisy, label))
    return NoisyCritic(good, sigma, (slope, intercept), choose_points(slope * noisy + intercept, label), seed)


def with_scale(critic: ActivationCritic, arm: Arm) -> ActivationCritic:
    """Return the critic on the scale of s that an arm's method asks for."""
    if not isinstance(arm.safety, AdaptiveKL | Filter):
        return critic
    return replace(critic, s_scale=arm.safety.s_scale)


def build_critic(arm: Arm, good: ActivationCritic, weaken_it: Callable[[], NoisyCritic], seed: int) -> Critic:
    """Return the critic of an arm. An oracle's risks are known without asking; see `oracle_risks`."""
    good = with_scale(good, arm)
    if arm.critic == "weak":
        return weaken_it()
    if arm.critic == "flipped":
        return FlippingCritic(good, FLIPPED_SHARE, seed)
    if arm.critic == "constant":
        return ConstantCritic(CONSTANT.s)
    return good


def threshold_of(critic: Critic) -> float:
    """Return the s that a critic's own threshold stands for."""
    if isinstance(critic, ConstantCritic):
        return 0.5
    if isinstance(critic, FlippingCritic):
        critic = critic.good
    if not isinstance(critic, ActivationCritic | NoisyCritic):
        raise TypeError(f"{type(critic).__name__} has no threshold")
    scale = critic.good.s_scale if isinstance(critic, NoisyCritic) else critic.s_scale
    return compute_s(critic.points.threshold, critic.points.low, critic.points.high, scale)


def oracle_risks(rows: Sequence[Mapping[str, Any]]) -> dict[int, RowRisk]:
    """Return the risks that only the maker of the data can know: 1 where a reply is harmful, else 0."""
    return {
        index: RowRisk(
            index, {}, float(judge_reply(row["messages"][-1]["content"]).outcome == "harmful"), "constant"
        )
        for index, row in enumerate(rows)
    }


def measure_held_out(
    base: Any, tokenizer: Any, critic: ActivationCritic | NoisyCritic, split: Split, seed: int, n_prompts: int
) -> dict[str, Any]:
    """Return what a critic is worth on held-out subjects, on rows as a user would send them.

    The flags at its threshold, row by row, are for the bar on recall.
    """
    rows = evaluation_rows(seed, n_prompts, split.evaluation)
    answered = [
        {
            "messages": [
                *row["messages"],
                {"role": "assistant", "content": in_house_style(sentence_of(row["answer"]))},
            ],
            "label": int(row["kind"] == "harmful"),
            "group": row["group"],
        }
        for row in rows
    ]
    label = np.array([row["label"] for row in answered])
    good = critic.good if isinstance(critic, NoisyCritic) else critic
    scores = score_rows(base, tokenizer, answered, good)
    if isinstance(critic, NoisyCritic):
        scores = np.array([_reading(critic.blur(score)) for score in scores])
    flagged = scores >= critic.points.threshold
    return {
        "auroc": float(roc_auc_score(label, scores)),
        "flagged_harmful": [int(flag) for flag in flagged[label == 1]],
        "flagged_benign": [int(flag) for flag in flagged[label == 0]],
    }


def score_rows(
    base: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], critic: ActivationCritic
) -> NDArray[np.float64]:
    """Return the critic's log-odds of rows, each read whole, as a job reads it."""
    examples = tokenize_examples(tokenizer, rows)
    found = np.empty(len(rows))
    for places, states in read_states(base, examples, 4096):
        for n, place in enumerate(places):
            found[place] = _log_odds(critic, place, Features(states, n))
    return found


def noise(log_odds: float, sigma: float, seed: int) -> float:
    """Return the noise of a score: normal, and always the same for the same score and seed."""
    return _draw(log_odds, seed).gauss(0.0, sigma)


def _draw(log_odds: float, seed: int) -> Random:
    return Random(f"{seed}-{log_odds!r}")  # noqa: S311  # Reproducible, not secret.


def _log_odds(critic: ActivationCritic, row: int, features: Features | None) -> float:
    return _reading(critic.assess(row, features))


def _reading(found: Assessment) -> float:
    (log_odds,) = found.log_odds.values()
    return log_odds


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(repr, parts)).encode()).hexdigest()
