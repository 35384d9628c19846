"""What a job's safety rests on: its critic and the registered sets of rows, chosen and pinned when it is created."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.critics.repository import get_critic, get_newest_critic, has_fit_under_way
from app.domain.control_law import compute_s, compute_threshold, fitted_ids
from app.domain.rubric import judge_digest
from app.domain.safety_spec import (
    ALIGNMENT_KINDS,
    DEFAULT_CATEGORY,
    ActivationCritic,
    AdaptiveKL,
    Antidote,
    AnyCritic,
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


class Chosen(NamedTuple):
    """A safety object whose every reference is named, and the rows behind the references."""

    safety: AnySafety
    fitted: list[Critic]
    """The fitted critics: activation critics, and what a judge falls back on, in the order in which they are named."""
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
    wanted = safety.critic
    if wanted is None and get_newest_critic(session, base) is not None:
        wanted = ActivationCritic()
    critic = wanted and _pin(session, base, wanted, "safety.critic")
    fitted = list_fitted(session, critic.model_dump() if critic else None)
    anchors = _choose_anchors(session, base, safety)
    alignment = _choose_alignment(session, base, safety)
    pinned: dict[str, object] = {"critic": critic}
    if anchors is not None:
        pinned["anchors"] = safety.anchors and safety.anchors.model_copy(update={"id": anchors.id})
        pinned["monitor"] = safety.monitor and safety.monitor.model_copy(update={"id": anchors.id})
    if alignment is not None:
        pinned["alignment_file"] = alignment.id
    chosen = Chosen(safety.model_copy(update=pinned), fitted, anchors, alignment)
    # A job whose threshold nobody can find must be refused now: later there is nobody to tell.
    automatic_threshold(chosen.safety, fitted)
    return chosen


def automatic_threshold(safety: AnySafety, fitted: Sequence[Critic]) -> float | None:
    """Return the s that `threshold: auto` stands for; None where the method has no threshold or it was given.

    Raises InvalidRequest for a critic from before thresholds were kept.
    """
    if not isinstance(safety, AdaptiveKL | Filter) or safety.threshold != "auto":
        return None
    thresholds: dict[str | None, float] = {
        each.id: compute_s(each.threshold, each.low, each.high, safety.s_scale)
        for each in fitted
        if each.threshold is not None
    }
    try:
        return compute_threshold(safety.critic.model_dump(), thresholds)
    except ValueError as error:
        raise InvalidRequest(f"safety.threshold: {error}", param="safety.threshold") from error


def critic_digest(wanted: AnyCritic, fitted: Sequence[Critic], judge_model: str) -> str:
    """Return the digest by which records name a pinned critic."""
    digests: dict[str | None, str] = {each.id: each.digest for each in fitted}
    if isinstance(wanted, CombinedCritic):
        return wanted.digest([critic_digest(part, fitted, judge_model) for part in wanted.critics])
    if isinstance(wanted, JudgeCritic):
        return judge_digest(wanted.digest(digests.get(wanted.fallback)), judge_model)
    if isinstance(wanted, ConstantCritic):
        return wanted.digest()
    return digests[wanted.id]


def list_fitted(session: Session, pinned: Mapping[str, Any] | None) -> list[Critic]:
    """Return the fitted critics that a pinned critic, in its JSON form, reads with or falls back on, in its order."""
    found = (get_critic(session, each) for each in fitted_ids(pinned) if each is not None)
    return [each for each in found if each is not None]


def _has_judge(wanted: AnyCritic | None) -> bool:
    if isinstance(wanted, CombinedCritic):
        return any(map(_has_judge, wanted.critics))
    return isinstance(wanted, JudgeCritic)


def _pin(session: Session, base: BaseModel, wanted: AnyCritic, field: str) -> AnyCritic:
    """Return the critic with every fitted one in it named. `field` is its path in the request."""
    if isinstance(wanted, CombinedCritic):
        return _pin_parts(session, base, wanted, field)
    if isinstance(wanted, ActivationCritic):
        found = _find_critic(session, base, wanted, field)
        return wanted.model_copy(update={"id": found.id, "category": found.category})
    if isinstance(wanted, JudgeCritic):
        if wanted.fallback is not None:
            _named_critic(session, base, wanted.fallback, field, "fallback")
            return wanted
        newest = get_newest_critic(session, base)
        return wanted.model_copy(update={"fallback": newest.id if newest else None})
    return wanted


def _pin_parts(session: Session, base: BaseModel, wanted: CombinedCritic, field: str) -> CombinedCritic:
    parts: list[AnyCritic] = list(wanted.critics)
    read: dict[str, str] = {}
    for place, part in enumerate(parts):
        if not isinstance(part, ActivationCritic):
            continue
        where = f"{field}.critics[{place}]"
        found = _find_critic(session, base, part, where)
        if found.digest in read:
            raise InvalidRequest(
                f"{where}: {found.id} is the same activation critic as {read[found.digest]}; name each once",
                param=where,
            )
        read[found.digest] = found.id
        parts[place] = part.model_copy(update={"id": found.id, "category": found.category})
    first = next(iter(read.values()), None)
    for place, part in enumerate(parts):
        if isinstance(part, JudgeCritic):
            judge = part if part.fallback else part.model_copy(update={"fallback": first})
            parts[place] = _pin(session, base, judge, f"{field}.critics[{place}]")
    return wanted.model_copy(update={"critics": tuple(parts)})


def _find_critic(session: Session, base: BaseModel, wanted: ActivationCritic, field: str) -> Critic:
    if wanted.id is None:
        category = wanted.category or DEFAULT_CATEGORY
        newest = get_newest_critic(session, base, category)
        if newest is None and has_fit_under_way(session, base):
            raise InvalidRequest(
                f"{field}: the critic of the base model {base.name!r} is still being fitted; ask again when `tether critics"
                " list` says that it succeeded",
                param=field,
                code="critic_not_found",
            )
        if newest is None:
            raise _no_critic(base, field, f"none of the category {category!r} was fitted yet", category)
        return newest
    found = _named_critic(session, base, wanted.id, field, "id")
    if wanted.category not in (None, found.category):
        raise InvalidRequest(
            f"{field}.category: {found.id} is of the category {found.category!r}, not {wanted.category!r}",
            param=f"{field}.category",
        )
    return found


def _named_critic(session: Session, base: BaseModel, critic_id: str, field: str, name: str) -> Critic:
    found = get_critic(session, critic_id)
    if found is None or found.base_digest != base.digest:
        raise _no_critic(base, f"{field}.{name}", f"{critic_id!r} is not one")
    return found


def _no_critic(base: BaseModel, param: str, found: str, category: str = DEFAULT_CATEGORY) -> InvalidRequest:
    option = "" if category == DEFAULT_CATEGORY else f" --category {category}"
    return InvalidRequest(
        f"{param}: the base model {base.name!r} needs an activation critic that was fitted for it, and {found}; fit one"
        f" with: tether critics fit --base {base.name}{option} --data FILE",
        param=param,
        code="critic_not_found",
    )


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
