"""The risk table: what an entry may say, and what its leaf commits to."""

import hashlib
import hmac
import math
from dataclasses import replace

import pytest

from app.domain import ledger, risk_table
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.merkle import leaf_hash, root
from tests.unit.app.domain.leaf_examples import build

POINTS = risk_table.FittedPoints("e" * 64, -1.0, 1.0)


def test_a_row_commitment_is_an_hmac_over_canonical_bytes() -> None:
    message = b'{"input_ids":[5,6,7],"loss_mask":[0,1,1]}'
    expected = hmac.new(b"key", message, hashlib.sha256).hexdigest()
    assert risk_table.row_commitment(b"key", [5, 6, 7], [False, True, 1]) == expected
    assert risk_table.row_commitment(b"other", [5, 6, 7], [0, 1, 1]) != expected
    assert risk_table.row_commitment(b"key", [5, 6, 7], [1, 1, 1]) != expected


@pytest.mark.parametrize(("key", "ids", "mask"), [(b"key", [1], [0, 1]), (b"", [1], [1]), (b"key", [1], [2])])
def test_a_senseless_commitment_is_refused(key: bytes, ids: list[int], mask: list[int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        risk_table.row_commitment(key, ids, mask)


@pytest.mark.parametrize("log_odds", [None, math.nan, math.inf, -math.inf])
def test_a_critic_that_fails_makes_its_row_maximally_risky(log_odds: float | None) -> None:
    row = risk_table.measured_row(3, "a" * 64, log_odds, low=-1, high=1)
    assert (row.status, row.s, row.log_odds) == ("failed", 1.0, (None,))


def test_a_risk_table_commits_to_its_entries() -> None:
    rows = [
        risk_table.measured_row(0, "a" * 64, 0.5, low=-1, high=1),
        risk_table.measured_row(1, "a" * 64, -0.0, low=-1, high=1),
        risk_table.measured_row(4, "b" * 64, None, low=-1, high=1),
    ]
    entries, body = risk_table.build_risk_table(rows, dropped=2, critic_sha256="c" * 64, fitted=[POINTS])
    assert body == {
        "rows": 3,
        "dropped": 2,
        "root": root(map(leaf_hash, entries)).hex(),
        "critic_sha256": "c" * 64,
        "fitted": [{"sha256": "e" * 64, "low": -1.0, "high": 1.0}],
        "counts": {
            "ok": 2,
            "failed": 1,
            "constant": 0,
            "unmeasured": 0,
            "judged": 0,
            "fallback": 0,
        },
        "treatments": {"own": 3, "replay": 0, "drop": 0},
    }
    assert [risk_table.parse_risk_row(entry) for entry in entries] == rows
    assert parse_canonical(entries[0]) == {
        "row": 0,
        "commitment": "a" * 64,
        "log_odds": [0.5],
        "s": 0.75,
        "status": "ok",
        "treatment": "own",
        "replay": None,
        "votes": [],
    }
    assert ledger.parse_leaf(build("risk.table", body))["body"]["root"] == body["root"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [risk_table.unmeasured_row(1, "a" * 64), risk_table.unmeasured_row(1, "a" * 64)],
        [risk_table.unmeasured_row(1, "a" * 64), risk_table.unmeasured_row(0, "a" * 64)],
        [risk_table.RiskRow(0, "a" * 64, (), 0.0, "failed")],
        [risk_table.RiskRow(0, "a" * 64, (), None, "failed")],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "ok")],
        [risk_table.RiskRow(0, "a" * 64, (0.5,), None, "ok")],
        [risk_table.RiskRow(0, "a" * 64, (0.5,), 0.5, "constant")],
        [risk_table.RiskRow(0, "a" * 64, (), 0.0, "unmeasured")],
        [risk_table.RiskRow(0, "a" * 64, (), 1.5, "constant")],
        [risk_table.RiskRow(0, "a" * 64, (), None, "skipped")],
        [risk_table.RiskRow(0, "text", (), None, "unmeasured")],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "judged")],
        [risk_table.RiskRow(0, "a" * 64, (), None, "judged", votes=((3,),))],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "judged", votes=((6,),))],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "judged", votes=((True,),))],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "fallback", votes=((None,),))],
        [risk_table.RiskRow(0, "a" * 64, (0.5,), 0.5, "ok", votes=((3,),))],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "constant", "replay")],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "constant", "own", "b" * 64)],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "constant", "drop", "b" * 64)],
        [risk_table.RiskRow(0, "a" * 64, (), 0.5, "constant", "hide")],  # type: ignore[arg-type]
    ],
)
def test_a_senseless_risk_table_is_refused(rows: list[risk_table.RiskRow]) -> None:
    # The readings are as many as they should be: it is something else that makes no sense.
    fitted = [POINTS] * len(rows[0].log_odds if rows else ())
    with pytest.raises(ValueError, match=r"^(?!.*fitted critics)."):
        risk_table.build_risk_table(rows, dropped=0, critic_sha256=None, fitted=fitted)


def test_a_row_has_a_reading_of_every_fitted_critic() -> None:
    fitted = [POINTS, risk_table.FittedPoints("f" * 64, 0.0, 2.0)]
    rows = [
        risk_table.RiskRow(0, "a" * 64, (0.5, -0.25), 0.75, "ok"),
        risk_table.RiskRow(1, "a" * 64, (None, None), 1.0, "failed"),
    ]
    entries, body = risk_table.build_risk_table(rows, dropped=0, critic_sha256="c" * 64, fitted=fitted)
    assert parse_canonical(entries[0])["log_odds"] == [0.5, -0.25]
    assert body["fitted"] == [
        {"sha256": "e" * 64, "low": -1.0, "high": 1.0},
        {"sha256": "f" * 64, "low": 0.0, "high": 2.0},
    ]
    for log_odds in ((), (0.5,), (0.5, -0.25, None)):
        wrong = [replace(rows[0], log_odds=log_odds, status="ok" if log_odds else "constant")]
        with pytest.raises(
            ValueError, match=f"row 0 has {len(log_odds)} readings; the job has 2 fitted critics"
        ):
            risk_table.build_risk_table(wrong, dropped=0, critic_sha256="c" * 64, fitted=fitted)


def test_a_table_says_what_became_of_each_row() -> None:
    rows = [
        risk_table.RiskRow(0, "a" * 64, (None,), 0.25, "judged", votes=((2,), (1, None))),
        risk_table.RiskRow(1, "a" * 64, (0.5,), 0.75, "fallback", "replay", "b" * 64, ((None,),)),
        risk_table.RiskRow(2, "a" * 64, (None,), 1.0, "failed", "drop"),
    ]
    entries, body = risk_table.build_risk_table(rows, dropped=0, critic_sha256="c" * 64, fitted=[POINTS])
    assert body["treatments"] == {"own": 1, "replay": 1, "drop": 1}
    assert [risk_table.parse_risk_row(entry) for entry in entries] == rows


def test_an_entry_is_of_its_tables_version() -> None:
    entries, _ = risk_table.build_risk_table(
        [risk_table.unmeasured_row(0, "a" * 64)],
        dropped=0,
        critic_sha256=None,
    )
    with pytest.raises(ValueError, match=r"log_odds is \[\]"):
        risk_table.parse_risk_row(entries[0], 1)
    first = canonical_bytes(
        {"row": 0, "commitment": "a" * 64, "log_odds": None, "s": None, "status": "unmeasured"}
    )
    # In those days there was one reading, or the lack of one.
    expected = replace(risk_table.unmeasured_row(0, "a" * 64), log_odds=(None,))
    assert risk_table.parse_risk_row(first, 1) == expected
    second = {"treatment": "own", "replay": None, "votes": [], "log_odds": 0.5, "s": 0.75, "status": "ok"}
    entry = canonical_bytes({"row": 0, "commitment": "a" * 64, **second})
    assert risk_table.parse_risk_row(entry, 2).log_odds == (0.5,)
    with pytest.raises(ValueError, match="expected a list"):
        risk_table.parse_risk_row(entry)
    with pytest.raises(ValueError, match="has no 'votes'"):
        risk_table.parse_risk_row(first)


def test_the_scale_of_s_is_the_probability_where_it_is_asked_for() -> None:
    row = risk_table.measured_row(0, "a" * 64, 0.0, low=0.0, high=1.0, scale="probability")
    assert row.s == 0.5
