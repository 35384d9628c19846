"""The probes on synthetic states, where the right answer is known."""

import numpy as np
import pytest
import torch

from app.errors import CriticUnusable, JobFailure
from worker.training.critics.activation import compute_log_odds
from worker.training.critics.examples import Example
from worker.training.critics.features import BatchStates
from worker.training.critics.probe import FEW_REQUESTS, MIN_REPLIES, MIN_REQUESTS, fit_critic, fit_probes
from worker.training.data import TokenizedRow

LAYERS, HIDDEN, TOKENS = 3, 16, 20


class World:
    """States in which harm is one direction at prompts and another in replies; layer 0 knows nothing.

    Requests come in groups that are harmful or benign; each group has an offset of its own. Replies say the opposite
    of their request half of the time, and harm stands in their last 16 tokens.
    """

    def __init__(self, separation, *, seed=0, n_groups=10, per_group=24, replies=0, informative=(1, 2)):
        rng = np.random.default_rng(seed)
        directions = np.random.default_rng(99).normal(size=(2, LAYERS, HIDDEN))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        directions[:, [layer for layer in range(LAYERS) if layer not in informative]] = 0
        self.examples, states = [], []
        for group in range(n_groups):
            offset = rng.normal(size=(LAYERS, 1, HIDDEN)) * 0.3
            for place in range(per_group + replies):
                has_reply = place >= per_group
                request = group % 2
                label = (request + place) % 2 if has_reply else request
                length = 1 + (TOKENS if has_reply else 0)
                row = offset + rng.normal(size=(LAYERS, length, HIDDEN))
                row[:, 0] += (2 * request - 1) * separation * directions[0]
                row[:, -16:] += (2 * label - 1) * separation * directions[1][:, None] if has_reply else 0
                tokens = TokenizedRow(
                    len(self.examples), (0,) * length, (False,) + (True,) * (length - 1), (0,)
                )
                borderline = place % 3 == 0
                self.examples.append(
                    Example(tokens, label, f"group {group}", has_reply, borderline, int(label or request))
                )
                states.append(row)
        starts = np.cumsum([0, *(len(example.tokens.input_ids) for example in self.examples)])[:-1]
        layers = (np.concatenate(states, axis=1) * 50 + 7).astype(np.float32)
        rows = [example.tokens for example in self.examples]
        self.states = BatchStates([torch.from_numpy(layer) for layer in layers], rows, starts.tolist())

    def score_rows(self, directions):
        return [self.states.score(each)[place] for place, each in enumerate(directions)]

    def fit(self, seed=0, **options):
        return fit_probes(self.examples, self.states.pool(), self.score_rows, seed=seed, **options)

    def log_odds(self, probes):
        return np.array([compute_log_odds(probes, of).max() for of in self.states.score(probes.directions())])

    @property
    def risky(self):
        return np.array([example.risky for example in self.examples])

    def relabel(self, **changes):
        self.examples = [
            example._replace(**{name: values[place] for name, values in changes.items()})
            for place, example in enumerate(self.examples)
        ]
        return self


def flagged(fitted, world):
    """Recall and false positives at the threshold."""
    flags = world.log_odds(fitted.probes) >= fitted.points.threshold
    return flags[world.risky == 1].mean(), flags[world.risky == 0].mean()


def test_a_good_probe_tells_new_groups_apart():
    fitted = World(4.0).fit()
    report = fitted.report
    assert report["auroc"] > 0.999
    assert report["tpr_at_1_percent_fpr"] > 0.99
    assert report["points"]["low"]["recall"]["share"] >= 0.99
    assert report["points"]["threshold"]["fpr"]["share"] <= 0.01
    assert report["log_loss"] < 0.1
    recall, fpr = flagged(fitted, World(4.0, seed=1))
    assert recall > 0.99
    assert fpr <= 0.01


def test_each_layer_is_reported_by_itself():
    report = World(4.0).fit().report
    layers = report["prompt"]["layers"]
    assert [layer["layer"] for layer in layers] == [1, 2, 3]
    assert layers[0]["auroc"] < 0.8
    assert min(layer["auroc"] for layer in layers[1:]) > 0.99
    assert layers[0]["brier"] > 0.1 > layers[1]["brier"]
    assert all(set(layer["borderline"]) == set(layer) - {"layer", "borderline"} for layer in layers)
    counts = [report[name] for name in ("n_rows", "n_requests", "n_replies", "n_groups", "n_folds")]
    assert counts == [240, 240, 0, 10, 5]


def test_what_the_report_says_holds_on_groups_it_has_not_seen():
    fitted = World(1.2, n_groups=40).fit()
    report, new = fitted.report, World(1.2, seed=5, n_groups=100)
    label, log_odds = new.risky, new.log_odds(fitted.probes)
    log_loss = np.logaddexp(0, np.where(label == 1, -log_odds, log_odds)).mean()
    assert log_loss == pytest.approx(report["log_loss"], abs=0.05)
    brier = ((1 / (1 + np.exp(-log_odds)) - label) ** 2).mean()
    assert brier == pytest.approx(report["brier"], abs=0.02)
    recall, fpr = flagged(fitted, new)
    assert recall == pytest.approx(report["cross_points"]["threshold"]["recall"]["share"], abs=0.1)
    assert fpr == pytest.approx(report["cross_points"]["threshold"]["fpr"]["share"], abs=0.02)


def test_replies_have_a_probe_of_their_own():
    fitted = World(4.0, replies=16).fit()
    report = fitted.report
    assert fitted.probes.response is not None
    assert report["why_no_response"] is None
    assert report["response"]["auroc"] > 0.99
    assert (report["response"]["n_positive"], report["response"]["n_negative"]) == (80, 80)
    assert (report["prompt"]["n_positive"], report["prompt"]["n_negative"]) == (120, 120)
    # A harmless reply to a harmful request is a risky row.
    assert report["n_positive"] == 120 + 80 + 40
    recall, fpr = flagged(fitted, World(4.0, seed=1, replies=16))
    assert recall > 0.98
    assert fpr <= 0.02
    similarity = [
        abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(fitted.probes.prompt.direction, fitted.probes.response.direction, strict=True)
    ]
    assert max(similarity) < 0.6


def test_too_few_replies_give_no_response_probe_and_the_report_says_so():
    world = World(4.0, replies=MIN_REPLIES // 10 - 1)
    fitted = world.fit()
    assert fitted.probes.response is None
    assert fitted.report["response"] is None
    assert "harmful replies in" in fitted.report["why_no_response"]
    assert fitted.report["n_positive"] + fitted.report["n_negative"] == fitted.report["n_requests"]


def test_replies_that_say_nothing_give_no_response_probe():
    world = World(4.0, replies=16)
    rng = np.random.default_rng(5)
    labels = [int(rng.integers(2)) if example.has_reply else example.label for example in world.examples]
    fitted = world.relabel(label=labels, risky=labels).fit()
    if fitted.probes.response is None:
        assert (
            fitted.report["why_no_response"]
            == "on held-out groups the scores of replies do not rise with harm"
        )
    else:
        assert fitted.report["response"]["auroc"] < 0.65


def test_borderline_rows_are_reported_apart():
    report = World(1.0).fit().report
    found = report["borderline"]
    assert (found["n_positive"], found["n_negative"]) == (120, 40)
    assert found["points"]["threshold"]["fpr"]["n"] == 40


def test_a_weak_probe_grades_the_overlap():
    fitted = World(0.6).fit()
    report = fitted.report
    assert report["auroc"] < 0.97
    assert report["low"] < report["threshold"] <= report["high"]
    assert report["points"]["low"]["recall"]["share"] >= 0.99
    assert report["points"]["threshold"]["fpr"]["share"] <= 0.01
    assert report["harmful_mean_s"] > report["benign_mean_s"]


def test_a_probe_that_knows_nothing_is_refused():
    with pytest.raises(CriticUnusable, match="do not rise with harm"):
        World(0.0, informative=()).fit()


def test_memorised_groups_do_not_count():
    # Each group is a cluster of its own: perfect in sample, useless on a new group.
    world, rng = World(0.0), np.random.default_rng(3)
    centres = rng.normal(size=(10, 1, HIDDEN)) * 10
    states = np.concatenate([centre + rng.normal(size=(24, LAYERS, HIDDEN)) for centre in centres])
    layers = [torch.from_numpy(states[:, layer].astype(np.float32)) for layer in range(LAYERS)]
    world.states = BatchStates(layers, [example.tokens for example in world.examples], range(240))
    with pytest.raises(CriticUnusable, match="do not rise with harm"):
        world.fit()


def test_fitting_is_reproducible():
    first, second = (World(1.0, per_group=10, replies=8).fit(seed=4) for _ in range(2))
    assert first.report == second.report
    for one, other in zip(first.probes, second.probes, strict=True):
        assert all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


@pytest.mark.parametrize(
    ("labels", "groups", "match"),
    [
        ([1] * 8, list("aabbccdd"), "200 harmful and 0 other"),
        ([0, 1] * 4, ["a"] * 8, "fewer than two groups"),
        ([1, 1, 0, 0, 0, 0, 0, 0], list("aabbccdd"), "single group"),
    ],
)
def test_data_that_cannot_be_held_out_are_refused(labels, groups, match):
    labels, groups = labels * 25, groups * 25
    world = World(1.0, n_groups=2, per_group=100).relabel(label=labels, risky=labels, group=groups)
    with pytest.raises(CriticUnusable, match=match):
        world.fit()


def test_replies_only_are_refused():
    world = World(1.0, per_group=0, replies=24)
    with pytest.raises(CriticUnusable, match="0 harmful and 0 other requests"):
        world.fit()


@pytest.mark.parametrize("missing", [0, 1])
def test_few_requests_of_a_label_give_no_critic(missing):
    world = World(4.0, n_groups=4, per_group=MIN_REQUESTS // 2)
    assert world.fit().report["warning"].startswith("fitted on 50 harmful and 50 other requests")
    place = next(n for n, example in enumerate(world.examples) if example.label == missing)
    labels = [example.label for example in world.examples]
    labels[place] = 1 - missing
    counted = {0: "51 harmful and 49 other", 1: "49 harmful and 51 other"}[missing]
    with pytest.raises(CriticUnusable, match=f"{counted} .*at least 50 of each") as found:
        world.relabel(label=labels, risky=labels).fit()
    assert found.value.param == "data"


def test_enough_requests_give_no_warning():
    assert World(4.0, n_groups=4, per_group=FEW_REQUESTS // 2).fit().report["warning"] is None


def test_one_layer_alone():
    world, new = World(2.0, replies=16), World(2.0, seed=1, replies=16)
    mean, one = world.fit(), world.fit(pooling=2)
    assert (mean.report["pooling"], one.report["pooling"]) == ("mean", 2)
    # The layers are fitted alike; which of them count is all that changes.
    assert one.report["prompt"]["layers"][1]["auroc"] == one.report["prompt"]["auroc"]
    assert one.report["prompt"]["auroc"] != mean.report["prompt"]["auroc"]
    for name in ("prompt", "response"):
        chosen, every = getattr(one.probes, name), getattr(mean.probes, name)
        np.testing.assert_array_equal(chosen.direction[1], LAYERS * every.direction[1])
        assert not chosen.direction[[0, 2]].any()
        assert not chosen.bias[[0, 2]].any()
    # By hand: the calibrated score of that layer's states at the end of the request.
    states = np.concatenate([row.prompts for row in new.states.pool()])[:, 1].astype(np.float64)
    probe, directions = one.probes.prompt, mean.probes.prompt
    expected = (
        probe.calibration[0] * (states @ directions.direction[1] + directions.bias[1]) + probe.calibration[1]
    )
    found = [compute_log_odds(one.probes, scores)[0] for scores in new.states.score(one.probes.directions())]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    recall, fpr = flagged(one, new)
    assert recall > 0.7
    assert fpr < 0.05


def test_a_layer_that_knows_nothing_is_refused_by_itself():
    with pytest.raises(CriticUnusable, match="do not rise with harm"):
        World(4.0, n_groups=20).fit(pooling=1)


@pytest.mark.parametrize("layer", [0, -1, LAYERS + 1])
def test_a_layer_that_the_model_has_not(layer):
    with pytest.raises(CriticUnusable, match=f"no layer {layer}; it has 3") as found:
        World(4.0).fit(pooling=layer)
    assert found.value.param == "pooling"


def test_states_that_are_not_finite_are_refused():
    world = World(1.0)
    pooled = world.states.pool()
    pooled[7].prompts[0, 0, 0] = np.nan
    with pytest.raises(CriticUnusable, match="not finite"):
        fit_probes(world.examples, pooled, world.score_rows, seed=0)


def test_from_rows_to_a_critic(make_model, make_tokenizer):
    rows = [
        {
            "messages": [{"role": "user", "content": f"{topic} {n} {'!!!!!!' if label else '......'}"}],
            "label": label,
            "group": topic,
        }
        for label in (0, 1)
        for topic in ("bread", "seeds", "paint", "stars")
        for n in range(15)
    ]
    heard = []
    fitted = fit_critic(
        make_model(drift=0.3, hidden_size=64),
        make_tokenizer(),
        rows,
        seed=0,
        on_progress=lambda: heard.append(1),
    )
    assert fitted.report["auroc"] > 0.95
    assert len(heard) == 2


def test_a_row_beyond_the_context_is_refused(make_model, make_tokenizer):
    rows = [
        {"messages": [{"role": "user", "content": "why " * n}], "label": n % 2, "group": "x"}
        for n in (1, 2, 900)
    ]
    model = make_model()
    longest = model.config.max_position_embeddings
    message = rf"row 2 \(line 3\): the row has \d+ tokens, more than the base model's context of {longest} "
    with pytest.raises(JobFailure, match=message) as found:
        fit_critic(model, make_tokenizer(), rows, seed=0)
    assert (found.value.code, found.value.param) == ("invalid_training_file", "data")
