"""The risk table: what an entry may say, and what its leaf commits to."""

import hashlib
import hmac
import math

import pytest

from app.domain import ledger, risk_table
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.merkle import leaf_hash, root
from tests.unit.app.domain.leaf_examples import build


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
    assert (row.status, row.s, row.log_odds) == ("failed", 1.0, None)


def test_a_risk_table_commits_to_its_entries() -> None:
    rows = [
        risk_table.measured_row(0, "a" * 64, 0.5, low=-1, high=1),
        risk_table.measured_row(1, "a" * 64, -0.0, low=-1, high=1),
        risk_table.measured_row(4, "b" * 64, None, low=-1, high=1),
    ]
    entries, body = risk_table.build_risk_table(rows, dropped=2, critic_sha256="c" * 64, low=-1.0, high=1.0)
    assert body == {
        "rows": 3,
        "dropped": 2,
        "root": root(map(leaf_hash, entries)).hex(),
        "critic_sha256": "c" * 64,
        "low": -1.0,
        "high": 1.0,
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
        "log_odds": 0.5,
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
        [risk_table.RiskRow(0, "a" * 64, None, 0.0, "failed")],
        [risk_table.RiskRow(0, "a" * 64, None, None, "failed")],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "ok")],
        [risk_table.RiskRow(0, "a" * 64, 0.5, None, "ok")],
        [risk_table.RiskRow(0, "a" * 64, 0.5, 0.5, "constant")],
        [risk_table.RiskRow(0, "a" * 64, None, 0.0, "unmeasured")],
        [risk_table.RiskRow(0, "a" * 64, None, 1.5, "constant")],
        [risk_table.RiskRow(0, "a" * 64, None, None, "skipped")],
        [risk_table.RiskRow(0, "text", None, None, "unmeasured")],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "judged")],
        [risk_table.RiskRow(0, "a" * 64, None, None, "judged", votes=((3,),))],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "judged", votes=((6,),))],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "judged", votes=((True,),))],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "fallback", votes=((None,),))],
        [risk_table.RiskRow(0, "a" * 64, 0.5, 0.5, "ok", votes=((3,),))],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "constant", "replay")],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "constant", "own", "b" * 64)],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "constant", "drop", "b" * 64)],
        [risk_table.RiskRow(0, "a" * 64, None, 0.5, "constant", "hide")],  # type: ignore[arg-type]
    ],
)
def test_a_senseless_risk_table_is_refused(rows: list[risk_table.RiskRow]) -> None:
    with pytest.raises(ValueError, match=r"."):
        risk_table.build_risk_table(rows, dropped=0, critic_sha256=None, low=None, high=None)


def test_a_table_says_what_became_of_each_row() -> None:
    rows = [
        risk_table.RiskRow(0, "a" * 64, None, 0.25, "judged", votes=((2,), (1, None))),
        risk_table.RiskRow(1, "a" * 64, 0.5, 0.75, "fallback", "replay", "b" * 64, ((None,),)),
        risk_table.RiskRow(2, "a" * 64, None, 1.0, "failed", "drop"),
    ]
    entries, body = risk_table.build_risk_table(rows, dropped=0, critic_sha256="c" * 64, low=-1.0, high=1.0)
    assert body["treatments"] == {"own": 1, "replay": 1, "drop": 1}
    assert [risk_table.parse_risk_row(entry) for entry in entries] == rows


def test_an_entry_is_of_its_tables_version() -> None:
    entries, _ = risk_table.build_risk_table(
        [risk_table.unmeasured_row(0, "a" * 64)], dropped=0, critic_sha256=None, low=None, high=None
    )
    with pytest.raises(ValueError, match="unknown field 'replay'"):
        risk_table.parse_risk_row(entries[0], 1)
    first = canonical_bytes(
        {"row": 0, "commitment": "a" * 64, "log_odds": None, "s": None, "status": "unmeasured"}
    )
    assert risk_table.parse_risk_row(first, 1) == risk_table.unmeasured_row(0, "a" * 64)
    with pytest.raises(ValueError, match="has no 'votes'"):
        risk_table.parse_risk_row(first)


def test_the_scale_of_s_is_the_probability_where_it_is_asked_for() -> None:
    row = risk_table.measured_row(0, "a" * 64, 0.0, low=0.0, high=1.0, scale="probability")
    assert row.s == 0.5
