"""The tether command where there is nothing yet, and where it is told nonsense."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest


def tether(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "command",
    [["models", "list"], ["models", "add", "name", "."], ["critics", "list"]],
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
