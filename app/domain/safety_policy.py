"""The operator's safety policy: which methods a request may ask for, the floors under beta, and the gate."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from app.domain.frozen import Frozen
from app.domain.gate_policy import Gate
from app.domain.row_risks import Visibility
from app.domain.safety_spec import (
    ActivationCritic,
    AdaptiveKL,
    Anchors,
    AnySafety,
    Category,
    CombinedCritic,
    Critic,
    Filter,
    FixedKL,
    beta_range,
)
from app.errors import ConfigurationError, PolicyViolation

Method = Literal[
    "adaptive_kl",
    "fixed_kl",
    "none",
    "filter",
    "constrained_sft",
    "vaccine",
    "lisa",
    "antidote",
    "safety_mix",
]
CriticType = Literal["activation", "judge", "constant", "combined"]
METHODS: tuple[Method, ...] = get_args(Method)
CRITIC_TYPES: tuple[CriticType, ...] = get_args(CriticType)


class SafetyPolicy(Frozen):
    """The smallest protection that a request may ask for, and what a job must hold before its weights leave."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="What the policy is called.")
    version: int = Field(
        1,
        ge=1,
        lt=2**31,
        strict=True,
        description="Counted up by whoever changes it: a name and a version stand for one content.",
    )
    methods: tuple[Method, ...] = Field(METHODS, description="Methods that a request may name.")
    beta_min_floor: float = Field(0.0, ge=0, le=1, description="Least KL weight of a row without risk.")
    beta_max_floor: float = Field(0.0, ge=0, le=1, description="Least KL weight of the riskiest row.")
    critic_types: tuple[CriticType, ...] = Field(
        CRITIC_TYPES, description="Critics that may steer, alone or as parts of a combined one."
    )
    category_weights: dict[Category, Annotated[float, Field(gt=0, le=1)]] = Field(
        {},
        description="Harm categories whose activation critic must steer, and the least weight of each where critics are"
        " weighed. Alone and by the rule max a critic has the weight 1.",
    )
    risk_visibility: Visibility = Field(
        "bucketed",
        description="What reports show of the risks of single rows: `full` (exact scores), `bucketed` (fifths of the scale),"
        " or `none`. Exact scores tell an attacker how to stay below the critic; a job's own record is exact, so that it"
        " can be verified.",
    )
    anchors_required: bool = Field(
        False,
        description="Whether every job must have anchors, with no less than their default `weight` and `per_step`.",
    )
    gate: Gate | None = Field(
        None,
        description="What a job must hold before its weights leave: the table `[gate]` of [gate.md](gate.md).",
    )

    @model_validator(mode="after")
    def _tightening_tightens(self) -> "SafetyPolicy":
        for name, limit in (self.gate.limits() if self.gate else {}).items():
            if limit.beta_min is not None and limit.beta_min <= self.beta_min_floor:
                raise ValueError(
                    f"gate.{name}.beta_min is {limit.beta_min:g}, which beta_min_floor = {self.beta_min_floor:g} demands"
                    " of every job anyway"
                )
        return self

    def check(self, safety: AnySafety) -> None:
        """Raise PolicyViolation, naming the field, where the request asks for less than this policy demands."""
        if safety.method not in self.methods:
            raise PolicyViolation(
                f"the operator's policy does not allow the method {safety.method!r};"
                f" allowed: {', '.join(self.methods)}",
                param="safety.method",
            )
        if isinstance(safety, AdaptiveKL | Filter):
            critic = safety.critic
            self._check_critic(critic.type, "safety.critic.type")
            for part in critic.critics if isinstance(critic, CombinedCritic) else ():
                self._check_critic(part.type, "safety.critic.critics")
        if self.anchors_required:
            _check_anchors(safety.anchors)
        if not isinstance(safety, AdaptiveKL | FixedKL):
            if max(self.beta_min_floor, self.beta_max_floor) > 0:
                raise PolicyViolation(
                    f"the method {safety.method!r} has no KL penalty, and the operator's policy demands one",
                    param="safety.method",
                )
            return
        least, greatest = beta_range(safety)
        names = ("beta_min", "beta_max") if isinstance(safety, AdaptiveKL) else ("beta", "beta")
        for name, value, floor in (
            (names[0], least, self.beta_min_floor),
            (names[1], greatest, self.beta_max_floor),
        ):
            if value < floor:
                raise PolicyViolation(
                    f"{name} is {value:g}; the operator's policy demands at least {floor:g}",
                    param=f"safety.{name}",
                )
        if max(self.beta_min_floor, self.beta_max_floor) > 0:
            _check_penalty(safety)
            if isinstance(safety, AdaptiveKL):
                _check_risky_rows_reach(safety)
                self._check_weights_are_bounded(safety)
        elif self.gate is not None and self.gate.rests_on_critic():
            _check_penalty(safety)
            if isinstance(safety, AdaptiveKL):
                self._check_weights_are_bounded(safety)

    def check_categories(self, safety: AnySafety) -> None:
        """Raise PolicyViolation where a category that this policy demands does not steer, or weighs too little.

        `safety` has its critics pinned, because only the fitted critic tells its category.
        """
        if not isinstance(safety, AdaptiveKL | Filter):
            return
        weights = _weights_of(safety.critic)
        for category, demanded in self.category_weights.items():
            found = [weight for part, weight in weights if part.category == category]
            if not found:
                raise PolicyViolation(
                    f"no activation critic of the category {category!r} steers; the operator's policy demands one:"
                    f' add {{"type": "activation", "category": "{category}"}} to the parts of a combined critic',
                    param="safety.critic",
                )
            if max(found) < demanded:
                raise PolicyViolation(
                    f"the weight of the category {category!r} is {max(found):g}; the operator's policy demands at least"
                    f" {demanded:g}",
                    param="safety.critic.weights",
                )

    def _check_critic(self, kind: CriticType, param: str) -> None:
        if kind not in self.critic_types:
            raise PolicyViolation(
                f"the operator's policy does not allow the critic {kind!r}; allowed: {', '.join(self.critic_types)}",
                param=param,
            )

    def _check_weights_are_bounded(self, safety: AdaptiveKL) -> None:
        """Refuse weights that nobody has set a floor to: 0.01 beside a constant would switch a critic off."""
        critic = safety.critic
        if isinstance(critic, CombinedCritic) and critic.rule == "weighted" and not self.category_weights:
            raise PolicyViolation(
                "rule is 'weighted'; the operator's policy demands that risky rows get their KL weight, by a floor or by"
                " its gate, and sets no floor to the weights of critics, and so allows only 'max'",
                param="safety.critic.rule",
            )


def _weights_of(critic: Critic) -> list[tuple[ActivationCritic, float]]:
    """Return the activation critics in a critic, each with its share of s; by the rule max each has all of it."""
    parts = critic.critics if isinstance(critic, CombinedCritic) else (critic,)
    weights = critic.weights if isinstance(critic, CombinedCritic) else None
    return [
        (part, weight)
        for part, weight in zip(parts, weights or (1.0,) * len(parts), strict=True)
        if isinstance(part, ActivationCritic)
    ]


def _check_anchors(anchors: Anchors | None) -> None:
    if anchors is None:
        raise PolicyViolation(
            "anchors is null or left out; the operator's policy demands anchors", param="safety.anchors"
        )
    least = Anchors()
    for name in ("weight", "per_step"):
        found, demanded = getattr(anchors, name), getattr(least, name)
        if found < demanded:
            raise PolicyViolation(
                f"anchors.{name} is {found:g}; the operator's policy demands at least {demanded:g}",
                param=f"safety.anchors.{name}",
            )


def _check_penalty(safety: AdaptiveKL | FixedKL) -> None:
    # A weight of the KL divergence says nothing of a penalty in the units of hidden states.
    if safety.penalty == "l2":
        raise PolicyViolation(
            "penalty is 'l2'; the operator's policy demands a KL penalty: 'forward_kl' or 'reverse_kl'",
            param="safety.penalty",
        )


def _check_risky_rows_reach(safety: AdaptiveKL) -> None:
    """Refuse what keeps beta_max from a risky row: a floor under a weight that no row gets protects nothing."""
    # ema_decay comes before the scope, without which it cannot be sent.
    demanded = (("threshold", "auto"), ("s_scale", "points"), ("ema_decay", 0.0), ("scope", "example"))
    for name, value in demanded:
        found = getattr(safety, name)
        if found != value:
            raise PolicyViolation(
                f"{name} is {_show(found)}; the operator's policy demands that risky rows get their KL weight, and so"
                f" allows only {_show(value)}",
                param=f"safety.{name}",
            )


def _show(value: str | float) -> str:
    return f"{value:.10g}" if isinstance(value, float) else repr(value)


Format = Literal["toml", "json"]
"""In which form a policy is written."""


def parse_policy(content: bytes, written_in: Format = "toml") -> SafetyPolicy:
    """Return the policy that a file holds. Raises ValueError, naming the field, where it is none."""
    try:
        read = tomllib.loads if written_in == "toml" else json.loads
        return SafetyPolicy.model_validate(read(content.decode("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{field}: {message}" if field else message) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read: {error}") from error


def digest_policy(content: bytes) -> str:
    """Return the SHA-256 of a policy's bytes, by which records name it."""
    return hashlib.sha256(content).hexdigest()


def read_policy_file(path: Path | None) -> bytes:
    """Return the bytes of a policy file; None is the shipped policy. Raises ConfigurationError where it cannot be read."""
    path = path or Path(__file__).with_name("safety_policy.toml")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the policy file {path} cannot be read: {error}") from error


def load_policy(path: Path | None) -> tuple[SafetyPolicy, str]:
    """Read a policy file (TOML) and return it with the SHA-256 of its bytes. None is the shipped policy."""
    content = read_policy_file(path)
    try:
        return parse_policy(content), digest_policy(content)
    except ValueError as error:
        raise ConfigurationError(f"the policy file {path}: {error}") from None
