"""Held means that no weights leave by any path: every route of the description is tried with all that a held job has.

The routes, and what goes into their paths, queries and bodies, come from the description, so that a new route is tried
too. The same walk over a released job must find its weights, or it would find nothing at all.
"""

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.audit.repository import append_leaf
from app.database import unit_of_work
from app.domain.job import State
from app.domain.scopes import Role, Scope
from app.keys.service import OPERATOR_AT_THE_MACHINE, add_key, rotate_key
from app.models.base import utc_now
from app.models.job import Job
from app.models.tenancy import ApiKey
from app.models.work import Work
from app.notary import service as notary
from app.work import release
from app.work.service import await_release, conclude
from tests.integration.conftest import Tenant, refused
from tests.integration.released import Released, release_job

MODEL_NAME = re.compile(r"ft:[A-Za-z0-9._:/-]+")
READ_BYTES = 1_000_000
LIMIT = {
    "limit": "attack_success_increase",
    "found": 0.5,
    "bound": 0.02,
    "action": "hold",
    "beta_min": None,
    "broken": True,
}


def hold(tenant: Tenant, *, second_person: bool = False) -> Released:
    """Make a job that its gate holds, with an adapter and a checkpoint with a name."""
    made = release_job(tenant, State.HELD)
    with unit_of_work(tenant.server.database) as session:
        job = session.get_one(Job, made.job_id)
        job.gate = {
            "policy": {"name": "p", "version": 1, "sha256": "d" * 64},
            "second_person": second_person,
        }
        job.gate_result = {"start": {"verdict": "pass", "floor": 0.0, "limits": []}, "verdict": "hold"}
        job.gate_result |= {"limits": [LIMIT], "evaluation_error": None}
        job.work.finished_at = None
    return made


def wait_until_released(tenant: Tenant, job_id: str) -> dict[str, Any]:
    """Wait until the release of a job is signed, and return the job."""
    deadline = time.monotonic() + 30
    while True:
        job: dict[str, Any] = tenant.get(f"/v1/fine_tuning/jobs/{job_id}")
        if job["safety"]["state"] != "held":
            return job
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Walk:
    """Every operation of the description, asked with the ids of one job."""

    def __init__(self, tenant: Tenant, made: Released) -> None:
        self.tenant, self.made = tenant, made
        self.description = tenant.server.app.openapi()
        training_file = tenant.get(f"/v1/fine_tuning/jobs/{made.job_id}")["training_file"]
        self.values = {
            "job_id": (made.job_id,),
            "checkpoint_id": (made.checkpoint_id,),
            "file_id": (*made.results, training_file),
            "model": (made.model, made.checkpoint),
            "checkpoint": (made.model, made.checkpoint),
            "run_again": (made.job_id,),
            "training_file": (training_file,),
            "adapter": (made.job_id, made.model),
            "suite": ("miniature",),
        }
        # Whoever may do everything but release: what no such key gets, nobody gets before the release.
        with unit_of_work(tenant.server.database) as session:
            scopes = frozenset(Scope) - {Scope.JOBS_RELEASE}
            key = add_key(session, name="x", role=Role.OPERATOR, project_id=tenant.project_id, scopes=scopes)
        self.header = {"authorization": f"Bearer {key.secret}"}
        self.asked: set[str] = set()
        self.replies: list[tuple[str, int, bytes]] = []

    def go(self) -> "Walk":
        """Ask everything; what deletes comes last, because after it there is nothing left to find."""
        operations = [
            (method, path, operation)
            for path, methods in self.description["paths"].items()
            for method, operation in methods.items()
        ]
        with httpx.Client(base_url=self.tenant.server.url, headers=self.header, timeout=60) as client:
            for method, path, operation in sorted(operations, key=lambda each: each[0] == "delete"):
                for place in range(2):
                    self._ask(client, method.upper(), path, operation, place)
        return self

    def _ask(
        self, client: httpx.Client, method: str, path: str, operation: dict[str, Any], place: int
    ) -> None:
        names = re.findall(r"{(\w+)}", path)
        url = path.format(**{name: self._value(name, place) for name in names})
        # Of every parameter of the query that names something, and of every form that a reply can have.
        query = {
            each["name"]: self._value(each["name"], place)
            for each in operation["parameters"]
            if each["in"] == "query" and each["name"] in self.values
        }
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        sent = None if body is None else self._example(body, place)
        self.asked.add(operation["operationId"])
        forms = next(
            (
                self._resolve(each["schema"]).get("enum", [None])
                for each in operation["parameters"]
                if each["name"] == "format"
            ),
            [None],
        )
        for form in forms:
            params = {**query, **({"format": form} if form else {})}
            with client.stream(method, url, params=params, json=sent) as reply:
                self.replies.append((f"{method} {url}", reply.status_code, b"".join(_read(reply))))

    def _value(self, name: str, place: int) -> str:
        known = self.values.get(name, ("x",))
        return known[min(place, len(known) - 1)]

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in schema:
            found: dict[str, Any] = self.description["components"]["schemas"][
                schema["$ref"].rpartition("/")[2]
            ]
            return found
        for choice in ("anyOf", "oneOf", "allOf"):
            if choice in schema:
                return self._resolve(next(each for each in schema[choice] if each != {"type": "null"}))
        return schema

    def _example(self, schema: dict[str, Any], place: int, name: str = "") -> Any:
        """Return a value that a schema allows, with the job's ids wherever a field is called like one."""
        schema = self._resolve(schema)
        if name in self.values:
            return self._value(name, place)
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            wanted = {*schema.get("required", ()), *(set(schema.get("properties", ())) & set(self.values))}
            return {
                each: self._example(field, place, each)
                for each, field in schema.get("properties", {}).items()
                if each in wanted
            }
        if kind == "array":
            return [self._example(schema["items"], place)] if "items" in schema else []
        if "enum" in schema or "const" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        return {"string": "x", "integer": 1, "number": 0.5, "boolean": True}.get(kind)

    @property
    def leaks(self) -> list[str]:
        """Return the requests whose reply has the bytes of an adapter."""
        secrets = (self.made.adapter, self.made.checkpoint_adapter)
        return [url for url, _, content in self.replies if any(secret in content for secret in secrets)]

    @property
    def working_names(self) -> set[str]:
        """Return the names of models in any reply that can be used for anything."""
        named = {
            name
            for _, _, content in self.replies
            for name in MODEL_NAME.findall(content.decode(errors="replace"))
        }
        return {name for name in named if self._works(name)}

    def _works(self, name: str) -> bool:
        body = {"model": name, "training_file": self.values["training_file"][0]}
        shown = self.tenant.http.get(f"/v1/models/{name}")
        continued = self.tenant.http.post("/v1/fine_tuning/jobs/estimate", json=body)
        return shown.status_code != 404 or continued.status_code != 404


def _read(reply: httpx.Response) -> Iterator[bytes]:
    """Yield what a reply begins with; a stream of a job that has not ended would go on for ever."""
    is_stream = reply.headers.get("content-type", "").startswith("text/event-stream")
    found = 0
    for piece in reply.iter_raw():
        yield piece
        found += len(piece)
        if found > READ_BYTES or (is_stream and b"event: event" in piece):
            return


on_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="package")


@on_sqlite
def test_no_route_gives_anything_of_a_held_job_away(tenant: Tenant) -> None:
    walk = Walk(tenant, hold(tenant)).go()
    described = {
        operation["operationId"]
        for methods in walk.description["paths"].values()
        for operation in methods.values()
    }
    assert walk.asked == described
    assert len(described) > 60
    assert walk.leaks == []
    # Names stand in events and checkpoints from the moment they are made; none of them is good for anything.
    assert walk.working_names == set()
    refused = {
        url: status for url, status, _ in walk.replies if url.endswith(("/adapter", "/release", "/reject"))
    }
    assert set(refused.values()) <= {403, 404, 409}, refused
    # Only readiness says 503, because no worker runs here.
    assert {url for url, status, _ in walk.replies if status >= 500 and status != 501} <= {"GET /readyz"}


@on_sqlite
def test_the_same_walk_finds_what_was_released(tenant: Tenant) -> None:
    made = release_job(tenant, State.SUCCEEDED)
    walk = Walk(tenant, made)
    names = {made.model, made.checkpoint}
    walk.replies = [("before", 200, " ".join(names).encode())]
    assert walk.working_names == names
    walk.replies = []
    found = " ".join(walk.go().leaks)
    assert f"/v1/fine_tuning/jobs/{made.job_id}/adapter" in found
    assert f"/v1/fine_tuning/jobs/{made.job_id}/checkpoints/{made.checkpoint_id}/adapter" in found
    assert f"/v1/files/{made.results[0]}/content" in found


class TestDecisions:
    """Who decides about a held job, without training one."""

    def key(self, tenant: Tenant, *scopes: Scope) -> tuple[str, dict[str, str]]:
        with unit_of_work(tenant.server.database) as session:
            made = add_key(
                session, name="x", role=Role.OPERATOR, project_id=tenant.project_id, scopes=frozenset(scopes)
            )
        return made.row.id, {"authorization": f"Bearer {made.secret}"}

    def decide(self, tenant: Tenant, made: Released, action: str, header: dict[str, str]) -> httpx.Response:
        path = f"/v1/fine_tuning/jobs/{made.job_id}/{action}"
        return tenant.http.post(path, headers=header, json={"reason": "because"})

    def test_one_approval_is_enough_where_no_second_person_is_asked_for(self, tenant: Tenant) -> None:
        made = hold(tenant)
        key_id, header = self.key(tenant, Scope.JOBS_RELEASE)
        job = self.decide(tenant, made, "release", header).json()
        assert (job["safety"]["state"], job["fine_tuned_model"]) == ("held", None)
        job = wait_until_released(tenant, made.job_id)
        assert (job["status"], job["fine_tuned_model"]) == ("succeeded", made.model)
        (decision,) = job["safety"]["gate"]["decisions"]
        assert (decision["by"], decision["decision"], decision["reason"]) == (key_id, "approved", "because")
        assert tenant.http.get(f"/v1/files/{made.results[0]}/content").content == made.adapter

    def test_no_weights_leave_before_the_release_is_signed(
        self, own_server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(notary, "POLL_S", 3600)
        monkeypatch.setattr(release, "POLL_S", 3600)
        tenant = own_server()
        made, other = hold(tenant), hold(tenant)
        _, header = self.key(tenant, Scope.JOBS_RELEASE)
        for each in (made, other):
            job = self.decide(tenant, each, "release", header).json()
            assert job["safety"]["waits_for"] == "the notary's signature on its release"
            assert "nothing more is needed" in refused(
                self.decide(tenant, each, "release", header), 409, code="already_approved"
            )
        paths = [f"/v1/fine_tuning/jobs/{each.job_id}" for each in (made, other)]
        database = tenant.server.database
        release.release_approved(database)
        assert [tenant.get(path)["safety"]["state"] for path in paths] == ["held", "held"]
        refused(tenant.http.get(f"{paths[0]}/adapter"), 409, code="job_held")
        # Until then somebody may think better of it.
        assert self.decide(tenant, other, "reject", header).json()["status"] == "failed"
        # Nor is it enough that something else was signed.
        with unit_of_work(database) as session:
            event = session.get_one(Work, made.job_id).args["release"]["event"]
            await_release(session, session.get_one(Work, made.job_id), event=event - 1)
        notary.Notary(database, tenant.server.settings).attend()
        release.release_approved(database)
        assert tenant.get(paths[0])["safety"]["state"] == "held"
        with unit_of_work(database) as session:
            await_release(session, session.get_one(Work, made.job_id), event=event)
        release.release_approved(database)
        assert [tenant.get(path)["status"] for path in paths] == ["succeeded", "failed"]
        assert tenant.http.get(f"{paths[0]}/adapter").content == made.adapter

    def test_approval_of_a_key_that_was_revoked_counts_no_more(self, tenant: Tenant) -> None:
        made = hold(tenant, second_person=True)
        (ada_id, ada), (_, bob), (_, eve) = (self.key(tenant, Scope.JOBS_RELEASE) for _ in range(3))
        self.decide(tenant, made, "release", ada)
        with unit_of_work(tenant.server.database) as session:
            session.get_one(ApiKey, ada_id).revoked_at = utc_now()
        assert self.decide(tenant, made, "release", bob).json()["safety"]["waits_for"] is None
        assert self.decide(tenant, made, "release", eve).json()["safety"]["waits_for"] is not None

    def test_approval_stays_when_its_key_is_rotated(self, tenant: Tenant) -> None:
        made = hold(tenant, second_person=True)
        (ada_id, ada), (_, bob) = (self.key(tenant, Scope.JOBS_RELEASE) for _ in range(2))
        self.decide(tenant, made, "release", ada)
        with unit_of_work(tenant.server.database) as session:
            rotate_key(session, OPERATOR_AT_THE_MACHINE, ada_id, overlap=timedelta(0))
        assert self.decide(tenant, made, "release", bob).json()["safety"]["waits_for"] is not None

    @pytest.mark.parametrize(
        ("recorded", "shown", "state"),
        [
            (None, "pass", "held"),
            (None, None, "held"),
            ("hold", "pass", "held"),
            ("pass", "hold", "succeeded"),
            ("warn", None, "succeeded"),
        ],
    )
    def test_the_recorded_verdict_decides_and_none_holds(
        self, tenant: Tenant, recorded: str | None, shown: str | None, state: str
    ) -> None:
        made = hold(tenant)
        with unit_of_work(tenant.server.database) as session:
            job = session.get_one(Job, made.job_id)
            job.gate_result = {"verdict": shown, "limits": []}
            if recorded is not None:
                limits = [LIMIT] if recorded == "hold" else []
                body = {"verdict": recorded, "limits": limits, "policy_sha256": "d" * 64}
                append_leaf(session, job.id, epoch=job.work.epoch, kind="gate", body=body)
                session.refresh(job.work)
            job.work.state = State.SIGNING
            session.flush()
            conclude(session, job.work)
        assert tenant.get(f"/v1/fine_tuning/jobs/{made.job_id}")["safety"]["state"] == state
        newest = tenant.get(f"/v1/fine_tuning/jobs/{made.job_id}/events")["data"][0]["message"]
        if state == "held":
            reason = "attack_success_increase: 0.5" if recorded else "its record has no verdict of it"
            assert reason in newest
            _, header = self.key(tenant, Scope.JOBS_RELEASE)
            decided = self.decide(tenant, made, "release", header).json()["safety"]["gate"]["decisions"]
            assert len(decided) == 1

    def test_rejected_job_has_failed_and_its_weights_go(self, tenant: Tenant) -> None:
        made = hold(tenant, second_person=True)
        _, header = self.key(tenant, Scope.JOBS_RELEASE)
        assert self.decide(tenant, made, "release", header).json()["safety"]["state"] == "held"
        # Who has approved may think better of it.
        job = self.decide(tenant, made, "reject", header).json()
        assert (job["status"], job["error"]["code"], job["fine_tuned_model"]) == (
            "failed",
            "safety_gate",
            None,
        )
        assert "because" in job["error"]["message"]
        assert [each["decision"] for each in job["safety"]["gate"]["decisions"]] == ["approved", "rejected"]
        for path in (
            f"/v1/fine_tuning/jobs/{made.job_id}/adapter",
            f"/v1/fine_tuning/jobs/{made.job_id}/checkpoints/{made.checkpoint_id}/adapter",
            f"/v1/files/{made.results[0]}/content",
        ):
            assert tenant.http.get(path).status_code in (404, 409), path
        with unit_of_work(tenant.server.database) as session:
            assert session.get_one(Job, made.job_id).model_deleted_at is not None
        reply = self.decide(tenant, made, "release", header)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "job_not_held")

    def test_submitter_is_no_second_person_even_by_another_key_of_its_line(self, tenant: Tenant) -> None:
        made = hold(tenant, second_person=True)
        key_id, header = self.key(tenant, Scope.JOBS_RELEASE)
        with unit_of_work(tenant.server.database) as session:
            work = session.get_one(Job, made.job_id).work
            work.args = {**work.args, "actor": key_id}
        reply = self.decide(tenant, made, "release", header)
        assert reply.status_code == 403
        assert "cannot approve it" in reply.json()["error"]["message"]
        # It can always be stopped.
        assert self.decide(tenant, made, "reject", header).json()["status"] == "failed"

    def test_job_of_another_project_is_unknown(self, tenant: Tenant, stranger: Tenant) -> None:
        made = hold(tenant)
        _, header = self.key(stranger, Scope.JOBS_RELEASE)
        for action in ("release", "reject"):
            assert self.decide(stranger, made, action, header).status_code == 404

    def test_training_file_can_be_deleted_while_a_job_is_held(self, tenant: Tenant) -> None:
        made = hold(tenant)
        file_id = tenant.get(f"/v1/fine_tuning/jobs/{made.job_id}")["training_file"]
        assert tenant.http.delete(f"/v1/files/{file_id}").status_code == 200
