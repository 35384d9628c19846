"""What is compared: method, critic and preset. Every arm is a `safety` object that a job could be sent."""

from dataclasses import dataclass, replace
from typing import Literal

from app.domain.safety_spec import (
    PRESETS,
    AdaptiveKL,
    Anchors,
    Antidote,
    AnySafety,
    ConstantCritic,
    ConstrainedSFT,
    Filter,
    FixedKL,
    Lisa,
    NoPenalty,
    SafetyMix,
    Vaccine,
)

CriticName = Literal["good", "weak", "flipped", "oracle", "constant"]

CONSTANT = ConstantCritic(s=0.3)
"""Knows nothing. Below the threshold of a constant critic, so that no row is replayed or dropped by it."""
UNTUNED, PLAIN, DEFAULT = "untuned", "none", "default"


@dataclass(frozen=True)
class Arm:
    """One way to train. `safety` is None for the model as it was."""

    name: str
    safety: AnySafety | None
    critic: CriticName = "good"
    preset: str | None = None
    """The name of the preset that this arm is."""
    at_mean_beta: bool = False
    """Whether beta is to be the mean beta of the default preset's run on the same data."""
    leading: bool = False
    """Whether a bar is about this arm, so that it is run with every seed everywhere."""

    @property
    def method(self) -> str:
        """The method's name on the wire."""
        return UNTUNED if self.safety is None else self.safety.method

    def at_beta(self, beta: float) -> "Arm":
        """The arm with its open beta filled in."""
        if not isinstance(self.safety, FixedKL):
            raise ValueError(f"the arm {self.name} has no fixed beta")
        return replace(self, safety=self.safety.model_copy(update={"beta": beta}))


def _with_critic(arm: Arm, critic: CriticName) -> Arm:
    if arm.safety is None:
        raise ValueError("the untuned model has no critic")
    changes = {"critic": CONSTANT} if critic == "constant" else {}
    return replace(
        arm,
        name=f"{arm.name}, {critic} critic",
        safety=arm.safety.model_copy(update=changes),
        critic=critic,
        preset=None,
        leading=False,
    )


_ANCHORED = Anchors()
_DEFAULT = Arm(DEFAULT, PRESETS["default"], preset="default", leading=True)
_FILTER = Arm("filter + anchors", Filter(), leading=True)
_GRADED = Arm("graded penalty + anchors", AdaptiveKL(replay=False))

UNTUNED_ARM = Arm(UNTUNED, None, leading=True)
MAIN = (
    Arm(PLAIN, NoPenalty(), preset="off", leading=True),
    _DEFAULT,
    Arm("paper", PRESETS["paper"], preset="paper", leading=True),
    Arm("fixed_kl", FixedKL(beta=0.0), at_mean_beta=True, leading=True),
)
"""Run on every regime."""
OTHERS = (
    _FILTER,
    Arm("fixed_kl + anchors", FixedKL(beta=0.0, anchors=_ANCHORED), at_mean_beta=True, leading=True),
    Arm("none + anchors", NoPenalty(anchors=_ANCHORED)),
    Arm("filter", Filter(anchors=None, monitor=None)),
    Arm("replay alone", AdaptiveKL(anchors=None, monitor=None)),
    _GRADED,
    Arm("graded penalty alone", AdaptiveKL(replay=False, anchors=None, monitor=None)),
    Arm("strict", PRESETS["strict"], preset="strict"),
    Arm("constrained_sft", ConstrainedSFT()),
    Arm("vaccine", Vaccine()),
    Arm("lisa", Lisa()),
    Arm("antidote", Antidote()),
    Arm("safety_mix", SafetyMix()),
    _with_critic(_DEFAULT, "weak"),
    _with_critic(_DEFAULT, "flipped"),
    _with_critic(_DEFAULT, "oracle"),
    _with_critic(_DEFAULT, "constant"),
    _with_critic(_FILTER, "weak"),
    _with_critic(_FILTER, "flipped"),
    _with_critic(_GRADED, "weak"),
)
"""Run on the core regimes."""
FULL_ONLY = (
    Arm("threshold schedule", AdaptiveKL(schedule="threshold", replay=False)),
    Arm("reverse KL", AdaptiveKL(penalty="reverse_kl", replay=False)),
    Arm("l2", AdaptiveKL(penalty="l2", replay=False)),
    Arm("paper, smoothed", PRESETS["paper"].model_copy(update={"ema_decay": 0.9})),
    Arm("constrained_sft + anchors", ConstrainedSFT(anchors=_ANCHORED)),
    Arm("safety_mix + anchors", SafetyMix(anchors=_ANCHORED)),
    _with_critic(_FILTER, "oracle"),
    _with_critic(_GRADED, "flipped"),
)
"""Run on the core regimes by FULL=1."""
SWEPT = (PLAIN, DEFAULT, "fixed_kl", "constrained_sft")
"""Arms whose learning rate is varied."""
ARMS = {arm.name: arm for arm in (UNTUNED_ARM, *MAIN, *OTHERS, *FULL_ONLY)}
