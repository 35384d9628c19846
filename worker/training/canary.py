"""Measuring the canary: how likely the fixed answer is, token by token, in float32."""

import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.canary import CONTINUATION, MAX_TOKENS, PROMPT, RELOAD_TOLERANCE, Canary, distance
from app.errors import JobFailure
from worker.training.models import base_of, reference
from worker.training.templates import bounded_rendering

_LOW = (torch.float16, torch.bfloat16)


def measure_canary(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Canary:
    """Return the canary of a tuned model: with its adapter on, and off. Raises JobFailure where a number is none."""
    prompt, continuation = canary_ids(tokenizer)
    room = base_of(model).config.get_text_config().max_position_embeddings - len(prompt)
    # A short beginning of the answer is a canary too; it is never empty.
    continuation = continuation[: max(1, room)]
    tuned = token_log_probs(model, prompt, continuation)
    with reference(model):
        base = token_log_probs(model, prompt, continuation)
    for name, found in (("tuned", tuned), ("base", base)):
        place = next((place for place, value in enumerate(found) if not math.isfinite(value)), None)
        if place is not None:
            raise JobFailure(
                f"the {name} model gives token {place} of the canary's answer the log-probability {found[place]}, which is no"
                " finite number; nothing was published. Train with a lower learning rate, or go on from an earlier"
                " checkpoint",
                code="not_finite",
            )
    return Canary(prompt, continuation, tuned, base)


def canary_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return question and answer as token ids, the question through the chat template."""
    with bounded_rendering():
        rendered = cast(
            str,
            tokenizer.apply_chat_template(
                [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
            ),
        )
    prompt, continuation = (
        tuple(cast(list[int], cast(Any, tokenizer)(text, add_special_tokens=False)["input_ids"]))
        for text in (rendered, CONTINUATION)
    )
    return prompt, continuation[:MAX_TOKENS]


def token_log_probs(
    model: PreTrainedModel | PeftModel, prompt: tuple[int, ...], continuation: tuple[int, ...]
) -> tuple[float, ...]:
    """Return the log-probability of each token of `continuation` after `prompt` and those before it, in nats."""
    ids = torch.tensor([[*prompt, *continuation]], device=base_of(model).device)
    with torch.no_grad(), in_float32(model):
        logits = cast(Tensor, cast(Any, model)(input_ids=ids, use_cache=False).logits)[
            0, len(prompt) - 1 : -1
        ]
        log_probs = logits.float().log_softmax(-1)
    places = torch.tensor(continuation, device=ids.device)[:, None]
    return tuple(log_probs.gather(1, places)[:, 0].tolist())


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 for a while, whatever the weights are in: each layer is widened only while it runs.

    A weight of 16 bits comes back bit for bit, and the memory for it is that of one layer.
    """
    handles = []
    for module in model.modules():
        narrow = {
            name: each.dtype for name, each in module.named_parameters(recurse=False) if each.dtype in _LOW
        }
        if narrow:
            handles.append(module.register_forward_pre_hook(_widen(tuple(narrow))))
            handles.append(module.register_forward_hook(_narrow(narrow), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widen(names: tuple[str, ...]) -> Any:
    def widen(module: nn.Module, _: Any) -> None:
        for name in names:
            parameter = getattr(module, name)
            parameter.data = parameter.data.float()

    return widen


def _narrow(dtypes: dict[str, torch.dtype]) -> Any:
    def narrow(module: nn.Module, *_: Any) -> None:
        for name, dtype in dtypes.items():
            parameter = getattr(module, name)
            parameter.data = parameter.data.to(dtype)

    return narrow


def reload_canary(model: PeftModel, data: bytes, folder: Path, canary: Canary) -> tuple[float, ...]:
    """Return the log-probabilities of an exported adapter's zip, unpacked into `folder` and loaded by PEFT afresh.

    It is put on the base inside of `model`, which has no adapter any more. Raises JobFailure where PEFT cannot load it.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)
    # Merging nothing: the base is as it was before training, bit for bit.
    base = cast(PreTrainedModel, cast(Any, model).unload())
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5 for a property under its old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            loaded = PeftModel.from_pretrained(base, folder).eval()
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise JobFailure(
            f"PEFT cannot load the exported adapter ({error}); nothing was published. Submit the job again, and report it",
            code="export_unreadable",
        ) from error
    return token_log_probs(loaded, canary.prompt_ids, canary.continuation_ids)


def check_reloaded(expected: tuple[float, ...], found: tuple[float, ...]) -> None:
    """Raise JobFailure where an export, loaded again, is not the model that was trained."""
    apart = distance(expected, found)
    # A number that is none is not within anything.
    if not apart <= RELOAD_TOLERANCE:
        raise JobFailure(
            f"the exported adapter, loaded again by PEFT, answers otherwise than the trained model ({apart:.3g} nats a token"
            f" apart, at most {RELOAD_TOLERANCE:g} is allowed); nothing was published. Submit the job again, and report it",
            code="export_differs",
        )
