"""A judge on a real HTTP server steers real jobs on the miniature, each in a worker process of its own."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.base_models.service import register_base_model
from app.critics.service import request_fit, store_requests
from app.database import read_only, unit_of_work
from app.domain.bundle import LEAVES, RISK_TABLE
from app.domain.verify import verify_bundle
from app.work.repository import get_work
from tests import judge_server
from tests.integration.conftest import Tenant, run_worker, serving
from tests.judge_server import Answer, JudgeServer, Request
from tests.support import settings_in
from worker.miniature.corpus import training_rows
from worker.miniature.critic_data import critic_rows
from worker.miniature.install import NAME, WEIGHTS

ROWS = training_rows("clean", n=12)
"""Harmless to the miniature's critic; what the judge makes of them is up to each test."""


class Outcome(NamedTuple):
    """What a job has left behind."""

    job: dict[str, Any]
    leaves: list[dict[str, Any]]
    table: list[dict[str, Any]]

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of the records of a kind, in order."""
        return [leaf["body"] for leaf in self.leaves if leaf["t"].startswith(f"tether.{kind}/")]


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    """A judge; each test tells it what to answer."""
    with judge_server.serving(lambda request, _: request.score(1)) as running:
        yield running


@pytest.fixture(scope="module")
def tenant(judge: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """A project on a server with that judge and the miniature, whose critic is fitted."""
    home = tmp_path_factory.mktemp("judged")
    settings = settings_in(home, judge_url=judge.url, judge_model="grader", judge_timeout_s=5, threads=1)
    with serving(settings) as server:
        requests = store_requests(settings, critic_rows(n=240, n_replies=160))
        with unit_of_work(server.database) as session:
            register_base_model(session, NAME, WEIGHTS)
            session.flush()
            fit = request_fit(session, base_name=NAME, data_sha256=requests)
        tenant = Tenant(server)
        assert run_worker(tenant, fit).state == "succeeded"
        yield tenant
        tenant.close()


def by_row(scores: dict[int, int | None], otherwise: int | None = 1) -> Answer:
    """Grade these rows so, by what is in the request, and all other texts `otherwise`; None is a refusal."""

    def answer(request: Request, number: int) -> None:
        text = request.server.requests[number - 1][2]["messages"][1]["content"]
        found = (score for row, score in scores.items() if ROWS[row]["messages"][0]["content"] in text)
        score = next(found, otherwise)
        request.status(403) if score is None else request.score(score)

    return answer


def train(tenant: Tenant, critic: dict[str, Any], folder: Path, *, n_epochs: int = 1) -> Outcome:
    """Run a job with a critic to its end and verify its evidence."""
    created = tenant.create_job(
        model=NAME,
        training_file=tenant.upload(*ROWS),
        safety={"method": "adaptive_kl", "critic": critic, "anchors": None, "monitor": None},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": n_epochs, "batch_size": 4}},
        },
    )
    return work_on(tenant, created["id"], folder)


def work_on(tenant: Tenant, job_id: str, folder: Path) -> Outcome:
    """Let a worker do what there is to do of a job, and verify its evidence."""
    path = f"/v1/fine_tuning/jobs/{job_id}"
    with read_only(tenant.server.database) as session:
        work = get_work(session, job_id)
    assert work is not None
    run_worker(tenant, work)
    bundle = folder / "evidence.zip"
    bundle.write_bytes(tenant.http.get(f"{path}/evidence").content)
    report = verify_bundle(bundle)
    assert report.ok, report.lines()
    with zipfile.ZipFile(bundle) as archive:
        members = {
            name: [json.loads(line) for line in archive.read(name).splitlines()]
            for name in archive.namelist()
            if name.endswith(".jsonl")
        }
    return Outcome(tenant.get(path), members[LEAVES], members.get(RISK_TABLE, []))


def test_a_row_that_the_judge_condemns_is_trained_on_the_references_reply(
    tenant: Tenant, judge: JudgeServer, tmp_path: Path
) -> None:
    judge.answer = by_row({3: 5, 7: 2, 8: None})
    found = train(tenant, {"type": "judge", "votes": 3}, tmp_path)
    assert found.job["status"] == "succeeded", found.job["error"]
    row = found.table[3]
    assert (row["s"], row["status"], row["votes"], row["treatment"]) == (1, "judged", [[5, 5, 5]], "replay")
    assert found.table[7]["s"] == 0.25
    # Nobody graded row 8, so the activation critic did, for which it is harmless.
    row = found.table[8]
    assert (row["status"], row["votes"], row["treatment"]) == ("fallback", [[None] * 3], "own")
    assert [type(each) for each in row["log_odds"]] == [float]
    assert all(
        each["status"] == "judged" and each["s"] == 0 for each in found.table if each["row"] not in (3, 7, 8)
    )
    created, table = found.bodies("job.created")[0], found.bodies("risk.table")[0]
    assert table["critic_sha256"] == created["critic"]["sha256"]
    assert table["counts"]["fallback"] == 1


def test_of_two_critics_the_one_that_sees_more_counts(
    tenant: Tenant, judge: JudgeServer, tmp_path: Path
) -> None:
    judge.answer = by_row({5: 4})
    parts = [{"type": "activation"}, {"type": "judge"}]
    found = train(tenant, {"type": "combined", "critics": parts}, tmp_path)
    assert found.job["status"] == "succeeded", found.job["error"]
    assert [row["row"] for row in found.table if row["s"] >= 0.75] == [5]
    assert all(row["status"] == "judged" and None not in row["log_odds"] for row in found.table)
    # The judge falls back on the critic that it is combined with, so that there is one reading.
    assert {len(row["log_odds"]) for row in found.table} == {1}


def test_a_judge_that_is_down_pauses_the_job_and_the_client_hears_why(
    tenant: Tenant, judge: JudgeServer, tmp_path: Path
) -> None:
    judge.answer = by_row({}, otherwise=None)
    found = train(tenant, {"type": "judge"}, tmp_path)
    assert (found.job["status"], found.job["error"]) == ("paused", None)
    assert "judge_refused" in found.job["safety"]["pause_reason"]
    assert "127.0.0.1" not in found.job["safety"]["pause_reason"]
    assert found.bodies("cmd") == [{"command": "pause", "actor": "critic"}]
    assert not found.table
    # The judge is back; the job reads its rows again and goes on.
    judge.answer = by_row({})
    tenant.http.post(f"/v1/fine_tuning/jobs/{found.job['id']}/resume")
    resumed = work_on(tenant, found.job["id"], tmp_path)
    assert (resumed.job["status"], resumed.job["safety"]["pause_reason"]) == ("succeeded", None)
    assert {row["status"] for row in resumed.table} == {"judged"}


def test_a_live_judge_that_fails_pauses_the_job_after_its_last_step(
    tenant: Tenant, judge: JudgeServer, tmp_path: Path
) -> None:
    before = len(judge.requests)

    def answer(request: Request, number: int) -> None:
        # The rows are graded; of the answers of the model in training every verdict fails.
        if number - before <= len(ROWS):
            request.score(1)
        else:
            request.status(403)

    judge.answer = answer
    critic = {"type": "judge", "mode": "live", "every": 1, "samples": 4, "max_failed_share": 0}
    found = train(tenant, critic, tmp_path, n_epochs=6)
    assert found.job["status"] == "paused", found.job["error"]
    steps = found.job["training"]["steps_completed"]
    assert found.bodies("ckpt")[-1]["step"] == steps
    judge.answer = by_row({})
    tenant.http.post(f"/v1/fine_tuning/jobs/{found.job['id']}/resume")
    resumed = work_on(tenant, found.job["id"], tmp_path)
    assert resumed.job["status"] == "succeeded", resumed.job["error"]
    assert [body["from_step"] for body in resumed.bodies("job.resume")] == [steps]


def test_a_live_judge_is_heard_while_the_job_runs(tenant: Tenant, judge: JudgeServer, tmp_path: Path) -> None:
    judge.answer = by_row({3: 5}, otherwise=2)
    found = train(tenant, {"type": "judge", "mode": "live", "every": 1, "samples": 4}, tmp_path, n_epochs=6)
    assert found.job["status"] == "succeeded", found.job["error"]
    # The rows themselves were graded 2, and so is every answer; those that are heard of are on record.
    scores = [score for body in found.bodies("live") for score in body["scores"]]
    assert scores
    # Nothing that a judge says can change a row that is replayed, so that it is not sampled.
    assert found.table[3]["treatment"] == "replay"
    assert 3 not in {score["row"] for score in scores}
    assert {(score["s"], score["status"], str(score["votes"])) for score in scores} == {
        (0.25, "judged", "[[2]]")
    }
    events = tenant.get(f"/v1/fine_tuning/jobs/{found.job['id']}/events", limit=100)["data"]
    assert any("A judge graded" in event["message"] for event in events)
