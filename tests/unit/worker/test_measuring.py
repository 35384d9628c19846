"""What goes on record of the reference pass: the risk of each row and the registered sets."""

from typing import Any

import pytest

from app.domain import ledger
from app.domain.safety_spec import NoPenalty
from app.errors import JobFailure
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from app.models.safety_set import SafetySet
from tests.unit.worker.conftest import MakeSpec
from worker.assignment import Assignment
from worker.measuring import (
    MAX_DROPPED,
    check_sets,
    describe_alignment,
    describe_anchors,
    name_log_odds,
    risk_entries,
)
from worker.training.data import TokenizedData, TokenizedRow
from worker.training.reference import ReferenceCache, RowRisk
from worker.training.run import Prepared
from worker.training.step import RunData


def fitted(name: str, digest: str) -> Critic:
    return Critic(id=name, digest=digest * 64, low=-1.0, high=1.0)


def test_the_readings_of_a_row_are_recorded_in_the_order_of_the_critics(make_spec: MakeSpec) -> None:
    critics = (fitted("critic_a", "a"), fitted("critic_b", "b"), fitted("critic_c", "c"))
    assignment = Assignment(
        job=Job(),
        base=BaseModel(),
        fitted=critics,
        anchors=None,
        alignment=None,
        training_file=File(commitment_key=b"k"),
        validation_file=None,
        spec=make_spec(safety=NoPenalty()),
        critic_sha256=None,
        policy_sha256="p" * 64,
    )
    risks = (
        RowRisk(0, {"c" * 64: 0.5, "a" * 64: -0.25}, 0.75, "fallback", ((None,),)),
        RowRisk(1, {}, 1.0, "failed"),
    )
    rows = tokenized(0, 1)
    data = TokenizedData(rows, (), ())
    found = risk_entries(assignment, data, Prepared(RunData(rows, {}, ReferenceCache({})), risks, {}))
    assert [entry.log_odds for entry in found] == [(-0.25, None, 0.5), (None, None, None)]
    # And a resumed job reads them as they were.
    assert [name_log_odds(assignment, entry) for entry in found] == [risk.log_odds for risk in risks]


# --- what is recorded of the sets -------------------------------------------------------------------------


def registered(rows: int) -> SafetySet:
    return SafetySet(id="set_1", sha256="9" * 64, rows=rows, commitment_key=b"key")


def tokenized(*indices: int) -> tuple[TokenizedRow, ...]:
    return tuple(TokenizedRow(index, (1, 2, 3), (False, True, True), (0,)) for index in indices)


def build(kind: str, body: Any) -> bytes:
    """Build the leaf, which refuses whatever is not right for its type."""
    header = {"job": "ftjob-1", "seq": 3, "attempt": 1, "epoch": 1, "prev": ledger.NO_LEAF, "ts_db": 0}
    return ledger.build_leaf(kind, body, **header)


def test_the_record_names_the_overlong_rows_of_an_alignment_set() -> None:
    data = RunData((), {}, ReferenceCache({}), alignment=tokenized(0, 2, 4))
    body = describe_alignment(registered(6), data)
    assert body == {"id": "set_1", "sha256": "9" * 64, "rows": 6, "dropped": [1, 3, 5]}
    build("alignment", body)


def test_as_many_overlong_rows_as_are_allowed_fit_into_a_leaf() -> None:
    dropped = list(range(1_000_000 - MAX_DROPPED, 1_000_000))
    build("alignment", {"id": "set_1", "sha256": "9" * 64, "rows": 1_000_000, "dropped": dropped})
    with pytest.raises(JobFailure, match="8001 of 8002 rows of the set set_1"):
        describe_alignment(
            registered(MAX_DROPPED + 2), RunData((), {}, ReferenceCache({}), alignment=tokenized(0))
        )


def test_the_record_has_the_size_of_the_set_of_anchors() -> None:
    data = RunData((), {}, ReferenceCache({}), anchors=tokenized(0, 1), monitored=tokenized(7))
    body = describe_anchors(registered(9), data)
    assert body is not None
    assert body["rows"] == 9
    assert [entry["row"] for entry in (*body["trained"], *body["monitored"])] == [0, 1, 7]
    build("anchors", body)


@pytest.mark.parametrize(
    ("changed", "param"),
    [("anchors", "safety.anchors"), ("alignment", "safety.alignment_file"), (None, None)],
)
def test_a_resumed_job_refuses_sets_that_are_not_the_recorded_ones(
    changed: str | None, param: str | None
) -> None:
    data = RunData((), {}, ReferenceCache({}), tokenized(0, 1), tokenized(7), tokenized(0, 2))
    found = {
        "anchors": describe_anchors(registered(8), data),
        "alignment": describe_alignment(registered(3), data),
    }
    # As the ledger holds it.
    recorded = {name: ledger.parse_leaf(build(name, body))["body"] for name, body in found.items()}
    if changed is None:
        check_sets(recorded, found)
        check_sets({}, {"anchors": None, "alignment": None})
        return
    other = RunData((), {}, ReferenceCache({}), tokenized(0, 1)[::-1], tokenized(7), tokenized(0, 1))
    found["anchors" if changed == "anchors" else "alignment"] = (
        describe_anchors(registered(8), other)
        if changed == "anchors"
        else describe_alignment(registered(3), other)
    )
    with pytest.raises(JobFailure, match="Submit the job again") as refused:
        check_sets(recorded, found)
    assert (refused.value.code, refused.value.param) == ("data_changed", param)
