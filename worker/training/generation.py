"""Batched generation: left-padded, cached, greedy or sampled over the full vocabulary.

A prompt is read once however many samples are drawn for it, and a reply that has ended leaves the batch.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worker.training.templates import bounded_rendering


@torch.no_grad()
def generate_replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, Any]]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """Reply to each conversation, in order.

    Temperature 0 is greedy; above it, tokens are drawn at exactly that temperature with no truncation. The draws
    depend on the seed and the prompt's place alone, so the result does not depend on how prompts are batched.
    """
    if not prompts:
        return []
    with bounded_rendering(len(prompts)):
        encoded: list[list[int]] = tokenizer.apply_chat_template(
            list(prompts), tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
    tokens = generate_tokens(
        model,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    replies: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return replies


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    opening: str = "",
    max_new_tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    on_progress: Callable[[], None] = lambda: None,
) -> list[str]:
    """Return replies to prompts of token ids as texts; an opening that is put into the model's mouth is part of them.

    Control tokens in the opening's text are plain text, as they are in prompts. See `generate_tokens`.
    """
    begun: list[int] = tokenizer(opening, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    tokens = generate_tokens(
        model,
        tokenizer,
        [[*prompt, *begun] for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    texts: list[str] = tokenizer.batch_decode([begun + reply for reply in tokens], skip_special_tokens=True)
    return texts


@torch.no_grad()
def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    on_progress: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Continue each prompt of token ids, in order, up to and with its end token. See `generate_replies`.

    With `samples` there are as many replies a prompt, one after another: what a list that repeats every prompt gives.
    `on_progress` is called after each batch; what it raises ends the work.
    """
    if temperature < 0:
        raise ValueError("temperature must be 0 or above")
    draws = torch.rand(
        len(prompts) * samples,
        max_new_tokens,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    ).view(len(prompts), samples, max_new_tokens)
    replies: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    # Prompts of like length share a batch, so that little is computed for padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with _evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            tokens = _decode(model, tokenizer, [prompts[i] for i in chosen], draws[chosen], temperature)
            for place, reply in enumerate(tokens):
                replies[chosen[place // samples] * samples + place % samples] = reply
            on_progress()
    return replies


def choose_tokens(logits: Tensor, draws: Tensor, temperature: float) -> Tensor:
    """The next token of each row: the likeliest at temperature 0, else by inverting the distribution at `draws`."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    # Scaling by the last entry keeps a draw near 1 inside the distribution whatever the rounding.
    points = draws.to(logits.device).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _decode(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], draws: Tensor, temperature: float
) -> list[list[int]]:
    """Return `samples` replies a prompt, one after another; `draws` is (prompts, samples, new tokens)."""
    device = next(model.parameters()).device
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    end_ids = torch.tensor(ends, device=device)
    extra = {"logits_to_keep": 1} if _keeps_last_logits(model) else {}
    samples = draws.shape[1]
    draws = draws.flatten(0, 1)
    replies: list[list[int]] = [[] for _ in draws]
    alive = torch.arange(len(draws))
    ended = torch.zeros(len(draws), dtype=torch.bool)
    cache = None
    for step in range(draws.shape[1]):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        cache = output.past_key_values
        logits, positions = output.logits[:, -1], positions[:, -1:] + 1
        if step == 0 and samples > 1:
            cache.batch_repeat_interleave(samples)
            logits, mask, positions = (
                each.repeat_interleave(samples, 0) for each in (logits, mask, positions)
            )
        token = choose_tokens(logits, draws[alive, step], temperature)
        for place, has_ended, written in zip(alive.tolist(), ended.tolist(), token.tolist(), strict=True):
            if not has_ended:
                replies[place].append(written)
        ended = ended | torch.isin(token, end_ids).cpu()
        if bool(ended.all()):
            break
        ids = token.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # Taking replies out copies the cache, so they leave by the half.
        if 2 * int(ended.sum()) >= len(ended):
            kept = (~ended).nonzero().squeeze(1)
            alive, ended = alive[kept], ended[kept]
            kept = kept.to(device)
            cache.batch_select_indices(kept)
            ids, mask, positions = ids[kept], mask[kept], positions[kept]
    return replies


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is None:
        configured = []
    elif isinstance(configured, int):
        configured = [configured]
    ends = {*configured, tokenizer.eos_token_id} - {None}
    if not ends:
        raise ValueError("neither the model nor the tokenizer has an end token")
    return sorted(ends)


def _keeps_last_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
