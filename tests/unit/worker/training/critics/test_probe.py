"""The probe on synthetic states, where the right answer is known."""

import numpy as np
import pytest
import torch

from app.errors import CriticUnusable
from worker.training.critics.activation import compute_log_odds
from worker.training.critics.probe import (
    choose_points,
    collect_features,
    fit_probe,
    threshold_at_fpr,
    tpr_at_fpr,
)

LAYERS, HIDDEN = 3, 16


def synthetic(separation, seed=0, n_groups=10, per_group=30, informative=(1, 2)):
    """States in which harm is one direction, each group has an offset of its own, and layer 0 knows nothing."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(LAYERS, HIDDEN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions[[layer for layer in range(LAYERS) if layer not in informative]] = 0
    labels, groups, states = [], [], []
    for group in range(n_groups):
        offset = rng.normal(size=(LAYERS, HIDDEN)) * 0.3
        for _ in range(per_group):
            label = group % 2
            labels.append(label)
            groups.append(f"group {group}")
            states.append(
                offset + (2 * label - 1) * separation * directions + rng.normal(size=(LAYERS, HIDDEN))
            )
    return np.array(states, dtype=np.float32) * 50 + 7, labels, groups


def s_of(report, log_odds):
    return np.clip((log_odds - report.low) / (report.high - report.low), 0, 1)


def test_a_good_probe_tells_new_groups_apart():
    report, weights = fit_probe(*synthetic(4.0), seed=0)
    assert report.auroc > 0.999
    assert report.tpr_at_1_percent_fpr > 0.99
    assert report.low < report.high
    assert report.log_loss < 0.1
    features, labels, _ = synthetic(4.0, seed=1)
    s = s_of(report, compute_log_odds(weights, features))
    assert s[np.array(labels) == 0].mean() < 0.02
    assert s[np.array(labels) == 1].mean() > 0.95


def test_each_layer_is_reported_by_itself():
    report, _ = fit_probe(*synthetic(4.0), seed=0)
    assert [layer.layer for layer in report.layers] == [1, 2, 3]
    assert report.layers[0].auroc < 0.8
    assert min(layer.auroc for layer in report.layers[1:]) > 0.99
    assert (report.n_rows, report.n_positive, report.n_groups, report.n_folds) == (300, 150, 10, 5)


def test_what_the_report_says_holds_on_groups_it_has_not_seen():
    report, weights = fit_probe(*synthetic(1.2, n_groups=40), seed=0)
    features, labels, _ = synthetic(1.2, seed=5, n_groups=100)
    label = np.array(labels)
    log_odds = compute_log_odds(weights, features)
    log_loss = np.logaddexp(0, np.where(label == 1, -log_odds, log_odds)).mean()
    assert log_loss == pytest.approx(report.log_loss, abs=0.05)
    assert tpr_at_fpr(log_odds, label) == pytest.approx(report.tpr_at_1_percent_fpr, abs=0.1)
    s = s_of(report, log_odds)
    assert s[label == 0].mean() == pytest.approx(report.benign_mean_s, abs=0.05)
    assert s[label == 1].mean() == pytest.approx(report.harmful_mean_s, abs=0.1)


def test_a_weak_probe_grades_the_overlap_between_points_in_order():
    report, _ = fit_probe(*synthetic(0.6), seed=0)
    assert report.auroc < 0.97
    assert report.low < report.high
    assert report.harmful_mean_s > report.benign_mean_s


def test_a_probe_that_knows_nothing_is_refused():
    features, _, groups = synthetic(0.0, informative=())
    labels = [int(group[-1]) % 2 for group in groups]
    with pytest.raises(CriticUnusable, match="do not rise with harm"):
        fit_probe(features, labels, groups, seed=0)


def test_memorised_groups_do_not_count():
    # Each group is a cluster of its own: perfect in sample, useless on a new group.
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(10, 1, HIDDEN)) * 10
    states = np.concatenate([centre + rng.normal(size=(30, LAYERS, HIDDEN)) for centre in centres])
    groups = [f"{group}" for group in range(10) for _ in range(30)]
    labels = [int(group) % 2 for group in groups]
    with pytest.raises(CriticUnusable, match="do not rise with harm"):
        fit_probe(states.astype(np.float32), labels, groups, seed=0)


def test_points_of_separated_and_of_crossing_scores():
    label = np.array([0] * 200 + [1] * 100)
    separated = np.concatenate([np.linspace(-9, -5, 200), np.linspace(4, 8, 100)])
    low, high = choose_points(separated, label)
    assert (separated[:200] > low).mean() <= 0.01
    assert (separated[200:] >= high).mean() >= 0.95
    assert low < -4.9
    assert high > 4
    crossing = np.concatenate([np.linspace(-3, 3, 200), np.linspace(-2, 6, 100)])
    low, high = choose_points(crossing, label)
    assert (crossing[200:] >= low).mean() >= 0.95
    assert (crossing[:200] > high).mean() <= 0.01


def test_points_that_meet_are_moved_apart():
    assert choose_points(np.array([0.0, 0.0, 0.0, 0.0]), np.array([0, 0, 1, 1])) == (-0.5, 0.5)


def test_one_percent_is_counted_exactly():
    label = np.array([0] * 100 + [1, 1])
    score = np.concatenate([np.arange(100.0), [98.5, 97.0]])
    assert threshold_at_fpr(score, label) == 98
    assert tpr_at_fpr(score, label) == 0.5


def test_fitting_is_reproducible():
    first, second = (fit_probe(*synthetic(1.0), seed=4) for _ in range(2))
    assert first[0] == second[0]
    assert all(
        np.array_equal(a, b) for a, b in zip(vars(first[1]).values(), vars(second[1]).values(), strict=True)
    )


@pytest.mark.parametrize(
    ("labels", "groups", "match"),
    [
        ([1] * 8, list("aabbccdd"), "only one label"),
        ([0, 1] * 4, ["a"] * 8, "fewer than two groups"),
        ([1, 1, 0, 0, 0, 0, 0, 0], list("aabbccdd"), "single group"),
    ],
)
def test_data_that_cannot_be_held_out_are_refused(labels, groups, match):
    features = np.random.default_rng(0).normal(size=(8, 1, 4)).astype(np.float32)
    with pytest.raises(CriticUnusable, match=match):
        fit_probe(features, labels, groups, seed=0)


def test_states_that_are_not_finite_are_refused():
    features, labels, groups = synthetic(1.0)
    features[0, 0, 0] = np.nan
    with pytest.raises(CriticUnusable, match="not finite"):
        fit_probe(features, labels, groups, seed=0)


def test_features_are_the_states_at_the_end_of_the_prompt(make_model, make_base, make_tokenizer):
    rows = [{"messages": [{"role": "user", "content": "why " * n}]} for n in (1, 5, 3)]
    tokenizer = make_tokenizer("qwen")
    found = collect_features(make_model(drift=0.3), tokenizer, rows, micro_batch_tokens=60)
    assert found.shape == (3, 2, 32)
    for row, features in zip(rows, found, strict=True):
        tokens = tokenizer.apply_chat_template(
            row["messages"], add_generation_prompt=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = make_base()(**tokens, output_hidden_states=True).hidden_states[1:]
        np.testing.assert_allclose(
            features, np.stack([layer[0, -1] for layer in states]), rtol=1e-4, atol=1e-5
        )
