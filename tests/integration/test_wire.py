"""What holds for every path: keys, tenants, the error form, request ids."""

import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import QueuePool, delete, update

from app.body_limit import UNCHECKED_BYTES
from app.database import unit_of_work
from app.main import create_app
from app.models.base_model import Critic
from app.models.job import Job
from app.models.safety_set import SafetySet
from app.models.work import Work
from tests.integration.conftest import MODEL, Server, Tenant, refused
from tests.integration.wire_schema import SPECIFICATION, complaints, schemas
from tests.support import settings_in

HALF = "\ud800"
"""Half of a surrogate pair, which JSON can name and UTF-8 cannot."""
PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/docs"}
IDS = {
    "file_id": "file-x",
    "job_id": "ftjob-x",
    "model": "ft:x",
    "critic_id": "critic_x",
    "set_id": "set_x",
    "webhook_endpoint_id": "whe_x",
    "delivery_id": "whdel_x",
}
BODIES = {
    "/v1/webhook_endpoints/{webhook_endpoint_id}": {},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {"event_type": "fine_tuning.job.failed"},
}
"""What a route needs to get as far as looking for what its path names."""
OF_THE_INSTALLATION = {"/v1/critics/{critic_id}", "/v1/safety_sets/{set_id}"}
"""What every project may look at, because its jobs rest on it."""


def routes_of(folder: Path) -> list[tuple[str, str]]:
    """Return (method, path) of everything that the application serves."""
    app = create_app(settings_in(folder))
    app.state.database.engine.dispose()
    found = []
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        if hasattr(route, "methods"):
            found += [(method, route.path) for method in route.methods - {"HEAD"}]
        else:
            # An included router, as some versions of FastAPI keep it.
            pending += route.routes if hasattr(route, "routes") else route.original_router.routes
    return sorted(found)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """See routes_of."""
    return routes_of(tmp_path_factory.mktemp("routes"))


class TestKeys:
    def test_client_says_so(self, server: Server) -> None:
        with (
            openai.OpenAI(api_key="junk", base_url=f"{server.url}/v1", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="not known"),
        ):
            client.fine_tuning.jobs.list()


class TestTexts:
    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/v1/fine_tuning/jobs", {"model": HALF, "training_file": "file-x"}, "model"),
            ("/v1/fine_tuning/jobs/estimate", {"model": MODEL, "training_file": HALF}, "training_file"),
            ("/v1/fine_tuning/checkpoints/ft:x/permissions", {"project_ids": [HALF]}, "project_ids[0]"),
            ("/v1/files/file-x/exclude", {"rows": [0], "run_again": HALF}, "run_again"),
            ("/v1/uploads", {"purpose": HALF, "filename": "x", "bytes": 1, "mime_type": "x"}, "purpose"),
            ("/v1/projects", {"name": HALF}, "name"),
            ("/v1/api_keys", {"name": "x", "project_id": HALF}, "project_id"),
            ("/v1/critics", {"model": MODEL, "file": HALF}, "file"),
            ("/v1/safety_sets", {"model": HALF, "file": "file-x", "kind": "anchors"}, "model"),
        ],
        ids=["jobs", "estimate", "permissions", "exclude", "uploads", "projects", "keys", "critics", "sets"],
    )
    def test_half_a_character_is_refused(
        self, operator: Tenant, path: str, body: dict[str, Any], param: str
    ) -> None:
        reply = operator.http.post(
            path, content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert "surrogate" in refused(reply, 400, param=param)


class TestTenants:
    def test_lists_show_only_what_is_ours(self, tenant: Tenant, stranger: Tenant) -> None:
        tenant.create_job()
        assert stranger.get("/v1/fine_tuning/jobs")["data"] == []
        assert stranger.get("/v1/files")["data"] == []
        # Base models are everybody's, and other tests may have registered one.
        shown = [model["id"] for model in stranger.get("/v1/models")["data"]]
        assert MODEL in shown
        assert not [name for name in shown if name.startswith("ft:")]

    def test_file_of_another_project_cannot_be_trained_on(self, tenant: Tenant, stranger: Tenant) -> None:
        file_id = tenant.upload()
        for name in ("training_file", "validation_file"):
            fields = {"training_file": stranger.upload(), name: file_id}
            refused(stranger.post_job(**fields), 404, param=name, code="file_not_found")

    def test_cursor_of_another_project_is_unknown(self, tenant: Tenant, stranger: Tenant) -> None:
        job = tenant.create_job()
        for path, after in (("/v1/fine_tuning/jobs", job["id"]), ("/v1/files", job["training_file"])):
            refused(stranger.http.get(path, params={"after": after}), 400, param="after")


def param_of(path: str) -> str:
    """Return the parameter that a 404 of this path names."""
    for param in ("model", "file_id", "webhook_endpoint_id"):
        if f"{{{param}" in path:
            return param
    return "fine_tuning_job_id"


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1", 404),
            ("GET", "/v1/files/file-x", 404),
            ("PUT", "/v1/files", 405),
            ("DELETE", "/v1/fine_tuning/jobs", 405),
            ("GET", "/v1/files?limit=0", 400),
            ("GET", "/v1/files?limit=10001", 400),
            ("GET", "/v1/files?order=sideways", 400),
            ("GET", "/v1/fine_tuning/jobs?limit=many", 400),
            ("GET", "/v1/fine_tuning/jobs?limit=101", 400),
            ("POST", "/v1/files", 400),
            ("POST", "/v1/fine_tuning/jobs", 400),
            ("GET", "/v1/critics/critic_x", 404),
            ("GET", "/v1/critics?limit=0", 400),
            ("GET", "/v1/critics?after=critic_x", 400),
            ("GET", "/v1/safety_sets/set_x", 404),
            ("GET", "/v1/safety_sets?kind=other", 400),
            ("GET", "/v1/safety_sets?after=set_x", 400),
        ],
    )
    def test_every_refusal_has_the_form_of_the_wire(
        self, tenant: Tenant, method: str, path: str, status: int
    ) -> None:
        reply = tenant.http.request(method, path)
        assert reply.status_code == status
        error = reply.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert reply.headers["x-request-id"].startswith("req_")
        if "?" in path:
            assert error["param"] == path.partition("?")[2].partition("=")[0]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b"[" * 100_000,
            b'"text"',
            b'{"\\ud800": 1}',
            b'{"model": "\\ud800"}',
        ],
    )
    def test_body_that_is_no_request(self, tenant: Tenant, body: bytes) -> None:
        reply = tenant.http.post(
            "/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["type"] == "invalid_request_error"

    def test_character_that_no_database_keeps(self, tenant: Tenant) -> None:
        # PostgreSQL refuses NUL in any text.
        for path in ("/v1/files/%00", "/v1/fine_tuning/jobs/%00", "/v1/models/%00"):
            assert tenant.http.get(path).status_code in (400, 404)
        for path in ("/v1/files", "/v1/fine_tuning/jobs"):
            assert tenant.http.get(path, params={"after": "\0"}).status_code == 400
        assert tenant.post_job(model="\0").status_code == 400
        # SQLite takes it for a name like any other, that nothing has.
        assert tenant.post_job(training_file="\0").status_code in (400, 404)
        assert tenant.post_file(b'{"messages": []}', purpose="\0").status_code == 400
        assert tenant.post_job(metadata={"team": "\0"}).status_code == 400
        assert tenant.get("/v1/fine_tuning/jobs", **{"metadata[team]": "x"})["data"] == []

    def test_number_that_no_database_keeps(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        path = f"/v1/fine_tuning/jobs/{job['id']}/steps"
        refused(tenant.http.get(path, params={"after": 10**30}), 400, param="after")

    def test_unexpected_error_tells_nothing_and_has_an_id(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(Job).where(Job.id == job["id"]).values(spec={"damaged": "secret"}))
        reply = tenant.http.get(f"/v1/fine_tuning/jobs/{job['id']}")
        message = refused(reply, 500, code="internal_error")
        assert "secret" not in message
        assert "x-should-retry" not in reply.headers

    def test_database_that_is_gone_is_a_503(self, own_server: Any) -> None:
        tenant = own_server()
        tenant.server.database.engine.dispose()
        tenant.server.app.state.database.engine.dispose()
        home = tenant.server.settings.home
        for path in home.glob("tether.db*"):
            path.unlink()
        (home / "tether.db").mkdir()
        reply = tenant.http.get("/v1/files")
        refused(reply, 503, code="database_unavailable")
        assert "x-should-retry" not in reply.headers

    @pytest.mark.parametrize("body", [b"", b"x" * (UNCHECKED_BYTES + 1)], ids=["read", "large body"])
    def test_database_that_answers_nobody_is_a_503(self, own_server: Any, body: bytes) -> None:
        tenant = own_server()
        engine = tenant.server.app.state.database.engine
        assert isinstance(engine.pool, QueuePool)
        engine.pool._timeout = 0.05
        with ExitStack() as held:
            # As if each waited for an answer that does not come.
            for _ in range(15):
                held.enter_context(engine.connect())
            reply = (
                tenant.http.post("/v1/fine_tuning/jobs", content=body)
                if body
                else tenant.http.get("/v1/files")
            )
            refused(reply, 503, code="database_unavailable")
            assert "x-should-retry" not in reply.headers
        assert tenant.http.get("/v1/files").status_code == 200


class TestHeaders:
    def test_every_reply_has_its_own_request_id(self, tenant: Tenant) -> None:
        seen = {tenant.http.get(path).headers["x-request-id"] for path in ("/healthz", "/v1/files", "/x")}
        assert len(seen) == 3
        assert all(each.startswith("req_") for each in seen)

    def test_client_shows_the_request_id(self, tenant: Tenant) -> None:
        assert str(tenant.openai.models.retrieve(MODEL)._request_id).startswith("req_")
        with pytest.raises(openai.NotFoundError) as caught:
            tenant.openai.models.retrieve("nothing")
        assert str(caught.value.request_id).startswith("req_")

    def test_time_taken_is_told(self, tenant: Tenant) -> None:
        assert int(tenant.http.get("/healthz").headers["openai-processing-ms"]) >= 0


class TestHealth:
    def test_ready_says_what_is_missing(self, own_server: Any) -> None:
        tenant = own_server()
        assert tenant.get("/healthz") == {"status": "ok"}
        workers = ["no worker is alive for the queue gpu", "no worker is alive for the queue cpu"]
        deadline = time.monotonic() + 30
        while (missing := tenant.http.get("/readyz").json()["missing"]) != workers:
            # The notary says that it lives after its first round.
            assert len(missing) == 3, missing
            assert "no notary is alive" in missing[-1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        reply = tenant.http.get("/readyz")
        assert reply.status_code == 503
        assert reply.json() == {"status": "not ready", "missing": workers}

    def test_base_model_that_lacks_something_is_named_with_the_command_that_mends_it(
        self, own_server: Any
    ) -> None:
        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            session.execute(delete(SafetySet))
        no_anchors = (
            f"the base model {MODEL} has no anchors; register the 96 prompts that come with Tether with: tether"
            f" models add {MODEL} PATH (run again), or your own with: tether anchors add --base {MODEL} --data FILE"
        )
        assert tenant.http.get("/readyz").json()["advice"] == [no_anchors]
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(Critic).values(threshold=None))
        command = f"run: tether critics fit --base {MODEL} --data FILE (or --cold-start)"
        old, _ = tenant.http.get("/readyz").json()["advice"]
        assert "of an earlier version; " + command in old
        with unit_of_work(tenant.server.database) as session:
            session.execute(delete(Critic))
        body = tenant.http.get("/readyz").json()
        assert body["advice"] == [f"the base model {MODEL} has no critic; {command}", no_anchors]
        assert "no base model has a critic yet" in body["missing"][-1]

    def test_ready_says_when_the_database_is_not_current(self, own_server: Any) -> None:
        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
        assert "run: tether migrate" in tenant.http.get("/readyz").json()["missing"][0]

    def test_ready_when_nothing_is_missing(self, own_server: Any) -> None:
        from app.work.repository import record_worker

        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            for queue in ("gpu", "cpu"):
                record_worker(session, worker_id=f"worker-{queue}", queue=queue, host="here")
        deadline = time.monotonic() + 30
        # The notary says that it lives after its first round.
        while (reply := tenant.http.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline, reply.text
            time.sleep(0.05)
        assert reply.json() == {"status": "ready"}


class TestModels:
    def test_list_and_retrieve(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        name = f"ft:{MODEL}:tether:mine:{job['id'][-8:]}"
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(Work).where(Work.id == job["id"]).values(state="succeeded"))
            session.execute(update(Job).where(Job.id == job["id"]).values(fine_tuned_model=name))
        listed = list(tenant.openai.models.list())
        assert [(model.id, model.owned_by) for model in listed] == [
            (MODEL, "tether"),
            (name, tenant.project_id),
        ]
        for model in listed:
            # The client sends `/` in a name as %2F and leaves `:` as it is.
            assert tenant.openai.models.retrieve(model.id) == model
        wire = {"id": MODEL, "object": "model", "created": listed[0].created, "owned_by": "tether"}
        assert wire.items() <= tenant.get(f"/v1/models/{MODEL}").items()

    def test_unknown_model(self, tenant: Tenant) -> None:
        for name in ("nothing", "a/b/c", "ft:x:y:z"):
            refused(tenant.http.get(f"/v1/models/{name}"), 404, param="model", code="model_not_found")


class TestDescription:
    def test_walker_finds_what_is_wrong(self) -> None:
        if not SPECIFICATION.exists():
            pytest.skip(f"{SPECIFICATION} is not here; no object is compared with OpenAI's description")
        good = {"id": "m", "object": "model", "created": 1, "owned_by": "tether"}
        assert complaints(schemas()["Model"], good) == []
        assert complaints(schemas()["Model"], {**good, "created": True}) == ["$.created: True is no integer"]
        assert complaints(schemas()["Model"], {**good, "object": "x"}) == [
            "$.object: 'x' is not one of ['model']"
        ]
        del good["id"]
        assert complaints(schemas()["Model"], good) == ["$.id: missing"]


class TestHangingUp:
    def test_client_that_goes_away_leaves_the_server_well(self, tenant: Tenant) -> None:
        host, port = tenant.server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf")
        assert tenant.get("/healthz") == {"status": "ok"}


def test_routes_are_all_found(routes: list[tuple[str, str]], tmp_path: Path) -> None:
    """The walk above finds what OpenAPI's own description finds."""
    app = create_app(settings_in(tmp_path))
    app.state.database.engine.dispose()
    described = {
        (method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods
    }
    found = {(method, path.replace(":path}", "}")) for method, path in routes}
    assert described <= found
    assert not any(isinstance(route, APIRoute) and not route.include_in_schema for route in app.routes)
