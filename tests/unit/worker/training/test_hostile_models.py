"""A hostile model folder: no code of it runs, nothing is fetched for it, and what is checked is what is loaded."""

import hashlib
import json
import os
import pickle
import socket
import sys
from pathlib import Path

import pytest
import torch

from app.errors import InvalidBaseModel, StorageUnavailable
from worker.training import models
from worker.training.model_config import keep_known
from worker.training.model_folder import open_model_folder
from worker.training.models import load_base

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, make_base, make_tokenizer):
    """A model that can be loaded."""
    make_base().save_pretrained(tmp_path / "base")
    make_tokenizer("qwen").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def files(folder):
    """The digests with which it was registered."""
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


@pytest.fixture
def offline(monkeypatch):
    """Whatever looks for a host or connects to one is noted, and fails."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def set_config(folder: Path, name: str = "config.json", **changes: object) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "config.json",
            {"auto_map": {"AutoConfig": "intruder.Config", "AutoModelForCausalLM": "intruder.Model"}},
        ),
        ("config.json", {"auto_map": {"AutoConfig": "someone/elsewhere--intruder.Config"}}),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
        ("config.json", {"_attn_implementation": "someone/kernel"}),
        ("config.json", {"attn_implementation": "someone/kernel"}),
        ("config.json", {"_experts_implementation_internal": "someone/kernel"}),
        (
            "config.json",
            {"text_config": {"trust_remote_code": True, "auto_map": {"AutoConfig": "intruder.C"}}},
        ),
        ("config.json", {"rope_parameters": {"rope_type": "default", "trust_remote_code": True}}),
        ("config.json", {"quantization_config": {"quant_method": "intruder"}}),
        ("config.json", {"model_type": "intruder"}),
        ("config.json", {"model_type": ["llama"]}),
    ],
)
def test_configuration_that_asks_for_code_is_refused(folder, offline, name, changes):
    (folder / "intruder.py").write_text("raise SystemExit('the code was run')")
    set_config(folder, name, **changes)
    with pytest.raises(InvalidBaseModel):
        load_base(folder, device=CPU)
    assert "intruder" not in sys.modules
    assert not any("intruder" in module for module in sys.modules)
    assert offline == []


def test_quantised_weights_are_refused_for_what_they_are(folder):
    set_config(folder, "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(InvalidBaseModel, match="quantised weights are not supported"):
        load_base(folder, device=CPU)


def test_what_asks_for_code_elsewhere_in_the_folder_is_not_even_opened(folder, offline):
    """A tokenizer's own code, an adapter, generation code: none of it is among what is loaded."""
    (folder / "intruder.py").write_text("raise SystemExit('the code was run')")
    set_config(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["intruder.T", "intruder.T"]})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('the code was run')")
    load_base(folder, device=CPU)
    assert not any("intruder" in module for module in sys.modules)
    assert offline == []


def test_the_model_is_loaded_with_the_keys_of_its_architecture_alone():
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "default"},
        "architectures": ["LlamaForCausalLM"],
        "_name_or_path": "/somewhere/else",
        "_commit_hash": "abc",
        "kernel": "someone/kernel",
        "adapter": {"path": "elsewhere"},
        "some_factor": 0.5,
    }
    assert set(config) - set(keep_known(config)) == {"_name_or_path", "_commit_hash", "kernel", "adapter"}


def test_nested_configurations_are_rewritten_too():
    text = {"model_type": "gemma3_text", "hidden_size": 64, "kernel": "someone/kernel"}
    kept = keep_known({"model_type": "gemma3", "text_config": text, "kernel": "someone/kernel"})
    assert kept == {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64}}


def test_nothing_of_a_configuration_that_the_library_writes_is_lost(make_base):
    config = json.loads(make_base().config.to_json_string(use_diff=False))
    kept = keep_known(config)
    assert {key for key, value in config.items() if value is not None} - set(kept) <= {"_name_or_path"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "optimizer.pt", "rng_state.pth"])
def test_pickles_are_not_opened(folder, name):
    """As the only weights they are none, and beside good ones they are left alone."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "the-pickle-was-here"),)

    (folder / name).write_bytes(pickle.dumps(Evil()))
    load_base(folder, device=CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidBaseModel, match="could not be loaded"):
        load_base(folder, device=CPU)
    assert not (folder / "the-pickle-was-here").exists()


def test_a_pickle_that_is_called_safetensors_is_refused(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"w": [0.0] * 100}))
    with pytest.raises(InvalidBaseModel, match=r"model\.safetensors is not a safetensors file"):
        load_base(folder, device=CPU)


class TestWhatIsCheckedIsWhatIsLoaded:
    def test_registered_files_are_loaded(self, folder, files):
        loaded, tokenizer = load_base(folder, device=CPU, files=files)
        plain, _ = load_base(folder, device=CPU)
        pairs = zip(loaded.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert tokenizer.chat_template

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
    )
    def test_another_byte_is_refused(self, folder, files, name):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InvalidBaseModel, match=rf"{name} of the base model is not what was registered"):
            load_base(folder, device=CPU, files=files)

    def test_a_file_that_was_added_is_not_loaded(self, folder, files):
        (folder / "adapter_config.json").write_text("{not even json")
        (folder / "added_tokens.json").write_text("{not even json")
        load_base(folder, device=CPU, files=files)

    def test_a_folder_that_is_away_is_waited_for(self, folder, files):
        folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(StorageUnavailable, match="mount it or restore it") as caught:
            load_base(folder, device=CPU, files=files)
        assert str(folder) not in caught.value.message

    def test_a_folder_that_is_swapped_after_the_check_is_not_what_is_loaded(
        self, folder, files, tmp_path, monkeypatch, make_base
    ):
        """The attack itself: between check and loading, the whole folder becomes another one."""
        expected, _ = load_base(folder, device=CPU)
        evil = tmp_path / "evil"
        changed = make_base()
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.fill_(7.0)
        changed.save_pretrained(evil)
        for each in folder.iterdir():
            if not (evil / each.name).exists():
                (evil / each.name).write_bytes(each.read_bytes())
        rewrite = models.rewrite_config

        def swap(private):
            folder.rename(tmp_path / "away")
            evil.rename(folder)
            rewrite(private)

        monkeypatch.setattr(models, "rewrite_config", swap)
        loaded, _ = load_base(folder, device=CPU, files=files)
        pairs = zip(loaded.parameters(), expected.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)

    def test_weights_that_are_written_to_meanwhile_are_refused(self, folder, files):
        with (
            pytest.raises(InvalidBaseModel, match="was changed while it was loaded"),
            open_model_folder(folder, files),
            (folder / "model.safetensors").open("r+b") as file,
        ):
            file.seek(-1, os.SEEK_END)
            file.write(b"\x07")

    def test_weights_that_are_written_to_afterwards_change_nothing(self, folder, files):
        loaded, _ = load_base(folder, device=CPU, files=files, dtype=torch.float32)
        before = [parameter.clone() for parameter in loaded.parameters()]
        path = folder / "model.safetensors"
        header_bytes = int.from_bytes(path.read_bytes()[:8], "little") + 8
        with path.open("r+b") as file:
            file.seek(header_bytes)
            file.write(b"\x07" * (path.stat().st_size - header_bytes))
        assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), before, strict=True))
        assert "model.safetensors" not in Path("/proc/self/maps").read_text()

    def test_a_file_that_everybody_may_write_is_refused(self, folder, files):
        (folder / "model.safetensors").chmod(0o666)
        with pytest.raises(InvalidBaseModel, match="may be written by everybody"):
            load_base(folder, device=CPU, files=files)

    def test_a_pipe_in_the_place_of_a_file_does_not_hang(self, folder, files):
        (folder / "tokenizer.json").unlink()
        os.mkfifo(folder / "tokenizer.json")
        with pytest.raises(InvalidBaseModel, match=r"tokenizer\.json is no file"):
            load_base(folder, device=CPU, files=files)

    def test_the_private_folder_is_nobody_elses_and_goes(self, folder, files):
        with open_model_folder(folder, files) as private:
            assert private.stat().st_mode & 0o777 == 0o700
            assert {each.name for each in private.iterdir()} == set(files)
        assert not private.exists()

    def test_the_tokenizer_is_whole_without_it(self, folder, files, tmp_path):
        _, tokenizer = load_base(folder, device=CPU, files=files)
        tokenizer.save_pretrained(tmp_path / "saved")
        again = (tmp_path / "saved" / "tokenizer.json").read_bytes()
        assert json.loads(again)["model"] == json.loads((folder / "tokenizer.json").read_bytes())["model"]
