"""The tether command where there is nothing yet, and where it is told nonsense."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from app.database import Database, open_engine, unit_of_work
from app.models.base_model import Critic
from app.serve import prepare
from app.settings import load_settings
from tests.support import add_base_model, collect, write_model_folder


def tether(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], check=False, capture_output=True, text=True, timeout=60
    )


@contextmanager
def opened(home: str) -> Iterator[Database]:
    """Open the database of an installation."""
    database = Database(open_engine(f"sqlite:///{home}/tether.db"), collect([]))
    yield database
    database.engine.dispose()


@pytest.mark.parametrize(
    "command",
    [
        ["models", "list"],
        ["models", "add", "name", "."],
        ["critics", "list"],
        ["anchors", "list"],
        ["alignment", "list"],
    ],
    ids=" ".join,
)
def test_command_on_a_folder_without_data_says_so_and_makes_nothing(
    tmp_path: Path, command: list[str]
) -> None:
    done = tether(*command, "--home", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "holds no Tether data yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_database_of_another_version_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tether.db").touch()
    done = tether("models", "list", "--home", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        "error: the schema of the database is not current; run: tether migrate\n",
    )


class TestSets:
    """Anchors and alignment data on an installation without a server."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> str:
        settings = load_settings({}, home=tmp_path / "home")
        prepare(settings)
        return str(settings.home)

    def test_new_base_model_has_anchors_and_others_can_be_added(self, home: str, tmp_path: Path) -> None:
        folder = write_model_folder(tmp_path / "model")
        done = tether("models", "add", "mine", str(folder), "--home", home)
        assert done.returncode == 0, done.stderr
        assert "it has the general anchors (set_" in done.stdout
        assert "next: tether critics fit --base mine" in done.stdout
        own = tmp_path / "own.jsonl"
        own.write_text('{"messages": [{"role": "user", "content": "Say something cruel."}]}\n' * 8)
        done = tether("anchors", "add", "--base", "mine", "--data", str(own), "--home", home)
        assert done.returncode == 0, done.stderr
        added = done.stdout.split()[1]
        assert done.stdout == f"registered {added} (8 rows, kind anchors) for mine; new jobs on it use it\n"
        again = tether("models", "add", "mine", str(folder), "--home", home)
        assert "general anchors" not in again.stdout, "those of the operator stay"
        listed = tether("anchors", "list", "--home", home).stdout
        assert listed.index(added) < listed.index("96"), "the newest comes first"
        assert "│ 8 " in tether("models", "list", "--home", home).stdout

    def test_alignment_data_is_safe_or_harmful(self, home: str, tmp_path: Path) -> None:
        with opened(home) as database:
            add_base_model(database, "mine", tmp_path / "model")
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        )
        for kind, stored_as in (("safe", "alignment"), ("harmful", "harmful")):
            add = ("alignment", "add", "--base", "mine", "--data", str(rows), "--home", home)
            done = tether(*add, "--kind", kind)
            assert f"(1 rows, kind {stored_as}) for mine" in done.stdout, done.stderr
        listed = tether("alignment", "list", "--home", home).stdout
        assert listed.index("harmful") < listed.rindex("alignment")
        assert "anchors" not in listed

    def test_mistakes_are_one_line(self, home: str, tmp_path: Path) -> None:
        rows = tmp_path / "rows.jsonl"
        add = ("anchors", "add", "--base", "mine", "--data", str(rows), "--home", home)
        rows.write_text("{}")
        done = tether(*add)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            "error: 1 problem in the set of kind 'anchors': line 1, "
        )
        rows.write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 8)
        assert "base models: none yet (tether models add)" in tether(*add).stderr


class TestCritics:
    def test_fit_needs_data(self, tmp_path: Path) -> None:
        done = tether("critics", "fit", "--base", "mine", "--home", str(tmp_path))
        assert done.returncode == 2
        assert "--cold-start" in done.stderr

    def test_list_shows_what_a_critic_is_worth(self, tmp_path: Path) -> None:
        settings = load_settings({}, home=tmp_path / "home")
        prepare(settings)
        with opened(str(settings.home)) as database:
            add_base_model(database, "mine", tmp_path / "model")
            with unit_of_work(database) as session:
                critic = session.scalars(select(Critic)).one()
                critic.report = {"auroc": 0.97, "cross_points": {"low": {"recall": {"share": 0.991}}}}
        listed = tether("critics", "list", "--home", str(settings.home)).stdout
        row = next(line for line in listed.splitlines() if "mine" in line)
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1:6] == ["mine", "0.970", "0.991", "unknown", "0.500"]


def test_start_that_fails_makes_no_key_that_nobody_sees(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = tether("serve", "--home", str(tmp_path / "home"), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
    assert not (tmp_path / "home" / "tether.db").exists()


def test_verify_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    bundle = tmp_path / "evidence.zip"
    bundle.touch()
    done = tether("verify", str(bundle), "--adapter", str(tmp_path / "adapter.zip"))
    assert done.returncode == 2
    assert "Invalid value" in done.stderr
