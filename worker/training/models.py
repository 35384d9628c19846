"""The base model, its LoRA adapter, and the reference: the same weights with the adapter switched off.

A model is only ever read from a local folder, as safetensors, without code of its own.
"""

import hashlib
import math
import platform
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from app.domain.training_spec import TrainingSpec
from app.errors import InvalidBaseModel, StorageUnavailable
from worker.training.attention import attend_within_rows
from worker.training.model_config import rewrite_config
from worker.training.model_folder import open_model_folder
from worker.training.packing import Batch, collate

ADAPTER_NAME = "default"


class _Tokens(NamedTuple):
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]


def choose_device() -> torch.device:
    """Return the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def set_determinism(seed: int) -> None:
    """Seed every generator and demand deterministic algorithms.

    On CUDA the process must have been started with CUBLAS_WORKSPACE_CONFIG=:4096:8; torch names the variable
    in its error where it was not. The attention kernels whose backward pass is not deterministic are switched off.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written, and filling it first costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # A property of the module.
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_base(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a local folder.

    The model comes back in eval mode and stays there: dropout in the base would make model and reference differ
    by chance. `dtype` defaults to bfloat16 on CUDA and float32 elsewhere, whatever the files hold. With `files` (SHA-256
    by name) these files are loaded and no others, and the digests are those of the very bytes that are loaded.
    Raises InvalidBaseModel where the folder does not hold such a model, or its tokenizer has no chat template;
    StorageUnavailable where one of `files` cannot be read.
    """
    if files is None and not (path / "config.json").is_file():
        raise InvalidBaseModel(f"{path.name} has no config.json; give a folder that holds a saved model")
    # A progress bar has no place in the log of a service.
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here.
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with open_private(path, files) as folder:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                attn_implementation="sdpa",
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidBaseModel(
                f"{path.name} could not be loaded as a causal language model: {error}"
            ) from error
        model = detach_from_files(cast(nn.Module, model).to(device))
    if not tokenizer.chat_template:
        raise InvalidBaseModel(
            f"the tokenizer in {path.name} has no chat template; add a chat_template.jinja beside its files"
        )
    # With a cache, padding-free attention would see across rows, and training has no use for one.
    model.config.use_cache = False
    model.requires_grad_(False)
    return cast(PreTrainedModel, model.eval()), tokenizer


@contextmanager
def open_private(path: Path, files: Mapping[str, str] | None) -> Iterator[Path]:
    """Give a private folder to load a model from: its files as they are opened, its configuration rewritten."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(open_model_folder(path, files))
        except OSError as error:
            if files is None:
                raise InvalidBaseModel(f"{path.name} cannot be read: {error.strerror}") from error
            raise StorageUnavailable(
                "the folder of the base model cannot be read on this machine; mount it or restore it"
                f" ({error.strerror})"
            ) from error
        rewrite_config(folder)
        yield folder


def detach_from_files(model: nn.Module) -> Any:
    """Copy weights that are still pages of a file, so that nobody who writes to the file changes them any more."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
    return model


def lora_targets(model: PreTrainedModel) -> list[str]:
    """Return the short names of the linear layers inside the model's blocks, sorted.

    Short names (`q_proj`) keep local structure out of the adapter's configuration, and every server reads them.
    The output head is never among them. Raises InvalidBaseModel where the blocks hold no linear layer.
    """
    head = head_of(model)
    names: set[str] = set()
    outside: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        *parents, name = path.split(".")
        in_block = any(parent.isdigit() for parent in parents) and module is not head
        (names if in_block else outside).add(name)
    targets = sorted(names - outside)
    if not targets:
        raise InvalidBaseModel(
            f"{type(model).__name__} has no linear layers in its blocks to put an adapter on"
        )
    return targets


def add_adapter(model: PreTrainedModel, spec: TrainingSpec, seed: int) -> PeftModel:
    """Put a fresh LoRA adapter in float32 (float64 on a float64 base) on every linear layer of the blocks.

    No bias, no dropout: with the adapter off, the base is untouched bit for bit. The initial weights are a pure
    function of `seed`; the global generator is left as it was.
    """
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=lora_targets(model),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a property under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    return cast(PeftModel, adapted.eval())


def trainable_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by their full names, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def reference(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Make the model the reference for a while: adapter off, no gradients. A bare base is its own reference."""
    if not isinstance(model, PeftModel):
        with torch.no_grad():
            yield
        return
    with torch.no_grad(), model.disable_adapter():
        yield


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the causal language model inside a PEFT model, adapter layers included, or the model itself."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def decoder_of(model: PreTrainedModel | PeftModel) -> nn.Module:
    """Return the model without its output head."""
    return cast(nn.Module, cast(Any, base_of(model)).get_decoder())


def head_of(model: PreTrainedModel | PeftModel) -> nn.Module | None:
    """Return the output head, or None where the model has none of its own."""
    return cast(nn.Module | None, cast(Any, base_of(model)).get_output_embeddings())


def final_states(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """Run the decoder without its head: (b·t, hidden) states after the final norm."""
    output = _run(model, decoder_of(model), batch)
    return cast(Tensor, output.last_hidden_state).flatten(0, 1)


def layer_states(model: PreTrainedModel | PeftModel, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the final states and the states after each block, all (b·t, hidden).

    The last block's entry is after the final norm; the others are the residual stream before it. The embeddings are
    left out: at the last prompt token they are the same for every prompt.
    """
    output = _run(model, decoder_of(model), batch, output_hidden_states=True)
    layers = tuple(states.flatten(0, 1) for states in output.hidden_states[1:])
    return output.last_hidden_state.flatten(0, 1), layers


def apply_head(model: PreTrainedModel | PeftModel, states: Tensor) -> Tensor:
    """Apply the output head: (n, hidden) final states to (n, vocabulary) logits. See `head_is_separable`."""
    return cast(Tensor, cast(nn.Module, head_of(model))(states))


def full_logits(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """Return the model's own logits, (b·t, vocabulary)."""
    return cast(Tensor, _run(model, base_of(model), batch).logits).flatten(0, 1)


def _run(model: PreTrainedModel | PeftModel, module: nn.Module, batch: Batch, **extra: Any) -> Any:
    # With a cache, packed rows would see each other.
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
        **extra,
    }
    if batch.cu_seqlens is None:
        return module(**inputs)
    with attend_within_rows(base_of(model), batch):
        return module(**inputs, position_ids=batch.position_ids)


class Traits(NamedTuple):
    """What a model allows, whatever its adapter."""

    separable_head: bool
    packed: bool


_TRAITS: WeakKeyDictionary[PreTrainedModel, Traits] = WeakKeyDictionary()


def traits_of(model: PreTrainedModel | PeftModel) -> Traits:
    """Return `head_is_separable` and `can_pack` of a model, which are found out once."""
    base = base_of(model)
    if base not in _TRAITS:
        _TRAITS[base] = Traits(head_is_separable(model), can_pack(model))
    return _TRAITS[base]


def head_is_separable(model: PreTrainedModel | PeftModel) -> bool:
    """Tell whether the model's logits are its head applied to its final states, and nothing more.

    Decided by comparing the two on a few tokens, bit for bit: a cap or a scale on the logits shows however small
    they are. A wrong False costs time only; such a model takes the plain path through its own logits.
    """
    if type(head_of(model)) is not nn.Linear:
        return False
    batch = collate(_few_rows(model, (8,)), base_of(model).device, packed=False)
    with torch.no_grad():
        expected = full_logits(model, batch)
        found = apply_head(model, final_states(model, batch))
    return expected.shape == found.shape and bool((expected.double() == found.double()).all())


def can_pack(model: PreTrainedModel | PeftModel) -> bool:
    """Tell whether the model computes packed rows as it computes each alone.

    Decided by numbers on a few tokens: packed and alone they are equal up to rounding, and no bit of a row changes
    with its neighbours. A wrong False costs time only; such a model takes its rows side by side.
    """
    first, second, third = _few_rows(model, (6, 6, 4))
    backwards = _Tokens(second.input_ids[::-1], second.loss_mask)
    device = base_of(model).device
    with torch.no_grad():
        try:
            packed, beside_another = (
                final_states(model, collate([first, middle, third], device, packed=True)).double()
                for middle in (second, backwards)
            )
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            # What a model raises that knows nothing of other attention than its own.
            return False
        rows = [collate([row], device, packed=False) for row in (first, second, third)]
        alone = torch.cat([final_states(model, row) for row in rows]).double()
    changed = slice(len(first.input_ids), len(first.input_ids) + len(second.input_ids))
    packed_others, other_others = packed.clone(), beside_another.clone()
    packed_others[changed] = other_others[changed] = 0.0
    tolerance = math.sqrt(torch.finfo(base_of(model).dtype).eps)
    close = (packed - alone).norm() <= tolerance * alone.norm()
    return bool(close) and torch.equal(packed_others, other_others)


def _few_rows(model: PreTrainedModel | PeftModel, lengths: Sequence[int]) -> list[_Tokens]:
    """Return rows of different tokens, as long as asked for."""
    vocab_size = base_of(model).config.get_text_config().vocab_size
    ids = iter(range(sum(lengths)))
    return [
        _Tokens(tuple(next(ids) % vocab_size for _ in range(length)), (False,) * length) for length in lengths
    ]


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the tokenizer's chat template, in hex.

    A tokenizer may hold several named templates; all of them count, in the order of their names.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = "\0".join(f"{name}\0{text}" for name, text in sorted(template.items()))
    return hashlib.sha256(str(template or "").encode()).hexdigest()


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return what bit-exact results depend on: versions, the device, the number of threads."""
    device = device or choose_device()
    libraries = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in libraries},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
