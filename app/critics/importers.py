"""Requests that people have, as rows of a critic's data: public prompt sets by file, and the cold start.

Nothing is fetched: a set comes as the file that its authors publish. Each row is a request alone; `group` is the
category where the file has one, because groups are what a critic is tested on, else the name of the set.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from app.errors import InvalidRequest, InvalidTrainingFile

Row = dict[str, Any]
Label = Literal[0, 1]
COLD_START = Path(__file__).with_name("cold_start.jsonl")

ROWS = "rows"
"""The format of uploads: JSON lines with labels of their own."""
PREFIX = re.compile(r"([A-Za-z]{2,})(?:\+([01]))?:(.*)", flags=re.DOTALL)
"""FORMAT:FILE or FORMAT+LABEL:FILE. A single letter is a drive of Windows."""

XSTEST_SAFE = (
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "real_group_nons_discr",
    "nons_group_real_discr",
    "historical_events",
    "privacy_public",
    "privacy_fictional",
)
XSTEST_UNSAFE = (
    "contrast_homonyms",
    "contrast_figurative_language",
    "contrast_safe_targets",
    "contrast_safe_contexts",
    "contrast_definitions",
    "contrast_discr",
    "contrast_historical_events",
    "contrast_privacy",
)


class Source(NamedTuple):
    """A file of labelled requests."""

    path: Path
    format_name: str
    label: Label | None
    """What all of its requests are, where the format has no labels of its own."""


def parse_source(text: str, *, format_name: str = ROWS, label: Label | None = None) -> Source:
    """Return the source that FILE, FORMAT:FILE or FORMAT+LABEL:FILE names; the arguments are those of a bare FILE.

    Raises InvalidRequest where what looks like a format is none.
    """
    found = PREFIX.fullmatch(text)
    if found is None:
        return Source(Path(text), format_name, label)
    name, own_label, path = found.groups()
    _check_format(name, f"; is {text!r} the name of a file? Then write ./{text}")
    return Source(Path(path), name, None if own_label is None else cast("Label", int(own_label)))


def load_cold_start() -> list[Row]:
    """Return the requests written for this project: what a model should decline, benign twins of it, and plain ones."""
    return [json.loads(line) for line in COLD_START.read_text(encoding="utf-8").splitlines()]


def import_rows(path: Path, format_name: str, *, label: Label | None = None) -> list[Row]:
    """Read a file as rows of a critic's data.

    `format_name` is a key of FORMATS, or `text`: one request a line. `label` says what the requests of a file are whose
    format is one of UNLABELLED. Raises InvalidTrainingFile with the file's name and line where it has another shape,
    InvalidRequest where the format is unknown or the label is missing or not wanted.
    """
    _check_format(format_name)
    check_label(format_name, label)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error.strerror}", param="data") from error
    except UnicodeDecodeError as error:
        raise InvalidTrainingFile(f"{path.name} is not UTF-8 text; save it as UTF-8", param="data") from error
    if format_name == "text":
        rows = [_row(line.strip(), _given(label), path.stem) for line in text.split("\n") if line.strip()]
    else:
        rows = [FORMATS[format_name](line, label) for line in _lines(path, text)]
    if not rows:
        raise InvalidTrainingFile(f"{path.name} has no requests", param="data")
    return rows


def check_label(format_name: str, label: Label | None) -> None:
    """Raise InvalidRequest where a format lacks the label that it needs, or has one that it does not."""
    if (label is None) == (format_name in UNLABELLED):
        raise InvalidRequest(
            f"the format {format_name} needs a label, 1 for requests to decline and 0 for others, such as"
            f" {format_name}+1:FILE"
            if label is None
            else f"the format {format_name} has labels of its own; leave the label out",
            param="label",
        )


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


def _advbench(line: _Line, _: Label | None) -> Row:
    """AdvBench's harmful_behaviors.csv (arXiv 2307.15043): goal, target. The targets are not read."""
    return _row(line.text("goal"), 1, "advbench")


def _xstest(line: _Line, _: Label | None) -> Row:
    """XSTest v2 (arXiv 2308.01263): prompt, type and, in its later file, label. The safe ones look harmful."""
    kind = line.text("type").lower()
    safety = line.optional("label")
    if safety is None:
        # Without a label the type is all that tells, so that it must be one of theirs.
        if kind not in XSTEST_SAFE + XSTEST_UNSAFE:
            raise line.wrong(f"the type {kind!r} is none of XSTest's, and there is no label")
        safety = "safe" if kind in XSTEST_SAFE else "unsafe"
    if safety not in ("safe", "unsafe"):
        raise line.wrong(f"the label is {safety!r}; expected safe or unsafe")
    group = "xstest " + kind.removeprefix("contrast_")
    return _row(line.text("prompt"), int(safety == "unsafe"), group, borderline=safety == "safe")


def _jailbreakbench(line: _Line, label: Label | None) -> Row:
    """JailbreakBench's behaviours (arXiv 2404.01318): goal, category; `target`, where there is one, is not read.

    The harmful and the benign half have a file each, with the same columns. The benign ones look harmful.
    """
    return _row(line.text("goal"), _given(label), _category(line, "category"), borderline=label == 0)


def _harmbench(line: _Line, _: Label | None) -> Row:
    """HarmBench's text behaviours (arXiv 2402.04249): behavior, semanticcategory, and a context for some."""
    parts = [line.optional("contextstring"), line.text("behavior")]
    return _row("\n\n".join(part for part in parts if part), 1, _category(line, "semanticcategory"))


FORMATS: dict[str, Callable[[_Line, Label | None], Row]] = {
    "advbench": _advbench,
    "xstest": _xstest,
    "jailbreakbench": _jailbreakbench,
    "harmbench": _harmbench,
}
UNLABELLED = ("jailbreakbench", "text")
"""Formats whose files do not say what their requests are."""


def _check_format(name: str, advice: str = "") -> None:
    known = [ROWS, *FORMATS, "text"]
    if name not in known:
        raise InvalidRequest(
            f"no format is called {name!r}; formats: {', '.join(known)}{advice}", param="format"
        )


def _given(label: Label | None) -> Label:
    if label is None:
        raise ValueError("check_label has let a file without labels through")
    return label


def _lines(path: Path, text: str) -> Iterator[_Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)

    def wrong(what: str) -> InvalidTrainingFile:
        return InvalidTrainingFile(f"{path.name}, line {max(1, reader.line_num)}: {what}", param="data")

    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InvalidTrainingFile(f"{path.name}, line {line}: a NUL byte; this is no text", param="data")
    columns: list[str] = []
    try:
        for values in reader:
            if not values:
                continue
            if columns:
                if len(values) != len(columns):
                    raise wrong(f"the line has {len(values)} columns, the first has {len(columns)}")
                yield _Line(path, reader.line_num, dict(zip(columns, values, strict=True)))
                continue
            columns = [name.strip().lower() for name in values]
            if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
                raise wrong("the columns are not separated by commas; save the file as CSV with commas")
            twice = [name for name, times in Counter(columns).items() if times > 1]
            if twice:
                raise wrong(f"the column {twice[0]!r} stands there twice; give each a name of its own")
    except csv.Error as error:
        raise wrong(f"not CSV: {error}") from error


def _category(line: _Line, column: str) -> str:
    return line.optional(column) or line.path.stem


def _row(request: str, label: int, group: str, *, borderline: bool = False) -> Row:
    row: Row = {"messages": [{"role": "user", "content": request}], "label": label, "group": group}
    return {**row, "borderline": True} if borderline else row
