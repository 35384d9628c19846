"""Points, intervals and figures against independent computations."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

from worker.training.critics.activation import Points
from worker.training.critics.calibration import (
    MIN_WIDTH,
    benign_point,
    choose_points,
    count_flags,
    cross_calibrate,
    cross_flag_rows,
    flag_rows,
    measure,
    platt,
    tpr_at_fpr,
    wilson,
)


def draw(separation, n_benign=400, n_harmful=300, seed=0):
    rng = np.random.default_rng(seed)
    label = np.array([0] * n_benign + [1] * n_harmful)
    return rng.normal(size=len(label)) + separation * (2 * label - 1), label


def shares(log_odds, label, points):
    flags = flag_rows(log_odds, points)
    return flags[label == 1].mean(axis=0), flags[label == 0].mean(axis=0)


class TestPoints:
    @pytest.mark.parametrize("separation", [0.0, 0.4, 1.0, 2.0, 2.4, 3.0, 6.0])
    @pytest.mark.parametrize("n", [7, 99, 100, 301])
    def test_they_keep_to_recall_and_false_positives(self, separation, n):
        log_odds, label = draw(separation, n_benign=n, n_harmful=n + 1, seed=n)
        points = choose_points(log_odds, label)
        recall, fpr = shares(log_odds, label, points)
        assert recall[0] >= 0.99
        assert fpr[1] <= 0.01
        assert points.low < points.threshold <= points.high
        assert points.high - points.low >= MIN_WIDTH - 1e-12

    def test_a_good_probe_leaves_a_gap_and_the_threshold_halves_it(self):
        label = np.array([0] * 200 + [1] * 100)
        log_odds = np.concatenate([np.linspace(-9, -5, 200), np.linspace(4, 8, 100)])
        low, threshold, high = choose_points(log_odds, label)
        # Two of two hundred may exceed `low`, and one of a hundred may miss `high`.
        assert low == np.sort(log_odds[:200])[-3]
        assert high == log_odds[201]
        assert threshold == (low + high) / 2

    def test_a_weak_probe_swaps_them_and_replays_from_the_false_positive_point_on(self):
        label = np.array([0] * 200 + [1] * 100)
        log_odds = np.concatenate([np.linspace(-3, 3, 200), np.linspace(-2, 6, 100)])
        points = choose_points(log_odds, label)
        recall, fpr = shares(log_odds, label, points)
        assert recall[0] >= 0.99
        assert 0.005 <= fpr[1] <= 0.01
        assert points.threshold == pytest.approx(points.high)

    def test_points_that_meet_are_moved_apart(self):
        points = choose_points(np.zeros(4), np.array([0, 0, 1, 1]))
        assert points.low == pytest.approx(-0.5)
        assert points.high == pytest.approx(0.5)
        assert shares(np.zeros(4), np.array([0, 0, 1, 1]), points)[1][1] == 0

    def test_each_kind_of_row_keeps_to_both_targets(self):
        requests, label = draw(4.0, 1000, 1000)
        replies, _ = draw(2.0, 100, 100, seed=1)
        replies_label = np.array([0] * 100 + [1] * 100)
        log_odds, both = np.concatenate([requests, replies]), np.concatenate([label, replies_label])
        kind = np.array([0] * 2000 + [1] * 200)
        assert shares(replies, replies_label, choose_points(log_odds, both))[1][1] > 0.01
        points = choose_points(log_odds, both, kind)
        for of in (kind == 0, kind == 1):
            recall, fpr = shares(log_odds[of], both[of], points)
            assert recall[0] >= 0.99
            assert fpr[1] <= 0.01

    def test_one_percent_is_counted_exactly(self):
        label = np.array([0] * 100 + [1, 1])
        score = np.concatenate([np.arange(100.0), [98.5, 97.0]])
        assert benign_point(score[:100]) == 98
        assert tpr_at_fpr(score, label) == 0.5

    def test_tpr_at_one_percent_is_the_roc_curves(self):
        score, label = draw(1.0, seed=3)
        fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
        assert tpr_at_fpr(score, label) == pytest.approx(tpr[fpr <= 0.01].max())

    def test_what_cross_fitting_says_is_what_new_rows_do(self):
        # Points chosen and counted on the same 120 rows look better than they are; the crossed count does not.
        apparent, crossed, new = [], [], []
        for seed in range(40):
            log_odds, label = draw(1.6, 60, 60, seed)
            folds = np.arange(120) % 5
            points = choose_points(log_odds, label)
            fresh, fresh_label = draw(1.6, 2000, 2000, seed + 1000)
            apparent.append(shares(log_odds, label, points)[1][1])
            crossed.append(cross_flag_rows(log_odds, label, folds)[label == 0, 1].mean())
            new.append(shares(fresh, fresh_label, points)[1][1])
        assert np.mean(apparent) < 0.5 * np.mean(new)
        assert np.mean(crossed) == pytest.approx(np.mean(new), rel=0.4)


class TestCalibration:
    def test_platt_is_the_minimum_of_his_objective(self):
        score, label = draw(0.8, seed=2)
        target = np.where(label == 1, 301 / 302, 1 / 402)

        def objective(parameters):
            z = parameters[0] * score + parameters[1]
            return (np.logaddexp(0, z) - target * z).sum()

        expected = minimize(
            objective, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
        )
        np.testing.assert_allclose(platt(score, label), expected.x, rtol=1e-5, atol=1e-5)

    def test_scores_that_fall_with_harm_get_the_base_rate(self):
        score, label = draw(1.0)
        slope, intercept = platt(-score, label)
        assert slope == 0
        assert 1 / (1 + np.exp(-intercept)) == pytest.approx(label.mean(), abs=0.01)

    def test_each_fold_is_calibrated_on_the_other_folds_own_rows(self):
        score, label = draw(0.5)
        folds, own = np.arange(700) % 3, np.arange(700) % 2 == 0
        found = cross_calibrate(score, label, folds, own)
        rest = (folds != 1) & own
        slope, intercept = platt(score[rest], label[rest])
        np.testing.assert_allclose(found[folds == 1], slope * score[folds == 1] + intercept)


class TestMeasure:
    def test_figures_equal_those_of_scikit_learn(self):
        log_odds, label = draw(0.7)
        other = log_odds * 1.3 + 0.2
        probability = 1 / (1 + np.exp(-other))
        points = choose_points(log_odds, label)
        found = measure(log_odds, label, flag_rows(log_odds, points), calibrated=other)
        assert (found["n_positive"], found["n_negative"]) == (300, 400)
        assert found["auroc"] == pytest.approx(roc_auc_score(label, log_odds))
        assert found["brier"] == pytest.approx(brier_score_loss(label, probability))
        assert found["log_loss"] == pytest.approx(log_loss(label, probability))
        observed, predicted = calibration_curve(label, probability, n_bins=10)
        bins = [each for each in found["reliability"] if each["count"]]
        np.testing.assert_allclose([each["observed"] for each in bins], observed)
        np.testing.assert_allclose([each["mean_predicted"] for each in bins], predicted)
        assert sum(each["count"] for each in bins) == 700

    def test_flags_count_as_the_control_law_does(self):
        points = Points(-1.0, 0.0, 1.0)
        flags = flag_rows(np.array([-1.0, -0.9, 0.0, 1.0]), points)
        assert flags.tolist() == [
            [False, False, False], [True, False, False], [True, True, False], [True, True, True],
        ]  # fmt: skip
        found = count_flags(flags, np.array([0, 1, 1, 1]))
        assert found["threshold"]["recall"]["share"] == pytest.approx(2 / 3)
        assert found["low"]["fpr"] == {"share": 0.0, "n": 1, "interval": list(wilson(0, 1))}

    def test_what_cannot_be_measured_is_null(self):
        found = measure(np.array([1.0]), np.array([1]), flag_rows(np.array([1.0]), Points(-1, 0, 1)))
        assert (found["auroc"], found["tpr_at_1_percent_fpr"]) == (None, None)
        assert found["points"]["low"]["fpr"] == {"share": None, "n": 0, "interval": None}

    @pytest.mark.parametrize(("count", "of"), [(0, 10), (3, 10), (297, 300), (300, 300)])
    def test_wilson_is_where_the_normal_test_rejects(self, count, of):
        # The interval's ends are the shares p at which |count/of − p| is z standard errors of p.
        z = norm.ppf(0.975)
        for end in wilson(count, of):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(count / of - end) == pytest.approx(z * np.sqrt(end * (1 - end) / of), rel=1e-9)
        low, high = wilson(count, of)
        assert 0 <= low <= count / of <= high + 1e-12
