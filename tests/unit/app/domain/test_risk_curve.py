"""The risk curve: smoothing, and down-sampling that loses no spike."""

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.risk_curve import COLUMNS, build_curve, build_packed_curve, downsample, pack_steps, to_csv


def record(step: int, risk: float | None, **changes: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = dict.fromkeys(COLUMNS, 0.25)
    return {**numbers, "step": step, "risk_mean": risk, "risk_max": risk, "rows": [1], **changes}


def rows_of(risks: list[float | None], **columns: list[float]) -> list[list[Any]]:
    records = [
        record(step, risk, **{name: values[step - 1] for name, values in columns.items()})
        for step, risk in enumerate(risks, start=1)
    ]
    rows: list[list[Any]] = build_curve(records)["rows"]
    return rows


def column(rows: list[list[Any]], name: str) -> list[Any]:
    return [row[COLUMNS.index(name)] for row in rows]


def test_the_columns_are_the_wires() -> None:
    curve = build_curve([record(1, 0.5)])
    expected = (
        "step,risk_mean,risk_max,risk_smoothed,beta_mean,beta_max,alpha_mean,nll,kl,loss,lr,anchor_kl,drift"
    )
    assert ",".join(curve["columns"]) == expected
    assert curve["rows"] == [[1, 0.5, 0.5, pytest.approx(0.5), *[0.25] * 9]]
    assert build_curve([])["rows"] == []


def test_the_drift_is_the_last_that_was_measured() -> None:
    records = [record(step, 0.5) for step in range(1, 6)]
    for each, drift in zip(records, (None, 0.5, None, math.nan, None), strict=True):
        del each["drift"]
        if drift is not None:
            each["drift"] = drift
    assert column(build_curve(records)["rows"], "drift") == [None, 0.5, 0.5, "NaN", "NaN"]


def test_a_record_from_before_there_were_anchors_makes_a_curve_too() -> None:
    old = {name: value for name, value in record(1, 0.5).items() if name not in ("anchor_kl", "drift")}
    assert build_curve([old])["rows"][0][-2:] == [None, None]


def test_smoothing_is_a_bias_corrected_exponential_average() -> None:
    risks = [0.0, 1.0, 0.5]
    weights = [0.9**k * 0.1 for k in range(3)]
    expected = [
        sum(w * r for w, r in zip(weights, reversed(risks[: n + 1]), strict=False)) / sum(weights[: n + 1])
        for n in range(3)
    ]
    assert column(rows_of([*risks]), "risk_smoothed") == pytest.approx(expected)


def test_what_was_not_measured_stays_null_and_does_not_count_as_zero() -> None:
    assert column(rows_of([None, 0.5, None, 0.5]), "risk_smoothed") == [
        None,
        pytest.approx(0.5),
        None,
        pytest.approx(0.5),
    ]


def test_a_diverged_loss_is_a_word_that_json_can_carry() -> None:
    rows = rows_of([0.5, 0.5], loss=[math.nan, math.inf])
    assert column(rows, "loss") == ["NaN", "Infinity"]
    json.dumps(rows, allow_nan=False)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=300),
    st.integers(4, 60),
)
def test_downsampling_keeps_both_ends_and_the_extremes(risks: list[float], max_points: int) -> None:
    rows = rows_of([*risks])
    kept = downsample(rows, max_points)
    assert len(kept) <= max_points
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert column(kept, "step") == sorted(column(kept, "step"))
    assert all(row in rows for row in kept)
    assert max(column(kept, "risk_max")) == max(risks)
    assert min(column(kept, "risk_max")) == min(risks)
    if len(rows) <= max_points:
        assert kept == rows


def test_a_spike_in_every_part_of_a_long_run_survives() -> None:
    risks: list[float | None] = [0.1] * 10_000
    spikes = range(500, 10_000, 1000)
    for spike in spikes:
        risks[spike] = 0.9
    kept = downsample(rows_of(risks), 100)
    assert {row[0] for row in kept if row[2] == 0.9} == {spike + 1 for spike in spikes}


def test_without_risk_the_loss_keeps_its_spikes() -> None:
    loss = [1.0] * 1000
    loss[333], loss[777] = 50.0, math.nan
    kept = downsample(rows_of([None] * 1000, loss=loss), 20)
    assert {50.0, "NaN"} <= set(column(kept, "loss"))


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        downsample([], 3)


def test_csv_has_a_header_and_empty_cells_for_null() -> None:
    text = to_csv(build_curve([record(1, None), record(2, 1e-7, loss=math.nan)]))
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["step"], first["risk_mean"], first["risk_smoothed"]) == ("1", "", "")
    assert (second["risk_mean"], second["loss"]) == ("1e-07", "NaN")
    assert text.splitlines()[0] == ",".join(COLUMNS)


NUMBER = st.one_of(st.none(), st.floats(), st.floats(0, 1))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1)), NUMBER, NUMBER, NUMBER), max_size=120),
    st.lists(st.integers(1, 40), max_size=4),
    st.integers(4, 60),
)
def test_packed_pieces_make_the_same_curve(
    numbers: list[tuple[float | None, ...]], lengths: list[int], max_points: int
) -> None:
    records = [
        record(step, mean, risk_max=most, loss=loss, drift=drift)
        for step, (mean, most, loss, drift) in enumerate(numbers, start=1)
    ]
    pieces: list[bytes] = []
    rest = records
    for length in lengths:
        pieces.append(pack_steps(rest[:length], pieces[-1] if pieces else None))
        rest = rest[length:]
    expected = build_curve(records)
    rows = downsample(expected["rows"], max_points)
    found = build_packed_curve(pieces, rest, max_points)
    # As a reply has them: a number that is none is a word, and null is not that word.
    assert json.dumps(found, allow_nan=False) == json.dumps({**expected, "rows": rows}, allow_nan=False)


@pytest.mark.parametrize(
    ("from_step", "to_step", "seen"),
    [(None, 5, range(1, 6)), (18, None, range(18, 21)), (7, 12, range(7, 13)), (30, 40, []), (9, 3, [])],
)
def test_a_part_of_a_curve_is_its_rows_and_no_others(
    from_step: int | None, to_step: int | None, seen: Iterable[int]
) -> None:
    records = [record(step, step % 3 / 3) for step in range(1, 21)]
    pieces = [pack_steps(records[:8], None)]
    pieces.append(pack_steps(records[8:15], pieces[0]))
    found = build_packed_curve(pieces, records[15:], 50, from_step=from_step, to_step=to_step)
    assert found["rows"] == [build_curve(records)["rows"][step - 1] for step in seen]


def test_a_part_of_a_long_curve_keeps_what_the_whole_leaves_out() -> None:
    records = [record(step, 0.9 if step == 617 else 0.1) for step in range(1, 2001)]
    part = build_packed_curve([pack_steps(records, None)], [], 10, from_step=600, to_step=700)["rows"]
    assert len(part) <= 10
    assert (part[0][0], part[-1][0]) == (600, 700)
    assert 617 in column(part, "step")
