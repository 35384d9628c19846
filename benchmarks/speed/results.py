"""The figures on disk: `results.json`, one object per figure, and `RESULTS.md` made from it."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

JSON_FILE, MARKDOWN_FILE = "results.json", "RESULTS.md"
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "numpy",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
)


class Figure(NamedTuple):
    """One measured figure. Every bar is an upper one."""

    name: str
    group: str
    """Its heading in the table."""
    title: str
    values: tuple[float, ...]
    """One per round; empty where it was not measured."""
    bar: float | None = None
    unit: str = "ratio"
    note: str = ""
    """How it was put together, or why it was not measured."""


def describe_machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def to_rows(
    figures: Sequence[Figure], machine: dict[str, Any], versions: dict[str, str], mode: str
) -> list[dict[str, Any]]:
    """Return one object per figure: the median over the rounds, and the least and greatest."""
    return [
        {
            "name": figure.name,
            "value": round(median(figure.values), 4) if figure.values else None,
            "unit": figure.unit,
            "bar": figure.bar,
            "low": round(min(figure.values), 4) if figure.values else None,
            "high": round(max(figure.values), 4) if figure.values else None,
            "rounds": len(figure.values),
            "group": figure.group,
            "title": figure.title,
            "note": figure.note,
            "mode": mode,
            "machine": machine,
            "versions": versions,
        }
        for figure in figures
    ]


def merge(before: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows found now, and those before that this run did not measure on its device."""
    measured = {(row["machine"]["device"], row["name"]) for row in found}
    return [*found, *(row for row in before if (row["machine"]["device"], row["name"]) not in measured)]


def write(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    """Write both files into `folder`, keeping the rows of other devices and of other benchmarks."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / JSON_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    rows = merge(before, found)
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(to_markdown(rows), encoding="utf-8")


def holds(row: dict[str, Any]) -> bool | None:
    """Tell whether a row's median is within its bar; None where it has no bar or no value."""
    if row["bar"] is None or row["value"] is None:
        return None
    return bool(row["value"] <= row["bar"])


def to_line(row: dict[str, Any]) -> str:
    """Return a row as a line of plain text, with its share of its bar and the verdict."""
    verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[holds(row)]
    over = f" {row['value'] / row['bar']:.2f} of its bar {verdict}" if verdict else ""
    return " · ".join(str(row[key]) for key in ("name", "value", "low", "high", "bar", "unit")) + over


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as tables, one per machine with its versions, and group: nothing stands under another's name."""
    lines = [
        "# Speed and memory",
        "",
        "Made from `results.json`; what is measured, and how, is in `benchmarks/speed/`, `benchmarks/service/`"
        " and `benchmarks/ledger/` (`make bench`). Each value is"
        " the median over the rounds of one run, in which the contenders took turns; the range is from the least"
        " round to the greatest. Ratios are of times or bytes: below 1 is better than what comes after «over».",
    ]
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        made_on = json.dumps([row["machine"], row["versions"], row["mode"]], sort_keys=True)
        runs.setdefault(made_on, []).append(row)
    for of_run in runs.values():
        machine, versions = of_run[0]["machine"], of_run[0]["versions"]
        name = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
        lines += [
            "",
            f"## {name}, {machine['threads']} threads",
            "",
            f"{', '.join(f'{library} {number}' for library, number in versions.items())}; {of_run[0]['mode']} run.",
        ]
        for group in dict.fromkeys(row["group"] for row in of_run):
            lines += ["", f"### {group}", "", "| figure | value | range | bar | |", "|---|--:|--:|--:|---|"]
            lines += [_table_row(row) for row in of_run if row["group"] == group]
            notes = dict.fromkeys(row["note"] for row in of_run if row["group"] == group and row["note"])
            lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _table_row(row: dict[str, Any]) -> str:
    unit = "" if row["unit"] == "ratio" else f" {row['unit']}"
    if row["value"] is None:
        return f"| {row['title']} | not measured | | {_number(row['bar'])} | |"
    verdict = {True: "holds", False: "**does not hold**", None: ""}[holds(row)]
    spread = f"{_number(row['low'])} to {_number(row['high'])}" if row["rounds"] > 1 else ""
    return (
        f"| {row['title']} | {_number(row['value'])}{unit} | {spread} | {_number(row['bar'])} | {verdict} |"
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
