"""Reports, estimates and exclusions over HTTP, made by the real worker on the miniature."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import numpy as np
import pytest
from sqlalchemy import select

from app import storage
from app.base_models.service import hash_file, register_base_model
from app.database import Database, read_only, unit_of_work
from app.domain.scopes import Role, Scope
from app.files.service import remove_deleted_bytes
from app.keys.service import add_key
from app.models.base import new_id, utc_now
from app.models.base_model import BaseModel, Critic
from app.models.report import Report, RiskRead
from app.models.work import Work
from app.reports import service as reports
from app.reports.service import forget_texts
from app.safety_sets.service import Rows, add_set
from app.settings import Settings
from app.work.repository import get_work
from tests.integration.conftest import Server, Tenant, jsonl, refused, run_worker
from tests.integration.test_lineage import release
from tests.unit.app.cli.runner import Tether
from worker.miniature.install import WEIGHTS
from worker.process import run
from worker.training.critics.activation import Points, Probe, Probes, save_critic
from worker.training.models import template_digest

MODEL = "miniature"
SIMPLE = {
    "safety": {"method": "adaptive_kl", "threshold": 0.5, "replay": True, "anchors": None, "monitor": None}
}


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    """Return rows whose number of words rises."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say number {number} please"},
                {"role": "assistant", "content": "so " * (number % 7) + "done"},
            ]
        }
        for number in range(start, start + n)
    ]


def install(database: Database, settings: Settings, folder: Path) -> None:
    """Register the miniature with probes of random directions: they tell rows apart, and cost no fitting."""
    from transformers import AutoTokenizer

    shutil.copytree(WEIGHTS, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    shape = (config["num_hidden_layers"], config["hidden_size"])
    rng = np.random.default_rng(0)
    probe = Probe(rng.normal(size=shape), np.zeros(shape[0]), np.array([1.0, 0.0]))
    with unit_of_work(database) as session:
        base = register_base_model(session, MODEL, folder)
        session.flush()
        critic_folder = folder.parent / "critic"
        digest = save_critic(
            critic_folder,
            Probes(probe, probe),
            Points(-20.0, 0.0, 20.0),
            base_digest=base.digest,
            template_digest=template_digest(tokenizer),
            report={},
        )
        for path in critic_folder.iterdir():
            storage.store_file(settings.storage, path)
        session.add(
            Critic(
                id=new_id("critic_"),
                base_model=base.name,
                base_digest=base.digest,
                digest=digest,
                files={path.name: hash_file(path) for path in critic_folder.iterdir()},
                report={"auroc": 0.5, "tpr_at_1_percent_fpr": 0.01},
                low=-20.0,
                threshold=0.0,
                high=20.0,
                created_at=utc_now(),
            )
        )
        add_set(session, base, "anchors", Rows("e" * 64, 96))


@pytest.fixture(scope="module")
def with_miniature(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server with the miniature as a second base model."""
    with read_only(server.database) as session:
        known = session.get(BaseModel, MODEL)
    if known is None:
        install(server.database, server.settings, tmp_path_factory.mktemp("miniature") / "model")


@pytest.fixture
def tenant(server: Server, with_miniature: None) -> Iterator[Tenant]:
    """A new project on the server."""
    tenant = Tenant(server)
    yield tenant
    tenant.close()


@pytest.fixture
def visible(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets what the operator's policy shows of risks."""
    policy, digest = server.app.state.policy

    def show(visibility: str) -> None:
        changed = policy.model_copy(update={"risk_visibility": visibility})
        monkeypatch.setitem(server.app.state._state, "policy", (changed, digest))

    return show


def work_on(tenant: Tenant, reply: httpx.Response) -> Work:
    """Check that a report is being made, and make it."""
    assert reply.status_code == 202, reply.text
    assert int(reply.headers["retry-after"]) > 0
    assert reply.headers["location"] == f"/v1/reports/{reply.json()['id']}"
    with read_only(tenant.server.database) as session:
        work = get_work(session, reply.json()["id"])
    assert work is not None
    assert (work.kind, work.queue) == ("report", "cpu")
    # What a knock would start, in this process, which has loaded torch already.
    before = signal.getsignal(signal.SIGTERM)
    run(tenant.server.database, tenant.server.settings, work.id)
    signal.signal(signal.SIGTERM, before)
    with read_only(tenant.server.database) as session:
        done = get_work(session, work.id)
    assert done is not None
    return done


def report_on(tenant: Tenant, file_id: str, **query: Any) -> Any:
    """Have a report made and return it."""
    path = f"/v1/files/{file_id}/report"
    query = {"model": MODEL, **query}
    done = work_on(tenant, tenant.http.get(path, params=query))
    assert done.state == "succeeded", done.error
    return tenant.get(path, **query)


class TestReport:
    def test_everything_is_there(self, tenant: Tenant, visible: Any) -> None:
        visible("full")
        training = [*rows(8), rows(1)[0]]
        validation = tenant.upload(*rows(2, start=7))
        file_id = tenant.upload(*training)
        report = report_on(tenant, file_id, validation_file=validation)
        assert (report["object"], report["status"]) == ("dataset_report", "succeeded")
        assert (report["training_file"], report["model"]) == (file_id, MODEL)
        assert report["format"]["name"] == "chat"
        assert report["rows"]["total"] == report["rows"]["kept"] == 9
        assert report["lengths"]["tokens"]["total"] == report["training"]["tokens_per_epoch"]
        assert sum(each["rows"] for each in report["lengths"]["tokens"]["histogram"]) == 9
        assert report["end_of_turn"]["trained"]
        assert report["end_of_turn"]["turns"] == 9
        assert report["duplicates"]["exact"] == {
            "rows": 1,
            "groups": [{"count": 2, "rows": [0, 8]}],
            "group_count": 1,
        }
        assert report["leaks"]["exact"] == {
            "rows": 1,
            "pairs": [{"validation_row": 0, "training_rows": [7]}],
        }
        assert report["validation_rows"]["kept"] == 2
        preview = report["preview"][1]
        assert preview["segments"][-2 if not preview["segments"][-1]["trained"] else -1]["trained"]
        trained = "".join(each["text"] for each in preview["segments"] if each["trained"])
        assert "so done" in trained
        assert "number" not in trained
        risk = report["risk"]
        assert risk["critic"]["quality"] == {"auroc": 0.5, "tpr_at_1_percent_fpr": 0.01}
        assert (risk["visibility"], risk["rows"], risk["rows_failed"]) == ("full", 9, 0)
        scores = [each["s"] for each in risk["riskiest"]]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 3
        assert sum(each["rows"] for each in risk["distribution"]) == 9
        assert report["training"]["expected_beta_mean"] == pytest.approx(
            np.mean([each["beta"] for each in risk["riskiest"]])
        )
        assert report["training"]["steps"] == report["training"]["n_epochs"] * 2
        assert report["training"]["time"]["seconds"] is None
        assert report["memory"]["estimated_bytes"] == sum(report["memory"]["parts"].values())
        with read_only(tenant.server.database) as session:
            reads = session.scalars(select(RiskRead).where(RiskRead.report_id == report["id"])).all()
        assert [(each.use, each.visibility) for each in reads] == [("read", "full")]
        # It is made once, and another project has no part in it.
        assert tenant.get(f"/v1/reports/{report['id']}")["risk"] == risk
        stranger = Tenant(tenant.server)
        refused(stranger.http.get(f"/v1/reports/{report['id']}"), 404, param="report_id")
        refused(
            stranger.http.get(f"/v1/files/{file_id}/report", params={"model": MODEL}), 404, param="file_id"
        )
        stranger.close()
        for visibility in ("bucketed", "none"):
            visible(visibility)
            again = tenant.get(f"/v1/reports/{report['id']}")
            shown = json.dumps(again)
            assert not [s for s in scores if f"{s:.4g}" in shown and 0 < s < 1]
            if visibility == "none":
                assert "riskiest" not in again["risk"]
                assert again["training"]["expected_beta_mean"] is None
            else:
                buckets = [each["bucket"] for each in again["risk"]["riskiest"]]
                assert buckets == sorted(buckets, reverse=True)
                assert again["risk"]["distribution"] == risk["distribution"]

    def test_policy_on_overlong_rows_names_them(self, tenant: Tenant) -> None:
        long = {
            "messages": [
                {"role": "user", "content": "Say it"},
                {"role": "assistant", "content": "so " * 60},
            ]
        }
        hopeless = {
            "messages": [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "done"}]
        }
        file_id = tenant.upload(*rows(2), long, hopeless)
        found = {
            policy: report_on(tenant, file_id, overlength=policy, max_seq_length=32, risk=False)["rows"]
            for policy in ("error", "truncate", "drop")
        }
        for policy, kept, dropped, truncated, refusals in (
            ("error", 2, [], [], [2, 3]),
            ("truncate", 3, [], [2], [3]),
            ("drop", 2, [2, 3], [], []),
        ):
            got = found[policy]
            assert got["kept"] == kept
            for name, expected in (("dropped", dropped), ("truncated", truncated), ("refused", refusals)):
                assert [each["row"] for each in got[name]["rows"]] == expected
                assert got[name]["count"] == len(expected)
                assert all("tokens" in each["reason"] for each in got[name]["rows"])

    def test_page_holds_no_markup_of_a_client(self, tenant: Tenant) -> None:
        attack = "<script>alert(1)</script><img src=x>"
        row = {"messages": [{"role": "user", "content": attack}, {"role": "assistant", "content": attack}]}
        file_id = tenant.upload(row)
        report_on(tenant, file_id, risk=False)
        reply = tenant.http.get(
            f"/v1/files/{file_id}/report", params={"model": MODEL, "risk": False, "format": "html"}
        )
        assert reply.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "<script" not in reply.text
        assert "<img" not in reply.text
        assert "&lt;script&gt;" in reply.text
        assert "<mark>" in reply.text

    def test_conversion_is_shown(self, tenant: Tenant) -> None:
        row = {"instruction": "Say it", "input": "loudly", "output": "it"}
        reply = tenant.post_file(jsonl(row))
        assert (reply.json()["format"], "`instruction`" in reply.json()["read_as"]) == ("alpaca", True)
        report = report_on(tenant, reply.json()["id"], risk=False)
        assert report["format"]["before"] == row
        assert report["format"]["after"] == {
            "messages": [
                {"role": "user", "content": "Say it\n\nloudly"},
                {"role": "assistant", "content": "it"},
            ]
        }

    def test_file_that_is_not_good_has_its_problems(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        file_id = tenant.post_file(jsonl(rows(1)[0], {"a": 1})).json()["id"]
        path = f"/v1/files/{file_id}/report"
        waiting = tenant.http.get(path, params={"model": MODEL})
        assert (waiting.status_code, waiting.json()["status"]) == (202, "validating")
        # Whoever follows the address gets what they asked for.
        asked = {"model": "☃ a\r\nX-Injected: 1", "risk": "false", "max_seq_length": "64", "format": "html"}
        location = urlsplit(tenant.http.get(path, params=asked).headers["location"])
        assert (location.path, dict(parse_qsl(location.query))) == (path, asked)
        run_worker(tenant, tenant.work_of_file(file_id))
        report = tenant.get(path, model=MODEL)
        assert (report["status"], report["problem_count"]) == ("invalid", 1)
        assert report["problems"][0]["line"] == 2
        assert report["problems"][0]["kind"] == "unknown_format"

    @pytest.mark.parametrize(
        ("query", "param", "status"),
        [
            ({"model": "nothing"}, "model", 400),
            ({"safety": "nothing"}, "safety", 400),
            ({"overlength": "nothing"}, "overlength", 400),
            ({"max_seq_length": 10**6}, "max_seq_length", 400),
            ({"validation_file": "file-nothing"}, "validation_file", 404),
            ({"format": "pdf"}, "format", 400),
        ],
        ids=["model", "safety", "overlength", "max_seq_length", "validation_file", "format"],
    )
    def test_wrong_query_is_refused(
        self, tenant: Tenant, query: dict[str, Any], param: str, status: int
    ) -> None:
        file_id = tenant.upload()
        reply = tenant.http.get(f"/v1/files/{file_id}/report", params={"model": MODEL, **query})
        refused(reply, status, param=param)

    def test_asked_for_many_times_at_once_it_is_made_once(self, tenant: Tenant) -> None:
        path = f"/v1/files/{tenant.upload()}/report"
        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(lambda _: tenant.http.get(path, params={"model": MODEL}), range(6)))
        assert {reply.status_code for reply in replies} == {202}
        assert len({reply.json()["id"] for reply in replies}) == 1

    def test_report_goes_with_its_file(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        report = report_on(tenant, file_id, risk=False)
        tenant.openai.files.delete(file_id)
        refused(tenant.http.get(f"/v1/reports/{report['id']}"), 404, param="report_id")
        forget_texts(tenant.server.database)
        with read_only(tenant.server.database) as session:
            kept = session.get_one(Report, report["id"])
            assert (kept.body, kept.scores) == (None, None)

    def test_report_that_failed_says_why_and_can_be_asked_for_again(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        path, query = f"/v1/files/{file_id}/report", {"model": "org/base-model"}
        done = work_on(tenant, tenant.http.get(path, params=query))
        assert done.state == "failed"
        failed = tenant.get(path, **query)
        assert failed["status"] == "failed"
        assert failed["error"]["message"]
        again = tenant.http.get(path, params={**query, "retry": True})
        assert again.status_code == 202
        assert again.json()["id"] != failed["id"]


class TestEstimate:
    def test_estimate_is_what_the_job_would_be(self, tenant: Tenant, visible: Any) -> None:
        visible("full")
        body = {
            "model": MODEL,
            "training_file": tenant.upload(*rows(10)),
            "hyperparameters": {"n_epochs": 3, "batch_size": 4},
            **SIMPLE,
        }
        path = "/v1/fine_tuning/jobs/estimate"
        assert work_on(tenant, tenant.http.post(path, json=body)).state == "succeeded"
        reply = tenant.http.post(path, json=body)
        assert reply.status_code == 200
        estimate = reply.json()
        assert estimate["object"] == "fine_tuning.job.estimate"
        assert estimate["training"]["steps"] == 9
        assert estimate["training"]["trained_tokens"] == 3 * estimate["training"]["trained_tokens_per_epoch"]
        assert estimate["safety"]["method"] == "adaptive_kl"
        assert 0 < estimate["training"]["expected_beta_mean"] < 1
        assert tenant.get("/v1/fine_tuning/jobs")["data"] == []
        assert estimate["preview"]
        assert all("text" in row for row in estimate["risk"]["riskiest"][:5])
        with unit_of_work(tenant.server.database) as session:
            scopes = {Scope.JOBS_WRITE}
            narrow = add_key(
                session, name="narrow", role=Role.MEMBER, project_id=tenant.project_id, scopes=scopes
            ).secret
        blind = tenant.http.post(path, json=body, headers={"authorization": f"Bearer {narrow}"}).json()
        assert blind["preview"] == []
        assert not any("text" in row for row in blind["risk"]["riskiest"])
        assert blind["training"] == estimate["training"]

    def test_threshold_of_ones_own_finds_no_score(self, tenant: Tenant, visible: Any) -> None:
        file_id = tenant.upload(*rows(10, start=200))

        def estimate(threshold: Any) -> Any:
            body = {
                "model": MODEL,
                "training_file": file_id,
                "hyperparameters": {"n_epochs": 1, "batch_size": 1},
                "safety": {"method": "filter", "threshold": threshold, "anchors": None, "monitor": None},
            }
            path = "/v1/fine_tuning/jobs/estimate"
            work_on(tenant, tenant.http.post(path, json=body))
            reply = tenant.http.post(path, json=body)
            assert reply.status_code == 200
            return reply.json()

        visible("full")
        risk = estimate("auto")["risk"]
        scores = sorted(each["s"] for each in risk["riskiest"])
        between = (scores[4] + scores[5]) / 2
        found = estimate(between)
        assert (found["risk"]["treatments"], found["training"]["steps"]) == ({"own": 5, "drop": 5}, 5)
        visible("bucketed")
        hidden = tenant.get(f"/v1/reports/{found['id']}")
        assert hidden["training"]["steps"] == 10
        assert "treatments" not in hidden["risk"]
        assert {tuple(each) for each in hidden["risk"]["riskiest"]} == {("row", "bucket", "text")}
        assert "treatments" in hidden["risk"]["note"]
        for threshold in (0.4, 0.8):
            shown = estimate(threshold)
            dropped = shown["risk"]["treatments"].get("drop", 0)
            assert dropped == sum(s >= threshold for s in scores)
            assert shown["training"]["steps"] == 10 - dropped
            assert [each["treatment"] for each in shown["risk"]["riskiest"]].count("drop") == dropped
            assert shown["risk"]["note"] is None

    def test_body_is_checked_as_a_jobs(self, tenant: Tenant) -> None:
        body = {"model": MODEL, "training_file": "file-nothing"}
        refused(tenant.http.post("/v1/fine_tuning/jobs/estimate", json=body), 404, param="training_file")

    def test_command_waits_and_shows_it(
        self,
        tenant: Tenant,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr("app.cli.report.POLL_S", 0.02)
        tether = Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)
        (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows(10, start=50)))
        safety = json.dumps(SIMPLE["safety"])
        flags = ("--safety", safety, "--epochs", 3, "--batch-size", 4)
        with ThreadPoolExecutor(1) as worker:
            made = worker.submit(make_next_report, tenant)
            done = tether(
                "jobs", "estimate", "--model", MODEL, "--training-file", tmp_path / "rows.jsonl", *flags
            )
            assert made.result().state == "succeeded"
        assert done.code == 0, done.err
        shown = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.out.splitlines()]
        assert ["steps", "9"] in shown
        assert ["method", "adaptive_kl"] in shown
        # A file that says the same is the same estimate, which is worked out once; options go before what it says.
        file_id = tenant.get("/v1/files")["data"][0]["id"]
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}
        body = {"model": "another", "training_file": file_id, "method": method, **SIMPLE}
        (tmp_path / "request.json").write_text(json.dumps(body))
        estimate = tether("jobs", "estimate", tmp_path / "request.json", "--model", MODEL, "--json").json
        assert estimate["object"] == "fine_tuning.job.estimate"
        assert (estimate["training_file"], estimate["training"]["steps"]) == (file_id, 9)
        assert tenant.get("/v1/fine_tuning/jobs")["data"] == []


def make_next_report(tenant: Tenant) -> Work:
    """Wait until a report is asked for, and make it as a worker would."""
    deadline = time.monotonic() + 60
    while True:
        with read_only(tenant.server.database) as session:
            asked = session.scalars(
                select(Work).where(Work.project_id == tenant.project_id, Work.kind == "report")
            )
            waiting = asked.one_or_none()
        if waiting is not None:
            return run_worker(tenant, waiting)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stored_in(tenant: Tenant) -> list[Path]:
    """Return the files in the storage folder of a tenant's server."""
    folder = tenant.server.settings.storage
    assert isinstance(folder, Path)
    return sorted(path for path in folder.rglob("*") if path.is_file())


class TestExclude:
    def exclude(self, tenant: Tenant, file_id: str, **body: Any) -> httpx.Response:
        return tenant.http.post(f"/v1/files/{file_id}/exclude", json=body)

    def test_rows_are_left_out_and_nothing_else(self, tenant: Tenant) -> None:
        given = rows(5)
        file_id = tenant.post_file(jsonl(*given).rstrip(b"\n")).json()["id"]
        made = self.exclude(tenant, file_id, rows=[1, 4]).json()
        assert (made["object"], made["job"]) == ("file.exclusion", None)
        assert (made["file"]["status"], made["file"]["format"]) == ("processed", "chat")
        origin = made["file"]["derived_from"]
        assert (origin["file"], origin["excluded"], origin["excluded_rows"]) == (file_id, 2, [1, 4])
        content = tenant.http.get(f"/v1/files/{made['file']['id']}/content").content
        assert content == jsonl(given[0], given[2], given[3])

    def test_job_runs_again_without_them(self, tenant: Tenant) -> None:
        file_id = tenant.upload(*rows(5))
        job = tenant.create_job(
            model=MODEL, training_file=file_id, suffix="mine", seed=7, priority=-2, **SIMPLE
        )
        made = self.exclude(tenant, file_id, rows=[0], run_again=job["id"]).json()
        again = made["job"]
        assert again["id"] != job["id"]
        assert again["training_file"] == made["file"]["id"]
        same = ("model", "seed", "hyperparameters", "priority", "integrations")
        assert {name: again[name] for name in same} == {name: job[name] for name in same}

    def test_job_is_held_to_the_policy_of_its_creation(
        self, tenant: Tenant, operator: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file_id = tenant.upload(*rows(5))
        job = tenant.create_job(model=MODEL, training_file=file_id, **SIMPLE)
        body = {"policy": {"name": tenant.project_id, "anchors_required": True}}
        policy = operator.http.post("/v1/policies", json=body).json()["id"]
        store = reports._store_kept

        def store_slowly(*args: Any) -> Any:
            path = f"/v1/projects/{tenant.project_id}"
            assert operator.http.patch(path, json={"policy": policy}).status_code == 200
            return store(*args)

        monkeypatch.setattr(reports, "_store_kept", store_slowly)
        reply = self.exclude(tenant, file_id, rows=[0], run_again=job["id"])
        refused(reply, 400, param="safety.anchors", code="policy_violation")

    def test_job_that_went_on_from_a_model_goes_on_from_it_again(self, tenant: Tenant) -> None:
        name = release(tenant, training={"lora_r": 4}) + ":ckpt-step-6"
        file_id = tenant.upload(*rows(5))
        job = tenant.create_job(model=name, training_file=file_id, priority=3)
        again = self.exclude(tenant, file_id, rows=[0], run_again=job["id"]).json()["job"]
        assert (again["model"], again["priority"]) == (name, 3)
        assert again["training"]["lineage"] == job["training"]["lineage"]

    def test_job_is_exported_again(self, own_server: Any) -> None:
        tenant = own_server(mlflow_tracking_uri="http://127.0.0.1:9")
        wanted = [{"type": "mlflow", "mlflow": {"experiment": "tuning"}}]
        file_id = tenant.upload(*rows(3))
        job = tenant.create_job(training_file=file_id, integrations=wanted)
        again = self.exclude(tenant, file_id, rows=[0], run_again=job["id"]).json()["job"]
        assert again["integrations"] == wanted
        with read_only(tenant.server.database) as session:
            exports = session.scalars(select(Work).where(Work.kind == "export")).all()
        assert {each.args["job"] for each in exports} == {job["id"], again["id"]}

    @pytest.mark.parametrize("key", ["with_a_key", "without"])
    def test_request_that_is_sent_again_makes_one_file_and_one_job(self, tenant: Tenant, key: str) -> None:
        file_id = tenant.upload(*rows(5))
        job = tenant.create_job(model=MODEL, training_file=file_id, **SIMPLE)
        body = {"rows": [0], "run_again": job["id"]}
        headers = {"idempotency-key": new_id("")} if key == "with_a_key" else {}

        def send(retries: int, **changed: Any) -> httpx.Response:
            return tenant.http.post(
                f"/v1/files/{file_id}/exclude",
                json={**body, **changed},
                headers={**headers, "x-stainless-retry-count": str(retries)},
            )

        first = send(0)
        assert first.status_code == 200
        # What has changed since does not matter: there is nothing left to make it of.
        tenant.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        tenant.http.delete(f"/v1/files/{file_id}")
        assert send(1).json() == first.json()
        assert len(tenant.get("/v1/fine_tuning/jobs")["data"]) == 2
        assert [each["id"] for each in tenant.get("/v1/files")["data"]] == [first.json()["file"]["id"]]
        if headers:
            refused(send(0, rows=[1]), 409, code="idempotency_key_reused")

    def test_many_at_once_make_one(self, tenant: Tenant) -> None:
        file_id, headers = tenant.upload(*rows(5)), {"idempotency-key": new_id("")}
        path = f"/v1/files/{file_id}/exclude"
        with ThreadPoolExecutor(6) as pool:
            replies = list(
                pool.map(lambda _: tenant.http.post(path, json={"rows": [0]}, headers=headers), range(6))
            )
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.json()["file"]["id"] for reply in replies}) == 1
        assert len(tenant.get("/v1/files")["data"]) == 2

    def test_full_project_stores_nothing(self, own_server: Any) -> None:
        given = rows(3)
        tenant = own_server(project_storage_bytes=len(jsonl(*given)) + 1)
        file_id = tenant.upload(*given)
        before = stored_in(tenant)
        refused(self.exclude(tenant, file_id, rows=[0]), 429, code="insufficient_quota")
        assert stored_in(tenant) == before
        assert len(before) == 1

    def test_refused_job_leaves_no_bytes(self, own_server: Any) -> None:
        tenant = own_server(project_queued_jobs=1, deletion_grace_s=0)
        file_id = tenant.upload(*rows(3))
        job = tenant.create_job(training_file=file_id)
        before = stored_in(tenant)
        refused(self.exclude(tenant, file_id, rows=[0], run_again=job["id"]), 429, code="insufficient_quota")
        assert [each["id"] for each in tenant.get("/v1/files")["data"]] == [file_id]
        remove_deleted_bytes(tenant.server.database, tenant.server.settings)
        assert stored_in(tenant) == before
        assert len(before) == 1

    def test_risk_decides(self, tenant: Tenant, visible: Any) -> None:
        visible("full")
        file_id = tenant.upload(*rows(12, start=100))
        message = refused(
            self.exclude(tenant, file_id, risk_above=0.5, model=MODEL), 409, code="report_not_ready"
        )
        assert f"/v1/files/{file_id}/report?model={MODEL}" in message
        risk = report_on(tenant, file_id)["risk"]
        s = {each["row"]: each["s"] for each in risk["riskiest"]}
        limit = sorted(s.values())[9]
        expected = sorted(row for row, value in s.items() if value >= limit)
        made = self.exclude(tenant, file_id, risk_above=limit, model=MODEL).json()
        assert made["file"]["derived_from"]["excluded_rows"] == expected
        assert made["file"]["derived_from"]["critic"] == risk["critic"]["id"]
        visible("bucketed")
        refused(self.exclude(tenant, file_id, risk_above=limit, model=MODEL), 400, param="risk_above")
        visible("none")
        refused(self.exclude(tenant, file_id, risk_above=0.4, model=MODEL), 400, param="risk_above")

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, None),
            ({"rows": [0], "risk_above": 0.5}, None),
            ({"risk_above": 0.5}, None),
            ({"rows": []}, "rows"),
            ({"rows": [2]}, "rows"),
            ({"rows": [0, 1]}, None),
            ({"rows": [-1]}, "rows[0]"),
        ],
    )
    def test_wrong_request_is_refused(self, tenant: Tenant, body: dict[str, Any], param: str | None) -> None:
        refused(self.exclude(tenant, tenant.upload(*rows(2)), **body), 400, param=param)

    def test_foreign_file_is_unknown(self, tenant: Tenant, stranger: Tenant) -> None:
        refused(self.exclude(stranger, tenant.upload(*rows(2)), rows=[0]), 404, param="file_id")
