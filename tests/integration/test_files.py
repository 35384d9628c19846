"""/v1/files over HTTP."""

import hashlib
import socket
from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest

from app.body_limit import FORM_BYTES, MAX_JSON_BYTES, UNCHECKED_BYTES
from app.database import unit_of_work
from app.domain.job import WorkKind
from app.files.service import remove_deleted_bytes
from app.models.base import utc_now
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from app.safety_sets.service import Rows, add_set
from app.storage import path_of
from app.uploads.service import MAX_PART_BYTES
from app.work.repository import add_work
from tests.integration.conftest import MODEL, Server, Tenant, jsonl, refused, run_worker, unlike_any_other
from tests.integration.wire_schema import check_wire


def stored(tenant: Tenant, content: bytes) -> bool:
    """Say whether storage has these bytes."""
    return path_of(tenant.server.settings.storage_dir, hashlib.sha256(content).hexdigest()).exists()


class TestCreateFile:
    def test_object_is_the_wires(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other(), unlike_any_other())
        created = tenant.openai.files.create(file=("rows.jsonl", content), purpose="fine-tune")
        assert created.id.startswith("file-")
        assert (created.bytes, created.filename) == (len(content), "rows.jsonl")
        assert (created.purpose, created.status) == ("fine-tune", "processed")
        check_wire("OpenAIFile", tenant.get(f"/v1/files/{created.id}"))
        assert tenant.openai.files.retrieve(created.id) == created
        assert stored(tenant, content)

    def test_data_for_critics_and_sets_is_checked_when_it_is_used(self, tenant: Tenant) -> None:
        content = b"not even json"
        created = tenant.openai.files.create(file=("data.jsonl", content), purpose="user_data")
        assert (created.purpose, created.status) == ("user_data", "processed")
        check_wire("OpenAIFile", tenant.get(f"/v1/files/{created.id}"))
        assert stored(tenant, content)
        message = refused(tenant.post_job(training_file=created.id), 400, param="training_file")
        assert "'user_data'" in message

    def test_client_waits_no_longer_than_it_must(self, tenant: Tenant) -> None:
        assert tenant.openai.files.wait_for_processing(tenant.upload()).status == "processed"

    @pytest.mark.parametrize(
        "purpose", ["assistants", "batch", "vision", "", "FINE-TUNE", "fine-tune-results"]
    )
    def test_unknown_purpose_is_refused(self, tenant: Tenant, purpose: str) -> None:
        refused(tenant.post_file(jsonl(unlike_any_other()), purpose=purpose), 400, param="purpose")

    def test_missing_field_is_named(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        refused(tenant.http.post("/v1/files", files={"file": ("x", content)}), 400, param="purpose")
        refused(
            tenant.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"other": ("x", b"")}),
            400,
            param="file",
        )

    def test_malformed_rows_are_all_named_and_nothing_is_kept(self, tenant: Tenant) -> None:
        content = (
            jsonl(
                unlike_any_other(),
                {"messages": [{"role": "user", "content": "x"}]},
                {"messages": [{"role": "bot", "content": ""}]},
            )
            + b"not json\n"
        )
        message = refused(tenant.post_file(content), 400, param="file", code="invalid_training_file")
        assert message == (
            "4 problems in the training file:"
            " line 2, $.messages: no assistant message to learn from; expected at least one with weight 1;"
            " line 3, $.messages[0].role: found 'bot'; expected one of system, developer, user, assistant, tool;"
            " line 3, $.messages[0].content: found ''; expected a text that is not empty;"
            " line 4, $: not JSON: Expecting value at column 1; expected one JSON object per line"
        )
        error = tenant.post_file(content).json()["error"]
        assert (error["problem_count"], error["complete"]) == (4, True)
        assert error["problem_kinds"] == {
            "nothing_to_learn": 1,
            "wrong_role": 1,
            "empty_text": 1,
            "not_json": 1,
        }
        assert [(each["line"], each["path"]) for each in error["problems"]] == [
            (2, "$.messages"),
            (3, "$.messages[0].role"),
            (3, "$.messages[0].content"),
            (4, "$"),
        ]
        assert error["problems"][1]["found"] == "'bot'"
        assert error["problems"][1]["example"]
        assert tenant.get("/v1/files")["data"] == []
        assert not stored(tenant, content)

    def test_client_raises_bad_request(self, tenant: Tenant) -> None:
        with pytest.raises(openai.BadRequestError, match="line 1") as caught:
            tenant.openai.files.create(file=("rows.jsonl", b"nonsense"), purpose="fine-tune")
        assert (caught.value.param, caught.value.code) == ("file", "invalid_training_file")

    def test_empty_file_is_refused(self, tenant: Tenant) -> None:
        refused(tenant.post_file(b""), 400, param="file", code="invalid_training_file")

    @pytest.mark.parametrize(
        ("filename", "label"),
        [
            ("../../etc/passwd", "passwd"),
            ("C:\\data\\rows.jsonl", "rows.jsonl"),
            ("/", "file"),
            ("x" * 300, "x" * 255),
            ("Übung.jsonl", "Übung.jsonl"),
        ],
    )
    def test_name_is_only_a_label(self, tenant: Tenant, filename: str, label: str) -> None:
        reply = tenant.post_file(jsonl(unlike_any_other()), filename=filename)
        assert reply.json()["filename"] == label

    def test_file_beyond_the_limit_is_refused_and_not_kept(self, own_server: Any) -> None:
        tenant = own_server(max_file_bytes=1000)
        content = b"x" * 1001
        message = refused(tenant.post_file(content), 413, param="file", code="payload_too_large")
        assert "TETHER_MAX_FILE_BYTES" in message
        storage = tenant.server.settings.storage_dir
        assert [path for path in storage.rglob("*") if path.is_file()] == []

    def test_body_beyond_all_measure_is_refused_before_the_key_is_looked_at(self, own_server: Any) -> None:
        tenant = own_server(max_file_bytes=1000)
        reply = httpx.post(f"{tenant.server.url}/v1/files", files={"file": ("x.jsonl", b" " * 200_000)})
        refused(reply, 413, code="payload_too_large")


class TestBodies:
    """What is decided by the head of a request: nothing of these bodies is ever sent."""

    @pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads/upload_x/parts", "/v1/fine_tuning/jobs"])
    @pytest.mark.parametrize("key", ["", "Bearer junk"])
    def test_large_body_is_not_read_for_who_has_no_key(self, server: Server, path: str, key: str) -> None:
        for length in ("content-length: 10000000", "transfer-encoding: chunked"):
            assert answer_to_head(server, path, f"authorization: {key}", length) == 401

    @pytest.mark.parametrize(
        ("path", "limit"),
        [
            ("/v1/files", 512 * 2**20 + FORM_BYTES),
            ("/v1/uploads/upload_x/parts", MAX_PART_BYTES + FORM_BYTES),
            ("/v1/uploads/upload_x/complete", MAX_JSON_BYTES),
            ("/v1/fine_tuning/jobs", MAX_JSON_BYTES),
        ],
    )
    def test_each_path_has_a_limit_of_its_own(
        self, server: Server, tenant: Tenant, path: str, limit: int
    ) -> None:
        key = f"authorization: Bearer {tenant.key}"
        assert answer_to_head(server, path, key, f"content-length: {limit + 1}") == 413
        assert answer_to_head(server, path, key, f"content-length: {limit}") == 100

    def test_client_without_a_key_is_told_though_it_sends_on(self, server: Server) -> None:
        with (
            openai.OpenAI(api_key="junk", base_url=f"{server.url}/v1", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.files.create(file=("x.jsonl", b" " * 20_000_000), purpose="fine-tune")

    def test_body_of_unknown_length_is_counted(self, tenant: Tenant) -> None:
        pieces = (b" " * 2**20 for _ in range(MAX_JSON_BYTES // 2**20 + 1))
        reply = tenant.http.post(
            "/v1/fine_tuning/jobs", content=pieces, headers={"content-type": "application/json"}
        )
        refused(reply, 413)

    def test_a_signed_in_browser_may_send_a_large_file(self, tenant: Tenant) -> None:
        # A body this large is let in by its key before anything else is looked at.
        content = jsonl(*(unlike_any_other() for _ in range(2000)))
        assert len(content) > UNCHECKED_BYTES
        sent: dict[str, Any] = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
        with httpx.Client(base_url=tenant.server.url, timeout=60) as browser:
            refused(browser.post("/v1/files", **sent), 401)
            session = browser.post("/dashboard/session", json={"key": tenant.key}).json()
            refused(browser.post("/v1/files", **sent), 403, code="csrf_token")
            reply = browser.post("/v1/files", headers={"x-csrf-token": session["csrf_token"]}, **sent)
        assert reply.status_code == 200, reply.text


def answer_to_head(server: Server, path: str, *headers: str) -> int:
    """Return the status with which a server answers to the head of a request alone: 100 where it wants the body."""
    host = httpx.URL(server.url)
    kind = "application/json" if path.endswith(("jobs", "complete")) else "multipart/form-data; boundary=x"
    lines = (f"POST {path} HTTP/1.1", f"host: {host.host}", f"content-type: {kind}", *headers)
    with socket.create_connection((host.host, host.port or 0), timeout=60) as connection:
        connection.sendall("\r\n".join((*lines, "expect: 100-continue", "", "")).encode())
        return int(connection.recv(100).split()[1])


class TestCheckLater:
    """A file beyond `sync_check_bytes` is checked by a worker."""

    def test_good_file_becomes_processed(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        created = tenant.post_file(jsonl(unlike_any_other(), unlike_any_other())).json()
        assert (created["status"], created["status_details"]) == ("uploaded", None)
        work = tenant.work_of_file(created["id"])
        assert (work.kind, work.queue, work.state) == ("validate_file", "cpu", "queued")
        assert list((tenant.server.settings.home / "queue").glob("*.cpu.msg"))
        assert run_worker(tenant, work).state == "succeeded"
        assert tenant.get(f"/v1/files/{created['id']}")["status"] == "processed"

    def test_bad_file_becomes_error_with_every_problem(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        created = tenant.post_file(jsonl(unlike_any_other(), {"a": 1}) + b"nonsense").json()
        assert run_worker(tenant, tenant.work_of_file(created["id"])).state == "succeeded"
        found = tenant.get(f"/v1/files/{created['id']}")
        assert found["status"] == "error"
        assert found["status_details"].startswith("2 problems in the training file: line 2, $: found `a`")
        assert "line 3, $: not JSON" in found["status_details"]
        check_wire("OpenAIFile", found)
        refused(
            tenant.post_job(training_file=created["id"]),
            400,
            param="training_file",
            code="invalid_training_file",
        )

    def test_file_deleted_meanwhile_ends_the_check(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        created = tenant.post_file(jsonl(unlike_any_other())).json()
        work = tenant.work_of_file(created["id"])
        tenant.openai.files.delete(created["id"])
        done = run_worker(tenant, work)
        assert done.state == "failed"
        assert done.error is not None
        assert done.error["code"] == "file_not_found"

    def test_check_that_cannot_be_done_ends_in_an_error(self, own_server: Any) -> None:
        # The client polls the file, not our work: it must not wait for ever.
        tenant = own_server(sync_check_bytes=10, max_infrastructure_failures=0)
        content = jsonl(unlike_any_other())
        created = tenant.post_file(content).json()
        path_of(tenant.server.settings.storage_dir, hashlib.sha256(content).hexdigest()).unlink()
        assert run_worker(tenant, tenant.work_of_file(created["id"])).state == "failed"
        found = tenant.get(f"/v1/files/{created['id']}")
        assert found["status"] == "error"
        assert "not in storage" in found["status_details"]


class TestListFiles:
    def test_pages_cover_everything_in_either_order(self, tenant: Tenant) -> None:
        ids = [tenant.upload() for _ in range(5)]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            page = tenant.get("/v1/files", limit=2, order=order)
            check_wire("ListFilesResponse", page)
            assert (page["first_id"], page["last_id"], page["has_more"]) == (expected[0], expected[1], True)
            listed = [file.id for file in tenant.openai.files.list(limit=2, order=order)]
            assert listed == expected
        assert [file["id"] for file in tenant.get("/v1/files")["data"]] == ids[::-1]

    def test_last_full_page_has_no_more(self, tenant: Tenant) -> None:
        for _ in range(2):
            tenant.upload()
        assert tenant.get("/v1/files", limit=2)["has_more"] is False

    def test_purpose_filters(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        assert [file.id for file in tenant.openai.files.list(purpose="fine-tune")] == [file_id]
        assert tenant.get("/v1/files", purpose="batch")["data"] == []

    def test_cursor_may_be_deleted_meanwhile(self, tenant: Tenant) -> None:
        first, second, third = (tenant.upload() for _ in range(3))
        tenant.openai.files.delete(second)
        page = tenant.get("/v1/files", order="asc", after=second)
        assert [file["id"] for file in page["data"]] == [third]
        assert [file["id"] for file in tenant.get("/v1/files", after=second)["data"]] == [first]

    def test_unknown_cursor_is_refused(self, tenant: Tenant) -> None:
        reply = tenant.http.get("/v1/files", params={"after": "file-nothing"})
        refused(reply, 400, param="after", code="invalid_cursor")


class TestRetrieveContent:
    def test_bytes_come_back_as_they_were(self, tenant: Tenant) -> None:
        content = b"\xef\xbb\xbf" + jsonl(unlike_any_other()).replace(b"\n", b"\r\n")
        file_id = tenant.post_file(content).json()["id"]
        assert tenant.openai.files.content(file_id).read() == content
        reply = tenant.http.get(f"/v1/files/{file_id}/content")
        assert reply.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        # A file of a client is never shown as a page of ours.
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["content-disposition"] == "attachment"
        assert reply.headers["x-content-type-options"] == "nosniff"

    def test_range(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        file_id = tenant.post_file(content).json()["id"]
        reply = tenant.http.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=5-9"})
        assert (reply.status_code, reply.content) == (206, content[5:10])

    def test_bytes_that_are_gone_are_a_503(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        file_id = tenant.post_file(content).json()["id"]
        path_of(tenant.server.settings.storage_dir, hashlib.sha256(content).hexdigest()).unlink()
        refused(tenant.http.get(f"/v1/files/{file_id}/content"), 503, code="storage_unavailable")


def clean_up(tenant: Tenant, grace_s: float = 0) -> None:
    """Do what the reconciler does with the bytes of deleted files."""
    settings = tenant.server.settings.model_copy(update={"deletion_grace_s": grace_s})
    remove_deleted_bytes(tenant.server.database, settings)


class TestDeleteFile:
    def test_file_and_bytes_are_gone(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        file_id = tenant.post_file(content).json()["id"]
        deleted = tenant.http.delete(f"/v1/files/{file_id}").json()
        assert deleted == {"id": file_id, "object": "file", "deleted": True}
        check_wire("DeleteFileResponse", deleted)
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
            refused(tenant.http.get(path), 404, param="file_id")
        refused(tenant.http.delete(f"/v1/files/{file_id}"), 404, param="file_id")
        assert tenant.get("/v1/files")["data"] == []
        clean_up(tenant, grace_s=60)
        assert stored(tenant, content), "the bytes go when the deletion has stood for a while"
        clean_up(tenant)
        assert not stored(tenant, content)

    def test_bytes_that_were_just_stored_again_stay(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        file_id = tenant.post_file(content).json()["id"]
        tenant.openai.files.delete(file_id)
        with unit_of_work(tenant.server.database) as session:
            session.get_one(File, file_id).deleted_at = utc_now() - timedelta(hours=2)
        # Another upload may be between its bytes and its row.
        clean_up(tenant, grace_s=3600)
        assert stored(tenant, content)

    def test_file_that_a_job_needs_is_kept_until_the_job_has_ended(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        job = tenant.create_job(training_file=file_id)
        message = refused(tenant.http.delete(f"/v1/files/{file_id}"), 409, code="file_in_use")
        assert job["id"] in message
        tenant.openai.fine_tuning.jobs.cancel(job["id"])
        assert tenant.openai.files.delete(file_id).deleted

    @pytest.mark.parametrize("user", ["adapter", "critic", "set", "fit"])
    def test_bytes_stay_while_something_else_needs_them(self, tenant: Tenant, user: str) -> None:
        job = tenant.create_job()
        content = jsonl(unlike_any_other())
        file_id = tenant.post_file(content).json()["id"]
        sha256 = hashlib.sha256(content).hexdigest()
        with unit_of_work(tenant.server.database) as session:
            if user == "adapter":
                session.get_one(Job, job["id"]).adapter_sha256 = sha256
            elif user == "critic":
                critic = session.get_one(Critic, job["safety"]["critic"]["id"])
                critic.files = {**critic.files, f"{user}-{sha256}": sha256}
            elif user == "set":
                add_set(session, session.get_one(BaseModel, MODEL), "anchors", Rows(sha256, 8))
            else:
                add_work(
                    session,
                    kind=WorkKind.FIT_CRITIC,
                    queue="gpu",
                    project_id=tenant.project_id,
                    args={"data_sha256": sha256, "base_model": MODEL, "pooling": "mean"},
                )
        tenant.openai.files.delete(file_id)
        clean_up(tenant)
        assert stored(tenant, content)

    def test_bytes_stay_while_another_file_has_them(self, tenant: Tenant, stranger: Tenant) -> None:
        content = jsonl(unlike_any_other())
        ours, theirs = (each.post_file(content).json()["id"] for each in (tenant, stranger))
        tenant.openai.files.delete(ours)
        clean_up(tenant)
        assert stranger.openai.files.content(theirs).read() == content
        stranger.openai.files.delete(theirs)
        clean_up(tenant)
        assert not stored(tenant, content)


class TestFullDisk:
    def test_an_upload_without_room_is_refused_and_keeps_nothing(self, own_server: Any) -> None:
        tenant: Tenant = own_server(disk_reserve_bytes=2**60)
        message = refused(tenant.post_file(jsonl(unlike_any_other())), 507, code="storage_full")
        assert " are missing (it has " in message
        assert "TETHER_DISK_RESERVE_BYTES" in message
        assert tenant.get("/v1/files")["data"] == []
        upload = {
            "purpose": "fine-tune",
            "filename": "a.jsonl",
            "bytes": 10,
            "mime_type": "application/jsonl",
        }
        upload_id = tenant.http.post("/v1/uploads", json=upload).json()["id"]
        part = tenant.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"0123456789"})
        refused(part, 507, code="storage_full")
        assert not list(tenant.server.settings.storage_dir.iterdir())
