"""docs/cli.md names every command there is and no other; completion and --json are there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli import cli

REFERENCE = Path(__file__).parents[4] / "docs" / "cli.md"
RUN_UNTIL_STOPPED = {"notary", "serve", "api", "reconciler", "webhooks deliver", "worker"}


def commands_below(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with the words that call it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    else:
        for word, each in below.items():
            yield from commands_below(each, f"{name} {word}".strip())


COMMANDS = dict(commands_below(typer.main.get_command(cli)))


def test_reference_and_command_name_each_other() -> None:
    named = re.findall(
        r"^\| `tether ([a-z -]+)` \|", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(named) == sorted(COMMANDS)


def test_every_command_in_the_text_exists() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for words in re.findall(r"\btether ((?:[a-z]+(?:-[a-z]+)* ?)+)", text.replace("`", "\n")):
        assert any(words.strip().startswith(name) for name in COMMANDS), words


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - RUN_UNTIL_STOPPED))
def test_every_command_that_prints_a_result_can_print_json(name: str) -> None:
    assert "--json" in {option for each in COMMANDS[name].params for option in each.opts}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_says_what_it_is(name: str) -> None:
    assert COMMANDS[name].help
    assert [each.name for each in COMMANDS[name].params if not getattr(each, "help", None)] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_flags_have_no_type_in_help(name: str) -> None:
    flags = [each for each in COMMANDS[name].params if getattr(each, "is_flag", False)]
    assert [each.name for each in flags if each.metavar != ""] == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tether web", {"webhooks"}),
        ("tether webhooks re", {"redeliver"}),
        ("tether webhooks add --ev", {"--event"}),
        ("tether jobs re", {"receipt", "resume"}),
        ("tether keys add --role o", {"operator", "owner"}),
        ("tether projects change --q", {"--queued-jobs"}),
    ],
)
def test_completion_knows_the_commands_and_their_options(
    words: str, offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TETHER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        cli(prog_name="tether")
    assert offered <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_generated(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TETHER_COMPLETE", f"source_{shell}")
    program = [sys.executable, "-m", "app"]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60)
    assert "_TETHER_COMPLETE=complete" in done.stdout
    assert "tether" in done.stdout
