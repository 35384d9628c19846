"""Who may do what: every route of the application, tried with every kind of key that should not open it.

The routes come from the application itself, so that a new one is tried too; one that needs an id of a new kind, or a
body, fails here until it is said below how to make it.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from sqlalchemy import update

from app.database import read_only, unit_of_work
from app.domain.job import State
from app.domain.scopes import SCOPES_OF, Role, Scope
from app.errors import ConfigurationError
from app.keys.service import add_key
from app.known_callers import KEPT_S
from app.main import create_app
from app.models.base import utc_now
from app.models.job import Job
from app.models.tenancy import ApiKey
from app.models.work import Work
from app.route_check import PUBLIC, check_routes, list_routes, prove_closed
from tests.integration.conftest import MODEL, Server, Tenant, refused, unlike_any_other
from tests.support import settings_in

OF_THE_INSTALLATION = {"critic_id", "set_id", "log_number"}
"""What every project may look at, because its jobs rest on it; the log names no project."""
on_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="package")
"""For what does not depend on the database, and would only take its time twice."""
BODIES: dict[str, dict[str, Any]] = {
    "/v1/files/{file_id}/report": {"params": {"model": MODEL}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_x"]}},
    "/v1/webhook_endpoints/{webhook_endpoint_id}": {"json": {}},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {
        "json": {"event_type": "fine_tuning.job.failed"},
    },
    "/v1/fine_tuning/checkpoints/{checkpoint}/permissions": {"json": {"project_ids": ["proj_default"]}},
    "/v1/files/{file_id}/exclude": {"json": {"rows": [0]}},
    "/v1/projects/{project_id}": {"json": {}},
}
"""What a route needs to get as far as looking for what its path names."""


def url_of(path: str, ids: dict[str, str] | None = None) -> str:
    """Return a path with its parameters filled in."""
    plain = path.replace(":path}", "}")
    names = [part.strip("{}") for part in plain.split("/") if part.startswith("{")]
    return plain.format(**(ids if ids is not None else dict.fromkeys(names, "x")))


@pytest.fixture
def routes(server: Server) -> list[tuple[str, str, frozenset[Scope]]]:
    """Every route that needs a key."""
    return [route for route in list_routes(server.app) if route[1] not in PUBLIC]


@pytest.fixture
def owner(server: Server) -> Iterator[Tenant]:
    """A project with an owner's key."""
    owner = Tenant(server, Role.OWNER)
    yield owner
    owner.close()


class TestEveryRoute:
    def test_routes_are_those_of_the_description(
        self, server: Server, routes: list[tuple[str, str, frozenset[Scope]]]
    ) -> None:
        tried = {(method, path.replace(":path}", "}")) for method, path, _ in routes}
        described = {
            (method.upper(), path)
            for path, operations in server.app.openapi()["paths"].items()
            for method in operations
            if path not in PUBLIC
        }
        assert len(described) > 40
        assert described <= tried

    @on_sqlite
    def test_key_that_opens_nothing_is_refused(
        self, server: Server, tenant: Tenant, routes: list[tuple[str, str, frozenset[Scope]]]
    ) -> None:
        with unit_of_work(server.database) as session:
            expired, revoked = (
                add_key(session, name="x", role=Role.OPERATOR, project_id=tenant.project_id) for _ in range(2)
            )
            expired.row.expires_at = utc_now() - timedelta(seconds=1)
            revoked.row.revoked_at = utc_now()
        headers: dict[str, dict[str, str]] = {
            "none": {},
            "junk": {"authorization": "Bearer junk"},
            "checksum": {"authorization": f"Bearer {tenant.key[:-1]}-"},
            "expired": {"authorization": f"Bearer {expired.secret}"},
            "revoked": {"authorization": f"Bearer {revoked.secret}"},
        }
        with httpx.Client(base_url=server.url) as nobody:
            for method, path, _ in routes:
                for kind, header in headers.items():
                    reply = nobody.request(method, url_of(path), headers=header)
                    assert reply.status_code == 401, (method, path, kind)
                    refused(reply, 401, code="invalid_api_key")

    @on_sqlite
    def test_key_without_the_scope_is_refused_and_with_it_alone_is_not(
        self, server: Server, tenant: Tenant, routes: list[tuple[str, str, frozenset[Scope]]]
    ) -> None:
        def key(scopes: frozenset[Scope]) -> str:
            with unit_of_work(server.database) as session:
                return add_key(
                    session, name="x", role=Role.OPERATOR, project_id=tenant.project_id, scopes=scopes
                ).secret

        needed = {scopes for _, _, scopes in routes}
        with_all_but = {scopes: key(frozenset(Scope) - scopes) for scopes in needed}
        with_only = {scopes: key(scopes) for scopes in needed}
        with httpx.Client(base_url=server.url) as client:
            for method, path, scopes in routes:
                for keys, is_refused in ((with_all_but, True), (with_only, False)):
                    header = {"authorization": f"Bearer {keys[scopes]}"}
                    reply = client.request(method, url_of(path), headers=header, content=b"")
                    assert (reply.status_code == 403) is is_refused, (method, path, scopes, reply.text)
                    assert reply.status_code != 401, (method, path)
                    assert reply.status_code < 500 or reply.status_code == 501, (method, path)

    def test_another_project_finds_nothing(
        self, tenant: Tenant, owner: Tenant, routes: list[tuple[str, str, frozenset[Scope]]]
    ) -> None:
        ids = self.make_one_of_each(tenant)
        before = self.look(tenant, ids)
        tried = 0
        for method, path, scopes in routes:
            if "{" not in path or any(f"{{{name}}}" in path for name in OF_THE_INSTALLATION):
                continue
            body = BODIES.get(path.replace(":path}", "}"), {}) if method != "DELETE" else {}
            reply = owner.http.request(method, url_of(path, ids), **body)
            expected = 404 if scopes <= SCOPES_OF[Role.OWNER] else 403
            assert reply.status_code == expected, (method, path, reply.text)
            tried += 1
        assert tried > 25
        assert self.look(tenant, ids) == before

    @staticmethod
    def make_one_of_each(tenant: Tenant) -> dict[str, str]:
        """Return an id of the tenant for every parameter of a path."""
        job = tenant.create_job()
        released = tenant.create_job(training_file=job["training_file"])["id"]
        model = f"ft:{released}"
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(Job).where(Job.id == released).values(fine_tuned_model=model))
            session.execute(update(Work).where(Work.id == released).values(state=State.SUCCEEDED))
            key = add_key(session, name="victim", role=Role.MEMBER, project_id=tenant.project_id).row.id
        upload = tenant.http.post(
            "/v1/uploads",
            json={"bytes": 10, "filename": "x", "mime_type": "text/jsonl", "purpose": "fine-tune"},
        ).json()["id"]
        webhook = {"name": "CI", "url": "https://hooks.example", "event_types": ["fine_tuning.job.failed"]}
        asked = {"model": MODEL, "suite": "miniature", "judge": {"type": "rules"}}
        evaluation = tenant.http.post("/v1/evaluations", json=asked).json()["id"]
        return {
            "evaluation_id": evaluation,
            "file_id": job["training_file"],
            "job_id": job["id"],
            "checkpoint_id": "ftckpt_x",
            "model": model,
            "checkpoint": model,
            "permission_id": "cp_x",
            "key_id": key,
            "project_id": tenant.project_id,
            "upload_id": upload,
            "webhook_endpoint_id": tenant.http.post("/v1/webhook_endpoints", json=webhook).json()["id"],
            "delivery_id": "whdel_x",
            "report_id": "report_x",
            "policy_id": "policy_x",
        }

    @staticmethod
    def look(tenant: Tenant, ids: dict[str, str]) -> list[Any]:
        """Return what another project might have changed."""
        with read_only(tenant.server.database) as session:
            key = session.get_one(ApiKey, ids["key_id"])
            seen = [key.revoked_at, key.expires_at, key.replaced_by]
        job = {**tenant.get(f"/v1/fine_tuning/jobs/{ids['job_id']}"), "queue": None}
        return [
            *seen,
            job,
            tenant.get(f"/v1/files/{ids['file_id']}"),
            tenant.get(f"/v1/evaluations/{ids['evaluation_id']}"),
            tenant.get(f"/v1/models/{ids['model']}"),
            tenant.get(f"/v1/webhook_endpoints/{ids['webhook_endpoint_id']}"),
        ]


class TestRouteCheck:
    def test_route_without_a_scope_does_not_start(self, tmp_path: Path) -> None:
        app = create_app(settings_in(tmp_path))
        check_routes(app)
        router = APIRouter()
        router.get("/v1/forgotten")(lambda: {})
        app.include_router(router)
        with pytest.raises(ConfigurationError, match=r"GET /v1/forgotten"):
            check_routes(app)

    def test_mounted_application_does_not_start(self, tmp_path: Path) -> None:
        app = create_app(settings_in(tmp_path))
        app.mount("/files-of-mine", lambda *_: None)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="/files-of-mine"):
            check_routes(app)

    def test_start_finds_a_route_that_declares_a_scope_and_does_not_look(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(settings_in(tmp_path))
        with caplog.at_level(logging.INFO, logger="app.requests"):
            asyncio.run(prove_closed(app))
        assert "app.requests" not in {record.name for record in caplog.records}, "nobody sent these requests"
        (route,) = [each for each in _flat(app.routes) if each.path == "/v1/usage"]
        open_route = APIRoute("/v1/open", lambda: {}, methods=["GET"])
        open_route.dependant.dependencies = route.dependant.dependencies
        app.router.routes.append(open_route)
        check_routes(app)
        open_route.app = _answer_anyway
        open_route.handle = _answer_anyway  # type: ignore[method-assign]
        with pytest.raises(ConfigurationError, match=r"GET /v1/open answered 200"):
            asyncio.run(prove_closed(app))


def _flat(routes: list[Any]) -> list[Any]:
    found = []
    for route in routes:
        included = getattr(route, "original_router", None)
        found += [route] if included is None else _flat(included.routes)
    return found


async def _answer_anyway(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class TestScopesOfWhatIsAskedFor:
    """Routes on which the scope depends on the request."""

    def key(self, tenant: Tenant, *scopes: Scope) -> dict[str, str]:
        with unit_of_work(tenant.server.database) as session:
            secret = add_key(
                session,
                name="x",
                role=Role.OPERATOR,
                project_id=tenant.project_id,
                scopes=frozenset(scopes),
            ).secret
        return {"authorization": f"Bearer {secret}"}

    @pytest.mark.parametrize("missing", [Scope.JOBS_READ, Scope.JOBS_WRITE])
    def test_running_a_job_again_needs_the_scopes_of_jobs(self, tenant: Tenant, missing: Scope) -> None:
        file_id = tenant.upload(unlike_any_other(), unlike_any_other())
        job_id = tenant.create_job(training_file=file_id)["id"]
        path = f"/v1/files/{file_id}/exclude"
        needed = {Scope.FILES_WRITE, Scope.JOBS_READ, Scope.JOBS_WRITE}
        without = self.key(tenant, *needed - {missing})
        files = tenant.get("/v1/files")["data"]
        for name in (job_id, "ftjob-nothing"):
            reply = tenant.http.post(path, json={"rows": [0], "run_again": name}, headers=without)
            assert missing in refused(reply, 403, code="permission_denied")
        assert tenant.get("/v1/files")["data"] == files
        assert len(tenant.get("/v1/fine_tuning/jobs")["data"]) == 1
        assert tenant.http.post(path, json={"rows": [0]}, headers=without).status_code == 200
        reply = tenant.http.post(
            path, json={"rows": [0], "run_again": job_id}, headers=self.key(tenant, *needed)
        )
        assert reply.json()["job"]["id"] != job_id

    def test_report_is_shown_to_whoever_may_ask_for_it(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        reader, writer = self.key(tenant, Scope.FILES_READ), self.key(tenant, Scope.JOBS_WRITE)
        report = tenant.http.get(f"/v1/files/{file_id}/report", params={"model": MODEL}, headers=reader)
        body = {"model": MODEL, "training_file": file_id}
        estimate = tenant.http.post("/v1/fine_tuning/jobs/estimate", json=body, headers=writer)
        for asked, mine, other, kind in (
            (report, reader, writer, "dataset_report"),
            (estimate, writer, reader, "fine_tuning.job.estimate"),
        ):
            assert (asked.status_code, asked.json()["object"]) == (202, kind)
            polled = tenant.http.get(asked.headers["location"], headers=mine)
            assert (polled.status_code, polled.json()) == (202, asked.json())
            refused(tenant.http.get(asked.headers["location"], headers=other), 403, code="permission_denied")


class TestMassAssignment:
    @pytest.mark.parametrize(
        "field", ["state", "status", "project_id", "epoch", "risk", "beta", "risk_mean", "id", "work"]
    )
    def test_job_takes_no_field_that_the_service_decides(self, tenant: Tenant, field: str) -> None:
        refused(tenant.post_job(**{field: "x"}), 400, param=field)

    @pytest.mark.parametrize("field", ["id", "key", "key_digest", "created_at", "revoked_at", "replaced_by"])
    def test_neither_does_a_key(self, operator: Tenant, field: str) -> None:
        refused(operator.http.post("/v1/api_keys", json={"name": "x", field: "x"}), 400, param=field)

    @pytest.mark.parametrize("field", ["id", "created_at", "gpu_seconds"])
    def test_nor_a_project(self, operator: Tenant, field: str) -> None:
        refused(operator.http.post("/v1/projects", json={"name": "x", field: "x"}), 400, param=field)
        path = f"/v1/projects/{operator.project_id}"
        refused(operator.http.patch(path, json={field: "x"}), 400, param=field)


class TestKeysOfTheApi:
    def make(self, tenant: Tenant, **fields: Any) -> dict[str, Any]:
        reply = tenant.http.post("/v1/api_keys", json={"name": "ci", **fields})
        assert reply.status_code == 200, reply.text
        made: dict[str, Any] = reply.json()
        return made

    def status(self, tenant: Tenant, secret: str, path: str = "/v1/files") -> int:
        header = {"authorization": f"Bearer {secret}"}
        return httpx.get(tenant.server.url + path, headers=header).status_code

    def test_life_of_a_key(self, owner: Tenant) -> None:
        made = self.make(owner, scopes=["files:read"])
        secret = made.pop("key")
        assert secret.startswith(f"ftk_live_{made['id'][-8:]}_")
        assert (made["scopes"], made["role"], made["project_id"]) == (
            ["files:read"],
            "member",
            owner.project_id,
        )
        assert self.status(owner, secret) == 200
        assert self.status(owner, secret, "/v1/fine_tuning/jobs") == 403
        shown = owner.get(f"/v1/api_keys/{made['id']}")
        assert shown["last_used_at"] is not None
        assert {**shown, "last_used_at": None} == made
        assert secret not in owner.http.get("/v1/api_keys").text
        rotated = owner.http.post(f"/v1/api_keys/{made['id']}/rotate").json()
        assert self.status(owner, rotated["key"]) == self.status(owner, secret) == 200
        old = owner.get(f"/v1/api_keys/{made['id']}")
        assert old["replaced_by"] == rotated["id"]
        assert abs(old["expires_at"] - time.time() - 24 * 3600) < 60
        for key_id, key in ((made["id"], secret), (rotated["id"], rotated["key"])):
            assert owner.http.delete(f"/v1/api_keys/{key_id}").json()["revoked_at"] is not None
            time.sleep(2 * KEPT_S)
            assert self.status(owner, key) == 401

    def test_client_says_why(self, owner: Tenant) -> None:
        secret = self.make(owner)["key"]
        revoked = self.make(owner)
        owner.http.delete(f"/v1/api_keys/{revoked['id']}")
        time.sleep(2 * KEPT_S)
        for key, error, words in (
            (revoked["key"], openai.AuthenticationError, "was revoked"),
            (secret[:-2], openai.AuthenticationError, "checksum is wrong"),
        ):
            with (
                openai.OpenAI(api_key=key, base_url=f"{owner.server.url}/v1", max_retries=0) as client,
                pytest.raises(error, match=words),
            ):
                client.fine_tuning.jobs.list()

    def test_owner_gives_no_more_than_it_has(self, owner: Tenant, stranger: Tenant) -> None:
        refused(owner.http.post("/v1/api_keys", json={"name": "x", "role": "operator"}), 403)
        other = {"name": "x", "project_id": stranger.project_id}
        refused(owner.http.post("/v1/api_keys", json=other), 403, param="project_id")
        for wanted in (stranger.project_id, "all"):
            reply = owner.http.get("/v1/api_keys", params={"project_id": wanted})
            refused(reply, 403, param="project_id")
        assert {key["project_id"] for key in owner.get("/v1/api_keys")["data"]} == {owner.project_id}

    def test_member_manages_no_keys(self, tenant: Tenant) -> None:
        refused(tenant.http.post("/v1/api_keys", json={"name": "x"}), 403, code="permission_denied")
        refused(tenant.http.get("/v1/api_keys"), 403, code="permission_denied")

    def test_operator_makes_a_project_and_its_first_key(self, operator: Tenant) -> None:
        project = operator.http.post("/v1/projects", json={"name": "Team A"}).json()
        made = self.make(operator, project_id=project["id"], role="owner")
        header = {"authorization": f"Bearer {made['key']}"}
        usage = httpx.get(operator.server.url + "/v1/usage", headers=header).json()
        assert (usage["project_id"], usage["project_name"]) == (project["id"], "Team A")
        found = operator.get("/v1/api_keys", project_id=project["id"])["data"]
        assert [key["id"] for key in found] == [made["id"]]
        reply = operator.http.post("/v1/api_keys", json={"name": "x", "project_id": "proj_nothing"})
        refused(reply, 400, param="project_id", code="project_not_found")

    def test_expiring_key(self, owner: Tenant) -> None:
        made = self.make(owner, expires_in_s=3600)
        assert abs(made["expires_at"] - time.time() - 3600) < 60
        refused(
            owner.http.post("/v1/api_keys", json={"name": "x", "expires_in_s": 0}), 400, param="expires_in_s"
        )

    def test_list_is_paged(self, owner: Tenant) -> None:
        made = [self.make(owner)["id"] for _ in range(3)]
        first = owner.get("/v1/api_keys", limit=2)
        assert [key["id"] for key in first["data"]] == made[:0:-1]
        rest = owner.get("/v1/api_keys", limit=2, after=first["last_id"])
        assert rest["data"][0]["id"] == made[0]
        refused(owner.http.get("/v1/api_keys", params={"after": "key_x"}), 400, param="after")
