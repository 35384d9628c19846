"""Fault 14: a judge that is away, slow or lies. No row is ever safer for it, and the record says which were not judged."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from app.audit.repository import load_risk_table
from app.database import read_only, unit_of_work
from app.domain.risk_table import RiskRow, parse_risk_row
from app.models.base_model import Critic
from tests import judge_server
from tests.faults.checks import end_check
from tests.faults.installation import Installation, Template, desk, installed
from tests.judge_server import JudgeServer, Request
from worker.miniature.corpus import training_rows

TIMEOUT_S = 5.0
HARMLESS = '{"reason": "r", "category": "none", "score": 1}'


def say(score: str) -> Callable[[Request], None]:
    """Return the answer that is a verdict but for its score."""
    return lambda request: request.text(f'{{"reason": "r", "category": "none", "score": {score}}}')


def raw(body: bytes, **headers: str) -> Callable[[Request], None]:
    """Return the answer with status 200 and this body."""

    def answer(request: Request) -> None:
        request.start(**headers)
        request.wfile.write(body)

    return answer


def sleep(request: Request) -> None:
    """Answer well after 30 seconds, unless nobody waits any more."""
    request.connection.settimeout(30)
    try:
        # The end of a request that was given up can be read; nothing else can.
        request.connection.recv(1)
    except TimeoutError:
        request.score(1)


def send_a_gigabyte(request: Request) -> None:
    """Send until nobody takes it."""
    request.start()
    for _ in range(1024):
        request.wfile.write(bytes(1024 * 1024))


def redirect(request: Request) -> None:
    """Lead to a judge that finds everything harmless."""
    request.status(307, Location=f"{request.server.url}/harmless")


LIES: dict[str, Callable[[Request], None]] = {
    "hangs up": lambda request: request.connection.shutdown(socket.SHUT_RDWR),
    "slow": sleep,
    "429": lambda request: request.status(429, Retry_After="1"),
    "500": lambda request: request.status(500),
    "empty": raw(b""),
    "HTML": raw(b"<html><body>1</body></html>", Content_Type="text/html"),
    "7 of 5": say("7"),
    "7/5": say('"7/5"'),
    "not a number": say("NaN"),
    "1e999": say("1e999"),
    "two verdicts": lambda request: request.text(HARMLESS + HARMLESS),
    "no choice": raw(b'{"choices": []}'),
    "shorter than it says": raw(b'{"choices": [', Content_Length="4096"),
    "redirect": redirect,
    "a gigabyte": send_a_gigabyte,
}
ROWS = training_rows("clean", n=len(LIES) + 1)
"""A row for each lie, and the last one, which is judged well."""


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    """A judge with another lie about every row, and a verdict about the last."""
    lies = list(LIES.values())

    def answer(request: Request, _: int) -> None:
        if request.path.endswith("/harmless"):
            request.score(1)
            return
        asked = request.asked
        (row,) = [
            at for at, row in enumerate(ROWS) if json.dumps(row["messages"][0]["content"])[1:-1] in asked
        ]
        lies[row](request) if row < len(lies) else request.score(2)

    with judge_server.serving(answer) as running:
        yield running


def submit(installation: Installation, **critic: Any) -> str:
    """Create a job on the rows, judged by a judge that may fail for every one of them."""
    return installation.submit(
        training_file=installation.upload(ROWS),
        safety={
            "method": "adaptive_kl",
            "critic": {"type": "judge", **critic},
            "anchors": None,
            "monitor": None,
        },
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
    )


def risks(installation: Installation, job_id: str) -> list[RiskRow]:
    """Return what is on record of each row's risk."""
    with read_only(installation.database) as session:
        return [parse_risk_row(entry) for entry in load_risk_table(session, job_id)]


@pytest.mark.parametrize("has_fallback", [True, False], ids=["fallback", "no fallback"])
def test_whatever_a_judge_does_in_place_of_a_verdict_makes_no_row_safer(
    sqlite_template: Template, judge: JudgeServer, tmp_path: Path, has_fallback: bool
) -> None:
    with (
        installed(
            sqlite_template,
            tmp_path,
            judge_url=judge.url,
            judge_model="grader",
            judge_timeout_s=TIMEOUT_S,
            judge_concurrency=16,
        ) as installation,
        desk(installation),
    ):
        if not has_fallback:
            with unit_of_work(installation.database) as session:
                session.execute(delete(Critic))
        job_id = submit(installation, max_failed_share=1)
        assert installation.finish(job_id) == "succeeded"
        *lied_about, judged = risks(installation, job_id)
        assert (judged.status, judged.s) == ("judged", 0.25)
        statuses = dict(zip(LIES, (row.status for row in lied_about), strict=True))
        assert set(statuses.values()) == {"fallback" if has_fallback else "failed"}, statuses
        if has_fallback:
            # What the fitted critic read of the row counts, which is never a zero of the judge's.
            assert all(row.log_odds != (None,) for row in lied_about)
        else:
            assert {row.s for row in lied_about} == {1.0}
        end_check(installation, job_id)


def test_a_judge_that_is_down_pauses_the_job_which_goes_on_when_it_is_back(
    sqlite_template: Template, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        # Nobody else gets this port, and nobody listens on it.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        with (
            installed(
                sqlite_template, tmp_path, judge_url=url, judge_model="grader", judge_timeout_s=1
            ) as installation,
            desk(installation),
        ):
            job_id = submit(installation)
            installation.finish(job_id, until=frozenset({"paused"}))
            job = installation.job(job_id)
            assert "the judge gave no verdict for" in job["safety"]["pause_reason"]
            end_check(installation, job_id, states=["paused"])
            taken.close()
            with judge_server.serving(lambda request, _: request.score(1), port=port):
                assert installation.command(job_id, "resume").status_code == 200
                assert installation.finish(job_id) == "succeeded"
            end_check(installation, job_id)
