"""Checkpoints that resume bit for bit.

A checkpoint is a folder that is either complete or not there: its files are written and synchronised in a temporary
folder beside it, listed with their SHA-256 in `manifest.json`, and the folder is renamed. Nothing is pickled.
"""

import errno
import hashlib
import os
import random
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from app.domain.control_law import MonitorState
from app.durable import NO_ROOM, make_folder, sync_folder
from app.errors import JobFailure, StorageFull
from app.failpoints import failpoint
from worker.training.jsonio import canonical_json, parse_json
from worker.training.models import trainable_parameters

MANIFEST_FILE = "manifest.json"
ADAPTER_FILE = "adapter.safetensors"
METHOD_FILE = "method.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
TRAINER_FILE = "trainer.json"
WRITING = ".writing-"
"""How the name of a folder begins that is not a checkpoint yet."""
CONTENT_FILES = (ADAPTER_FILE, METHOD_FILE, OPTIMIZER_FILE, RANDOM_FILE, TRAINER_FILE)


class CheckpointDamaged(JobFailure):
    """A checkpoint is not what was written: a file is missing, changed, or does not fit the model."""

    code = "checkpoint_damaged"
    why = "changed"
    """In the record's words: changed, missing or unreadable."""


class CheckpointMissing(CheckpointDamaged):
    """A file of a checkpoint, or its folder, is not there."""

    why = "missing"


class CheckpointUnreadable(CheckpointDamaged):
    """The disk has a file of a checkpoint, and does not give it back."""

    why = "unreadable"


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
    size_bytes: int
    """Of its files together."""


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
    *,
    reserve_bytes: int = 0,
) -> CheckpointInfo:
    """Write a checkpoint into `folder` and return where it is: `step-{step:08d}-{digest12}`.

    When this returns, the checkpoint survives a power failure; when it raises, there is none. Saving the same
    state again gives the checkpoint that is already there. Raises StorageFull where the disk would have less than
    `reserve_bytes` left.
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
    return write_checkpoint(folder, state.step, contents, reserve_bytes=reserve_bytes)


def write_checkpoint(
    folder: Path, step: int, contents: Mapping[str, bytes], *, reserve_bytes: int = 0
) -> CheckpointInfo:
    """Write the files of a checkpoint, by name, as `save_checkpoint` does; whoever fetched them elsewhere uses it too."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    size = sum(map(len, contents.values()))
    manifest = canonical_json({"files": files, "step": step})
    digest = hashlib.sha256(manifest).hexdigest()
    path = folder / f"step-{step:08d}-{digest[:12]}"
    try:
        failpoint("checkpoint.before_write")
        make_folder(folder)
        check_room(folder, size, reserve_bytes)
        _write_files(folder, path, {**contents, MANIFEST_FILE: manifest})
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _full(step, size, str(error.strerror)) from error
        raise
    return CheckpointInfo(step, path, digest, files, size)


def check_room(folder: Path, size_bytes: int, reserve_bytes: int) -> None:
    """Raise StorageFull where so many bytes would leave less than the reserve on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    missing = size_bytes + reserve_bytes - free
    if missing > 0:
        raise StorageFull(
            f"the disk of the checkpoints has {free} bytes free, {missing} too few: {size_bytes} are needed, and"
            f" {reserve_bytes} are kept free (TETHER_DISK_RESERVE_BYTES). Free some"
        )


def _full(step: int, size: int, why: str) -> StorageFull:
    return StorageFull(
        f"the checkpoint after step {step}, of {size} bytes, does not fit on the disk of the checkpoints ({why}). Free some"
    )


def _write_files(folder: Path, path: Path, contents: Mapping[str, bytes]) -> None:
    temporary = folder / f"{WRITING}{secrets.token_hex(8)}"
    temporary.mkdir(mode=0o700)
    try:
        for name, data in contents.items():
            _write_durably(temporary / name, data)
            failpoint("checkpoint.after_file")
        failpoint("checkpoint.before_folder_sync")
        sync_folder(temporary)
        failpoint("checkpoint.before_rename")
        _rename_unless_there(temporary, path)
        failpoint("checkpoint.after_rename")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder)


def load_checkpoint(path: Path, *, digest: str | None = None) -> LoadedCheckpoint:
    """Read a checkpoint and verify every file, and the manifest by `digest` or, without one, by the folder's name.

    Raises CheckpointDamaged where anything is missing, changed or not given back by the disk, and OSError where the
    file system refuses for a reason that may pass.
    """
    try:
        manifest = (path / MANIFEST_FILE).read_bytes()
        contents = {name: (path / name).read_bytes() for name in CONTENT_FILES}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointMissing(f"the checkpoint {path.name} lacks a file: {error}") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CheckpointUnreadable(f"the checkpoint {path.name} is not given back by the disk") from error
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
            info=CheckpointInfo(listed["step"], path, found, files, sum(map(len, contents.values()))),
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


def _rename_unless_there(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # The name is the digest of the contents, so a folder of this name is the same checkpoint, or its ruin.
        try:
            load_checkpoint(path)
        except CheckpointDamaged:
            shutil.rmtree(path)
            temporary.rename(path)


def _damaged(path: Path, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"the checkpoint {path.name} {what}; resume from the one before it")
