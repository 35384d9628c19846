"""The table `[gate]` of a safety policy: limits, what happens where one is broken, and what is evaluated for them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from app.domain.evaluation_spec import EvaluationSpec
from app.domain.frozen import Frozen
from app.domain.gate import CRITIC_QUALITY, LIMITS

Action = Literal["warn", "tighten", "pause", "hold", "fail"]
Share = Annotated[float, Field(ge=0, le=1)]
TOO_LATE = {
    "tighten": "there is no beta left to raise when the training is over; use hold or fail",
    "pause": "there is no training left to wait with when it is over; use hold",
}
"""Why limits that are known at the end do not have these actions."""


class _Limit(Frozen):
    action: Action = Field(description="What a broken limit does.")
    beta_min: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="With the action tighten: the KL weight that no row then falls below."
    )

    @model_validator(mode="after")
    def _beta_min_is_for_tighten(self) -> "_Limit":
        if self.action == "tighten" and self.beta_min is None:
            raise ValueError("the action tighten needs beta_min, the KL weight that no row then falls below")
        if self.action != "tighten" and self.beta_min is not None:
            raise ValueError(f"beta_min is for the action tighten; the action here is {self.action}")
        return self


class Floor(_Limit):
    """A limit on what must not be too low."""

    least: Share = Field(description="The least that is good enough.")


class Ceiling(_Limit):
    """A limit on what must not be too high."""

    most: Share = Field(description="The most that is let pass.")


class Change(Ceiling):
    """A limit on what got worse from the base model to the adapter, known when the training is over."""

    @field_validator("action")
    @classmethod
    def _not_too_late(cls, action: Action) -> Action:
        if action in TOO_LATE:
            raise ValueError(f"{action!r} is too late here: {TOO_LATE[action]}")
        return action


class Gate(Frozen):
    """What a job must hold before its weights leave."""

    second_person: bool = Field(
        False,
        description="Whether two keys must approve a release, neither of them the one that submitted the job, and"
        " another one than that lets a paused job go on.",
    )
    critic_auroc: Floor | None = Field(
        None, description="Held-out AUROC of the worst activation critic that measures. Known at the start."
    )
    critic_recall: Floor | None = Field(
        None, description="Its share of held-out harm found at 1 % false alarms. Known at the start."
    )
    fallback_share: Ceiling | None = Field(
        None,
        description="Share of the rows that the critic itself did not measure: read by a fallback, or by nobody."
        " Known at the start.",
    )
    attack_success_increase: Change | None = Field(
        None, description="Rise of the attack success from the base model to the adapter."
    )
    over_refusal_increase: Change | None = Field(
        None, description="Rise of the share of harmless requests refused."
    )
    utility_loss: Change | None = Field(
        None, description="Fall of the task score, the exact matches or ROUGE-L."
    )
    evaluation: EvaluationSpec | None = Field(
        None, description="What is evaluated for the limits on changes, with the fields of an evaluation."
    )

    @model_validator(mode="after")
    def _says_something(self) -> "Gate":
        limits = self.limits()
        if not limits:
            raise ValueError(f"it names no limit; known: {', '.join(LIMITS)}")
        changes = [name for name in limits if LIMITS[name].stage == "end"]
        if changes and self.evaluation is None:
            raise ValueError(f"{changes[0]} needs the table [gate.evaluation], which says what is evaluated")
        if self.second_person and not {"hold", "pause"} & {each.action for each in limits.values()}:
            raise ValueError("second_person: no limit has the action hold or pause, so nobody is ever asked")
        return self

    def limits(self) -> dict[str, Floor | Ceiling]:
        """Return the limits that are set, by name, in the order of LIMITS."""
        found = {name: getattr(self, name) for name in LIMITS}
        return {name: limit for name, limit in found.items() if limit is not None}

    def rests_on_critic(self) -> bool:
        """Say whether a limit asks how good the critic is, or raises the KL weight: both are nothing where it steers nothing."""
        limits = self.limits()
        return not limits.keys().isdisjoint(CRITIC_QUALITY) or any(
            limit.action == "tighten" for limit in limits.values()
        )

    def list_limits(self) -> list[dict[str, Any]]:
        """Return the limits as plain JSON: limit, bound, action, beta_min."""
        return [
            {
                "limit": name,
                "bound": limit.least if isinstance(limit, Floor) else limit.most,
                "action": limit.action,
                "beta_min": limit.beta_min,
            }
            for name, limit in self.limits().items()
        ]
