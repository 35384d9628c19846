"""What the options of `tether jobs` stand for."""

from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli.files import read_rows, safe_name
from app.cli.job_request import read_integrations, read_metadata, read_object, read_safety
from app.cli.job_words import name_critic
from app.cli.watch import EXIT_CODES, exit_code, waits_for_person
from app.domain.job import TERMINAL, WIRE_STATUS


def test_safety_is_a_preset_or_an_object_or_a_file_of_one(tmp_path: Path) -> None:
    file = tmp_path / "safety.json"
    file.write_text('{"method": "none"}')
    assert read_safety(None) is None
    assert read_safety("strict") == "strict"
    assert read_safety(' {"method": "none"}') == {"method": "none"}
    assert read_safety(f"@{file}") == {"method": "none"}


@pytest.mark.parametrize("text", ["{", "[1]", "@/no/such/file", "1"])
def test_object_that_is_none_names_the_option(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--training"):
        read_object("--training", text)


def test_labels() -> None:
    assert read_metadata(None) is None
    assert read_metadata(["team=red", "note=a=b", "empty="]) == {"team": "red", "note": "a=b", "empty": ""}
    for wrong in ("team", "=red"):
        with pytest.raises(typer.BadParameter, match="KEY=VALUE"):
            read_metadata([wrong])


def test_rows_are_numbers_and_spans() -> None:
    assert read_rows(None) is None
    assert read_rows("7, 3,4-6,5") == [3, 4, 5, 6, 7]
    for wrong in ("", "a", "3-", "-3", "6-4", "1,,2", "1.5", "²", "0-1000000"):
        with pytest.raises(typer.BadParameter, match="--rows"):
            read_rows(wrong)


def test_every_way_to_end_has_an_exit_code_of_its_own() -> None:
    assert set(EXIT_CODES) == {WIRE_STATUS[state] for state in TERMINAL}
    paused_itself = {"status": "paused", "safety": {"state": "paused", "pause_reason": "it drifted"}}
    held = {"status": "running", "safety": {"state": "held", "pause_reason": None}}
    ways = [*({"status": status} for status in (*EXIT_CODES, "running")), paused_itself, held]
    codes = [exit_code(job) for job in ways]
    assert [exit_code(job) for job in (paused_itself, held)] == [6, 7]
    assert [waits_for_person(job) for job in ways] == [False] * 4 + [True] * 2
    released = {**held, "safety": {"state": "held", "pause_reason": None, "waits_for": "a signature"}}
    assert (waits_for_person(released), exit_code(released)) == (False, 5)
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {1, 2}, "these are errors of the command itself"


@pytest.mark.parametrize(
    ("critic", "name"),
    [
        (None, None),
        ({"type": "constant", "s": 1}, "constant"),
        (
            {"type": "activation", "id": "critic_1", "quality": {"auroc": 0.5}},
            "critic_1 (AUROC 0.500 held out)",
        ),
        ({"type": "activation", "id": "critic_1", "quality": {"auroc": None}}, "critic_1"),
        ({"type": "combined", "critics": [{"type": "judge"}, {"type": "constant"}]}, "judge + constant"),
    ],
)
def test_critic_is_named_with_its_quality(critic: Any, name: str | None) -> None:
    assert name_critic(critic) == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("rows.jsonl", "rows.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.txt", "y.txt"),
        (".bashrc", "bashrc"),
        ("..", "file"),
        ("", "file"),
        ("a\x1b[2Jb\n", "a_x1b[2Jb_n"),
        ("x" * 300, "x" * 200),
    ],
)
def test_name_that_a_server_gave_stays_a_name_here(given: str, name: str) -> None:
    assert safe_name(given) == name


def test_integrations_are_objects_or_lists_or_files_of_them(tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    file.write_text('[{"type": "b"}, {"type": "c"}]')
    assert read_integrations(None) is None
    assert read_integrations(['{"type": "a"}', f"@{file}"]) == [{"type": "a"}, {"type": "b"}, {"type": "c"}]
    for wrong in ("mlflow", "[1]", "1", "@/no/such/file"):
        with pytest.raises(typer.BadParameter, match="--integration"):
            read_integrations([wrong])
