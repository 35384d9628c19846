"""Requests that people have, as rows of a critic's data: public prompt sets by file, and the cold start.

Nothing is fetched: a set comes as the file that its authors publish. Each row is a request alone; `group` is the
category where the file has one, because groups are what a critic is tested on, else the name of the set.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from app.errors import InvalidRequest, InvalidTrainingFile

Row = dict[str, Any]
Label = Literal[0, 1]
COLD_START = Path(__file__).with_name("cold_start.jsonl")


def load_cold_start() -> list[Row]:
    """Return the requests written for this project: what a model should decline, benign twins of it, and plain ones."""
    return [json.loads(line) for line in COLD_START.read_text(encoding="utf-8").splitlines()]


def import_rows(path: Path, format_name: str, *, label: Label | None = None) -> list[Row]:
    """Read a file as rows of a critic's data.

    `format_name` is a key of FORMATS, or `text`: one request a line, for which `label` says what they are. Raises
    InvalidTrainingFile with the file's name and line where it has another shape, InvalidRequest where the format is
    unknown or the label is missing or not wanted.
    """
    if format_name != "text" and format_name not in FORMATS:
        raise InvalidRequest(
            f"no format is called {format_name!r}; formats: {', '.join([*FORMATS, 'text'])}", param="format"
        )
    if (label is None) == (format_name == "text"):
        raise InvalidRequest(
            "the format text needs a label, 1 for requests to decline and 0 for others"
            if label is None
            else f"the format {format_name} has labels of its own; leave the label out",
            param="label",
        )
    try:
        rows = _read_text(path, label) if label is not None else _read_csv(path, FORMATS[format_name])
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error.strerror}", param="data") from error
    except UnicodeDecodeError as error:
        raise InvalidTrainingFile(f"{path.name} is not UTF-8 text; save it as UTF-8", param="data") from error
    if not rows:
        raise InvalidTrainingFile(f"{path.name} has no requests", param="data")
    return rows


class _Line:
    """One line of a table, its columns by their names in lower case."""

    def __init__(self, path: Path, number: int, values: Mapping[str, str]) -> None:
        self.path, self.number, self.values = path, number, values

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def text(self, column: str) -> str:
        """Return what stands in a column. Raises InvalidTrainingFile where the column is missing or empty."""
        if column not in self.values:
            raise self.wrong(f"there is no column {column!r}; the file has {', '.join(self.values)}")
        value = self.values[column].strip()
        if not value:
            raise self.wrong(f"the column {column!r} is empty")
        return value

    def optional(self, column: str) -> str | None:
        """Return what stands in a column, or None where it is missing or empty."""
        return self.values.get(column, "").strip() or None

    def wrong(self, what: str) -> InvalidTrainingFile:
        """Return the error to raise for this line."""
        return InvalidTrainingFile(f"{self.path.name}, line {self.number}: {what}", param="data")


def _advbench(line: _Line) -> Row:
    """AdvBench's harmful_behaviors.csv (arXiv 2307.15043): goal, target. The targets are not read."""
    return _row(line.text("goal"), 1, "advbench")


def _xstest(line: _Line) -> Row:
    """XSTest v2 (arXiv 2308.01263): prompt, type and, in its later file, label. The safe ones look harmful."""
    kind = line.text("type")
    safety = line.optional("label") or ("unsafe" if kind.startswith("contrast_") else "safe")
    if safety not in ("safe", "unsafe"):
        raise line.wrong(f"the label is {safety!r}; expected safe or unsafe")
    group = "xstest " + kind.removeprefix("contrast_")
    return _row(line.text("prompt"), int(safety == "unsafe"), group, borderline=safety == "safe")


def _jailbreakbench(line: _Line) -> Row:
    """JailbreakBench's behaviours (arXiv 2404.01318): goal, category; `target`, where there is one, is not read.

    The benign half has a file of its own with the same columns; it is told by its name, which contains `benign`.
    """
    benign = "benign" in line.path.stem.lower()
    return _row(line.text("goal"), int(not benign), _category(line, "category"), borderline=benign)


def _harmbench(line: _Line) -> Row:
    """HarmBench's text behaviours (arXiv 2402.04249): behavior, semanticcategory, and a context for some."""
    parts = [line.optional("contextstring"), line.text("behavior")]
    return _row("\n\n".join(part for part in parts if part), 1, _category(line, "semanticcategory"))


FORMATS: dict[str, Callable[[_Line], Row]] = {
    "advbench": _advbench,
    "xstest": _xstest,
    "jailbreakbench": _jailbreakbench,
    "harmbench": _harmbench,
}


def _read_csv(path: Path, read: Callable[[_Line], Row]) -> list[Row]:
    return [read(line) for line in _lines(path)]


def _lines(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    raise InvalidTrainingFile(
                        f"{path.name}, line {reader.line_num}: the line has not as many columns as the first",
                        param="data",
                    )
                named = {name.strip().lower(): value for name, value in values.items()}
                yield _Line(path, reader.line_num, named)
        except csv.Error as error:
            raise InvalidTrainingFile(
                f"{path.name}, line {reader.line_num}: not CSV: {error}", param="data"
            ) from error


def _read_text(path: Path, label: Label) -> list[Row]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [_row(line.strip(), label, path.stem) for line in lines if line.strip()]


def _category(line: _Line, column: str) -> str:
    return line.optional(column) or line.path.stem


def _row(request: str, label: int, group: str, *, borderline: bool = False) -> Row:
    row: Row = {"messages": [{"role": "user", "content": request}], "label": label, "group": group}
    return {**row, "borderline": True} if borderline else row
