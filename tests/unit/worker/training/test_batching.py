"""The order of rows, and which a step takes."""

import random

import numpy as np
import pytest
import torch

from worker.training.batching import row_order, step_rows, steps_per_epoch


def test_row_order_is_a_pure_function_of_its_arguments():
    row_order.cache_clear()
    first = row_order(100, 1, 0)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    row_order.cache_clear()
    assert row_order(100, 1, 0) == first
    assert sorted(first) == list(range(100))
    assert len({first, row_order(100, 1, 1), row_order(100, 2, 0)}) == 3


def test_row_order_is_pinned():
    # A change here would change the order of running jobs in the middle.
    assert row_order(8, 7, 0) == (5, 1, 6, 2, 3, 0, 7, 4)


def test_every_epoch_takes_every_row_once_and_keeps_the_short_last_batch():
    assert steps_per_epoch(10, 4) == 3
    steps = [step_rows(step, n_rows=10, batch_size=4, seed=1) for step in range(1, 7)]
    assert [step.data_epoch for step in steps] == [0, 0, 0, 1, 1, 1]
    assert [len(step.rows) for step in steps] == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 1):
        assert sorted(sum((step.rows for step in steps if step.data_epoch == epoch), ())) == list(range(10))


@pytest.mark.parametrize("n_rows", [1, 7])
def test_batches_larger_than_the_data_are_one_step(n_rows):
    assert step_rows(1, n_rows=n_rows, batch_size=256, seed=0).rows == row_order(n_rows, 0, 0)
