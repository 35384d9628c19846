"""The policy's gate over the API and with a real worker: warned, tightened, paused, held, refused; released and rejected."""

import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.base_models.service import register_base_model
from app.database import read_only, unit_of_work
from app.domain import evaluation_spec
from app.domain.dataset import format_rows
from app.domain.installation_log import parse_log_leaf
from app.domain.scopes import Role, Scope
from app.domain.verify import verify_bundle
from app.files.repository import is_in_use
from app.files.service import RESULTS, delete_expired
from app.keys.service import OPERATOR_AT_THE_MACHINE, add_key, rotate_key
from app.models.base import utc_now
from app.models.file import File
from app.models.installation_log import LogEvent
from app.models.job import Job
from app.models.work import Work
from app.safety_sets.service import add_set, store_rows
from tests.integration.conftest import Tenant, jsonl, refused, run_worker, serving
from tests.integration.test_expiry import expire, is_deleted
from tests.integration.test_held import wait_until_released
from tests.integration.test_jobs import PATH, kinds, leaves
from tests.support import settings_in
from worker.miniature.corpus import anchor_rows, training_rows
from worker.miniature.install import NAME, WEIGHTS

APPROVER = (Scope.JOBS_READ, Scope.AUDIT_READ, Scope.JOBS_RELEASE)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """An operator of a server with the miniature, which has anchors and no critic."""
    settings = settings_in(tmp_path_factory.mktemp("gate"), threads=1, heartbeat_s=0.2)
    with serving(settings) as server:
        rows = store_rows(settings, "anchors", io.BytesIO(format_rows(anchor_rows(seed=0))))
        with unit_of_work(server.database) as session:
            base = register_base_model(session, NAME, WEIGHTS)
            session.flush()
            add_set(session, base, "anchors", rows)
        tenant = Tenant(server, Role.OPERATOR)
        yield tenant
        tenant.close()


@pytest.fixture
def member(operator: Tenant) -> Iterator[Tenant]:
    """A project of its own, with a member's key."""
    tenant = Tenant(operator.server)
    yield tenant
    tenant.close()


def put_under(operator: Tenant, member: Tenant, policy: str) -> dict[str, Any]:
    """Store a policy, give it to the member's project, and return it."""
    stored = operator.http.post("/v1/policies", json={"toml": f'name = "{member.project_id}"\n{policy}'})
    assert stored.status_code == 200, stored.text
    path = f"/v1/projects/{member.project_id}"
    changed = operator.http.patch(path, json={"policy": stored.json()["id"]})
    assert changed.json()["policy"] == stored.json()["id"], changed.text
    found: dict[str, Any] = stored.json()
    return found


def submit(tenant: Tenant, **safety: Any) -> str:
    """Create a job of two steps, without a critic unless `safety` says otherwise."""
    job_id: str = tenant.create_job(
        model=NAME,
        training_file=tenant.upload(*training_rows("clean", n=8)),
        seed=5,
        safety={"method": "none", **safety},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
    )["id"]
    return job_id


def run(tenant: Tenant, job_id: str) -> dict[str, Any]:
    """Let a worker do a job, and return its object."""
    with read_only(tenant.server.database) as session:
        work = session.get_one(Work, job_id)
    run_worker(tenant, work)
    job: dict[str, Any] = tenant.get(f"{PATH}/{job_id}")
    return job


def make_key(tenant: Tenant, *scopes: Scope) -> tuple[str, dict[str, str]]:
    """Make a key of the project with these scopes; return its id and the header that sends it."""
    with unit_of_work(tenant.server.database) as session:
        made = add_key(
            session, name="x", role=Role.OPERATOR, project_id=tenant.project_id, scopes=frozenset(scopes)
        )
    return made.row.id, {"authorization": f"Bearer {made.secret}"}


def decide(
    tenant: Tenant, job_id: str, action: str, header: dict[str, str], reason: str = "looked at it"
) -> httpx.Response:
    """Release or reject a job with a key."""
    return tenant.http.post(f"{PATH}/{job_id}/{action}", headers=header, json={"reason": reason})


def acts(tenant: Tenant, subject: str) -> list[str]:
    """Return what the installation's log says of a subject, in order."""
    with read_only(tenant.server.database) as session:
        found = session.scalars(select(LogEvent.leaf).order_by(LogEvent.number))
        records = [parse_log_leaf(leaf) for leaf in found]
    return [record["event"] for record in records if record["subject"] == subject]


def messages(tenant: Tenant, job_id: str) -> str:
    """Return the events of a job as text."""
    return "\n".join(each["message"] for each in tenant.get(f"{PATH}/{job_id}/events", limit=100)["data"])


def verify(tenant: Tenant, job_id: str, folder: Path) -> str:
    """Check the record of a job, and return what the report says of its gate."""
    bundle = folder / "evidence.zip"
    bundle.write_bytes(tenant.http.get(f"{PATH}/{job_id}/evidence").content)
    report = verify_bundle(bundle)
    assert report.ok, report.lines()
    return next(check.detail for check in report.checks if check.name == "gate")


HOLD = """
[gate]
second_person = true
fallback_share = { most = 0.5, action = "hold" }
"""


def test_a_held_job_waits_for_two_people_and_is_released(
    operator: Tenant, member: Tenant, tmp_path: Path
) -> None:
    policy = put_under(operator, member, HOLD)
    endpoint = {"name": "CI", "url": "https://hooks.example", "event_types": ["fine_tuning.job.held"]}
    webhook = member.http.post("/v1/webhook_endpoints", json=endpoint).json()["id"]
    job_id = submit(member)
    # The gate is that of the policy under which the job was created.
    operator.http.patch(f"/v1/projects/{member.project_id}", json={"policy": None})
    job = run(member, job_id)
    assert (job["status"], job["safety"]["state"]) == ("running", "held")
    assert (job["fine_tuned_model"], job["result_files"], job["estimated_finish"]) == (None, [], None)
    gate = job["safety"]["gate"]
    assert gate["policy"] == {"name": member.project_id, "version": 1, "sha256": policy["sha256"]}
    assert gate["verdict"] == "hold"
    (limit,) = gate["limits"]
    assert (limit["limit"], limit["found"], limit["broken"]) == ("fallback_share", 1.0, True)
    assert "The job is held: fallback_share: 1, the policy asks for at most 0.5" in messages(member, job_id)
    deliveries = member.get(f"/v1/webhook_endpoints/{webhook}/deliveries")["data"]
    assert [each["event_type"] for each in deliveries] == ["fine_tuning.job.held"]
    assert "HELD" in verify(member, job_id, tmp_path)
    order = kinds(member, job_id)
    assert order[-3:] == ["gate", "adapter.published", "job.end"]
    assert leaves(member, job_id)[0]["body"]["policy_sha256"] == policy["sha256"]

    for path in (
        "adapter",
        f"checkpoints/{member.get(f'{PATH}/{job_id}/checkpoints')['data'][0]['id']}/adapter",
    ):
        message = refused(member.http.get(f"{PATH}/{job_id}/{path}"), 409, code="job_held")
        assert f"POST {PATH}/{job_id}/release" in message
    for action in ("cancel", "pause", "resume"):
        refused(member.http.post(f"{PATH}/{job_id}/{action}"), 409, code="job_held")
    assert [file["purpose"] for file in member.get("/v1/files")["data"]] == ["fine-tune"]

    refused(
        member.http.post(f"{PATH}/{job_id}/release", json={"reason": "me"}), 403, code="permission_denied"
    )
    for reason in ("", "  ", "\x00"):
        refused(
            decide(member, job_id, "release", make_key(member, *APPROVER)[1], reason), 400, param="reason"
        )
    (ada_id, ada), (_, bob) = make_key(member, *APPROVER), make_key(member, *APPROVER)
    first = decide(member, job_id, "release", ada, "the suite is wrong about row 3").json()
    assert (first["status"], first["safety"]["state"]) == ("running", "held")
    assert [(each["by"], each["decision"]) for each in first["safety"]["gate"]["decisions"]] == [
        (ada_id, "approved")
    ]
    refused(decide(member, job_id, "release", ada), 409, code="already_approved")
    with unit_of_work(member.server.database) as session:
        again = rotate_key(session, OPERATOR_AT_THE_MACHINE, ada_id, overlap=timedelta(days=1))
    rotated = {"authorization": f"Bearer {again.secret}"}
    refused(decide(member, job_id, "release", rotated), 409, code="already_approved")
    refused(member.http.get(f"{PATH}/{job_id}/adapter"), 409, code="job_held")

    released = decide(member, job_id, "release", bob).json()
    assert (released["safety"]["state"], released["result_files"]) == ("held", [])
    assert released["safety"]["waits_for"] == "the notary's signature on its release"
    released = wait_until_released(member, job_id)
    assert (released["status"], len(released["result_files"])) == ("succeeded", 2)
    assert released["fine_tuned_model"] is not None
    assert acts(member, job_id) == ["job.release.approved", "job.release.approved", "job.released"]
    assert member.http.get(f"{PATH}/{job_id}/adapter").status_code == 200
    refused(decide(member, job_id, "release", bob), 409, code="job_not_held")
    refused(decide(member, job_id, "reject", ada), 409, code="job_not_held")


def test_a_job_that_its_gate_refuses_publishes_nothing(
    operator: Tenant, member: Tenant, tmp_path: Path
) -> None:
    row = {"messages": [{"role": "user", "content": "hello"}], "kind": "harmful"}
    suite = operator.post_file(jsonl(row), purpose="user_data").json()["id"]
    put_under(
        operator,
        member,
        f"""
        [gate]
        critic_auroc = {{ least = 0.9, action = "warn" }}
        attack_success_increase = {{ most = 0.1, action = "fail" }}
        [gate.evaluation]
        suite = "{suite}"
        judge = {{ type = "miniature" }}
        """,
    )
    job_id = submit(member)
    with unit_of_work(operator.server.database) as session:
        # The API refuses it.
        session.get_one(File, suite).deleted_at = utc_now()
    job = run(member, job_id)
    assert (job["status"], job["error"]["code"], job["fine_tuned_model"]) == ("failed", "safety_gate", None)
    assert "attack_success_increase: nothing was found" in job["error"]["message"]
    assert "there is no file of evaluation prompts" in job["safety"]["gate"]["evaluation_error"]
    assert kinds(member, job_id)[-2:] == ["gate", "job.end"]
    assert "adapter.published" not in kinds(member, job_id)
    with read_only(member.server.database) as session:
        left = session.scalars(
            select(File).where(File.project_id == member.project_id, File.purpose == RESULTS)
        )
        assert {each.filename: each.deleted_at is not None for each in left} == {
            "adapter.zip": True,
            "metrics.csv": True,
        }
    assert "critic_auroc: nothing was found" in messages(member, job_id)
    assert "broken: critic_auroc" in verify(member, job_id, tmp_path)
    refused(member.http.get(f"{PATH}/{job_id}/adapter"), 409, code="adapter_not_ready")

    # What is known at the start costs no training.
    put_under(operator, member, 'version = 2\n[gate]\nfallback_share = { most = 0.5, action = "fail" }\n')
    job_id = submit(member)
    job = run(member, job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "safety_gate")
    assert kinds(member, job_id)[-2:] == ["gate.start", "job.end"]
    assert "at the start fail" in verify(member, job_id, tmp_path)


def test_a_job_is_paused_for_approval_tightened_evaluated_and_let_pass(
    operator: Tenant, member: Tenant, tmp_path: Path
) -> None:
    put_under(
        operator,
        member,
        """
        [gate]
        second_person = true
        critic_auroc = { least = 0.9, action = "tighten", beta_min = 0.25 }
        fallback_share = { most = 0.5, action = "pause" }
        attack_success_increase = { most = 1.0, action = "hold" }
        [gate.evaluation]
        suite = "miniature"
        judge = { type = "miniature" }
        decoding = { max_new_tokens = 8 }
        """,
    )
    job_id = submit(member, method="constrained_sft")
    job = run(member, job_id)
    assert job["status"] == "paused"
    assert "wait for approval: critic_auroc: nothing was found" in job["safety"]["pause_reason"]
    assert job["safety"]["gate"]["start"]["verdict"] == "pause"
    assert kinds(member, job_id)[-2:] == ["gate.start", "cmd"]
    refused(member.http.post(f"{PATH}/{job_id}/resume"), 403, code="permission_denied")
    assert acts(member, job_id) == []
    key_id, header = make_key(member, *APPROVER, Scope.JOBS_WRITE)
    assert member.http.post(f"{PATH}/{job_id}/resume", headers=header).json()["status"] == "queued"
    assert acts(member, job_id) == ["job.pause.approved"]
    with read_only(member.server.database) as session:
        newest = session.scalars(select(LogEvent.leaf).order_by(LogEvent.number.desc()).limit(1)).one()
    assert parse_log_leaf(newest)["actor"] == key_id
    job = run(member, job_id)
    assert job["status"] == "succeeded", messages(member, job_id)
    assert job["safety"]["gate"]["verdict"] == "warn"
    assert "The gate of the operator's policy evaluates the adapter on" in messages(member, job_id)
    assert [each["limit"] for each in job["safety"]["gate"]["limits"]][-1] == "attack_success_increase"
    steps = member.get(f"{PATH}/{job_id}/steps")["data"]
    assert [(each["floor"], each["beta_mean"], each["alpha_mean"]) for each in steps] == [
        (0.25, 0.25, 0.75)
    ] * 2
    assert kinds(member, job_id)[-4:] == ["eval", "gate", "adapter.published", "job.end"]
    assert kinds(member, job_id).count("gate.start") == 1
    assert "every beta at least 0.25, before the release warn" in verify(member, job_id, tmp_path)


class TestSecondPerson:
    """What the key that submitted a job may not do."""

    def test_submitter_approves_nothing(self, operator: Tenant, member: Tenant) -> None:
        put_under(
            operator,
            member,
            '[gate]\nsecond_person = true\nfallback_share = {most = 0.5, action = "pause"}\n',
        )
        _, header = make_key(member, *Scope)
        key = httpx.Client(base_url=member.server.url, headers=header)
        with key:
            body = {
                "model": NAME,
                "training_file": member.upload(*training_rows("clean", n=8)),
                "safety": {"method": "none"},
            }
            job_id = key.post(PATH, json=body).json()["id"]
            assert run(member, job_id)["status"] == "paused"
            message = refused(key.post(f"{PATH}/{job_id}/resume"), 403, code="permission_denied")
            assert "the policy asks for a second person" in message
            assert "another one with the scopes 'jobs:release' and 'jobs:write' can" in message
            assert key.post(f"{PATH}/{job_id}/cancel").json()["status"] == "cancelled"


def _evaluated(suite: str, judge: str) -> dict[str, Any]:
    """Return a gate that evaluates with this suite and this type of judge."""
    evaluation = {"suite": suite, "judge": {"type": judge}}
    return {"utility_loss": {"most": 0.1, "action": "warn"}, "evaluation": evaluation}


PROMPT = {"messages": [{"role": "user", "content": "hello"}], "kind": "harmful"}


class TestPolicies:
    def test_a_version_stands_for_one_content(self, operator: Tenant, member: Tenant) -> None:
        first = put_under(operator, member, "version = 2\nbeta_min_floor = 0.1\n")
        assert (first["version"], first["policy"]["beta_min_floor"]) == (2, 0.1)
        again = put_under(operator, member, "version = 2\nbeta_min_floor = 0.1\n")
        assert again == first
        text = f'name = "{member.project_id}"\nversion = 2\nbeta_min_floor = 0.2\n'
        reply = operator.http.post("/v1/policies", json={"toml": text})
        assert "raise `version`" in refused(reply, 409, code="policy_version_exists")
        shown = operator.get(f"/v1/policies/{first['id']}")
        assert "beta_min_floor = 0.1" in shown["content"]
        assert shown["sha256"] == first["sha256"]
        assert first["id"] in [each["id"] for each in operator.get("/v1/policies")["data"]]
        assert acts(operator, first["id"]) == ["policy.created"]
        assert acts(operator, member.project_id) == ["policy.assigned"] * 2

    def test_a_project_has_its_own_and_no_other_has_it(self, operator: Tenant, member: Tenant) -> None:
        put_under(operator, member, "anchors_required = true\n")
        body = {"model": NAME, "training_file": member.upload(), "safety": {"method": "none"}}
        refused(member.http.post(PATH, json=body), 400, param="safety.anchors", code="policy_violation")
        estimate = member.http.post(f"{PATH}/estimate", json=body)
        refused(estimate, 400, param="safety.anchors", code="policy_violation")
        other = {**body, "training_file": operator.upload()}
        assert operator.http.post(PATH, json=other).status_code == 200
        operator.http.patch(f"/v1/projects/{member.project_id}", json={"policy": None})
        assert member.http.post(PATH, json=body).json()["safety"]["gate"] is None
        assert acts(operator, member.project_id)[-1] == "policy.unassigned"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"toml": "[gate]"}, "gate"),
            ({"toml": 'beta_min_floor = "x"'}, "beta_min_floor"),
            ({"toml": "= 1"}, None),
            ({"policy": {"gate": {"utility_loss": {"most": 2}}}}, "gate.utility_loss.action"),
            ({"policy": {"unknown": 1}}, "unknown"),
            ({"policy": {"gate": _evaluated("file-x", "miniature")}}, "gate.evaluation.suite"),
            ({"policy": {"gate": _evaluated("miniature", "openai")}}, "gate.evaluation.judge"),
            ({}, None),
            ({"toml": "version = 1", "policy": {}}, None),
        ],
    )
    def test_what_is_no_policy_is_refused_with_its_field(
        self, operator: Tenant, body: dict[str, Any], param: str | None
    ) -> None:
        refused(operator.http.post("/v1/policies", json=body), 400, param=param)

    def test_the_prompts_of_a_stored_policy_stay(self, operator: Tenant, member: Tenant) -> None:
        database = operator.server.database
        suite = member.post_file(jsonl(PROMPT), purpose="user_data").json()["id"]
        policy = operator.http.post(
            "/v1/policies", json={"policy": {"name": suite, "gate": _evaluated(suite, "miniature")}}
        ).json()
        for method, path in (("DELETE", ""), ("POST", "/erase")):
            reply = member.http.request(method, f"/v1/files/{suite}{path}")
            assert policy["id"] in refused(reply, 409, code="file_in_use")
        expire(member, suite)
        delete_expired(database)
        assert not is_deleted(member, suite)
        with unit_of_work(database) as session:
            file = session.get_one(File, suite)
            file.deleted_at = utc_now()
            session.flush()
            assert is_in_use(session, file.sha256)

    def test_the_prompts_of_a_gate_stay_while_a_job_needs_them(
        self, operator: Tenant, member: Tenant
    ) -> None:
        suite = member.post_file(jsonl(PROMPT), purpose="user_data").json()["id"]
        job_id = submit(member)
        with unit_of_work(member.server.database) as session:
            # As one whose gate is that of the installation's file.
            session.get_one(Job, job_id).gate = {"evaluation": {"suite": suite}}
        assert job_id in refused(member.http.delete(f"/v1/files/{suite}"), 409, code="file_in_use")

    def test_prompts_that_no_evaluation_would_take_are_refused(
        self, operator: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for row, param, code in (
            ({"messages": PROMPT["messages"]}, "gate.evaluation.suite", "invalid_prompt_file"),
            (PROMPT, "gate.evaluation.decoding", "evaluation_too_large"),
        ):
            suite = operator.post_file(jsonl(row), purpose="user_data").json()["id"]
            body = {"policy": {"name": suite, "gate": _evaluated(suite, "miniature")}}
            monkeypatch.setattr(evaluation_spec, "MAX_DRAWN_TOKENS", 100)
            refused(operator.http.post("/v1/policies", json=body), 400, param=param, code=code)

    def test_the_same_as_an_object(self, operator: Tenant) -> None:
        policy = {"name": "as-json", "gate": {"critic_auroc": {"least": 0.9, "action": "hold"}}}
        stored = operator.http.post("/v1/policies", json={"policy": policy}).json()
        assert stored["policy"]["gate"]["critic_auroc"] == {"least": 0.9, "action": "hold"}
        assert stored["written_in"] == "json"

    def test_only_an_operator_sees_them(self, member: Tenant, operator: Tenant) -> None:
        for method, path in (("GET", ""), ("POST", ""), ("GET", "/policy_x")):
            refused(member.http.request(method, f"/v1/policies{path}"), 403, code="permission_denied")
        refused(operator.http.get("/v1/policies/policy_x"), 404, param="policy_id")
        path = f"/v1/projects/{member.project_id}"
        refused(operator.http.patch(path, json={"policy": "policy_x"}), 404, param="policy_id")


def test_whoever_submits_sees_the_policy_in_force_and_what_it_refuses(
    operator: Tenant, member: Tenant
) -> None:
    shipped = member.get("/v1/policies/in_force")
    assert (shipped["id"], shipped["name"]) == (None, "default")
    assert [preset["refused"] for preset in shipped["presets"].values()] == [None] * 4
    assert not shipped["presets"]["off"]["protected"]
    stored = put_under(operator, member, "beta_min_floor = 0.1")
    found = member.get("/v1/policies/in_force")
    assert (found["id"], found["sha256"]) == (stored["id"], stored["sha256"])
    refused_by_it = {name: preset["refused"] for name, preset in found["presets"].items()}
    assert refused_by_it["strict"] is None
    assert refused_by_it["default"]["param"] == "safety.beta_min"
    # It says what creating such a job says.
    for name in ("default", "off"):
        body = {"model": NAME, "training_file": member.upload(*training_rows("clean", n=8)), "safety": name}
        reply = member.http.post(PATH, json=body)
        assert reply.json()["error"] == refused_by_it[name]
    _, without = make_key(member, Scope.FILES_READ)
    refused(member.http.get("/v1/policies/in_force", headers=without), 403)
