"""Registering base models: what is refused, and that a name stays with its bytes."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.base_models.repository import get_base_model
from app.base_models.service import inspect_folder, register_base_model, verify_base_model
from app.database import Database, open_engine, read_only, unit_of_work
from app.errors import Conflict, InvalidBaseModel, StorageUnavailable
from app.models.base_model import BaseModel
from tests.support import collect, safetensors_bytes, write_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that can be registered."""
    return write_model_folder(tmp_path / "model")


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """A database with the schema."""
    database = Database(open_engine(sqlite_url), collect([]))
    yield database
    database.engine.dispose()


def register(database: Database, name: str, folder: Path) -> str:
    """Register a folder, in a transaction of its own, and return its digest."""
    with unit_of_work(database) as session:
        return register_base_model(session, name, folder).digest


class TestWhatItsOperatorSays:
    def test_revision_and_compute_are_kept_and_can_be_said_later(
        self, database: Database, folder: Path
    ) -> None:
        register(database, "model", folder)
        for said in ({"revision": "0f1e2d"}, {"training_flops": 1.5e24}, {}):
            with unit_of_work(database) as session:
                register_base_model(session, "model", folder, **said)
        with read_only(database) as session:
            base = session.get_one(BaseModel, "model")
            assert (base.revision, base.training_flops) == ("0f1e2d", 1.5e24)

    @pytest.mark.parametrize(
        "said",
        [
            {"revision": "two words"},
            {"revision": ""},
            {"training_flops": 0.0},
            {"training_flops": -1.0},
            {"training_flops": float("inf")},
            {"training_flops": float("nan")},
        ],
    )
    def test_what_no_record_can_hold_is_refused(
        self, database: Database, folder: Path, said: dict[str, Any]
    ) -> None:
        with unit_of_work(database) as session, pytest.raises(InvalidBaseModel):
            register_base_model(session, "model", folder, **said)


class TestInspectFolder:
    def test_every_loaded_file_is_pinned(self, folder: Path) -> None:
        (folder / "README.md").write_text("read me")
        (folder / "LICENSE").write_text("free")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        config, files = inspect_folder(folder)
        assert config["hidden_size"] == 64
        assert set(files) == {
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "model.safetensors",
            "chat_template.jinja",
        }

    @pytest.mark.parametrize(
        "name",
        [
            "modeling_evil.py",
            "pytorch_model.bin",
            "model.pt",
            "optimizer.pth",
            "state.pickle",
            "weights.h5",
            "sub/config.py",
            "config.json.py",
            "tokenizer.model",
            ".hidden",
        ],
    )
    def test_any_other_file_is_refused_by_name(self, folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
        with pytest.raises(InvalidBaseModel, match=f"{name} is not a file that a base model may have"):
            inspect_folder(folder)

    @pytest.mark.parametrize(
        "content",
        [
            pickle.dumps({"w": [0.0]}),
            b"",
            b"\x02",
            (1000).to_bytes(8, "little") + b"{}",  # The header would end beyond the file.
            (2).to_bytes(8, "little") + b"[]",
            (2**62).to_bytes(8, "little") + b"{}",
        ],
    )
    def test_weights_are_what_their_name_says(self, folder: Path, content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InvalidBaseModel, match=r"model\.safetensors is not a safetensors file"):
            inspect_folder(folder)

    @pytest.mark.parametrize(
        ("name", "content", "path"),
        [
            ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, r"\$\.auto_map"),
            ("config.json", {"text_config": {"auto_map": {}}}, r"\$\.text_config\.auto_map"),
            ("config.json", {"a": [{"b": {"trust_remote_code": True}}]}, r"\$\.a\[0\]\.b\.trust_remote_code"),
            ("tokenizer_config.json", {"auto_map": {}}, r"\$\.auto_map"),
            ("generation_config.json", {"custom_pipelines": {}}, r"\$\.custom_pipelines"),
        ],
    )
    def test_configuration_that_runs_code_is_refused(
        self, folder: Path, name: str, content: dict[str, Any], path: str
    ) -> None:
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(InvalidBaseModel, match=f"{name}, {path}: this key makes the loader run code"):
            inspect_folder(folder)

    @pytest.mark.parametrize("content", ["{", "\ufeff{}", "[" * 100_000])
    def test_configuration_is_json(self, folder: Path, content: str) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(InvalidBaseModel, match=r"config\.json is not JSON"):
            inspect_folder(folder)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
    def test_missing_file_is_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(InvalidBaseModel, match="weights in safetensors" if "model" in name else name):
            inspect_folder(folder)

    def test_link_out_of_the_folder_is_refused(self, folder: Path, tmp_path: Path) -> None:
        outside = tmp_path / "secret.json"
        outside.write_text("{}")
        (folder / "tokenizer.json").symlink_to(outside)
        with pytest.raises(InvalidBaseModel, match=r"tokenizer\.json is a link out of the folder"):
            inspect_folder(folder)

    def test_linked_folder_is_refused(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (folder / "sub").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InvalidBaseModel, match="sub is a link out of the folder"):
            inspect_folder(folder)

    def test_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidBaseModel, match="is not a folder"):
            inspect_folder(tmp_path / "nothing")


class TestRegisterBaseModel:
    def test_row_says_what_was_found(self, database: Database, folder: Path) -> None:
        digest = register(database, "org/model-1.5", folder)
        with read_only(database) as session:
            base = get_base_model(session, "org/model-1.5")
        assert base is not None
        assert (base.digest, base.path) == (digest, str(folder))
        assert (base.hidden_size, base.max_position_embeddings) == (64, 512)

    def test_sizes_of_a_text_config_count(self, database: Database, folder: Path) -> None:
        nested = {"text_config": {"hidden_size": 128, "max_position_embeddings": 256}}
        (folder / "config.json").write_text(json.dumps(nested))
        register(database, "model", folder)
        with read_only(database) as session:
            base = get_base_model(session, "model")
        assert base is not None
        assert (base.hidden_size, base.max_position_embeddings) == (128, 256)

    def test_same_bytes_again_are_harmless_and_may_move(
        self, database: Database, folder: Path, tmp_path: Path
    ) -> None:
        digest = register(database, "model", folder)
        moved = folder.rename(tmp_path / "moved")
        assert register(database, "model", moved) == digest
        with read_only(database) as session:
            base = get_base_model(session, "model")
        assert base is not None
        assert base.path == str(moved)

    def test_other_bytes_need_another_name(self, database: Database, folder: Path) -> None:
        register(database, "model", folder)
        (folder / "model.safetensors").write_bytes(safetensors_bytes()[:-1] + b"\x01")
        with pytest.raises(Conflict, match="belongs to another model"):
            register(database, "model", folder)
        register(database, "model-2", folder)

    @pytest.mark.parametrize("name", ["", "ft:mine", "a b", "a:b", "../up", "/root", "x" * 101, "a\n"])
    def test_name_that_cannot_be_used(self, database: Database, folder: Path, name: str) -> None:
        with pytest.raises(InvalidBaseModel, match="cannot be used"):
            register(database, name, folder)

    @pytest.mark.parametrize("content", ["{}", '{"hidden_size": 64}', "[]", '{"text_config": 5}'])
    def test_configuration_without_sizes(self, database: Database, folder: Path, content: str) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(InvalidBaseModel, match=r"config\.json"):
            register(database, "model", folder)


class TestVerifyBaseModel:
    @pytest.fixture
    def base(self, folder: Path) -> BaseModel:
        files = inspect_folder(folder)[1]
        return BaseModel(name="org/model", path=str(folder), files=files)

    def test_unchanged_folder_passes(self, base: BaseModel) -> None:
        verify_base_model(base)

    def test_changed_byte_is_noticed(self, base: BaseModel, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(safetensors_bytes()[:-1] + b"\x01")
        with pytest.raises(InvalidBaseModel, match=r"model\.safetensors of .* is not what was registered"):
            verify_base_model(base)

    def test_added_and_missing_files_are_noticed(self, base: BaseModel, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(InvalidBaseModel, match=r"tokenizer\.json of .* is not what was registered"):
            verify_base_model(base)
        (folder / "tokenizer.json").rename(folder / "vocab.json")
        with pytest.raises(InvalidBaseModel, match=r"vocab\.json of .* is not what was registered"):
            verify_base_model(base)

    def test_folder_that_is_away_is_waited_for_and_its_path_is_not_told(
        self, base: BaseModel, folder: Path
    ) -> None:
        folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(StorageUnavailable, match="'org/model' cannot be read on this machine") as caught:
            verify_base_model(base)
        assert str(folder) not in caught.value.message
