"""Curves as SVG inside of a page: no script, no font and no picture from anywhere, and no text of a client."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 640, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 24


class Line(NamedTuple):
    """A line of a panel: a column of the curve, what it is called, and its colour."""

    column: str
    name: str
    colour: str


class Panel(NamedTuple):
    """Lines that share an axis."""

    title: str
    lines: tuple[Line, ...]
    unit_scale: bool = False
    """Whether the axis goes from 0 to 1, whatever the values are."""


PANELS = (
    Panel(
        "Risk s of the step's rows",
        (Line("risk_max", "highest", "#e0a3a0"), Line("risk_mean", "mean", "#b3261e")),
        unit_scale=True,
    ),
    Panel(
        "Weight of the KL penalty (beta)",
        (Line("beta_max", "highest", "#9db4d6"), Line("beta_mean", "mean", "#1f4e99")),
        unit_scale=True,
    ),
    Panel(
        "Distance from the reference, nats a token",
        (Line("kl", "penalty on the data", "#7a4fa3"), Line("anchor_kl", "KL on the anchors", "#c2417c")),
    ),
    Panel(
        "Loss, nats a token",
        (Line("nll", "NLL of the data", "#3a7d44"), Line("loss", "objective", "#777777")),
    ),
)


def draw_panels(curve: Mapping[str, Any]) -> list[tuple[Panel, str | None]]:
    """Return each panel with its picture; None where the curve has nothing of it."""
    columns = {name: place for place, name in enumerate(curve["columns"])}
    return [(panel, _draw(panel, columns, curve["rows"])) for panel in PANELS]


def _draw(panel: Panel, columns: Mapping[str, int], rows: Sequence[Sequence[Any]]) -> str | None:
    lines = {
        line: [
            (float(row[columns["step"]]), float(row[columns[line.column]]))
            for row in rows
            if _is_finite(row[columns[line.column]])
        ]
        for line in panel.lines
        if line.column in columns
    }
    points = [point for found in lines.values() for point in found]
    if not points:
        return None
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = (0.0, 1.0) if panel.unit_scale else _bounds([y for _, y in points])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (min(max(y, low), high) - low) / (high - low)
        return f"{LEFT + across * (right - LEFT):.1f},{bottom - up * (bottom - TOP):.1f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{panel.title}">',
        f'<path d="M{LEFT},{TOP}V{bottom}H{right}" fill="none" stroke="#999"/>',
        _text(LEFT - 6, TOP + 8, _number(high), "end"),
        _text(LEFT - 6, bottom, _number(low), "end"),
        _text(LEFT, HEIGHT - 8, f"step {first:.0f}", "start"),
        _text(right, HEIGHT - 8, f"step {last:.0f}", "end"),
    ]
    for line, found in lines.items():
        if len(found) == 1:
            x, y = place(*found[0]).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{line.colour}"/>')
        elif found:
            path = " ".join(place(*point) for point in found)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>')
    return "".join([*parts, "</svg>"])


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="11" fill="#555" text-anchor="{anchor}">{text}</text>'
