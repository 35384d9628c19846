"""The control law: a row's risk becomes s, s becomes beta, beta becomes alpha (arXiv 2602.17546, per example).

Plain float64 functions of recorded numbers, so that an offline verifier computes the same bits. `safety` is
everywhere the JSON form of a resolved `app.domain.safety_spec.Safety`, `monitor` that of its `monitor`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

REPLAY_BETA = 0.5
"""KL weight of a row that is trained on the reference's own reply: half NLL, half KL."""
MAX_ANCHOR_FACTOR = 8.0
"""How far the monitor may raise the anchors' weight."""
DEFAULT_THRESHOLD = 0.5
"""The s from which a constant critic or a judge calls a row risky; 3 on the judge's scale from 1 to 5."""
MIN_THRESHOLD = 1e-6
"""Least automatic threshold: where a critic's threshold is its lower point, a row at s = 0 is still not risky."""

WORST_SCORE = 5
"""Of a judge, who grades from 1."""

Treatment = Literal["own", "replay", "drop"]
Votes = Sequence[Sequence[int | None]]
"""Per piece of a text the scores, 1 to 5, that a judge gave it; None for a vote that failed."""
Readings = Mapping[str | None, float]
"""The s of each fitted critic that read a row, by its id; without the others. None stands for one that was not named."""

UNSTEERED = ("none", "filter", "constrained_sft", "vaccine", "lisa", "antidote", "safety_mix")
"""Methods without a KL weight of their own: every beta is the floor's."""


class MonitorState(NamedTuple):
    """What the run-level monitor has done so far."""

    floor: float = 0.0
    """The least beta of every row."""
    anchor_factor: float = 1.0
    """Factor on the weight of the anchors."""


class StepNumbers(NamedTuple):
    """What a step's record says of the user's rows."""

    risk_mean: float | None
    risk_max: float | None
    alpha_mean: float
    alpha_min: float
    beta_mean: float
    beta_max: float


# --- risk -------------------------------------------------------------------------------------------------


def compute_s(log_odds: float, low: float, high: float, scale: str = "points") -> float:
    """Map a critic's calibrated log-odds onto [0, 1].

    Scale "points": linearly between the points `low` and `high`, which are chosen when the critic is fitted, for a
    stated false-positive rate and recall. Scale "probability": the probability itself, 1 / (1 + exp(−log_odds)).
    """
    if not low < high or not math.isfinite(high - low):
        # An infinite span would make inf / inf, which is no number, a risk of 0.
        raise ValueError(f"low ({low}) must be below high ({high}), both finite")
    if math.isnan(log_odds):
        raise ValueError("log_odds is not a number; a critic that fails must say so by its status")
    if scale == "points":
        return min(1.0, max(0.0, (log_odds - low) / (high - low)))
    if scale != "probability":
        raise ValueError(f"unknown s_scale {scale!r}; known: points, probability")
    # exp is taken of a number below 0 only, so that it cannot overflow.
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    power = math.exp(log_odds)
    return power / (1.0 + power)


def compute_judged_s(votes: Votes) -> tuple[float, bool]:
    """Return the s of a row from a judge's votes, and whether they are enough to stand alone.

    A piece has the middle score of its votes, the higher one where two are in the middle; a missing vote counts as the
    worst. Where half of a piece's votes or more are missing it has no score of its own: the highest vote that was
    given still counts, and something else must fill in. The row has the score of its worst piece: s = (score − 1) / 4.
    """
    highest, enough = 1, True
    for piece in votes:
        given = [score for score in piece if score is not None]
        if 2 * len(given) > len(piece):
            score = statistics.median_high(WORST_SCORE if vote is None else vote for vote in piece)
        else:
            score = max(given, default=1)
            enough = False
        highest = max(highest, score)
    return (highest - 1) / 4, enough and bool(votes)


def fitted_ids(critic: Mapping[str, Any] | None) -> tuple[str | None, ...]:
    """Return the ids of the fitted critics that a critic reads with or falls back on, each once, as they come in it."""
    if critic is None:
        return ()
    match critic["type"]:
        case "activation":
            return (critic.get("id"),)
        case "judge":
            return () if critic.get("fallback") is None else (critic["fallback"],)
        case "combined":
            return tuple(dict.fromkeys(each for part in critic["critics"] for each in fitted_ids(part)))
    return ()


def measure_row(critic: Mapping[str, Any], readings: Readings, votes: Votes) -> tuple[str, float]:
    """Return the status and the s that a critic gives a row, from what its parts read there.

    `votes` are the judge's. A judge without enough votes has the higher of the votes that it gave and its fallback's
    s. Raises ValueError where a part could not measure the row: then nobody has.
    """
    kind = critic["type"]
    activation = readings.get(critic.get("fallback" if kind == "judge" else "id"))
    if kind == "constant":
        return "constant", critic["s"]
    if kind == "judge":
        s, enough = compute_judged_s(votes)
        if enough:
            return "judged", s
        if activation is not None:
            return "fallback", max(s, activation)
    if kind == "activation" and activation is not None:
        return "ok", activation
    if kind != "combined":
        raise ValueError(f"the critic {kind} has not measured this row, and nothing fills in")
    found = [measure_row(part, readings, votes) for part in critic["critics"]]
    said = {status for status, _ in found}
    status = next(each for each in ("fallback", "judged", "ok", "constant") if each in said)
    return status, combine_s(critic, [s for _, s in found])


def compute_threshold(critic: Mapping[str, Any], thresholds: Readings) -> float:
    """Return the s that `threshold: auto` stands for under a critic, the JSON form of `safety_spec.Critic`.

    `thresholds` has that of each fitted critic, by `compute_s` of its own threshold. Combined critics have the
    lowest of their parts by the rule max, and the weighted sum by the rule weighted.
    """
    kind = critic["type"]
    if kind == "activation":
        activation = thresholds.get(critic.get("id"))
        if activation is None:
            raise ValueError(
                "the activation critic has no threshold of its own; fit it anew or give safety.threshold"
            )
        return max(activation, MIN_THRESHOLD)
    if kind in ("constant", "judge"):
        return DEFAULT_THRESHOLD
    if kind != "combined":
        raise ValueError(f"unknown critic {kind!r}; known: activation, constant, judge, combined")
    parts = [compute_threshold(part, thresholds) for part in critic["critics"]]
    return min(parts) if critic["rule"] == "max" else _weighted(critic["weights"], parts)


def combine_s(critic: Mapping[str, Any], parts: Sequence[float]) -> float:
    """Return the s of a row from those that a combined critic's parts gave it, in their order."""
    if len(parts) != len(critic["critics"]):
        raise ValueError(f"{len(parts)} parts for {len(critic['critics'])} critics")
    return max(parts) if critic["rule"] == "max" else _weighted(critic["weights"], parts)


def _weighted(weights: Sequence[float], parts: Sequence[float]) -> float:
    if len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights for {len(parts)} critics")
    # The weights sum to 1 but for rounding.
    return min(1.0, math.fsum(w * s for w, s in zip(weights, parts, strict=True)))


def compute_treatment(safety: Mapping[str, Any], s: float | None) -> Treatment:
    """Return what becomes of a row: trained on as it is, on the reference's own reply, or not at all."""
    method = safety["method"]
    if method == "filter":
        return "drop" if _measured(method, s) >= safety["threshold"] else "own"
    # A record from before there was replay has no such field.
    if method == "adaptive_kl" and safety.get("replay"):
        return "replay" if _measured(method, s) >= safety["threshold"] else "own"
    return "own"


# --- weights ----------------------------------------------------------------------------------------------


def compute_beta(
    s: float,
    *,
    beta_min: float,
    beta_max: float,
    schedule: str = "linear",
    threshold: float = DEFAULT_THRESHOLD,
    floor: float = 0.0,
) -> float:
    """Return the KL weight of a row: linear in s, or beta_max at and above `threshold`; never below `floor`."""
    if not 0.0 <= s <= 1.0:
        raise ValueError(f"s is {s}, outside [0, 1]")
    if schedule == "linear":
        beta = beta_min + (beta_max - beta_min) * s
    elif schedule == "threshold":
        beta = beta_max if s >= threshold else beta_min
    else:
        raise ValueError(f"unknown schedule {schedule!r}; known: linear, threshold")
    return raise_to_floor(beta, floor)


def raise_to_floor(beta: float, floor: float) -> float:
    """Return beta, or the run-level floor where that is higher. A floor that is not a number is refused."""
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"the floor is {floor}, outside [0, 1]")
    return max(beta, floor)


def compute_alpha(beta: float) -> float:
    """Return the weight of the task loss: alpha = 1 − beta."""
    return 1.0 - beta


def raise_s(s: float | None, live: float | None) -> float | None:
    """Return the s that steers: the higher one of that from before training and a live judge's, where it has one."""
    return s if s is None or live is None else max(s, live)


def compute_row_beta(
    safety: Mapping[str, Any], s: float | None, floor: float = 0.0, live: float | None = None
) -> float:
    """Return the KL weight of a row that stands for itself: every method but adaptive_kl with the scope batch.

    `s` is None where nothing measured it, which only the methods that do not steer by it allow. A row whose `s` has
    it replayed has REPLAY_BETA, whatever a live judge says of it since; to any other row `live` is a higher s.
    """
    method = safety["method"]
    if method in UNSTEERED:
        return raise_to_floor(0.0, floor)
    if method == "fixed_kl":
        return raise_to_floor(float(safety["beta"]), floor)
    if method != "adaptive_kl":
        raise ValueError(f"unknown method {method!r}; known: adaptive_kl, fixed_kl, {', '.join(UNSTEERED)}")
    if compute_treatment(safety, s) == "replay":
        return raise_to_floor(REPLAY_BETA, floor)
    return compute_beta(
        _measured(method, raise_s(s, live)),
        beta_min=safety["beta_min"],
        beta_max=safety["beta_max"],
        schedule=safety["schedule"],
        threshold=safety["threshold"],
        floor=floor,
    )


def compute_row_betas(
    safety: Mapping[str, Any],
    s_values: Sequence[float | None],
    floor: float = 0.0,
    smoothed: float | None = None,
    live: Sequence[float | None] = (),
) -> tuple[tuple[float, ...], float | None]:
    """Return the KL weight of each row of a step, and the smoothed s after it (None but for the scope batch).

    `live` has what a live judge has said of each row, None where it has said nothing; without one it is empty.
    Under the scope batch s_t is the mean of the rows' s, `smoothed` that of the step before (None before the first),
    and every row has the beta of `ema_decay·smoothed + (1 − ema_decay)·s_t`.
    """
    pairs = list(zip(s_values, live or [None] * len(s_values), strict=True))
    if not s_values or safety["method"] != "adaptive_kl" or safety.get("scope") != "batch":
        return tuple(compute_row_beta(safety, s, floor, since) for s, since in pairs), None
    after = mean([_measured("adaptive_kl", raise_s(s, since)) for s, since in pairs])
    decay = float(safety["ema_decay"])
    if smoothed is not None and decay > 0:
        after = min(1.0, decay * smoothed + (1.0 - decay) * after)
    return (compute_row_beta(safety, after, floor),) * len(s_values), after


def summarise_step(s_values: Sequence[float | None], betas: Sequence[float]) -> StepNumbers:
    """Return what a step's record says of the user's rows, from their s and their betas (`compute_row_betas`).

    Risks are None unless every row was measured. A step of alignment data alone has alpha 1 and beta 0.
    """
    betas = betas or (0.0,)
    alphas = [compute_alpha(beta) for beta in betas]
    known = [s for s in s_values if s is not None]
    measured = bool(known) and len(known) == len(s_values)
    return StepNumbers(
        risk_mean=mean(known) if measured else None,
        risk_max=max(known) if measured else None,
        alpha_mean=mean(alphas),
        alpha_min=min(alphas),
        beta_mean=mean(betas),
        beta_max=max(betas),
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean by exact summation, so that the order of the values does not matter."""
    return math.fsum(values) / len(values)


def _measured(method: str, s: float | None) -> float:
    if s is None:
        raise ValueError(f"{method} needs the s of every row")
    return s


# --- the run ----------------------------------------------------------------------------------------------


def compute_monitor_state(monitor: Mapping[str, Any], kl: float, before: MonitorState) -> MonitorState:
    """Return the state after a measurement of the drift: the KL to the reference on prompts kept apart, in nats.

    Beyond the limit, or where the KL is no finite number, the monitor acts; back within it, it takes that back: the
    floor at once, the anchors' factor by halves. A pause is no part of the state: it is for the job as a whole.
    """
    too_much = is_too_much(monitor, kl)
    action = monitor["action"]
    if action in ("warn", "pause"):
        return before
    if action == "anchors":
        factor = before.anchor_factor
        factor = min(MAX_ANCHOR_FACTOR, 2.0 * factor) if too_much else max(1.0, factor / 2.0)
        return before._replace(anchor_factor=factor)
    if action == "floor":
        return before._replace(floor=float(monitor["floor"]) if too_much else 0.0)
    raise ValueError(f"unknown action {action!r}; known: warn, anchors, floor, pause")


def is_too_much(monitor: Mapping[str, Any], kl: float) -> bool:
    """Tell whether a measured drift is beyond the monitor's limit. No finite number is."""
    return not math.isfinite(kl) or kl > monitor["limit"]


def compute_anchor_weight(safety: Mapping[str, Any], state: MonitorState) -> float:
    """Return the weight of the anchors' KL in a step: 0 without anchors."""
    anchors = safety.get("anchors")
    return 0.0 if anchors is None else float(anchors["weight"]) * state.anchor_factor


def is_protected(safety: Mapping[str, Any]) -> bool:
    """Tell whether anything in a `safety` holds the model to what it was.

    Without anchors the method `none` does not, nor does `filter`, because harmless rows wear refusals away too, nor a
    penalty whose weight is never above 0. Where the s of every row is known beforehand, the law says what that weight is.
    """
    if safety.get("anchors") is not None:
        return True
    method = safety.get("method")
    if method == "fixed_kl":
        return safety.get("beta") != 0
    if method == "adaptive_kl":
        s = _constant_s(safety.get("critic") or {})
        if s is None:
            return safety.get("beta_max") != 0 or bool(safety.get("replay"))
        threshold = safety["threshold"]
        if threshold in (None, "auto"):
            threshold = compute_threshold(safety["critic"], {})
        # A replayed row has a beta above 0 too.
        return compute_row_beta({**safety, "threshold": threshold}, s) > 0
    return method not in ("none", "filter")


def _constant_s(critic: Mapping[str, Any]) -> float | None:
    """Return the s that a critic gives every row; None where it looks at the rows."""
    if critic.get("type") == "constant":
        return float(critic["s"])
    parts = [_constant_s(part) for part in critic.get("critics", ())]
    known = [s for s in parts if s is not None]
    return combine_s(critic, known) if known and len(known) == len(parts) else None
