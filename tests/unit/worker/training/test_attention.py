"""Attention within rows: where it holds, where it ends, and the kernels that compute it."""

import pytest
import torch

from worker.training import attention as module
from worker.training.attention import IMPLEMENTATION, attend_within_rows, packed_attention
from worker.training.data import TokenizedRow
from worker.training.generation import generate_replies
from worker.training.models import final_states
from worker.training.packing import collate

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "What is 7?", "And a longer one, this?")]


def packed_batch(lengths, device="cpu"):
    rows = [TokenizedRow(n, tuple(range(length)), (False,) * length, ()) for n, length in enumerate(lengths)]
    return collate(rows, torch.device(device), packed=True)


def test_generation_with_left_padding_and_cache_is_not_touched(make_model, make_tokenizer):
    model, tokenizer = make_model(drift=0.1), make_tokenizer()
    before = generate_replies(model, tokenizer, PROMPTS, max_new_tokens=8)
    final_states(model, packed_batch((5, 3)))
    assert generate_replies(model, tokenizer, PROMPTS, max_new_tokens=8) == before
    alone = [generate_replies(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in PROMPTS]
    assert before == alone


def test_the_model_gets_its_attention_back_when_a_forward_fails(make_model):
    model = make_model()
    batch = packed_batch((5, 3))
    with pytest.raises(IndexError):
        final_states(model, batch._replace(input_ids=batch.input_ids + 10_000))
    assert model.get_base_model().config._attn_implementation == "sdpa"
    with pytest.raises(LookupError):
        module._batch.get()


def test_the_implementation_refuses_to_run_without_a_batch(make_base):
    model = make_base()
    model.config._attn_implementation = IMPLEMENTATION
    with pytest.raises(LookupError, match="packed batch"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


def naive_attention(query, key, value, lengths, scaling):
    """Head by head and row by row, in float64, from the definition."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    shared = query.shape[1] // key.shape[1]
    for head in range(query.shape[1]):
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            q, k, v = query[0, head, rows], key[0, head // shared, rows], value[0, head // shared, rows]
            scores = (q.double() @ k.double().T) * scaling
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            out[0, head, rows] = scores.softmax(-1) @ v.double()
            start += length
    return out.transpose(1, 2)


@pytest.mark.parametrize("lengths", [(6,), (3, 3, 3), (5, 5, 2, 1), (2, 5, 2)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_causal_in_each_row(make_base, lengths, kv_heads):
    generator = torch.Generator().manual_seed(0)

    def draw(heads):
        return torch.randn(1, sum(lengths), heads, 8, generator=generator).transpose(1, 2)

    query, key, value = draw(4), draw(kv_heads), draw(kv_heads)
    layer = make_base(num_key_value_heads=kv_heads).model.layers[0].self_attn
    with attend_within_rows(make_base(), packed_batch(lengths)):
        found, _ = packed_attention(layer, query, key, value, None, scaling=0.3)
    expected = naive_attention(query, key, value, lengths, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not (torch.cuda.is_available() and module.HAS_VARLEN), reason="needs CUDA and its kernel")
def test_the_varlen_kernel_agrees():
    lengths = (65, 65, 30, 1)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, sum(lengths), heads, 64, generator=generator).transpose(1, 2) for heads in (4, 2, 2)
    ]
    half = [tensor.to("cuda", torch.bfloat16).requires_grad_() for tensor in tensors]
    assert module._varlen_fits(half[0], half[2], {})
    found = module._varlen(*half, packed_batch(lengths, "cuda"), 0.125)
    expected = naive_attention(*(tensor.detach().cpu() for tensor in half), lengths, 0.125)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in half)
