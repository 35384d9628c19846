"""What reaches the terminal: never a control character that came from elsewhere."""

import json

import pytest

from app.cli.output import (
    clean,
    print_fields,
    print_json,
    print_line,
    print_list,
    print_table,
    show_size,
    show_time,
)

HOSTILE = "a\x1b[2Jb\rc\nd\u202ee\u200bf\x7fg\x9bh\ud800i\u2028j"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with an ümlaut and 漢字", "plain, with an ümlaut and 漢字"),
        (HOSTILE, r"a\x1b[2Jb\rc\nd\u202ee\u200bf\x7fg\x9bh\ud800i\u2028j"),
        (None, "None"),
        (0.5, "0.5"),
    ],
)
def test_control_and_format_characters_are_written_out(text: object, shown: str) -> None:
    assert clean(text) == shown


def test_every_way_of_printing_text_cleans_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE)
    print_fields({"name": HOSTILE, "nothing": None})
    print_table(("id", "name"), [("1", HOSTILE), (None, 2)])
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert shown.count(clean(HOSTILE)) == 3
    assert "nothing" not in shown
    assert "None" not in shown


def test_empty_list_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_list(("id",), [], empty="no jobs yet; make one")
    assert capsys.readouterr().out == "no jobs yet; make one\n"
    print_list(("id",), [("1",)], empty="no jobs yet; make one")
    assert "│ 1" in capsys.readouterr().out


def test_json_holds_the_text_itself_and_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": HOSTILE})
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == {"name": HOSTILE}


def test_text_is_no_markup_and_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("ft:cat:[bold]x[/bold]")
    print_table(("id",), [("ft:cat:[bold]x[/bold]",)])
    assert capsys.readouterr().out.count("ft:cat:[bold]x[/bold]") == 2


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (5e12, "5000.0 GB")],
)
def test_sizes(count: float, shown: str) -> None:
    assert show_size(count) == shown


def test_times() -> None:
    assert show_time(0) == "1970-01-01 00:00:00 UTC"
    assert show_time(None) is None
