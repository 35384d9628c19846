"""Where a critic looks, and that what it reads there equals plain loops over the model's own states."""

import numpy as np
import pytest
import torch

from worker.training.critics.features import (
    KEPT_WINDOWS,
    WINDOW,
    BatchStates,
    Directions,
    find_places,
    read_features,
    window_means,
)
from worker.training.data import TokenizedRow, tokenize_rows, truncate
from worker.training.models import layer_states, reference
from worker.training.packing import collate

LAYERS, HIDDEN = 2, 32


@pytest.fixture
def rows(make_tokenizer, training_rows):
    reply = {"role": "assistant", "content": "word " * 40}
    longer = {"messages": [{"role": "user", "content": "Go on"}, reply]}
    found = tokenize_rows(make_tokenizer(), [*training_rows, longer], max_seq_length=512, overlength="error")
    return found.rows


@pytest.fixture
def directions():
    rng = np.random.default_rng(0)
    return Directions(rng.normal(size=(LAYERS, HIDDEN)), rng.normal(size=(LAYERS, HIDDEN)))


def states_alone(base, row):
    """The states of one row by itself, (layers, tokens, hidden), from the library's own output."""
    with torch.no_grad():
        output = base(torch.tensor([row.input_ids]), output_hidden_states=True)
    return np.stack([layer[0].numpy() for layer in output.hidden_states[1:]]).astype(np.float64)


@pytest.mark.parametrize("packed", [False, True])
def test_scores_are_products_with_the_references_own_states(make_model, make_base, rows, directions, packed):
    model, base = make_model(drift=0.3), make_base()
    batch = collate(rows, torch.device("cpu"), packed=packed)
    with reference(model):
        _, layers = layer_states(model, batch)
    for row, features in zip(rows, read_features(layers, rows, batch.starts), strict=True):
        found, states = features.score(directions), states_alone(base, row)
        for turn, end in enumerate(row.prompt_ends):
            expected = (states[:, end] * directions.prompt).sum(axis=1)
            np.testing.assert_allclose(found.prompts[turn], expected, rtol=1e-3, atol=1e-3)
        trained = [place for place, bears_loss in enumerate(row.loss_mask) if bears_loss]
        expected = np.einsum("lth,lh->tl", states[:, trained], directions.response)
        np.testing.assert_allclose(np.concatenate(found.responses), expected, rtol=1e-3, atol=1e-3)
        assert len(found.responses) == len(row.prompt_ends)


def test_every_loss_bearing_token_is_in_exactly_one_response(rows):
    for row in [*rows, truncate(rows[9], 30)]:
        places = find_places(row)
        covered = [token for start, end in places.responses for token in range(start, end)]
        assert covered == [place for place, bears_loss in enumerate(row.loss_mask) if bears_loss]
        assert [start - 1 for start, _ in places.responses] == list(places.prompts)


def test_turns_that_touch_are_told_apart():
    row = TokenizedRow(0, (1, 2, 3, 4, 5), (False, True, True, True, True), (0, 2))
    assert find_places(row).responses == ((1, 3), (3, 5))


def test_a_request_alone_has_a_prompt_and_no_response():
    row = TokenizedRow(0, (1, 2, 3), (False, False, False), (2,))
    assert find_places(row) == ((2,), ())


def test_windows_are_every_run_of_tokens():
    scores = np.random.default_rng(0).normal(size=(WINDOW + 5, 3))
    means = window_means(scores)
    assert means.shape == (6, 3)
    for start in range(6):
        np.testing.assert_allclose(means[start], sum(scores[start : start + WINDOW]) / WINDOW)
    np.testing.assert_allclose(window_means(scores[:7]), scores[:7].mean(axis=0, keepdims=True))


def test_padding_cannot_average_a_harmful_passage_away():
    scores = np.full((400, 1), -3.0)
    scores[123 : 123 + WINDOW] = 5.0
    assert window_means(scores).max() == 5.0
    assert scores.mean() < -2


def test_pooled_states_are_few_and_are_means_of_windows(make_base, rows):
    batch = collate(rows, torch.device("cpu"), packed=False)
    base = make_base()
    with torch.no_grad():
        _, layers = layer_states(base, batch)
    for row, pooled in zip(rows, BatchStates(layers, rows, batch.starts).pool(), strict=True):
        states = states_alone(base, row)
        np.testing.assert_allclose(
            pooled.prompts, states[:, list(row.prompt_ends)].swapaxes(0, 1), rtol=1e-3, atol=1e-4
        )
        assert pooled.windows.dtype == np.float32
        assert len(pooled.windows) <= KEPT_WINDOWS * len(row.prompt_ends)
        start, end = find_places(row).responses[0]
        first = states[:, start : min(end, start + WINDOW)].mean(axis=1)
        if end - start <= WINDOW or end - start > 2 * WINDOW:
            np.testing.assert_allclose(pooled.windows[0], first, rtol=1e-3, atol=1e-4)
    # The last row's windows reach to its end.
    start, end = find_places(rows[-1]).responses[0]
    assert end - start > KEPT_WINDOWS * WINDOW
    last = states_alone(base, rows[-1])[:, end - WINDOW : end].mean(axis=1)
    np.testing.assert_allclose(pooled.windows[-1], last, rtol=1e-3, atol=1e-4)


def test_one_pair_of_directions_is_applied_once(make_base, rows, directions):
    batch = collate(rows, torch.device("cpu"), packed=False)
    with torch.no_grad():
        _, layers = layer_states(make_base(), batch)
    states = BatchStates(layers, rows, batch.starts)
    assert states.score(directions) is states.score(directions)
    again = Directions(directions.prompt, None)
    assert all(not scores.responses for scores in states.score(again))


def test_directions_of_another_model_are_refused(rows):
    states = BatchStates([torch.zeros(8, 4)], rows[:1], [0])
    with pytest.raises(ValueError, match="layers and width"):
        states.score(Directions(np.zeros((1, 5)), None))
