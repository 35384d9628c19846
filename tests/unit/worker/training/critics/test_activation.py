"""The activation critic on disk: it comes back the same, and only for what it was fitted for."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from app.domain.control_law import compute_s
from app.errors import CriticUnusable
from worker.training.critics.activation import (
    FORMAT_1,
    Points,
    Probe,
    Probes,
    compute_log_odds,
    load_activation,
    save_critic,
)
from worker.training.critics.features import WINDOW, Scores, read_features
from worker.training.data import TokenizedRow
from worker.training.reference import assess_row

FITTED_FOR = {"base_digest": "b" * 64, "template_digest": "t" * 64}
POINTS = Points(-1.0, 0.5, 3.0)
LAYERS, HIDDEN = 2, 3


def features(tokens=5, seed=0, states=None):
    """A row of one prompt token and a response."""
    row = TokenizedRow(0, tuple(range(tokens + 1)), (False,) + (True,) * tokens, (0,))
    if states is None:
        states = np.random.default_rng(seed).normal(size=(LAYERS, tokens + 1, HIDDEN)).astype(np.float32)
    (found,) = read_features([torch.from_numpy(layer) for layer in states], [row], [0])
    return found, states


def make_probe(seed, slope=1.5, intercept=-0.25):
    rng = np.random.default_rng(seed)
    return Probe(rng.normal(size=(LAYERS, HIDDEN)), rng.normal(size=LAYERS), np.array([slope, intercept]))


@pytest.fixture
def probes():
    return Probes(make_probe(1), make_probe(2, slope=0.7))


@pytest.fixture
def folder(tmp_path, probes):
    save_critic(tmp_path / "critic", probes, POINTS, report={"auroc": 0.9}, **FITTED_FOR)
    return tmp_path / "critic"


def by_hand(probe, states):
    """Log-odds of (layers, hidden) states by plain loops."""
    score = 0.0
    for layer in range(LAYERS):
        total = float(probe.bias[layer])
        for place in range(HIDDEN):
            total += float(states[layer, place]) * float(probe.direction[layer, place])
        score += total / LAYERS
    return float(probe.calibration[0]) * score + float(probe.calibration[1])


@pytest.mark.parametrize("tokens", [5, WINDOW + 4])
def test_a_row_is_as_risky_as_its_riskiest_place(folder, probes, tokens):
    found, states = features(tokens)
    width = min(tokens, WINDOW)
    expected = [by_hand(probes.prompt, states[:, 0])] + [
        by_hand(probes.response, states[:, start : start + width].astype(np.float64).mean(axis=1))
        for start in range(1, tokens - width + 2)
    ]
    critic = load_activation(folder, **FITTED_FOR)
    np.testing.assert_allclose(
        compute_log_odds(critic.probes, found.score(critic.directions)), expected, rtol=1e-4, atol=1e-5
    )
    said = critic.assess(0, found)
    # Under the critic's digest, so that the readings of several critics can stand side by side.
    assert said.log_odds == {critic.digest: pytest.approx(max(expected), rel=1e-4)}
    assert said.s == compute_s(said.log_odds[critic.digest], -1.0, 3.0)


def test_it_comes_back_the_same(folder, probes):
    critic = load_activation(folder, **FITTED_FOR)
    assert sorted(path.name for path in folder.iterdir()) == ["critic.json", "critic.safetensors"]
    assert (critic.points, critic.metadata["report"]) == (POINTS, {"auroc": 0.9})
    for loaded, saved in zip(critic.probes, probes, strict=True):
        assert all(np.array_equal(vars(loaded)[name], vars(saved)[name]) for name in vars(saved))
    assert save_critic(folder, probes, POINTS, report={"auroc": 0.9}, **FITTED_FOR) == critic.digest


def test_without_a_response_probe_the_response_is_not_read(tmp_path, probes):
    save_critic(tmp_path, Probes(probes.prompt, None), POINTS, report={}, **FITTED_FOR)
    critic = load_activation(tmp_path, **FITTED_FOR)
    found, states = features(9)
    assert critic.probes.response is None
    assert critic.assess(0, found).log_odds[critic.digest] == pytest.approx(
        by_hand(probes.prompt, states[:, 0]), rel=1e-4
    )


def test_s_as_a_probability(folder):
    critic = load_activation(folder, **FITTED_FOR, s_scale="probability")
    said = critic.assess(0, features()[0])
    assert said.s == pytest.approx(1 / (1 + np.exp(-said.log_odds[critic.digest])), rel=1e-12)


def test_format_1_is_a_critic_of_prompts_only(tmp_path):
    rng = np.random.default_rng(1)
    weights = {
        "mean": rng.normal(size=(LAYERS, HIDDEN)), "scale": rng.uniform(1, 2, size=(LAYERS, HIDDEN)),
        "weight": rng.normal(size=(LAYERS, HIDDEN)), "bias": rng.normal(size=LAYERS),
        "calibration": np.array([1.5, -0.25]),
    }  # fmt: skip
    payload = save(weights)
    metadata = {
        "format": FORMAT_1, **FITTED_FOR, "weights_sha256": hashlib.sha256(payload).hexdigest(),
        "low": -1.0, "high": 3.0, "report": {},
    }  # fmt: skip
    (tmp_path / "critic.safetensors").write_bytes(payload)
    (tmp_path / "critic.json").write_text(json.dumps(metadata))
    critic = load_activation(tmp_path, **FITTED_FOR)
    found, states = features()
    standardised = (states[:, 0] - weights["mean"]) / weights["scale"]
    expected = 1.5 * ((standardised * weights["weight"]).sum(axis=1) + weights["bias"]).mean() - 0.25
    assert critic.assess(0, found).log_odds[critic.digest] == pytest.approx(expected, rel=1e-4)
    assert critic.points == Points(-1.0, 3.0, 3.0)


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


def test_weights_of_another_name_are_refused(folder):
    payload = save({"prompt.direction": np.zeros((LAYERS, HIDDEN))})
    metadata = json.loads((folder / "critic.json").read_text())
    metadata["weights_sha256"] = hashlib.sha256(payload).hexdigest()
    (folder / "critic.safetensors").write_bytes(payload)
    (folder / "critic.json").write_text(json.dumps(metadata))
    with pytest.raises(CriticUnusable, match="holds other weights"):
        load_activation(folder, **FITTED_FOR)


@pytest.mark.parametrize(
    "states",
    [
        np.full((LAYERS, 6, HIDDEN), np.nan, np.float32),
        np.zeros((LAYERS, 6, 9), np.float32),
        np.zeros((1, 6, HIDDEN), np.float32),
        None,
    ],
)
def test_states_it_cannot_judge_make_the_row_as_risky_as_can_be(folder, states):
    given = None if states is None else features(states=states)[0]
    risk = assess_row(load_activation(folder, **FITTED_FOR), 4, given)
    assert (risk.row, risk.log_odds, risk.s, risk.status) == (4, {}, 1.0, "failed")


def test_one_token_that_is_no_number_is_enough(folder):
    _, states = features(40)
    states[1, 20, 0] = np.nan
    critic = load_activation(folder, **FITTED_FOR)
    assert assess_row(critic, 0, features(40, states=states)[0]).status == "failed"


def test_turns_do_not_share_windows(probes):
    scores = Scores(np.zeros((2, LAYERS)), (np.zeros((3, LAYERS)), np.ones((4, LAYERS))))
    assert compute_log_odds(probes, scores).shape == (2 + 1 + 1,)
