"""Checkpoints that resume bit for bit, and the adapter as an ordinary PEFT folder.

A checkpoint is a folder that is either complete or not there: its files are written and synchronised in a temporary
folder beside it, listed with their SHA-256 in `manifest.json`, and the folder is renamed. Nothing is pickled.
"""

import errno
import hashlib
import io
import os
import random
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.canary import Canary
from app.domain.canonical import canonical_bytes
from app.domain.control_law import MonitorState
from app.domain.provenance import ADAPTER_MANIFEST
from app.errors import JobFailure
from worker.training.jsonio import canonical_json, parse_json
from worker.training.models import ADAPTER_NAME, trainable_parameters

MANIFEST_FILE = "manifest.json"
ADAPTER_FILE = "adapter.safetensors"
METHOD_FILE = "method.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
TRAINER_FILE = "trainer.json"
ADAPTER_FORMAT = "tether.adapter/1"
CONTENT_FILES = (ADAPTER_FILE, METHOD_FILE, OPTIMIZER_FILE, RANDOM_FILE, TRAINER_FILE)


class CheckpointDamaged(JobFailure):
    """A checkpoint is not what was written: a file is missing, changed, or does not fit the model."""

    code = "checkpoint_damaged"


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where a run stands. Learning rate and data order are pure functions of step, seed and specification."""

    step: int
    """Steps done."""
    seed: int
    run_digest: str
    """SHA-256 of specification and tokenized rows; a checkpoint resumes only the run it came from."""
    monitor: MonitorState
    """What the run-level monitor has done so far."""
    smoothed: float | None
    """The smoothed s of the last step, where the scope is the batch."""
    live: Mapping[int, float]
    """What a live judge has said last of a row. A round that it was asked for and has not answered is lost."""
    skipped_in_a_row: tuple[int, ...]
    """The steps just before this one that were skipped, if any."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint on disk."""

    step: int
    path: Path
    digest: str
    """SHA-256 of its manifest, which names every file's."""
    files: dict[str, str]
    """SHA-256 by file name."""


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A verified checkpoint, in memory."""

    info: CheckpointInfo
    trainer: TrainerState
    adapter: dict[str, Tensor]
    method: dict[str, Tensor]
    """What the method keeps beside the adapter, mostly nothing."""
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    random_scalars: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    method_state: dict[str, Tensor] | None = None,
) -> CheckpointInfo:
    """Write a checkpoint into `folder` and return where it is: `step-{step:08d}-{digest12}`.

    When this returns, the checkpoint survives a power failure; when it raises, there is none. Saving the same
    state again gives the checkpoint that is already there.
    """
    random_tensors, random_scalars = _random_state()
    trainer = {
        "format": "tether-checkpoint-2",
        "step": state.step,
        "seed": state.seed,
        "run_digest": state.run_digest,
        "monitor": list(state.monitor),
        "smoothed": state.smoothed,
        "live": [[row, s] for row, s in sorted(state.live.items())],
        "skipped_in_a_row": list(state.skipped_in_a_row),
        "random": random_scalars,
    }
    contents = {
        ADAPTER_FILE: save(_on_cpu(trainable_parameters(model))),
        METHOD_FILE: save(_on_cpu(method_state or {})),
        OPTIMIZER_FILE: save(_optimizer_tensors(model, optimizer)),
        RANDOM_FILE: save(random_tensors),
        TRAINER_FILE: canonical_json(trainer),
    }
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = canonical_json({"files": files, "step": state.step})
    digest = hashlib.sha256(manifest).hexdigest()
    path = folder / f"step-{state.step:08d}-{digest[:12]}"

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        for name, data in {**contents, MANIFEST_FILE: manifest}.items():
            _write_durably(temporary / name, data)
        _sync_folder(temporary)
        _rename_unless_there(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(folder)
    return CheckpointInfo(state.step, path, digest, files)


def load_checkpoint(path: Path, *, digest: str | None = None) -> LoadedCheckpoint:
    """Read a checkpoint and verify every file, and the manifest by `digest` or, without one, by the folder's name.

    Raises CheckpointDamaged where anything is missing or changed.
    """
    try:
        manifest = (path / MANIFEST_FILE).read_bytes()
        contents = {name: (path / name).read_bytes() for name in CONTENT_FILES}
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    found = hashlib.sha256(manifest).hexdigest()
    # This digest stands for the manifest and the manifest for the files, so what passes is what was written.
    is_the_one = found == digest if digest is not None else path.name.endswith(f"-{found[:12]}")
    if not is_the_one:
        raise _damaged(path, f"is another than the one asked for: its manifest has digest {found[:12]}")
    listed = parse_json(manifest)
    files: dict[str, str] = listed["files"]
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise _damaged(path, f"has a changed {name}")
    try:
        trainer = parse_json(contents[TRAINER_FILE])
        return LoadedCheckpoint(
            info=CheckpointInfo(listed["step"], path, found, files),
            trainer=TrainerState(
                trainer["step"],
                trainer["seed"],
                trainer["run_digest"],
                MonitorState(*trainer["monitor"]),
                trainer["smoothed"],
                dict(trainer["live"]),
                tuple(trainer["skipped_in_a_row"]),
            ),
            adapter=load(contents[ADAPTER_FILE]),
            method=load(contents[METHOD_FILE]),
            optimizer=load(contents[OPTIMIZER_FILE]),
            random=load(contents[RANDOM_FILE]),
            random_scalars=trainer["random"],
        )
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, f"lacks something: {error}") from error


def restore(checkpoint: LoadedCheckpoint, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Put adapter, optimiser and random generators back to where the checkpoint was taken.

    `model` has an adapter of the same shape, `optimizer` was made over `trainable_parameters(model)`. Raises
    CheckpointDamaged where they do not fit.
    """
    restore_adapter(checkpoint, model)
    states: dict[int, dict[str, Tensor]] = {}
    for place, name in enumerate(trainable_parameters(model)):
        prefix = f"{name}|"
        found = {
            key.removeprefix(prefix): value
            for key, value in checkpoint.optimizer.items()
            if key.startswith(prefix)
        }
        if found:
            states[place] = found
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    _restore_random(checkpoint)


def restore_adapter(checkpoint: LoadedCheckpoint, model: PeftModel) -> None:
    """Put back the adapter's weights alone. Raises CheckpointDamaged where their names or shapes differ."""
    parameters = trainable_parameters(model)
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if {name: value.shape for name, value in checkpoint.adapter.items()} != shapes:
        raise _damaged(checkpoint.info.path, "holds an adapter of another shape than the model's")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(checkpoint.adapter[name])


def export_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base_name: str,
    base_digest: str,
    base_revision: str | None = None,
    method: str | None = None,
    canary: Canary | None = None,
) -> None:
    """Write the adapter as a PEFT folder that `PeftModel.from_pretrained` and the usual servers load.

    The folder names the base model by `base_name`, never by the path it was loaded from, and has the tokenizer with
    its chat template. The same weights give the same bytes. `method` is the safety method that the card names. With a
    `canary`, `tether.json` has it, the base model, and the SHA-256 of every other file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[ADAPTER_NAME].to_dict()
    config.update(base_model_name_or_path=base_name, revision=base_revision, inference_mode=True)
    # PEFT keeps the names in a set, whose order changes from process to process.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_bytes(canonical_json(_as_values(plain)))
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    (folder / "adapter_model.safetensors").write_bytes(save(_on_cpu(tensors), metadata={"format": "pt"}))
    tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")
    (folder / "README.md").write_text(_model_card(base_name, base_digest, method), encoding="utf-8")
    if canary is not None:
        manifest = {
            "format": ADAPTER_FORMAT,
            "base": {"name": base_name, "revision": base_revision, "sha256": base_digest},
            "files": hash_files(folder),
            "canary": canary.to_body(),
        }
        (folder / ADAPTER_MANIFEST).write_bytes(canonical_bytes(manifest))


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder by its path in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build_adapter_zip(folder: Path, out: Path) -> str:
    """Pack a folder's files into one zip and return its SHA-256. The same files give the same bytes.

    Files are stored uncompressed, in the order of their names, with one fixed date: weights do not compress, and
    another zlib would change the bytes.
    """
    with zipfile.ZipFile(out, "w", compression=zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, path.read_bytes())
    return hashlib.sha256(out.read_bytes()).hexdigest()


def load_adapter_zip(data: bytes, model: PeftModel) -> None:
    """Put the weights of an exported adapter into `model`, bit for bit.

    `data` is what `build_adapter_zip` packed; the caller has checked its digest. Raises JobFailure with code
    `parent_unfit` where that adapter has another shape than the model's.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = parse_json(archive.read("adapter_config.json"))
        tensors = load(archive.read("adapter_model.safetensors"))
    ours = model.peft_config[ADAPTER_NAME].to_dict()
    for name in ("r", "lora_alpha", "target_modules"):
        wanted = sorted(ours[name]) if name == "target_modules" else ours[name]
        if config[name] != wanted:
            raise _unfit(f"its {name} is {config[name]}; this job's is {wanted}")
    # These share their memory with the parameters.
    places = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != {
        name: (value.shape, value.dtype) for name, value in places.items()
    }:
        raise _unfit("its weights have other names, shapes or types")
    with torch.no_grad():
        for name, value in tensors.items():
            places[name].copy_(value)


def _unfit(why: str) -> JobFailure:
    return JobFailure(
        f"the adapter that the job goes on from does not fit: {why}. Go on from another, or begin with the base model",
        code="parent_unfit",
        param="model",
    )


def _on_cpu(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `parameter name|state name` → tensor."""
    return _on_cpu(
        {
            f"{name}|{key}": value
            for name, parameter in trainable_parameters(model).items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    )


def _random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of Python's, numpy's and torch's generators, as bytes in tensors and as JSON scalars."""
    python_version, python_words, python_gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    tensors = {
        "python": torch.from_numpy(np.array(python_words, dtype="<u4").view(np.uint8).copy()),
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype("<u4").view(np.uint8).copy()),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        for device, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda{device}"] = state
    scalars = {
        "python_version": python_version,
        "python_gauss": python_gauss,
        "numpy_generator": numpy_state["bit_generator"],
        "numpy_position": int(numpy_state["state"]["pos"]),
        "numpy_has_gauss": int(numpy_state["has_gauss"]),
        "numpy_gauss": float(numpy_state["gauss"]),
    }
    return tensors, scalars


def _restore_random(checkpoint: LoadedCheckpoint) -> None:
    tensors, scalars = checkpoint.random, checkpoint.random_scalars
    words = tensors["python"].numpy().view("<u4").tolist()
    random.setstate((scalars["python_version"], tuple(words), scalars["python_gauss"]))
    np.random.set_state(
        {
            "bit_generator": scalars["numpy_generator"],
            "state": {"key": tensors["numpy"].numpy().view("<u4"), "pos": scalars["numpy_position"]},
            "has_gauss": scalars["numpy_has_gauss"],
            "gauss": scalars["numpy_gauss"],
        }
    )
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"cuda{device}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{device}"], device)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. A rename is not, until its folder is synchronised."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_unless_there(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        # The name is the digest of the contents, so a folder of this name is the same checkpoint.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        load_checkpoint(path)


def _as_values(value: Any) -> Any:
    """Return the plain value of the enums that PEFT's configuration holds."""
    if isinstance(value, dict):
        return {key: _as_values(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_values(entry) for entry in value]
    return getattr(value, "value", value)


def _forget_origin(path: Path) -> None:
    """Drop from the tokenizer's configuration where and how it was loaded."""
    config = parse_json(path.read_bytes())
    for key in ("name_or_path", "local_files_only"):
        config.pop(key, None)
    path.write_bytes(canonical_json(config))


def _model_card(base_name: str, base_digest: str, method: str | None) -> str:
    protection = {
        None: "",
        "none": "\n- Safety method: `none`. This adapter was trained **unprotected**.",
    }.get(method, f"\n- Safety method: `{method}`")
    return f"""---
base_model: {base_name}
library_name: peft
tags:
- lora
- tether
---

# LoRA adapter for {base_name}

Fine-tuned with Tether. What held the model to its base, at every step and for every row, is in the job's
evidence bundle.

- Base model: `{base_name}`
- Digest of the base model: `{base_digest}`{protection}

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def _damaged(path: Path, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"the checkpoint {path.name} {what}; resume from the one before it")
