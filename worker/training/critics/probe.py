"""Fit the activation critic: a logistic regression per layer, their mean, calibrated on held-out groups.

Everything that the report claims is measured on groups (topics, sources) that the measured fit has not seen, because
a probe that looks perfect on topics it knows can fail on the next one (arXiv 2604.18901, 2605.20241). Calibration and
the two points come from the same held-out scores: in-sample scores are over-confident.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import CriticUnusable
from worker.training.batching import collate, micro_batches
from worker.training.critics.activation import ProbeWeights, layer_scores
from worker.training.critics.protocol import Features
from worker.training.data import TokenizedRow, render_prompt
from worker.training.models import base_of, layer_states, reference
from worker.training.reference import features_at

TARGET_FPR = 0.01
TARGET_RECALL = 0.95
MIN_WIDTH = 1.0
"""The least distance of the two points, in nats, so that s never becomes a step."""
MAX_FOLDS = 5
INVERSE_REGULARISATION = 0.01
"""scikit-learn's C, on standardised states. Strong, because a sharp boundary does not carry over to new topics."""


@dataclass(frozen=True)
class LayerReport:
    """How well one layer alone tells harmful from benign prompts, on held-out groups."""

    layer: int
    """Counted from 1; the last is after the final norm."""
    auroc: float
    tpr_at_1_percent_fpr: float


@dataclass(frozen=True)
class ProbeReport:
    """What a critic is worth, measured on held-out groups only."""

    n_rows: int
    n_positive: int
    n_groups: int
    n_folds: int
    auroc: float
    tpr_at_1_percent_fpr: float
    """Share of the harmful prompts above the point that at most 1 % of the benign ones exceed."""
    log_loss: float
    """Mean nats per prompt of the calibrated log-odds; ln 2 is a coin."""
    low: float
    """The log-odds at and below which s is 0."""
    high: float
    """The log-odds at and above which s is 1."""
    benign_mean_s: float
    harmful_mean_s: float
    layers: tuple[LayerReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}


def collect_features(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    micro_batch_tokens: int = 4096,
) -> Features:
    """Return the reference's states at the last prompt token of critic rows `{"messages": […], …}`.

    The shape is (rows, layers, hidden), float32; the messages of each row end before the reply.
    """
    prompts = []
    for index, row in enumerate(rows):
        tokens = render_prompt(tokenizer, row["messages"], index=index, tools=row.get("tools"))
        prompts.append(TokenizedRow(index, tokens, (False,) * len(tokens), (len(tokens) - 1,)))
    features: list[Features] = [np.zeros((0, 0, 0), dtype=np.float32)] * len(prompts)
    for places in micro_batches([len(row.input_ids) for row in prompts], micro_batch_tokens):
        batch = collate([prompts[place] for place in places], base_of(model).device)
        with reference(model), torch.no_grad():
            _, layers = layer_states(model, batch.input_ids, batch.attention_mask)
        for place, found in zip(
            places, features_at(layers, [prompts[place].prompt_ends for place in places]), strict=True
        ):
            features[place] = found
    return np.concatenate(features)


def fit_probe(
    features: Features, labels: Sequence[int], groups: Sequence[str], seed: int
) -> tuple[ProbeReport, ProbeWeights]:
    """Fit a probe on all rows, calibrated and measured on held-out groups.

    `features` is (rows, layers, hidden), `labels` is 1 for harmful, `groups` names what is held out together. The
    calibration is Platt's, with his smoothed targets. For the report each fold is calibrated on the other folds.

    The points of s: `low` is the least log-odds that at most 1 % of the held-out benign prompts exceed, `high` the
    greatest that 95 % of the held-out harmful ones reach, so that with a good probe nearly every benign row has
    s = 0 and nearly every harmful one s = 1. Where the two cross because the probe is weak they change places, and
    what lies in the overlap is graded between them. They are at least 1 nat apart.

    Raises CriticUnusable where the rows cannot be split so that every fold trains on both labels, or the scores
    do not rise with harm.
    """
    label = np.asarray(labels, dtype=np.int64)
    group = np.asarray(groups)
    if not np.isfinite(features).all():
        raise CriticUnusable(
            "the base model's states are not finite; the critic cannot be fitted on this model"
        )
    folds = _split(label, group, seed)
    n_folds = int(folds.max()) + 1
    scores = np.zeros(features.shape[:2])
    for fold in range(n_folds):
        held_out = folds == fold
        weights = _fit_layers(features[~held_out], label[~held_out])
        scores[held_out] = layer_scores(weights, features[held_out])

    pooled = scores.mean(axis=1)
    calibration = _platt(pooled, label)
    if not calibration[0] > 0:
        raise CriticUnusable(
            "on held-out groups the probe's scores do not rise with harm; give more groups of data"
        )
    held_out_log_odds = calibration[0] * pooled + calibration[1]
    low, high = choose_points(held_out_log_odds, label)
    s = np.clip((held_out_log_odds - low) / (high - low), 0.0, 1.0)
    report = ProbeReport(
        n_rows=len(label),
        n_positive=int(label.sum()),
        n_groups=len(np.unique(group)),
        n_folds=n_folds,
        auroc=float(roc_auc_score(label, pooled)),
        tpr_at_1_percent_fpr=tpr_at_fpr(pooled, label),
        log_loss=_cross_calibrated_log_loss(pooled, label, folds),
        low=low,
        high=high,
        benign_mean_s=float(s[label == 0].mean()),
        harmful_mean_s=float(s[label == 1].mean()),
        layers=tuple(
            LayerReport(layer + 1, float(roc_auc_score(label, score)), tpr_at_fpr(score, label))
            for layer, score in enumerate(scores.T)
        ),
    )
    final = _fit_layers(features, label)
    return report, ProbeWeights(final.mean, final.scale, final.weight, final.bias, calibration)


def choose_points(log_odds: NDArray[np.float64], label: NDArray[np.int64]) -> tuple[float, float]:
    """Return `low` and `high` from held-out log-odds; see `fit_probe`."""
    few_benign_above = threshold_at_fpr(log_odds, label)
    harmful = np.sort(log_odds[label == 1])
    most_harmful_reach = float(harmful[len(harmful) - math.ceil(TARGET_RECALL * len(harmful))])
    low, high = sorted((few_benign_above, most_harmful_reach))
    if high - low < MIN_WIDTH:
        middle = (low + high) / 2
        low, high = middle - MIN_WIDTH / 2, middle + MIN_WIDTH / 2
    return low, high


def threshold_at_fpr(score: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Return the least score that at most 1 % of the benign rows exceed."""
    benign = np.sort(score[label == 0])[::-1]
    return float(benign[int(TARGET_FPR * len(benign))])


def tpr_at_fpr(score: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Return the share of harmful rows above `threshold_at_fpr`."""
    return float((score[label == 1] > threshold_at_fpr(score, label)).mean())


def _split(label: NDArray[np.int64], group: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Return the fold of each row; rows of one group share it, and every fold leaves both labels to train on."""
    if len(np.unique(label)) < 2:
        raise CriticUnusable("the critic's data have only one label; give harmful (1) and benign (0) prompts")
    n_groups = len(np.unique(group))
    if n_groups < 2:
        raise CriticUnusable(
            "the critic's data have fewer than two groups; the probe could not be tested on a new one"
        )
    per_label = min(len(np.unique(group[label == value])) for value in (0, 1))
    if per_label < 2:
        raise CriticUnusable("one label occurs in a single group only; give each label at least two groups")
    folds = np.zeros(len(label), dtype=np.int64)
    n_splits = min(MAX_FOLDS, per_label)
    splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=seed)
    for fold, (train, held_out) in enumerate(splitter.split(label, label, group)):
        if len(np.unique(label[train])) < 2:
            raise CriticUnusable("the groups are too uneven to hold one out; give each label more groups")
        folds[held_out] = fold
    return folds


def _fit_layers(features: Features, label: NDArray[np.int64]) -> ProbeWeights:
    """Fit one standardised logistic regression per layer; the calibration is left at identity."""
    states = features.astype(np.float64)
    mean = states.mean(axis=0)
    deviation = states.std(axis=0)
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    standardised = (states - mean) / scale
    weight = np.zeros(features.shape[1:])
    bias = np.zeros(features.shape[1])
    for layer in range(features.shape[1]):
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=2000)
        model.fit(standardised[:, layer], label)
        weight[layer], bias[layer] = model.coef_[0], model.intercept_[0]
    return ProbeWeights(mean, scale, weight, bias, np.array([1.0, 0.0]))


def _platt(score: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return slope and intercept of Platt scaling (1999), (2,).

    His targets (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2) keep the slope finite where the labels separate. Each row enters
    twice, once per label, weighted by its target.
    """
    n_positive = int(label.sum())
    n_negative = len(label) - n_positive
    target = np.where(label == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    centre, spread = score.mean(), max(float(score.std()), 1e-12)
    standardised = ((score - centre) / spread)[:, None]
    model = LogisticRegression(C=1e4, max_iter=2000)
    model.fit(
        np.concatenate([standardised, standardised]),
        np.repeat([1, 0], len(label)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(model.coef_[0, 0]) / spread
    return np.array([slope, float(model.intercept_[0]) - slope * centre])


def _cross_calibrated_log_loss(
    score: NDArray[np.float64], label: NDArray[np.int64], folds: NDArray[np.int64]
) -> float:
    """Return the log loss of held-out scores, each fold calibrated on the other folds."""
    log_odds = np.zeros(len(score))
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        slope, intercept = _platt(score[~held_out], label[~held_out])
        log_odds[held_out] = slope * score[held_out] + intercept
    return float(np.logaddexp(0.0, np.where(label == 1, -log_odds, log_odds)).mean())
