"""What a job's safety rests on: its critic and the registered sets of rows, chosen and pinned when it is created."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from app.critics.repository import get_critic, get_newest_critic
from app.domain.control_law import compute_s, compute_threshold
from app.domain.rubric import judge_digest
from app.domain.safety_spec import (
    ALIGNMENT_KINDS,
    ActivationCritic,
    AdaptiveKL,
    Antidote,
    AnySafety,
    CombinedCritic,
    ConstantCritic,
    Filter,
    JudgeCritic,
    Lisa,
    SafetyMix,
    Vaccine,
)
from app.errors import InvalidRequest
from app.models.base_model import BaseModel, Critic
from app.models.safety_set import SafetySet
from app.safety_sets.repository import get_newest_set, get_set
from app.safety_sets.service import how_to_register_anchors

AnyCritic = ActivationCritic | JudgeCritic | ConstantCritic | CombinedCritic


class Chosen(NamedTuple):
    """A safety object whose every reference is named, and the rows behind the references."""

    safety: AnySafety
    critic: Critic | None
    """The fitted critic: the activation critic, or the judge's fallback."""
    anchors: SafetySet | None
    alignment: SafetySet | None
    """Safe demonstrations or harmful rows, as the method needs them."""


def choose(session: Session, base: BaseModel, safety: AnySafety, judge_model: str) -> Chosen:
    """Choose what a request left open and pin it. Raises InvalidRequest, naming the field, for what is not there.

    `judge_model` is the operator's judge, "" where there is none.
    """
    if _has_judge(safety.critic) and not judge_model:
        raise InvalidRequest(
            "safety.critic: this installation has no judge; choose another critic, or have the operator set"
            " TETHER_JUDGE_URL and TETHER_JUDGE_MODEL",
            param="safety.critic",
            code="judge_not_configured",
        )
    newest = get_newest_critic(session, base)
    wanted = safety.critic
    if wanted is None and newest is not None:
        wanted = ActivationCritic()
    critic = _choose_critic(session, base, wanted, newest)
    anchors = _choose_anchors(session, base, safety)
    alignment = _choose_alignment(session, base, safety)
    pinned: dict[str, object] = {"critic": wanted and _pin(wanted, critic)}
    if anchors is not None:
        pinned["anchors"] = safety.anchors and safety.anchors.model_copy(update={"id": anchors.id})
        pinned["monitor"] = safety.monitor and safety.monitor.model_copy(update={"id": anchors.id})
    if alignment is not None:
        pinned["alignment_file"] = alignment.id
    chosen = Chosen(safety.model_copy(update=pinned), critic, anchors, alignment)
    # A job whose threshold nobody can find must be refused now: later there is nobody to tell.
    automatic_threshold(chosen.safety, critic)
    return chosen


def automatic_threshold(safety: AnySafety, critic: Critic | None) -> float | None:
    """Return the s that `threshold: auto` stands for; None where the method has no threshold or it was given.

    Raises InvalidRequest for a critic from before thresholds were kept.
    """
    if not isinstance(safety, AdaptiveKL | Filter) or safety.threshold != "auto":
        return None
    activation = None
    if critic is not None and critic.threshold is not None:
        activation = compute_s(critic.threshold, critic.low, critic.high, safety.s_scale)
    try:
        return compute_threshold(safety.critic.model_dump(), activation)
    except ValueError as error:
        raise InvalidRequest(f"safety.threshold: {error}", param="safety.threshold") from error


def critic_digest(wanted: AnyCritic, critic: Critic | None, judge_model: str) -> str:
    """Return the digest by which records name a pinned critic."""
    fitted = critic.digest if critic else None
    if isinstance(wanted, CombinedCritic):
        return wanted.digest([critic_digest(part, critic, judge_model) for part in wanted.critics])
    if isinstance(wanted, JudgeCritic):
        return judge_digest(wanted.digest(fitted), judge_model)
    if isinstance(wanted, ConstantCritic):
        return wanted.digest()
    if fitted is None:
        raise ValueError("an activation critic was pinned without its row")
    return fitted


def _has_judge(wanted: AnyCritic | None) -> bool:
    if isinstance(wanted, CombinedCritic):
        return any(map(_has_judge, wanted.critics))
    return isinstance(wanted, JudgeCritic)


def _choose_critic(
    session: Session, base: BaseModel, wanted: AnyCritic | None, newest: Critic | None
) -> Critic | None:
    parts = wanted.critics if isinstance(wanted, CombinedCritic) else (wanted,)
    is_needed = any(isinstance(part, ActivationCritic) for part in parts)
    named = {
        value: f"safety.critic.{'critics' if len(parts) > 1 else field}"
        for part in parts
        for field, value in (
            ("id", part.id if isinstance(part, ActivationCritic) else None),
            ("fallback", part.fallback if isinstance(part, JudgeCritic) else None),
        )
        if value is not None
    }
    if len(named) > 1:
        raise InvalidRequest(
            f"safety.critic.critics: {' and '.join(sorted(named))} are two; a job has one activation critic",
            param="safety.critic.critics",
        )
    if not named:
        if is_needed and newest is None:
            raise _no_critic(base, "safety.critic", "none was fitted yet")
        return newest if is_needed or _has_judge(wanted) else None
    ((critic_id, param),) = named.items()
    critic = get_critic(session, critic_id)
    if critic is None or critic.base_digest != base.digest:
        raise _no_critic(base, param, f"{critic_id!r} is not one")
    return critic


def _no_critic(base: BaseModel, param: str, found: str) -> InvalidRequest:
    return InvalidRequest(
        f"safety.critic: the base model {base.name!r} needs an activation critic that was fitted for it, and"
        f" {found}; fit one with: tether critics fit --base {base.name} --data FILE",
        param=param,
        code="critic_not_found",
    )


def _pin(wanted: AnyCritic, critic: Critic | None) -> AnyCritic:
    """Return the critic with the fitted one named wherever it is used."""
    name = critic.id if critic else None
    if isinstance(wanted, CombinedCritic):
        return wanted.model_copy(update={"critics": tuple(_pin(part, critic) for part in wanted.critics)})
    if isinstance(wanted, JudgeCritic):
        return wanted.model_copy(update={"fallback": name})
    if isinstance(wanted, ActivationCritic):
        return wanted.model_copy(update={"id": name})
    return wanted


def _choose_anchors(session: Session, base: BaseModel, safety: AnySafety) -> SafetySet | None:
    if safety.anchors is None and safety.monitor is None:
        return None
    fields = {"anchors": safety.anchors, "monitor": safety.monitor}
    there = {name: each.id for name, each in fields.items() if each is not None}
    # The object that names a set; where none does, the first that needs one.
    field, wanted = next(((name, each) for name, each in there.items() if each), (next(iter(there)), None))
    mend = how_to_register_anchors(base)
    return _choose_set(session, base, "anchors", wanted, f"safety.{field}", ".id", mend)


def _choose_alignment(session: Session, base: BaseModel, safety: AnySafety) -> SafetySet | None:
    if not isinstance(safety, Vaccine | Lisa | Antidote | SafetyMix):
        return None
    kind, wanted = ALIGNMENT_KINDS[safety.method], safety.alignment_file
    option = "safe" if kind == "alignment" else kind
    mend = f"register one with: tether alignment add --base {base.name} --kind {option} --data FILE"
    return _choose_set(session, base, kind, wanted, "safety.alignment_file", "", mend)


def _choose_set(
    session: Session, base: BaseModel, kind: str, wanted: str | None, field: str, suffix: str, mend: str
) -> SafetySet:
    found = get_newest_set(session, base, kind) if wanted is None else get_set(session, wanted)
    if found is None or (found.base_model, found.kind) != (base.name, kind):
        what = "none is registered" if wanted is None else f"{wanted!r} is not one"
        raise InvalidRequest(
            f"{field}: the base model {base.name!r} needs a set of kind {kind!r}, and {what}; {mend}",
            param=field if wanted is None else field + suffix,
            code="safety_set_not_found",
        )
    return found
