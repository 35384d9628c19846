"""The head in chunks: which heads are taken, how positions are cut, how exact a row's sum is."""

import pytest
import torch
from torch import nn

from worker.training.head import MIN_CHUNK_ROWS, check_head, chunks, head_logits, softmax_, through_head


def frozen(hidden, vocabulary, **options):
    return nn.Linear(hidden, vocabulary, **options).requires_grad_(False)


def test_a_head_that_trains_is_refused():
    head = frozen(3, 5)
    assert check_head(head) is head
    head.bias.requires_grad_()
    with pytest.raises(ValueError, match="freeze the head"):
        check_head(head)


def test_a_head_that_may_do_more_than_a_product_is_refused():
    class Scaled(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    with pytest.raises(TypeError, match="Scaled"):
        check_head(Scaled(3, 5).requires_grad_(False))


@pytest.mark.parametrize("n", [0, 1, 6, 7, 20])
def test_chunks_cover_every_position_once(n):
    covered = [place for part in chunks(n, frozen(3, 5), 7) for place in range(n)[part]]
    assert covered == list(range(n))


def test_chunks_shrink_with_the_vocabulary_down_to_a_least_number_of_rows():
    widths = [2**10, 2**13, 2**22]
    rows = [next(chunks(10**6, frozen(1, width, device="meta"))).stop for width in widths]
    assert rows[0] == 8 * rows[1]
    assert rows[2] == MIN_CHUNK_ROWS


def test_products_are_the_heads_own_and_half_precision_is_raised():
    head = frozen(4, 9, dtype=torch.bfloat16)
    states = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    z = head_logits(states, head)
    assert z.dtype == torch.float32
    assert torch.equal(z, head(states).float())
    image = through_head(z, head)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, z @ head.weight.float(), rtol=0.02, atol=0.02)


def test_the_sum_of_a_wide_row_is_exact_to_float32():
    z = 3 * torch.randn(8, 131_072, generator=torch.Generator().manual_seed(0))
    expected = torch.logsumexp(z.double(), 1)
    found = softmax_(z, z.amax(1))
    assert found.weights.data_ptr() == z.data_ptr()
    assert found.weights.amax() == 1
    assert (found.log_sum_exp - expected).abs().max() < 4e-7
