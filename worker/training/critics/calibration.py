"""From held-out scores to log-odds, to the points where they become decisions, and to what a critic is worth.

Nothing here is tuned by hand: the points follow from a stated recall and a stated false-positive rate. Every share
comes with the number of rows it was counted on, because at one per cent few rows decide.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from worker.training.critics.activation import Points

TARGET_FPR = 0.01
TARGET_RECALL = 0.99
MIN_WIDTH = 1.0
"""The least distance of `low` and `high`, in nats, so that s never becomes a step."""
BINS = 10
CONFIDENCE_Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
PLATT_STEPS = 100
PLATT_TOLERANCE = 1e-10

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def platt(score: Array, label: Labels) -> Array:
    """Return slope and intercept of Platt scaling (1999), (2,), by Newton's method with halved steps (Lin et al., 2007).

    His targets (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2) keep the slope finite where the labels separate. A slope below 0 is
    given as 0: scores that fall with harm say nothing.
    """
    n_positive = int(label.sum())
    n_negative = len(label) - n_positive
    target = np.where(label == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    base_rate = math.log(target.sum() / (len(target) - target.sum()))
    centre, spread = score.mean(), float(score.std())
    if spread == 0:
        return np.array([0.0, base_rate])
    inputs = np.stack([(score - centre) / spread, np.ones(len(score))], axis=1)

    def objective(parameters: Array) -> float:
        odds = inputs @ parameters
        return float((np.logaddexp(0.0, odds) - target * odds).sum())

    found = np.array([0.0, base_rate])
    for _ in range(PLATT_STEPS):
        probability = to_probability(inputs @ found)
        gradient = inputs.T @ (probability - target)
        if np.abs(gradient).max() < PLATT_TOLERANCE * len(label):
            break
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        before, size = objective(found), 1.0
        while size > PLATT_TOLERANCE and objective(found - size * step) > before:
            size /= 2
        found = found - size * step
    slope = float(found[0]) / spread
    if slope <= 0:
        return np.array([0.0, base_rate])
    return np.array([slope, float(found[1]) - slope * centre])


def apply_platt(calibration: Array, score: Array) -> Array:
    """Return log-odds of scores; a score of −inf, where there was nothing to read, stays what it is."""
    return np.where(
        np.isneginf(score),
        -np.inf,
        calibration[0] * np.where(np.isneginf(score), 0.0, score) + calibration[1],
    )


def cross_calibrate(score: Array, label: Labels, folds: Labels, own: NDArray[np.bool_]) -> Array:
    """Return log-odds of held-out scores, each fold calibrated on the rows of `own` in the other folds."""
    log_odds = np.empty(len(score))
    for fold in np.unique(folds):
        held_out = folds == fold
        calibration = platt(score[~held_out & own], label[~held_out & own])
        log_odds[held_out] = apply_platt(calibration, score[held_out])
    return log_odds


def to_probability(log_odds: Array) -> Array:
    """Return 1 / (1 + exp(−log_odds)), which overflows nowhere."""
    probability: Array = 0.5 * (1.0 + np.tanh(log_odds / 2))
    return probability


def choose_points(log_odds: Array, label: Labels, kind: NDArray[Any] | None = None) -> Points:
    """Return the points from held-out log-odds.

    `low` is the least log-odds that at most 1 % of the benign rows exceed, `high` the greatest that 99 % of the
    harmful ones reach, so that with a good probe nearly every benign row has s = 0 and nearly every harmful one
    s = 1. The threshold then lies halfway. Where the two cross because the probe is weak they change places: 99 % of
    the harmful rows still have s > 0, what lies in the overlap is graded, and the threshold is the false-positive
    point. `low` and `high` are at least 1 nat apart. At or above the threshold are at most 1 % of the benign rows.

    `kind` tells apart rows that are scored at different places; each kind must keep to both targets by itself.
    """
    kind = np.zeros(len(label)) if kind is None else kind
    each = [kind == one for one in np.unique(kind)]
    few_benign = max(benign_point(log_odds[of & (label == 0)]) for of in each if (of & (label == 0)).any())
    most_harmful = min(
        _harmful_point(log_odds[of & (label == 1)]) for of in each if (of & (label == 1)).any()
    )
    low, high = min(few_benign, most_harmful), max(few_benign, most_harmful)
    threshold = (low + high) / 2
    if most_harmful <= few_benign:
        # s is above 0 only above `low`, and a row is replayed at the threshold already.
        low = float(np.nextafter(low, -math.inf))
        threshold = float(np.nextafter(few_benign, math.inf))
        high = max(high, threshold)
    if high - low < MIN_WIDTH:
        middle = (low + high) / 2
        low, high = middle - MIN_WIDTH / 2, middle + MIN_WIDTH / 2
    return Points(low, threshold, high)


def benign_point(log_odds: Array) -> float:
    """Return the least log-odds that at most 1 % of these benign rows exceed."""
    return float(np.sort(log_odds)[::-1][int(TARGET_FPR * len(log_odds))])


def _harmful_point(log_odds: Array) -> float:
    """Return the greatest log-odds that at least 99 % of these harmful rows reach."""
    return float(np.sort(log_odds)[::-1][math.ceil(TARGET_RECALL * len(log_odds)) - 1])


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share, at 95 %."""
    share, z2 = count / of, CONFIDENCE_Z**2
    centre = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = CONFIDENCE_Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def tpr_at_fpr(score: Array, label: Labels) -> float:
    """Return the share of harmful rows above the least score that at most 1 % of the benign ones exceed."""
    return float((score[label == 1] > benign_point(score[label == 0])).mean())


def measure(
    log_odds: Array, label: Labels, flags: NDArray[np.bool_], *, calibrated: Array | None = None
) -> dict[str, Any]:
    """Return what log-odds are worth on rows of known label, as plain JSON.

    `flags` is `flag_rows`, or `cross_flag_rows`. The Brier score, the log loss and the reliability table are of
    `calibrated` where it is given: log-odds whose calibration has not seen the row. Null where a label is missing.
    """
    both = len(np.unique(label)) == 2
    odds = log_odds if calibrated is None else calibrated
    probability = to_probability(odds)
    return {
        "n_positive": int(label.sum()),
        "n_negative": int((1 - label).sum()),
        "auroc": float(roc_auc_score(label, log_odds)) if both else None,
        "tpr_at_1_percent_fpr": tpr_at_fpr(log_odds, label) if both else None,
        "brier": float(((probability - label) ** 2).mean()) if len(label) else None,
        "log_loss": float(np.logaddexp(0.0, np.where(label == 1, -odds, odds)).mean())
        if len(label)
        else None,
        "points": count_flags(flags, label),
        "reliability": reliability(probability, label),
    }


def flag_rows(log_odds: Array, points: Points) -> NDArray[np.bool_]:
    """Return which rows count at each of the three points, as the control law counts: (rows, 3).

    At `low` are the rows with s > 0, at the threshold those that are replayed or dropped, at `high` those with s = 1.
    """
    return np.stack([log_odds > points.low, log_odds >= points.threshold, log_odds >= points.high], axis=1)


def cross_flag_rows(
    log_odds: Array, label: Labels, folds: Labels, kind: NDArray[Any] | None = None
) -> NDArray[np.bool_]:
    """Return `flag_rows` of each fold at points that are chosen on the other folds.

    What to expect of new rows, where the shares at the chosen points themselves are what those points are chosen for.
    """
    flags = np.zeros((len(label), len(Points._fields)), dtype=np.bool_)
    for fold in np.unique(folds):
        rest = folds != fold
        points = choose_points(log_odds[rest], label[rest], None if kind is None else kind[rest])
        flags[~rest] = flag_rows(log_odds[~rest], points)
    return flags


def count_flags(flags: NDArray[np.bool_], label: Labels) -> dict[str, Any]:
    """Return recall and false-positive rate at each point."""
    return {
        name: {"recall": share(of_point[label == 1]), "fpr": share(of_point[label == 0])}
        for name, of_point in zip(Points._fields, flags.T, strict=True)
    }


def share(flags: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a share, the number it was counted on, and its interval; null where there is nothing to count."""
    if not len(flags):
        return {"share": None, "n": 0, "interval": None}
    return {
        "share": float(flags.mean()),
        "n": len(flags),
        "interval": list(wilson(int(flags.sum()), len(flags))),
    }


def reliability(probability: Array, label: Labels) -> list[dict[str, Any]]:
    """Return BINS bins of equal width: how many rows, their mean predicted probability, the share that is harmful."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        {
            "count": int((place == bin_).sum()),
            "mean_predicted": float(probability[place == bin_].mean()) if (place == bin_).any() else None,
            "observed": float(label[place == bin_].mean()) if (place == bin_).any() else None,
        }
        for bin_ in range(BINS)
    ]
