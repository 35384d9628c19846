"""The README's commands and code, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import KEY, Service, on_embedded_default
from worker.miniature.corpus import critic_rows, training_rows
from worker.miniature.install import WEIGHTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that has what the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(WEIGHTS)
    write_rows(folder / "clean.jsonl", training_rows("clean", n=24))
    write_rows(folder / "critic.jsonl", critic_rows(n=150))
    return folder


def run(command: list[str], folder: Path, service: Service) -> str:
    environment = {
        **service.environment,
        "TETHER_HOME": str(service.home),
        "OPENAI_BASE_URL": f"{service.url}/v1",
        "OPENAI_API_KEY": KEY,
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_make_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")
    }
    assert named == {"demo", "test", "serve"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@on_embedded_default
def test_the_client_code_and_the_commands_work_as_they_stand(service: Service, folder: Path) -> None:
    (code,) = blocks("python")
    printed = run([sys.executable, "-W", "ignore::ResourceWarning", "-c", code], folder, service)
    assert printed.startswith("succeeded ft:miniature:tether:")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(".venv")]
    assert len(commands) == 6
    _, verified, added, fitted, listed, examined = (
        run(["/bin/sh", "-c", command], folder, service) for command in commands
    )
    # The job has no evaluation and no gate, and the command is given no earlier receipt and no key to the rows.
    assert "no check failed; 4 not checked" in verified
    assert "are under a signature that the policy trusts" in verified
    assert added.startswith("registered my-model")
    assert "AUROC" in fitted
    assert "my-model" in listed
    assert "critic of my-model" in examined


def test_the_example_files_come_from_the_command_that_is_named(tmp_path: Path) -> None:
    command = re.search(r"\.venv/bin/(python -m worker\.miniature\.corpus --out \.)", README)
    assert command is not None
    arguments = command[1].split()[1:]
    subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (tmp_path / "clean.jsonl").exists()
