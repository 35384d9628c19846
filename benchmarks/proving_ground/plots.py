"""Pictures of what was found, each one Vega-Lite specification."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert

from benchmarks.proving_ground.arms import ARMS, DEFAULT, UNTUNED
from benchmarks.proving_ground.bars import ATTACK, TASK
from benchmarks.proving_ground.grid import SWEPT_REGIME
from benchmarks.proving_ground.regimes import CORE, MIXED, REGIMES
from benchmarks.proving_ground.report import Findings
from benchmarks.proving_ground.runner import Result
from benchmarks.proving_ground.statistics import bootstrap

Spec = dict[str, Any]
Point = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
WIDTH, HEIGHT = 420, 300
BASE_RATE = 2e-3
CLOSE = 0.05
"""Share of an axis within which labels would lie on each other."""


def draw_all(findings: Findings, folder: Path) -> list[Path]:
    """Write every picture that there are data for as SVG, with its specification beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    specs: dict[str, Spec | None] = {
        **{f"pareto-{regime}": pareto(findings, regime) for regime in CORE if REGIMES[regime].has_task},
        "harmful-share": harmful_share(findings),
        "learning-rate": learning_rate(findings),
        "risk-curves": risk_curves(findings),
        "auroc-by-layer": auroc_by_layer(findings),
    }
    written = []
    for name, spec in specs.items():
        if spec is None:
            continue
        path = folder / f"{name}.svg"
        path.with_suffix(".vl.json").write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
        path.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        written.append(path)
    return written


def pareto(findings: Findings, regime: str) -> Spec | None:
    """Utility against safety: every arm of a regime, and the front that no arm is better than on both."""
    points: list[Point] = [
        {"arm": arm, "method": ARMS[arm].method, "attack": attack, "task": task}
        for arm in ARMS
        if arm != UNTUNED
        and (attack := _mean(findings, regime, arm, ATTACK)) is not None
        and (task := _mean(findings, regime, arm, TASK)) is not None
    ]
    if len(points) < 2:
        return None
    front = find_front(points)
    labels = name_groups(points)
    values = [{**point, "front": point in front, "label": labels.get(point["arm"])} for point in points]
    encoding = {
        "x": _axis("attack", "attack success, sampled (%)", scale="symlog", ticks=(0, 1, 2, 5, 10, 30, 100)),
        "y": _axis("task", "task score, greedy (%)", zero=False),
    }
    return {
        "$schema": SCHEMA,
        "title": f"Utility against safety, {REGIMES[regime].title}",
        "width": WIDTH + 160,
        "height": HEIGHT + 100,
        "data": {"values": values},
        "encoding": encoding,
        "layer": [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "interpolate": "step-after", "color": "#999"},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {
                    "color": {"field": "method", "type": "nominal", "scale": {"scheme": "tableau10"}},
                    "shape": {"field": "front", "type": "nominal", "title": "on the front"},
                },
            },
            *(
                {
                    "transform": [{"filter": f"datum.label && datum.attack {side}"}],
                    "mark": {"type": "text", "align": align, "dx": dx, "dy": 9, "fontSize": 9},
                    "encoding": {"text": {"field": "label"}},
                }
                for side, align, dx in (("< 40", "left", 7), (">= 40", "right", -7))
            ),
        ],
    }


def name_groups(points: Sequence[Point]) -> dict[str, str]:
    """Return the label of every arm that has one: arms too close to tell apart in the picture share one, the default first."""
    groups: list[list[Point]] = []
    span = max(point["attack"] for point in points)
    for point in sorted(points, key=lambda point: (point["arm"] != DEFAULT, not ARMS[point["arm"]].leading)):
        near = (group for group in groups if _is_close(group[0], point, span))
        group = next(near, None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return {
        group[0]["arm"]: group[0]["arm"] + (f" and {len(group) - 1} more" if len(group) > 1 else "")
        for group in groups
    }


def _is_close(first: Point, second: Point, span: float) -> bool:
    # The axis of attack success ends at `span`, and is logarithmic.
    apart = max(CLOSE * span, 0.25 * first["attack"])
    return (
        abs(first["attack"] - second["attack"]) < apart and abs(first["task"] - second["task"]) < 100 * CLOSE
    )


def find_front(points: list[Point]) -> list[Point]:
    """Return the points that no other is better than on attack and task, by attack."""
    kept = [
        point
        for point in points
        if not any(
            other["attack"] <= point["attack"]
            and other["task"] >= point["task"]
            and (other["attack"], other["task"]) != (point["attack"], point["task"])
            for other in points
        )
    ]
    return sorted(kept, key=lambda point: (point["attack"], point["task"]))


def harmful_share(findings: Findings) -> Spec | None:
    """Attack success over the harmful share of the user's data."""
    regimes = [name for name in ("benign", *MIXED) if findings.runs(name, DEFAULT)]
    points = [
        {
            "arm": arm,
            "x": 100 * (REGIMES[regime].share or 0.0),
            **_bounds(findings, regime, arm, None, ATTACK),
        }
        for regime in regimes
        for arm in ARMS
        if _mean(findings, regime, arm, ATTACK) is not None
    ]
    shares = {point["x"] for point in points}
    if len(shares) < 2:
        return None
    everywhere = [arm for arm in ARMS if {point["x"] for point in points if point["arm"] == arm} == shares]
    return _curves(
        "Attack success over the harmful share",
        [point for point in points if point["arm"] in everywhere],
        _axis("x", "harmful rows (%)", scale="symlog", ticks=(0, 1, 5, 10, 30)),
        "attack success, sampled (%)",
    )


def learning_rate(findings: Findings) -> Spec | None:
    """Attack success and task score over the learning rate."""
    panels = []
    for column, title in ((ATTACK, "attack success, sampled (%)"), (TASK, "task score, greedy (%)")):
        points = [
            {"arm": arm, "x": rate or BASE_RATE, **_bounds(findings, regime, arm, rate, column)}
            for regime, arm, rate in findings.groups()
            if regime == SWEPT_REGIME
            and _is_swept(findings, arm)
            and _mean(findings, regime, arm, column, rate) is not None
        ]
        if not points:
            return None
        panels.append(_curves(title, points, _axis("x", "learning rate", scale="log"), title))
    return {"$schema": SCHEMA, "hconcat": panels}


def _is_swept(findings: Findings, arm: str) -> bool:
    return any(result.arm == arm and result.learning_rate is not None for result in findings.results)


def risk_curves(findings: Findings) -> Spec | None:
    """Mean risk and beta of the default's steps, and the drift on the monitor's prompts."""
    points: list[Point] = []
    for regime in REGIMES:
        for run in findings.runs(regime, DEFAULT)[:1]:
            points += _curve_points(run)
    if not points:
        return None
    return {
        "$schema": SCHEMA,
        "title": "Risk curves of the default preset, first seed",
        "data": {"values": points},
        "facet": {"field": "regime", "type": "nominal", "title": None},
        "columns": 5,
        "spec": {
            "width": 220,
            "height": 120,
            "mark": {"type": "line"},
            "encoding": {
                "x": _axis("step", "step"),
                "y": {"field": "value", "type": "quantitative", "title": None},
                "color": {"field": "what", "type": "nominal", "title": None},
            },
        },
    }


def _curve_points(run: Result) -> list[Point]:
    points = []
    for step, risk, beta, _ in run.curve:
        points += [
            {"regime": run.regime, "step": step, "what": "mean risk", "value": risk},
            {"regime": run.regime, "step": step, "what": "mean beta", "value": beta},
        ]
    points += [
        {"regime": run.regime, "step": step, "what": "drift, nats a token", "value": kl}
        for step, kl in run.drift
    ]
    return points


def auroc_by_layer(findings: Findings) -> Spec | None:
    """How well each layer alone tells harmful from benign rows, on held-out groups."""
    points = [
        {"read": f"{kind}, {name} critic", "layer": layer + 1, "auroc": value}
        for name, found in findings.critics.items()
        for kind, of_kind in found.get("layers", {}).items()
        for layer, value in enumerate(of_kind)
    ]
    if not points:
        return None
    return {
        "$schema": SCHEMA,
        "title": "AUROC by layer, held-out groups",
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": points},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "layer", "type": "ordinal", "title": "layer"},
            "y": {
                "field": "auroc",
                "type": "quantitative",
                "title": "AUROC",
                "scale": {"domain": [0.5, 1.0]},
            },
            "color": {"field": "read", "type": "nominal", "title": None},
        },
    }


def _curves(title: str, points: list[Point], x: Spec, y_title: str) -> Spec:
    return {
        "$schema": SCHEMA,
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": points},
        "encoding": {"x": x, "color": {"field": "arm", "type": "nominal", "title": None}},
        "layer": [
            {
                "mark": {"type": "line", "point": True},
                "encoding": {"y": {"field": "mean", "type": "quantitative", "title": y_title}},
            },
            {
                "mark": {"type": "rule", "opacity": 0.5},
                "encoding": {
                    "y": {"field": "lower", "type": "quantitative", "title": y_title},
                    "y2": {"field": "upper"},
                },
            },
        ],
    }


def _axis(
    name: str, title: str, *, scale: str | None = None, zero: bool = True, ticks: Sequence[float] = ()
) -> Spec:
    kind: Spec = {"type": scale} if scale else {"zero": zero}
    found: Spec = {"field": name, "type": "quantitative", "title": title, "scale": kind}
    return {**found, "axis": {"values": list(ticks)}} if ticks else found


def _mean(findings: Findings, regime: str, arm: str, column: str, rate: float | None = None) -> float | None:
    runs = findings.runs(regime, arm, rate)
    if not runs or any(run.failed for run in runs):
        return None
    clusters = findings.find(regime, arm, rate, column)
    return 100 * bootstrap(clusters).mean if clusters else None


def _bounds(findings: Findings, regime: str, arm: str, rate: float | None, column: str) -> Point:
    found = bootstrap(findings.find(regime, arm, rate, column))
    return {name: 100 * value for name, value in found._asdict().items()}
