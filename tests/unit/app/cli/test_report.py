"""A dataset's report on a terminal."""

from typing import Any

import httpx
import pytest

from app.cli import report
from app.cli.client import Server
from app.cli.report import is_good, print_report, wait_for_report

NONE: dict[str, Any] = {"count": 0, "rows": []}
GOOD: dict[str, Any] = {
    "status": "succeeded",
    "training_file": "file-1",
    "format": {"name": "chat"},
    "rows": {
        "total": 10,
        "kept": 9,
        "dropped": {"count": 1, "rows": [{"row": 4, "tokens": 900, "reason": "too long\x1b[2J"}]},
        "truncated": NONE,
        "refused": NONE,
    },
    "lengths": {"tokens": {"min": 3, "max": 50, "mean": 20.25}},
    "end_of_turn": {"trained": True},
    "duplicates": {"exact": {"rows": 2}},
    "leaks": None,
    "memory": {"estimated_bytes": 2_000_000},
    "risk": {
        "critic": {"id": "critic_1"},
        "note": None,
        "riskiest": [{"row": 7, "bucket": "0.9 to 1", "s": 0.95, "beta": 0.9, "treatment": "replay"}],
    },
    "training": {"trained_tokens": 180, "steps": 4, "expected_beta_mean": 0.25, "time": {"seconds": None}},
}


def test_summary_has_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(GOOD)
    shown = capsys.readouterr().out
    for words in (
        "9 of 10 would be trained on",
        "3 to 50, mean 20.2",
        "about 2.0 MB",
        "critic_1",
        r"dropped: row 4 (900 tokens): too long\x1b[2J",
        "0.9 to 1 │ 0.95 │ 0.9  │ replay",
    ):
        assert words in shown
    assert "in validation" not in shown
    assert shown.replace("\n", "").isprintable()


def test_end_of_turn_that_is_not_trained_is_loud(capsys: pytest.CaptureFixture[str]) -> None:
    print_report({**GOOD, "end_of_turn": {"trained": False}})
    assert "NOT always trained" in capsys.readouterr().out


def test_scores_that_the_policy_hides_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    hidden = {"row": 7, "bucket": "0.9 to 1", "treatment": "replay"}
    print_report({**GOOD, "risk": {"critic": None, "note": "why", "riskiest": [hidden]}})
    assert "0.9 to 1 │ replay" in capsys.readouterr().out


def test_file_that_is_wrong_shows_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"line": 3, "path": "$", "kind": "k", "found": "x", "expected": "y", "example": "{}"}
    wrong = {"status": "invalid", "training_file": "file-1", "message": "1 problem: x", "problems": [problem]}
    print_report(wrong)
    assert capsys.readouterr().out.splitlines() == [
        "file-1: invalid: 1 problem:",
        "  line 3, $: found x; expected y",
        "  how to mend k: {}",
    ]


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (GOOD, True),
        ({**GOOD, "status": "failed"}, False),
        ({"status": "invalid"}, False),
        ({**GOOD, "rows": {**GOOD["rows"], "refused": {"count": 1, "rows": []}}}, False),
    ],
)
def test_exit_code_follows_whether_a_job_would_run(found: dict[str, Any], good: bool) -> None:
    assert is_good(found) is good


def test_report_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "POLL_S", 0.001)
    replies = [
        httpx.Response(202, json={"status": "validating"}),
        httpx.Response(202, json={"status": "running"}),
        httpx.Response(200, json=GOOD),
    ]
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return replies.pop(0)

    server = Server(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://t"), "http://t")
    assert wait_for_report(server, "file-1", {"model": "m", "max_seq_length": None}) == GOOD
    assert asked == ["http://t/v1/files/file-1/report?model=m"] * 3
