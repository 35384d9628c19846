"""The activation critic on disk: it comes back the same, and only for what it was fitted for."""

import json

import numpy as np
import pytest

from app.errors import CriticUnusable
from worker.training.critics.activation import ProbeWeights, compute_log_odds, load_activation, save_critic
from worker.training.reference import assess_row

FITTED_FOR = {"base_digest": "b" * 64, "template_digest": "t" * 64}


def features(turns, seed=0):
    return np.random.default_rng(seed).normal(size=(turns, 2, 3)).astype(np.float32)


@pytest.fixture
def weights():
    rng = np.random.default_rng(1)
    return ProbeWeights(
        rng.normal(size=(2, 3)), rng.uniform(1, 2, size=(2, 3)), rng.normal(size=(2, 3)),
        rng.normal(size=2), np.array([1.5, -0.25]),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, weights):
    save_critic(tmp_path / "critic", weights, low=-1.0, high=3.0, report={"auroc": 0.9}, **FITTED_FOR)
    return tmp_path / "critic"


def test_it_comes_back_the_same(folder, weights):
    critic = load_activation(folder, **FITTED_FOR)
    assert sorted(path.name for path in folder.iterdir()) == ["critic.json", "critic.safetensors"]
    assert (critic.low, critic.high, critic.metadata["report"]) == (-1.0, 3.0, {"auroc": 0.9})
    assert np.array_equal(
        compute_log_odds(critic.weights, features(4)), compute_log_odds(weights, features(4))
    )
    again = save_critic(folder, weights, low=-1.0, high=3.0, report={"auroc": 0.9}, **FITTED_FOR)
    assert again == critic.digest


def test_log_odds_equal_plain_loops(weights):
    states = features(1)[0]
    score = 0.0
    for layer in range(2):
        total = weights.bias[layer]
        for place in range(3):
            value = (float(states[layer, place]) - weights.mean[layer, place]) / weights.scale[layer, place]
            total += value * weights.weight[layer, place]
        score += total / 2
    assert compute_log_odds(weights, features(1))[0] == pytest.approx(1.5 * score - 0.25, rel=1e-12)


def test_a_row_is_as_risky_as_its_riskiest_turn(folder, weights):
    critic = load_activation(folder, **FITTED_FOR)
    found = critic.assess(features(5))
    each = compute_log_odds(weights, features(5))
    assert found.log_odds == each.max()
    assert found.s == pytest.approx(min(1, max(0, (each.max() + 1) / 4)))


@pytest.mark.parametrize("what", ["base_digest", "template_digest"])
def test_another_base_or_template_is_refused(folder, what):
    with pytest.raises(CriticUnusable, match="was fitted for another"):
        load_activation(folder, **{**FITTED_FOR, what: "0" * 64})


def test_damage_is_refused(folder):
    weights = bytearray((folder / "critic.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "critic.safetensors").write_bytes(weights)
    with pytest.raises(CriticUnusable, match="damaged"):
        load_activation(folder, **FITTED_FOR)
    (folder / "critic.safetensors").unlink()
    with pytest.raises(CriticUnusable, match="cannot be read"):
        load_activation(folder, **FITTED_FOR)


def test_another_format_is_refused(folder):
    metadata = json.loads((folder / "critic.json").read_text())
    (folder / "critic.json").write_text(json.dumps({**metadata, "format": "other"}))
    with pytest.raises(CriticUnusable, match="format 'other'"):
        load_activation(folder, **FITTED_FOR)


@pytest.mark.parametrize(
    "bad",
    [
        np.full((1, 2, 3), np.nan, np.float32),
        np.zeros((1, 9, 3), np.float32),
        np.zeros((0, 2, 3), np.float32),
    ],
)
def test_states_it_cannot_judge_make_the_row_as_risky_as_can_be(folder, bad):
    risk = assess_row(load_activation(folder, **FITTED_FOR), 4, bad)
    assert (risk.row, risk.log_odds, risk.s, risk.status) == (4, None, 1.0, "failed")
