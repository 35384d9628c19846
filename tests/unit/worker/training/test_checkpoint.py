"""Checkpoints on disk, each way to damage one, and the exported adapter."""

import json
import random
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from app.domain.control_law import MonitorState
from app.errors import JobFailure
from worker.training import checkpoint as module
from worker.training.checkpoint import (
    CheckpointDamaged,
    TrainerState,
    build_adapter_zip,
    export_adapter,
    load_adapter_zip,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from worker.training.models import add_adapter, load_base, trainable_parameters

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


@pytest.mark.parametrize("failing", ["_write_durably", "_sync_folder", "_rename_unless_there"])
def test_a_save_that_fails_leaves_nothing(trained, tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "checkpoints", *trained, STATE)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_error_crosses_processes():
    import pickle

    error = CheckpointDamaged("changed")
    assert pickle.loads(pickle.dumps(error)).code == "checkpoint_damaged"  # noqa: S301


class TestExport:
    @pytest.fixture
    def base(self, tmp_path, make_base, make_tokenizer):
        make_base().save_pretrained(tmp_path / "secret-base")
        make_tokenizer("marked").save_pretrained(tmp_path / "secret-base")
        return tmp_path / "secret-base"

    @pytest.fixture
    def exported(self, trained, base, tmp_path):
        _, tokenizer = load_base(base, device=torch.device("cpu"))
        export_adapter(
            trained[0], tokenizer, tmp_path / "adapter", base_name="tiny-llama", base_digest="d1ge57"
        )
        return tmp_path / "adapter"

    def test_peft_loads_it_with_equal_logits(self, exported, trained, base):
        model, _ = load_base(base, device=torch.device("cpu"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            loaded = PeftModel.from_pretrained(model, exported)
        assert torch.equal(loaded(TOKENS).logits, trained[0](TOKENS).logits)

    def test_the_configuration_is_portable(self, exported):
        config = json.loads((exported / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny-llama"
        assert config["revision"] is None
        assert config["inference_mode"] is True
        assert config["bias"] == "none"
        assert config["modules_to_save"] is None
        assert config["target_modules"] == [
            "down_proj",
            "gate_proj",
            "k_proj",
            "o_proj",
            "q_proj",
            "up_proj",
            "v_proj",
        ]

    def test_it_brings_tokenizer_template_and_card_and_names_no_folder(self, exported, make_tokenizer):
        tokenizer = AutoTokenizer.from_pretrained(exported)
        assert tokenizer.chat_template == make_tokenizer("marked").chat_template
        assert (exported / "chat_template.jinja").is_file()
        card = (exported / "README.md").read_text()
        assert "base_model: tiny-llama" in card
        assert "d1ge57" in card
        assert "unprotected" not in card
        for path in exported.iterdir():
            assert b"secret-base" not in path.read_bytes(), path.name

    def test_the_card_of_an_unprotected_adapter_says_so(self, trained, make_tokenizer, tmp_path):
        names = {"base_name": "tiny-llama", "base_digest": "d1ge57"}
        export_adapter(trained[0], make_tokenizer(), tmp_path / "out", method="none", **names)
        assert "**unprotected**" in (tmp_path / "out" / "README.md").read_text()
        export_adapter(trained[0], make_tokenizer(), tmp_path / "out", method="adaptive_kl", **names)
        assert "Safety method: `adaptive_kl`" in (tmp_path / "out" / "README.md").read_text()

    def test_the_zip_is_deterministic(self, exported, trained, base, tmp_path):
        digest = build_adapter_zip(exported, tmp_path / "one.zip")
        shutil.rmtree(exported)
        _, tokenizer = load_base(base, device=torch.device("cpu"))
        export_adapter(trained[0], tokenizer, exported, base_name="tiny-llama", base_digest="d1ge57")
        assert build_adapter_zip(exported, tmp_path / "two.zip") == digest
        with zipfile.ZipFile(tmp_path / "two.zip") as archive:
            assert archive.testzip() is None
            assert sorted(path.name for path in exported.iterdir()) == archive.namelist()

    def test_it_goes_into_a_fresh_model_bit_for_bit(self, exported, trained, make_model, tmp_path):
        build_adapter_zip(exported, tmp_path / "out.zip")
        fresh = make_model()
        load_adapter_zip((tmp_path / "out.zip").read_bytes(), fresh)
        expected = trainable_parameters(trained[0])
        for name, value in trainable_parameters(fresh).items():
            assert torch.equal(value, expected[name])
            assert value.requires_grad

    @pytest.mark.parametrize(
        ("change", "says"),
        [({"lora_r": 2}, "its r is"), ({"lora_alpha": 64}, "its lora_alpha is")],
    )
    def test_it_does_not_go_into_another_shape(self, exported, make_base, make_spec, tmp_path, change, says):
        build_adapter_zip(exported, tmp_path / "out.zip")
        other = add_adapter(make_base(torch.float32), make_spec(**change), seed=3)
        with pytest.raises(JobFailure, match=says) as found:
            load_adapter_zip((tmp_path / "out.zip").read_bytes(), other)
        assert (found.value.code, found.value.param) == ("parent_unfit", "model")

    def test_it_does_not_go_into_a_model_of_other_layers(self, exported, make_model, tmp_path):
        build_adapter_zip(exported, tmp_path / "out.zip")
        with pytest.raises(JobFailure, match="other names, shapes or types"):
            load_adapter_zip((tmp_path / "out.zip").read_bytes(), make_model(num_hidden_layers=1))
