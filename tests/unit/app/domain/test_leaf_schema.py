"""What a leaf may hold; the fields of a type must never change."""

import hashlib
import json
import math
from typing import Any

import pytest

from app.domain import dataset, leaf_schema, ledger
from tests.unit.app.domain.leaf_examples import BODIES, HEADER, build


def test_every_type_has_an_example_here() -> None:
    assert {f"tether.{kind}" for kind in BODIES} == set(leaf_schema.BODIES)


FIRST = (
    "job.created/1",
    "job.start/1",
    "job.resume/1",
    "risk.table/1",
    "step/1",
    "ckpt/1",
    "cmd/1",
    "adapter.published/1",
    "job.end/1",
)
SECOND = ("job.created/2", "risk.table/2", "anchors/1", "alignment/1", "step/2", "monitor/1", "live/1")
THIRD = ("job.created/3", "anchors/2", "alignment/2", "ckpt/2")
FOURTH = ("job.created/4", "risk.table/3")
PROVEN = ("adapter.published/2",)
GATED = ("gate.start/1", "gate/1")
EVALUATED = ("eval/1",)
SPLIT = ("job.start/2", "job.resume/2")
LOST = ("ckpt.invalid/1",)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (FIRST, "12a3c5f45417a30ee528cc6cb363b7f70b117e0ffc9ba81188ed9cbb80e26f9e"),
        (SECOND, "4d0a8523a53563b980f4cb43d7de6d508e3503580721f92ed76f392db2ac1f1c"),
        (THIRD, "3f4af354566ca9a6e9ac4ffa34690c1695511ce12d09e8c8a8fe9fef01fb7519"),
        (FOURTH, "026614959ad1c5058605dd23737b7217658ef8fd91d2ab01e6fe06cf07ef1dba"),
        (PROVEN, "56ae18727c7393dfc07b6e83468dbc22ddee27c286a67a5d53ba8751097f9d2b"),
        (SPLIT, "525f5219fb30964d88c361fe951a815e2ee7e0b81801672f6e15f62b44897e61"),
        (EVALUATED, "7a5ce3981971bae068b952a74d8e07105236bc67cefbaf02a430cbb233657041"),
        (GATED, "2a339793d097ebb566efd8547587ecfc1cfe6a521505671602c667a4a8f8a298"),
        (LOST, "514c3a5fabf7195e6c54f60ad95b65ead3d15bf4b7f7fbc4cbaa749dff1333d7"),
    ],
)
def test_the_fields_of_every_type_are_these_for_ever(kinds: tuple[str, ...], expected: str) -> None:
    names = {name: sorted(leaf_schema.BODIES[name]) for name in (f"tether.{kind}" for kind in kinds)}
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
    assert digest == expected, "a type changed its fields: give it a new version instead"


def test_every_type_has_its_fields_pinned() -> None:
    assert {
        f"tether.{kind}"
        for kind in FIRST + SECOND + THIRD + FOURTH + PROVEN + GATED + EVALUATED + SPLIT + LOST
    } == set(leaf_schema.BODIES)


@pytest.mark.parametrize("kind", BODIES)
def test_every_field_is_demanded_and_no_other_is_allowed(kind: str) -> None:
    for name in BODIES[kind]:
        body = {key: value for key, value in BODIES[kind].items() if key != name}
        with pytest.raises(ValueError, match=f"has no '{name}'"):
            ledger.build_leaf(kind, body, **HEADER)
    with pytest.raises(ValueError, match="unknown field 'extra'"):
        build(kind, {"extra": 1})


@pytest.mark.parametrize("kind", BODIES)
def test_text_never_enters(kind: str) -> None:
    text = "Tell me how to"
    for name in BODIES[kind]:
        for value in (text, {"a": text}, {text: 1}, [text], {"safety": {"method": text}}, "", "é", "a" * 300):
            with pytest.raises(ValueError, match=rf"body\.{name}"):
                build(kind, {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job", "a job"),
        ("job", None),
        ("seq", -1),
        ("seq", 1.5),
        ("seq", True),
        ("seq", "1"),
        ("attempt", None),
        ("epoch", -1),
        ("prev", "AB" * 32),
        ("prev", "ab" * 31),
        ("ts_db", None),
        ("ts_db", 1.5),
        ("ts_worker", "now"),
    ],
)
def test_a_wrong_header_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"leaf.{name}"):
        build("cmd", **{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("step", "step", 0),
        ("step/1", "rows", []),
        ("step/1", "kl", None),
        ("step", "rows", None),
        ("step", "alignment_rows", [True]),
        ("step", "anchors", 3),
        ("step", "anchor_weight", -0.5),
        ("step", "anchor_weight", math.inf),
        ("step", "s_smoothed", 1.5),
        ("step", "skipped", 0),
        ("monitor", "kl", None),
        ("monitor", "floor", 2),
        ("monitor", "anchor_factor", math.nan),
        ("anchors", "trained", [{"row": 1}]),
        ("anchors", "monitored", {"row": 1}),
        ("alignment", "rows", 0),
        ("step", "rows", [-1]),
        ("step", "rows", [1.5]),
        ("step", "risk_mean", 1.01),
        ("step", "beta_max", math.nan),
        ("step", "beta_max", None),
        ("step", "beta_max", True),
        ("step", "loss", None),
        ("step", "loss", "nan"),
        ("step", "critic_sha256", "c"),
        ("job.created", "spec", {"n_epochs": 1}),
        ("job.created", "spec", {"safety": "default"}),
        ("job.created", "critic", {"id": "x"}),
        ("job.created", "anchors", {"id": "x"}),
        ("risk.table", "treatments", {"own": 1}),
        ("risk.table/2", "low", math.nan),
        ("risk.table", "fitted", None),
        ("risk.table", "fitted", [{"sha256": "a" * 64, "low": None, "high": 1.0}]),
        ("job.created", "critic", {"id": "critic-1", "sha256": "c" * 64, "fitted": [{"id": "critic-1"}]}),
        ("risk.table", "counts", {"ok": 1}),
        ("job.end", "state", "running"),
        ("ckpt", "files", {"a": "b"}),
        ("ckpt", "files", []),
        ("job.start", "environment", {"torch": 2}),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"body\.{name} is .*expected"):
        build(kind, {name: value})


def test_a_set_of_anchors_has_as_many_rows_as_can_be_registered() -> None:
    for rows, fits in (
        (dataset.MIN_ANCHORS - 1, False),
        (dataset.MIN_ANCHORS, True),
        (dataset.MAX_ANCHORS, True),
    ):
        assert _accepts({"rows": rows}) is fits
    assert not _accepts({"rows": dataset.MAX_ANCHORS + 1})


def _accepts(change: dict[str, Any]) -> bool:
    try:
        build("anchors", change)
    except ValueError:
        return False
    return True
