"""Micro-batches, their tensors, and that a packed one is its rows, each alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from worker.training.data import TokenizedRow
from worker.training.models import final_states, layer_states, trainable_parameters
from worker.training.packing import collate, micro_batches

CPU = torch.device("cpu")
LENGTHS = (9, 9, 7, 4, 4, 4, 1)
ROWS = [
    TokenizedRow(0, (5, 6, 7), (False, False, True), (1,)),
    TokenizedRow(1, (1, 2, 3, 4, 5), (False, True, False, True, True), (0, 2)),
]


def random_rows(lengths=LENGTHS, seed=0):
    """Rows of random tokens; a third of them, never the first, bear loss."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, length in enumerate(lengths):
        tokens = torch.randint(0, 256, (length,), generator=generator).tolist()
        mask = (torch.rand(length, generator=generator) < 1 / 3).tolist()
        rows.append(TokenizedRow(index, tuple(tokens), (False, *mask[1:]), (0,)))
    return rows


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.booleans())
def test_micro_batches_keep_to_the_budget_and_lose_nothing(lengths, budget, packed):
    batches = micro_batches(lengths, budget, packed=packed)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        found = [lengths[row] for row in batch]
        assert found == sorted(found, reverse=True)
        assert len(batch) == 1 or (sum(found) if packed else max(found) * len(found)) <= budget


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(50, 200))
def test_two_packed_batches_would_not_fit_into_one(lengths, budget):
    totals = sorted(
        sum(lengths[row] for row in batch) for batch in micro_batches(lengths, budget, packed=True)
    )
    assert len(totals) < 2 or totals[0] + totals[1] > budget


def test_packing_takes_the_fullest_batch_that_has_room():
    # After 6, 5 and 4 the batches have 2, 3 and 4 tokens left: 2 goes to the first, 3 to the second.
    assert micro_batches([2, 6, 4, 3, 5], 8, packed=True) == [[1, 0], [4, 3], [2]]
    assert micro_batches([2, 6, 4, 3, 5], 8, packed=False) == [[1], [4], [2, 3], [0]]


def test_side_by_side_rows_are_padded_on_the_right():
    batch = collate(ROWS, CPU, packed=False)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert (batch.position_ids, batch.cu_seqlens) == (None, None)
    assert batch.labels.tolist() == [7, 2, 4, 5]
    assert batch.predecessors.tolist() == [1, 5, 7, 8]
    assert batch.rows.tolist() == [0, 1, 1, 1]
    assert (batch.starts, batch.max_length) == ((0, 5), 5)


def test_packed_rows_lie_one_after_another():
    batch = collate(ROWS, CPU, packed=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 2, 3, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.attention_mask is None
    assert (batch.cu_seqlens.tolist(), batch.cu_seqlens.dtype) == ([0, 3, 8], torch.int32)
    assert batch.labels.tolist() == [7, 2, 4, 5]
    assert batch.predecessors.tolist() == [1, 3, 5, 6]
    assert batch.rows.tolist() == [0, 1, 1, 1]
    assert (batch.starts, batch.max_length) == ((0, 3), 5)


def test_no_mask_without_padding():
    assert collate([ROWS[0], ROWS[0]], CPU, packed=False).attention_mask is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_a_packed_step_is_gradient_accumulation_over_its_rows(make_model, dtype, tolerance):
    rows = random_rows()
    packed, alone = make_model(dtype, drift=0.1), make_model(dtype, drift=0.1)
    batch = collate(rows, CPU, packed=True)
    head = packed.get_base_model().lm_head
    logits = head(final_states(packed, batch)[batch.predecessors])
    loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
    loss.backward()

    total = 0.0
    for row in rows:
        if any(row.loss_mask):
            tokens, bears = torch.tensor([row.input_ids]), torch.tensor(row.loss_mask)
            predicted = alone(tokens, use_cache=False).logits[0, :-1][bears[1:]]
            row_loss = nn.functional.cross_entropy(predicted, tokens[0, bears], reduction="sum")
            row_loss.backward()
            total += row_loss.item()
    assert loss.item() == pytest.approx(total, rel=tolerance)
    expected = trainable_parameters(alone)
    for name, parameter in trainable_parameters(packed).items():
        assert (parameter.grad - expected[name].grad).norm() <= tolerance * expected[name].grad.norm()


def test_packed_states_are_those_under_a_dense_block_mask(make_model):
    # The second implementation: transformers makes the block mask itself where position ids restart.
    model = make_model(torch.float64, drift=0.1)
    batch = collate(random_rows(), CPU, packed=True)
    decoder = model.get_base_model().model
    dense = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    torch.testing.assert_close(final_states(model, batch), dense.last_hidden_state[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_no_bit_of_a_row_changes_with_its_neighbours(make_model, dtype, changed):
    model = make_model(dtype, drift=0.1)
    rows = random_rows()
    other = random_rows(seed=1)[changed]
    before = collate(rows, CPU, packed=True)
    after = collate([*rows[:changed], other, *rows[changed + 1 :]], CPU, packed=True)
    ends = (*before.starts[1:], before.input_ids.shape[1])
    for one, two in zip(layer_states(model, before)[1], layer_states(model, after)[1], strict=True):
        for row, (start, end) in enumerate(zip(before.starts, ends, strict=True)):
            assert torch.equal(one[start:end], two[start:end]) == (row != changed)
