"""The benchmark of the ledger on a short record: that it measures what verifies, not what it finds."""

from pathlib import Path

import pytest

from app.domain.trust import parse_trust
from app.domain.verify import verify_bundle
from benchmarks.ledger import figures
from benchmarks.ledger.record import make_record, write_signed

TINY = figures.Plan(rounds=2, appends=10, steps=60, leaves=100)


def test_the_record_that_is_verified_is_a_whole_job(tmp_path: Path) -> None:
    bundle, policy = write_signed(tmp_path, make_record(60))
    report = verify_bundle(bundle, trust=parse_trust(policy.read_text()), must_have_ended=True)
    assert report.ok, report.lines()
    outcomes = {check.name: check.outcome for check in report.checks}
    assert {
        outcomes[name] for name in ("signature", "risk table", "control law", "plan", "sets", "heads")
    } == {"ok"}
    assert "control law   ok          risk, alpha and beta of 60 steps" in "\n".join(report.lines())


def test_every_figure_has_its_bar() -> None:
    found = [
        figures.measure_root(TINY),
        *figures.measure_verification(TINY),
        *figures.measure_appends(TINY, None, "SQLite"),
    ]
    assert {figure.name: figure.bar for figure in found} == {
        "ledger_root_s": 0.2,
        "ledger_verify_s": None,
        "ledger_verify_mb": 300,
        "ledger_sqlite_append_ms": 1.0,
        "ledger_sqlite_append_p99": None,
    }
    assert all(len(figure.values) == 2 and min(figure.values) >= 0 for figure in found)


def test_a_record_that_does_not_verify_is_not_timed(tmp_path: Path) -> None:
    bundle, policy = write_signed(tmp_path, make_record(60))
    policy.write_text(policy.read_text().replace("tether.example/bench", "tether.example/other"))
    with pytest.raises(RuntimeError, match="does not verify"):
        figures.verify(bundle, policy)
