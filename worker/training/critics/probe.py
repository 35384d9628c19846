"""Fit the activation critic: a logistic regression per layer and kind of place, their mean, calibrated held out.

Two probes, because the direction of harm where a request ends is not the one inside a response (arXiv 2604.18901):
requests alone fit and measure the one, replies the other. The layers count alike. Over three seeds of the miniature,
fitted on some topics and measured on others in other words, every way of pooling layers ranked every row right, and
the mean had the fewest benign rows above `low` (0 to 1.3 %; weights fitted on held-out scores 0 to 1.3 %, the layer of
the least held-out loss 0 to 3 %). Whoever knows better names one layer. Nothing here chooses one by the held-out
scores: the report has the same scores, and would praise the choice with what it was chosen by.

Everything that the report claims is measured on groups (topics, sources) that the measured fit has not seen, because
a probe that looks perfect on topics it knows can fail on the next one (arXiv 2604.18901, 2605.20241). Calibration and
the points come from the same held-out scores: in-sample scores are over-confident.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import CriticUnusable
from worker.training.critics.activation import Points, Probe, Probes
from worker.training.critics.calibration import (
    TARGET_FPR,
    TARGET_RECALL,
    apply_platt,
    choose_points,
    count_flags,
    cross_calibrate,
    cross_flag_rows,
    flag_rows,
    measure,
    platt,
)
from worker.training.critics.examples import (
    Columns,
    Example,
    check_lengths,
    columns_of,
    read_states,
    tokenize_examples,
)
from worker.training.critics.features import Directions, Pooled, Scores, window_means
from worker.training.models import base_of

MAX_FOLDS = 5
INVERSE_REGULARISATION = 0.01
"""scikit-learn's C, on standardised states. Strong, because a sharp boundary does not carry over to new topics."""
MIN_REQUESTS = 50
"""Requests of each label below which no critic is fitted: the interval of a recall of all of 50 begins at 93 %."""
FEW_REQUESTS = 100
"""Requests of each label below which the report has a warning: 1 % of fewer is not one row."""
MIN_REPLIES = 20
"""Replies of each label, in at least two groups, below which no response probe is fitted."""

Pooling = Literal["mean"] | int
"""Which layers count: all alike, or one, counted from 1."""
ScoreRows = Callable[[Sequence[Directions]], Sequence[Scores]]
Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Fitted(NamedTuple):
    """A critic and what it is worth."""

    probes: Probes
    points: Points
    report: dict[str, Any]


def fit_critic(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    pooling: Pooling = "mean",
    micro_batch_tokens: int = 4096,
    on_progress: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fit a critic on rows `{"messages", "label", "group", "borderline"?}`. See `fit_probes`.

    Two passes over the rows: one to collect the states to fit on, and one in which each row is read whole by the
    probes that have not seen its group, exactly as a job's rows will be. `on_progress` is called now and then; what it
    raises ends the fit. Raises JobFailure for a row that cannot be tokenized or is longer than the model's context.
    """
    examples = tokenize_examples(tokenizer, rows)
    check_lengths(examples, base_of(model).config.max_position_embeddings)
    pooled: list[Pooled] = [Pooled(np.zeros((0, 0, 0), np.float32), np.zeros((0, 0, 0), np.float32))] * len(
        rows
    )
    for places, states in read_states(model, examples, micro_batch_tokens):
        for place, found in zip(places, states.pool(), strict=True):
            pooled[place] = found
        on_progress()

    def score_rows(directions: Sequence[Directions]) -> Sequence[Scores]:
        scores: list[Scores] = [Scores(np.zeros((0, 0)), ())] * len(examples)
        for places, states in read_states(model, examples, micro_batch_tokens):
            for n, place in enumerate(places):
                scores[place] = states.score(directions[place])[n]
            on_progress()
        return scores

    return fit_probes(examples, pooled, score_rows, seed=seed, pooling=pooling)


def fit_probes(
    examples: Sequence[Example],
    pooled: Sequence[Pooled],
    score_rows: ScoreRows,
    *,
    seed: int,
    pooling: Pooling = "mean",
) -> Fitted:
    """Fit the probes on all rows, calibrated and measured on held-out groups.

    `pooled` has the states of each row to fit on; `score_rows` reads every row with directions of its own. Each probe
    has Platt's calibration on the held-out scores of its own rows. A row's log-odds are the highest found anywhere
    in it, and the points are chosen on those: over requests and replies where there is a response probe, else over
    requests only. Raises CriticUnusable where there are fewer than MIN_REQUESTS of a label, the rows cannot be split so
    that every fold trains on both labels, the scores do not rise with harm, or the model has no such layer.
    """
    if not all(np.isfinite(part).all() for row in pooled for part in row):
        raise CriticUnusable(
            "the base model's states are not finite; the critic cannot be fitted on this model"
        )
    data = columns_of(examples)
    warning = _check_numbers(data)
    factors = _layer_factors(pooling, pooled[0].prompts.shape[1])
    why_no_response = _why_no_response(data)
    folds = _split(data, seed, with_replies=why_no_response is None)
    requests = _Material.of([row.prompts for row in pooled], data, ~data.has_reply)
    replies = None
    if why_no_response is None:
        replies = _Material.of([row.windows for row in pooled], data, data.has_reply)

    def fit(kept: Flags) -> Probes:
        return Probes(_fit_layers(requests, kept), None if replies is None else _fit_layers(replies, kept))

    without = [fit(folds != fold) for fold in range(int(folds.max()) + 1)]
    directions = [probes.directions() for probes in without]
    scores = score_rows([directions[fold] for fold in folds])
    read = [_read(of_row, without[fold], factors) for of_row, fold in zip(scores, folds, strict=True)]
    prompt = _calibrate(np.stack([prompt for prompt, _ in read]), data, folds, ~data.has_reply)
    if not prompt.calibration[0] > 0:
        raise CriticUnusable(
            "on held-out groups the probe's scores do not rise with harm; give more groups of data"
        )
    response = None
    if replies is not None:
        response = _calibrate(np.stack([response for _, response in read]), data, folds, data.has_reply)
        if not response.calibration[0] > 0:
            response = None
            why_no_response = "on held-out groups the scores of replies do not rise with harm"

    log_odds, crossed = prompt.log_odds[:, 0], prompt.crossed[:, 0]
    measured = ~data.has_reply
    if response is not None:
        log_odds = np.maximum(log_odds, response.log_odds[:, 0])
        crossed = np.maximum(crossed, response.crossed[:, 0])
        measured = np.ones(len(examples), dtype=np.bool_)
    points = choose_points(log_odds[measured], data.risky[measured], data.has_reply[measured])
    final = fit(np.ones(len(examples), dtype=np.bool_))
    probes = Probes(
        _finish(final.prompt, factors, prompt.calibration),
        None
        if final.response is None or response is None
        else _finish(final.response, factors, response.calibration),
    )
    report = {
        "pooling": pooling,
        "warning": warning,
        "n_rows": len(examples),
        "n_requests": int((~data.has_reply).sum()),
        "n_replies": int(data.has_reply.sum()),
        "n_groups": len(np.unique(data.group)),
        "n_folds": len(without),
        "target_recall": TARGET_RECALL,
        "target_fpr": TARGET_FPR,
        **points._asdict(),
        **_report_rows(log_odds[measured], crossed[measured], folds[measured], data.only(measured), points),
        "prompt": _report_probe(prompt, ~data.has_reply, data, points),
        "response": None if response is None else _report_probe(response, data.has_reply, data, points),
        "why_no_response": why_no_response,
    }
    return Fitted(probes, points, report)


class _Material(NamedTuple):
    """States to fit one probe on. A row counts once, however many of its states there are."""

    states: NDArray[np.float32]
    """(n, layers, hidden)."""
    row: NDArray[np.int64]
    """(n,): the row each is of."""
    label: NDArray[np.int64]
    weight: Array

    @classmethod
    def of(cls, states: Sequence[NDArray[np.float32]], data: Columns, own: Flags) -> "_Material":
        rows = np.flatnonzero(own).tolist()
        row = np.repeat(rows, [len(states[place]) for place in rows])
        weight = np.concatenate([np.full(len(states[place]), 1 / len(states[place])) for place in rows])
        return cls(np.concatenate([states[place] for place in rows]), row, data.label[row], weight)


class _HeldOut(NamedTuple):
    """Held-out log-odds of one probe: column 0 the layers pooled, then each layer alone. (rows, 1 + layers)."""

    log_odds: Array
    """By the calibration that is kept, from all folds."""
    crossed: Array
    """By a calibration that has not seen the row's fold."""
    calibration: Array
    """(2,): that of column 0."""


def _layer_factors(pooling: Pooling, n_layers: int) -> Array:
    """Return what each layer's score is multiplied with before the mean over the layers is taken: (layers,)."""
    if pooling == "mean":
        return np.ones(n_layers)
    if not 1 <= pooling <= n_layers:
        raise CriticUnusable(
            f"the base model has no layer {pooling}; it has {n_layers}, counted from 1", param="pooling"
        )
    factors = np.zeros(n_layers)
    factors[pooling - 1] = n_layers
    return factors


def _finish(probe: Probe, factors: Array, calibration: Array) -> Probe:
    """Return a probe whose mean over the layers is the pooled score, with its calibration."""
    return replace(
        probe,
        direction=probe.direction * factors[:, None],
        bias=probe.bias * factors,
        calibration=calibration,
    )


def _read(scores: Scores, probes: Probes, factors: Array) -> tuple[Array, Array]:
    """Return the highest scores of a row's request and of its response's windows: pooled, then by layer."""
    prompt = _with_pooled(scores.prompts + probes.prompt.bias, factors).max(axis=0)
    response = np.full(len(prompt), -np.inf)
    if probes.response is not None:
        for tokens in scores.responses:
            windows = window_means(tokens) + probes.response.bias
            response = np.maximum(response, _with_pooled(windows, factors).max(axis=0))
    return prompt, response


def _with_pooled(scores: Array, factors: Array) -> Array:
    return np.concatenate([(scores * factors).mean(axis=1, keepdims=True), scores], axis=1)


def _calibrate(scores: Array, data: Columns, folds: NDArray[np.int64], own: Flags) -> _HeldOut:
    """Calibrate held-out scores on the rows of the probe's own kind."""
    fits = [platt(column[own], data.label[own]) for column in scores.T]
    return _HeldOut(
        np.stack([apply_platt(fit, column) for fit, column in zip(fits, scores.T, strict=True)], axis=1),
        np.stack([cross_calibrate(column, data.label, folds, own) for column in scores.T], axis=1),
        fits[0],
    )


def _report_rows(
    log_odds: Array, crossed: Array, folds: NDArray[np.int64], data: Columns, points: Points
) -> dict[str, Any]:
    """Return what both probes together are worth on whole rows."""
    s = np.clip((log_odds - points.low) / (points.high - points.low), 0.0, 1.0)
    cross_flags = cross_flag_rows(log_odds, data.risky, folds, data.has_reply)
    return {
        "benign_mean_s": float(s[data.risky == 0].mean()),
        "harmful_mean_s": float(s[data.risky == 1].mean()),
        **measure(log_odds, data.risky, flag_rows(log_odds, points), calibrated=crossed),
        "cross_points": count_flags(cross_flags, data.risky),
        "borderline": _measure_borderline(log_odds, data.risky, data, points, crossed),
    }


def _report_probe(held_out: _HeldOut, own: Flags, data: Columns, points: Points) -> dict[str, Any]:
    """Return what one probe is worth on rows of its own kind, pooled and layer by layer."""
    data = data.only(own)
    columns = [
        {
            **measure(log_odds, data.label, flag_rows(log_odds, points), calibrated=crossed),
            "borderline": _measure_borderline(log_odds, data.label, data, points, crossed),
        }
        for log_odds, crossed in zip(held_out.log_odds[own].T, held_out.crossed[own].T, strict=True)
    ]
    layers = [{"layer": layer, **column} for layer, column in enumerate(columns[1:], start=1)]
    return {**columns[0], "layers": layers}


def _measure_borderline(
    log_odds: Array, label: NDArray[np.int64], data: Columns, points: Points, crossed: Array
) -> dict[str, Any]:
    """Measure harmful rows against those benign ones that look harmful."""
    kept = (label == 1) | data.borderline
    flags = flag_rows(log_odds[kept], points)
    return measure(log_odds[kept], label[kept], flags, calibrated=crossed[kept])


def _check_numbers(data: Columns) -> str | None:
    """Return a warning where the requests are few, None where they are not."""
    found = [(~data.has_reply & (data.label == value)).sum() for value in (1, 0)]
    counted = f"{found[0]} harmful and {found[1]} other requests without a reply"
    if min(found) < MIN_REQUESTS:
        raise CriticUnusable(
            f"the critic's data have {counted}; a critic that steers jobs needs at least {MIN_REQUESTS} of each. Give"
            " more, or add those that come with Tether (tether critics fit --cold-start)",
            param="data",
        )
    if min(found) < FEW_REQUESTS:
        return (
            f"fitted on {counted}; with fewer than {FEW_REQUESTS} of each, its figures and points are rough"
        )
    return None


def _why_no_response(data: Columns) -> str | None:
    """Return why there can be no response probe, or None where there can."""
    for value, name in ((1, "harmful"), (0, "harmless")):
        of_label = data.has_reply & (data.label == value)
        n_groups = len(np.unique(data.group[of_label]))
        if of_label.sum() < MIN_REPLIES or n_groups < 2:
            return (
                f"the data have {of_label.sum()} {name} replies in {n_groups} groups; a response probe needs"
                f" {MIN_REPLIES} in 2 groups"
            )
    return None


def _split(data: Columns, seed: int, *, with_replies: bool) -> NDArray[np.int64]:
    """Return the fold of each row; rows of one group share it, and every fold leaves both labels to train on."""
    requests = ~data.has_reply
    if len(np.unique(data.group)) < 2:
        raise CriticUnusable(
            "the critic's data have fewer than two groups; the probe could not be tested on a new one"
        )
    fitted = [requests, data.has_reply] if with_replies else [requests]
    n_splits = min(
        MAX_FOLDS,
        *(len(np.unique(data.group[kind & (data.label == value)])) for kind in fitted for value in (0, 1)),
    )
    if n_splits < 2:
        raise CriticUnusable("one label occurs in a single group only; give each label at least two groups")
    folds = np.zeros(len(data.label), dtype=np.int64)
    splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=seed)
    strata = data.label + 2 * data.has_reply
    for fold, (train, held_out) in enumerate(splitter.split(strata, strata, data.group)):
        if any(len(np.unique(data.label[train][kind[train]])) < 2 for kind in fitted):
            raise CriticUnusable("the groups are too uneven to hold one out; give each label more groups")
        folds[held_out] = fold
    return folds


def _fit_layers(material: _Material, kept: Flags) -> Probe:
    """Fit one logistic regression per layer on standardised states of the kept rows; it is left uncalibrated."""
    chosen = kept[material.row]
    label, weight = material.label[chosen], material.weight[chosen]
    n_layers, hidden = material.states.shape[1:]
    direction, bias = np.zeros((n_layers, hidden)), np.zeros(n_layers)
    for layer in range(n_layers):
        states = material.states[chosen, layer].astype(np.float64)
        centre, deviation = states.mean(axis=0), states.std(axis=0)
        scale = np.where(deviation > 1e-12, deviation, 1.0)
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=2000)
        model.fit((states - centre) / scale, label, sample_weight=weight)
        direction[layer] = model.coef_[0] / scale
        bias[layer] = model.intercept_[0] - direction[layer] @ centre
    return Probe(direction, bias, np.array([1.0, 0.0]))
