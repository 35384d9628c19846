"""The picture of a risk curve: what is drawn, and that nothing is drawn which was not measured."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from app.charts.render import render_curve
from app.domain.risk_curve import COLUMNS, build_curve

PANELS = (
    "Risk, beta and alpha",
    "Loss per token",
    "Distance from the reference",
)


def drawn(marks: Sequence[dict[str, Any]] = (), **columns: list[Any]) -> str:
    """Return the SVG of a curve whose columns have these values, a step each, and 0.25 where nothing is said."""
    steps = len(next(iter(columns.values())))
    records = [
        {
            **dict.fromkeys(COLUMNS, 0.25),
            "step": step + 1,
            **{name: values[step] for name, values in columns.items()},
        }
        for step in range(steps)
    ]
    picture = render_curve(build_curve(records), marks, title="ftjob-x", subtitle="a critic", image="svg")
    return picture.decode("utf-8")


def line_of(svg: str, name: str) -> str | None:
    """Return the path of the line with this name, in the panel's points, or None where there is no such line."""
    found = re.findall(rf'<path aria-label="[^"]*name: {name}"[^>]*"line mark" d="([^"]*)"', svg)
    assert len(found) <= 1
    return found[0] if found else None


def test_distance_on_the_anchors_has_a_line_beside_the_penalty() -> None:
    svg = drawn(kl=[0.0, 0.1, 0.2], anchor_kl=[0.0, 0.1, 0.05], drift=[None] * 3)
    for panel in PANELS:
        assert panel in svg
    # The panel is 640 wide and 140 high, and 0 is at its foot.
    assert line_of(svg, "penalty, on the data") == "M0,140L320,70L640,0"
    assert line_of(svg, "KL on the anchors") == "M0,140L320,70L640,105"


@pytest.mark.parametrize(
    ("missing", "name", "other"),
    [
        ("anchor_kl", "KL on the anchors", "penalty, on the data"),
        ("kl", "penalty, on the data", "KL on the anchors"),
        ("risk_mean", "risk, smoothed mean", "beta, mean"),
        ("drift", "drift, by the monitor", "alpha, mean"),
    ],
)
def test_what_was_not_measured_has_no_line_and_is_no_zero(missing: str, name: str, other: str) -> None:
    svg = drawn(**{missing: [None, None, None]})
    assert line_of(svg, name) is None
    assert line_of(svg, other) is not None


def test_steps_are_whole_and_at_the_same_place_in_every_panel() -> None:
    svg = drawn(kl=[0.1] * 3)
    axis = r"titled 'optimiser step' for a linear scale with (values from \S+ to \S+)\""
    assert re.findall(axis, svg) == ["values from 1 to 3"] * len(PANELS)
    assert [svg.count(f">{step}<") for step in (1, 2, 3)] == [len(PANELS)] * 3


def test_what_happened_stands_at_its_step_in_every_panel() -> None:
    marks = [
        {"step": 2, "kind": "checkpoint", "label": "the first pass"},
        {"step": 3, "kind": "policy", "label": "paused"},
        {"step": 9, "kind": "pause", "label": "beyond what is shown"},
    ]
    svg = drawn(marks, kl=[0.1] * 3)
    assert "What happened" in svg
    assert [svg.count(f">{mark['label']}</text>") for mark in marks] == [1, 1, 0]
    # The steps are at 0, 320 and 640 points: one rule for each mark in the strip and in each panel.
    rules = re.findall(r'aria-roledescription="rule mark"[^>]*transform="translate\((\d+),', svg)
    assert sorted(rules) == ["320"] * (1 + len(PANELS)) + ["640"] * (1 + len(PANELS))


def test_without_anything_that_happened_there_is_no_strip() -> None:
    assert "What happened" not in drawn(kl=[0.1] * 3)
