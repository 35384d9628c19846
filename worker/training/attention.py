"""Attention inside the rows of a packed batch, never across them, without a mask over the whole batch.

It is an attention implementation of transformers' own, under a name of ours, and a model uses it only while
`attend_within_rows` holds. Everything else that runs on the model, generation with its cache among it, keeps `sdpa`.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from worker.training.packing import Batch

try:
    from torch.nn.attention.varlen import varlen_attn

    HAS_VARLEN = "window_size" in inspect.signature(varlen_attn).parameters
except ImportError:
    HAS_VARLEN = False

IMPLEMENTATION = "tether_packed"
HALF = (torch.float16, torch.bfloat16)
MAX_VARLEN_WIDTH = 256
"""The widest head that the varlen kernel takes."""

_batch: ContextVar[Batch] = ContextVar("packed batch")


@contextmanager
def attend_within_rows(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Let `model` run on the packed `batch`. Only its forward has to happen inside."""
    before = model.config._attn_implementation
    token = _batch.set(batch)
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = before
        _batch.reset(token)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each row: (1, heads, t, width) to (1, t, heads, width).

    Neighbours of one length share a call, so that rows of one length cost what they cost side by side.
    """
    batch = _batch.get()
    if attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if _varlen_fits(query, value, kwargs):
        return _varlen(query, key, value, batch, scaling), None
    ends = (*batch.starts[1:], query.shape[2])
    lengths = [end - start for start, end in zip(batch.starts, ends, strict=True)]
    groups = [(length, len(list(same))) for length, same in groupby(lengths)]
    # A split's gradient is one concatenation, where a slice's would be a tensor of zeros for each row.
    parts = [
        torch.split(tensor.transpose(1, 2), [length * count for length, count in groups], dim=1)
        for tensor in (query, key, value)
    ]
    found = []
    for (length, count), *tensors in zip(groups, *parts, strict=True):
        q, k, v = (tensor.view(count, length, *tensor.shape[2:]).transpose(1, 2) for tensor in tensors)
        out, _ = sdpa_attention_forward(module, q, k, v, None, scaling=scaling, **kwargs)
        found.append(out.view(1, count * length, *out.shape[2:]))
    return torch.cat(found, dim=1), None


def packed_mask(*, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    """Return no mask, or transformers' dense one where a row is longer than the model's local attention reaches."""
    if local_size is None or _batch.get().max_length <= local_size:
        return None
    return sdpa_mask(local_size=local_size, **kwargs)


def _varlen_fits(query: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    """Tell whether torch's varlen kernel computes this: CUDA, half precision, plain causal attention."""
    return (
        HAS_VARLEN
        and query.is_cuda
        and query.dtype in HALF
        and query.shape[-1] == value.shape[-1] <= MAX_VARLEN_WIDTH
        and not kwargs.get("dropout")
        and all(kwargs.get(name) is None for name in ("softcap", "position_bias", "s_aux"))
    )


def _varlen(query: Tensor, key: Tensor, value: Tensor, batch: Batch, scaling: float | None) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    q, k, v = (
        tensor[0].transpose(0, 1) for tensor in (query, repeat_kv(key, shared), repeat_kv(value, shared))
    )
    bounds, longest = cast(Tensor, batch.cu_seqlens), batch.max_length
    # Nothing ahead, everything behind: causal.
    found = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0))
    return cast(Tensor, found)[None]


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, packed_mask)
