"""Checkpoints on disk, and each way to damage one."""

import errno
import json
import os
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain.control_law import MonitorState
from app.errors import StorageFull
from worker.training import checkpoint as module
from worker.training.checkpoint import (
    CheckpointDamaged,
    TrainerState,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from worker.training.models import trainable_parameters

STATE = TrainerState(
    12, 7, "ab" * 32, MonitorState(floor=0.2, anchor_factor=4.0), 0.1, {3: 0.75, 0: 1.0}, (11, 12)
)
TOKENS = torch.tensor([[65, 66, 67, 68, 69]])


def optimizer_of(model):
    return torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)


@pytest.fixture
def trained(make_model):
    model = make_model(drift=0.1)
    optimizer = optimizer_of(model)
    model(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(trained, tmp_path):
    return save_checkpoint(tmp_path / "checkpoints", *trained, STATE)


def test_the_folder_is_named_by_step_and_digest_and_holds_no_pickle(saved):
    assert saved.path.name == f"step-00000012-{saved.digest[:12]}"
    names = sorted(path.name for path in saved.path.iterdir())
    assert names == [
        "adapter.safetensors",
        "manifest.json",
        "method.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "trainer.json",
    ]
    assert [path.name for path in saved.path.parent.iterdir()] == [saved.path.name]


def random_numbers():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()  # noqa: S311


def test_restore_gives_weights_moments_and_generators(saved, trained, make_model):
    expected = random_numbers()
    random_numbers()
    model = make_model(drift=2.0)
    optimizer = optimizer_of(model)
    loaded = load_checkpoint(saved.path)
    assert loaded.trainer == STATE
    assert loaded.info == saved
    restore(loaded, model, optimizer)
    assert random_numbers() == expected
    for name, parameter in trainable_parameters(trained[0]).items():
        found = trainable_parameters(model)[name]
        assert torch.equal(found, parameter)
        for key, value in trained[1].state[parameter].items():
            assert torch.equal(optimizer.state[found][key], value)


def test_saving_the_same_state_again_gives_the_same_folder(saved, trained):
    assert save_checkpoint(saved.path.parent, *trained, STATE) == saved
    assert len(list(saved.path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    "name",
    ["adapter.safetensors", "optimizer.safetensors", "random.safetensors", "trainer.json", "manifest.json"],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused(saved, name, damage):
    path = saved.path / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    with pytest.raises(CheckpointDamaged, match="step-00000012") as caught:
        load_checkpoint(saved.path)
    assert caught.value.code == "checkpoint_damaged"


def test_a_forged_manifest_is_refused_by_the_folders_name(saved):
    manifest = json.loads((saved.path / "manifest.json").read_text())
    manifest["step"] = 13
    (saved.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointDamaged, match="another than the one asked for"):
        load_checkpoint(saved.path)


def test_the_digest_that_was_recorded_decides_where_it_is_given(saved):
    moved = saved.path.rename(saved.path.parent / "elsewhere")
    assert load_checkpoint(moved, digest=saved.digest).trainer == STATE
    for path, digest in ((moved, None), (moved, saved.digest[:12]), (moved, "0" * 64)):
        with pytest.raises(CheckpointDamaged, match="another than the one asked for"):
            load_checkpoint(path, digest=digest)


def test_an_adapter_of_another_shape_is_refused(saved, make_model):
    model = make_model(num_hidden_layers=1)
    with pytest.raises(CheckpointDamaged, match="another shape"):
        restore(load_checkpoint(saved.path), model, optimizer_of(model))


@pytest.mark.parametrize("failing", ["_write_durably", "sync_folder", "_rename_unless_there"])
def test_a_save_that_fails_leaves_nothing(trained, tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(StorageFull, match=r"after step 12, of \d+ bytes, does not fit .*No space left"):
        save_checkpoint(tmp_path / "checkpoints", *trained, STATE)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(saved, trained):
    """The kernel refuses larger files, as a full disk does."""
    folder, soft = saved.path.parent, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, soft[1]))
    try:
        with pytest.raises(StorageFull, match=r"after step 13, of \d+ bytes, does not fit"):
            save_checkpoint(folder, *trained, replace(STATE, step=13))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert [path.name for path in folder.iterdir()] == [saved.path.name]
    assert load_checkpoint(saved.path).info == saved


def test_what_would_be_left_is_asked_for_before_the_first_byte(saved, trained):
    free = shutil.disk_usage(saved.path).free
    with pytest.raises(StorageFull, match=r"has \d+ bytes free, \d+ too few: \d+ are needed"):
        save_checkpoint(saved.path.parent, *trained, replace(STATE, step=13), reserve_bytes=2 * free)
    assert [path.name for path in saved.path.parent.iterdir()] == [saved.path.name]


def test_a_file_that_the_disk_does_not_give_back_is_damage_and_one_that_may_not_be_read_is_none(
    saved, monkeypatch
):
    def fail_with(number):
        def fail(_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "read_bytes", fail)

    fail_with(errno.EIO)
    with pytest.raises(CheckpointDamaged, match="not given back by the disk") as caught:
        load_checkpoint(saved.path)
    assert caught.value.why == "unreadable"
    fail_with(errno.ESTALE)
    with pytest.raises(OSError, match="Stale"):
        load_checkpoint(saved.path)


def test_the_error_crosses_processes():
    import pickle

    error = CheckpointDamaged("changed")
    assert pickle.loads(pickle.dumps(error)).code == "checkpoint_damaged"  # noqa: S301
