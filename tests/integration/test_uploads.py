"""/v1/uploads: files that come in parts, on both databases, with the real client."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select, update

from app.database import read_only, unit_of_work
from app.models.base import new_id, utc_now
from app.models.upload import Upload, UploadPart
from app.storage import path_of
from app.uploads import service
from app.uploads.service import LEEWAY, LIFE, clean_up
from tests.integration.conftest import Tenant, jsonl, refused, unlike_any_other
from tests.integration.wire_schema import check_wire

PATH = "/v1/uploads"


def announce(tenant: Tenant, size: int, **fields: Any) -> str:
    """Create an upload and return its id."""
    body = {"bytes": size, "filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    reply = tenant.http.post(PATH, json={**body, **fields})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def send(tenant: Tenant, upload_id: str, data: bytes) -> str:
    """Send a part and return its id."""
    reply = tenant.http.post(f"{PATH}/{upload_id}/parts", files={"data": ("part", data)})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def complete(tenant: Tenant, upload_id: str, part_ids: list[str], **fields: Any) -> Any:
    """Ask for the completion and return the reply."""
    return tenant.http.post(f"{PATH}/{upload_id}/complete", json={"part_ids": part_ids, **fields})


def stored(tenant: Tenant, content: bytes) -> bool:
    """Say whether these bytes are in storage."""
    return path_of(tenant.server.settings.storage_dir, hashlib.sha256(content).hexdigest()).exists()


def age(tenant: Tenant, upload_id: str, by: timedelta) -> None:
    """Make an upload older than it is."""
    with unit_of_work(tenant.server.database) as session:
        upload = session.get_one(Upload, upload_id)
        upload.created_at -= by
        upload.expires_at -= by


def tidy(tenant: Tenant) -> None:
    """Do what the reconciler does, without the grace."""
    clean_up(tenant.server.database, tenant.server.settings.model_copy(update={"deletion_grace_s": 0.0}))


def parts_of(tenant: Tenant, upload_id: str) -> list[UploadPart]:
    """Return the parts that are kept."""
    with read_only(tenant.server.database) as session:
        return list(session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id)))


class TestClient:
    def test_chunked_upload_gives_a_file_that_can_be_trained_on(self, tenant: Tenant, tmp_path: Path) -> None:
        content = jsonl(*(unlike_any_other() for _ in range(20)))
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        upload = tenant.openai.uploads.upload_file_chunked(
            file=path,
            mime_type="application/jsonl",
            purpose="fine-tune",
            part_size=300,
            md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        )
        assert upload.status == "completed"
        assert upload.file is not None
        assert (upload.file.bytes, upload.file.filename) == (len(content), "rows.jsonl")
        assert (upload.file.purpose, upload.file.status) == ("fine-tune", "processed")
        assert tenant.openai.files.content(upload.file.id).read() == content
        assert tenant.create_job(training_file=upload.file.id)["training_file"] == upload.file.id

    def test_objects_are_the_wires(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        body = {
            "bytes": len(content),
            "filename": "../rows.jsonl",
            "mime_type": "text/plain",
            "purpose": "user_data",
        }
        created = tenant.http.post(PATH, json=body).json()
        check_wire("Upload", created)
        assert created["object"] == "upload"
        assert (created["status"], created["file"], created["filename"]) == ("pending", None, "rows.jsonl")
        assert created["expires_at"] - created["created_at"] == LIFE.total_seconds()
        part = tenant.http.post(f"{PATH}/{created['id']}/parts", files={"data": content}).json()
        check_wire("UploadPart", part)
        assert part["upload_id"] == created["id"]
        done = complete(tenant, created["id"], [part["id"]]).json()
        check_wire("Upload", done)
        check_wire("OpenAIFile", done["file"])
        assert done["status"] == "completed"

    def test_cancel(self, tenant: Tenant) -> None:
        upload_id = announce(tenant, 10)
        send(tenant, upload_id, b"01234")
        cancelled = tenant.openai.uploads.cancel(upload_id)
        assert (cancelled.status, cancelled.file) == ("cancelled", None)
        assert tenant.openai.uploads.cancel(upload_id).status == "cancelled"
        with pytest.raises(openai.ConflictError, match="cancelled already"):
            tenant.openai.uploads.parts.create(upload_id, data=b"56789")
        refused(complete(tenant, upload_id, ["part_x"]), 409, code="upload_cancelled")


class TestCreateUpload:
    def test_bad_fields_are_named(self, tenant: Tenant) -> None:
        good = {"bytes": 1, "filename": "x", "mime_type": "application/jsonl", "purpose": "fine-tune"}
        limit = tenant.server.settings.max_file_bytes
        for param, value in (
            ("bytes", 0),
            ("bytes", limit + 1),
            ("bytes", 8 * 1024**3 + 1),
            ("filename", ""),
            ("purpose", "batch"),
            ("mime_type", "application/zip"),
            ("mime_type", "nonsense"),
        ):
            refused(tenant.http.post(PATH, json={**good, param: value}), 400, param=param)
        for name in good:
            rest = {key: value for key, value in good.items() if key != name}
            refused(tenant.http.post(PATH, json=rest), 400, param=name)
        wrong = {"anchor": "created_at", "seconds": 60}
        reply = tenant.http.post(PATH, json={**good, "expires_after": wrong})
        refused(reply, 400, param="expires_after.seconds")

    def test_file_expires_as_announced(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        expiry = {"anchor": "created_at", "seconds": 3600}
        upload_id = announce(tenant, len(content), expires_after=expiry)
        file = complete(tenant, upload_id, [send(tenant, upload_id, content)]).json()["file"]
        assert file["expires_at"] - file["created_at"] == 3600


class TestAddPart:
    def test_parts_in_parallel_and_out_of_order(self, tenant: Tenant) -> None:
        content = jsonl(*(unlike_any_other() for _ in range(16)))
        cut = [content[at : at + 200] for at in range(0, len(content), 200)]
        upload_id = announce(tenant, len(content))
        backwards = list(enumerate(cut))[::-1]
        with ThreadPoolExecutor(4) as pool:
            ids = dict(pool.map(lambda each: (each[0], send(tenant, upload_id, each[1])), backwards))
        done = complete(tenant, upload_id, [ids[at] for at in range(len(cut))]).json()
        assert tenant.openai.files.content(done["file"]["id"]).read() == content

    def test_same_bytes_again_are_the_same_part(self, tenant: Tenant) -> None:
        row = jsonl(unlike_any_other())
        upload_id = announce(tenant, 2 * len(row))
        with ThreadPoolExecutor(4) as pool:
            (part,) = set(pool.map(lambda _: send(tenant, upload_id, row), range(4)))
        done = complete(tenant, upload_id, [part, part]).json()
        assert tenant.openai.files.content(done["file"]["id"]).read() == row + row

    def test_part_that_is_too_large_or_empty_is_refused(
        self, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert service.MAX_PART_BYTES == 64 * 1024 * 1024
        monkeypatch.setattr(service, "MAX_PART_BYTES", 100)
        upload_id = announce(tenant, 200)
        for data in (b"", b"x" * 101):
            reply = tenant.http.post(f"{PATH}/{upload_id}/parts", files={"data": ("part", data)})
            refused(reply, 400, param="data")
        assert parts_of(tenant, upload_id) == []
        send(tenant, upload_id, b"x" * 100)

    def test_more_than_twice_the_announced_bytes_is_refused(self, tenant: Tenant) -> None:
        upload_id = announce(tenant, 10)
        send(tenant, upload_id, b"a" * 10)
        send(tenant, upload_id, b"b" * 10)
        reply = tenant.http.post(f"{PATH}/{upload_id}/parts", files={"data": ("part", b"c")})
        refused(reply, 409, code="too_many_parts")

    def test_foreign_upload_is_not_found(self, tenant: Tenant, stranger: Tenant) -> None:
        upload_id = announce(tenant, 10)
        part_id = send(tenant, upload_id, b"a" * 10)
        for reply in (
            stranger.http.post(f"{PATH}/{upload_id}/parts", files={"data": ("part", b"x")}),
            complete(stranger, upload_id, [part_id]),
            stranger.http.post(f"{PATH}/{upload_id}/cancel"),
        ):
            refused(reply, 404, param="upload_id")


class TestComplete:
    def test_wrong_parts_are_refused_and_the_upload_stays_open(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other(), unlike_any_other())
        upload_id = announce(tenant, len(content))
        first, second = send(tenant, upload_id, content[:50]), send(tenant, upload_id, content[50:])
        other_id = announce(tenant, 5)
        foreign = send(tenant, other_id, b"other")
        refused(complete(tenant, upload_id, [first, foreign]), 400, param="part_ids[1]")
        refused(complete(tenant, upload_id, []), 400, param="part_ids")
        message = refused(complete(tenant, upload_id, [first]), 400, param="part_ids")
        assert f"50 bytes together; the upload was announced with {len(content)}" in message
        wrong = hashlib.md5(b"other", usedforsecurity=False).hexdigest()
        refused(complete(tenant, upload_id, [first, second], md5=wrong), 400, param="md5")
        refused(complete(tenant, upload_id, [first, second], md5="junk"), 400, param="md5")
        assert not stored(tenant, content)
        right = hashlib.md5(content, usedforsecurity=False).hexdigest().upper()
        assert complete(tenant, upload_id, [first, second], md5=right).status_code == 200

    def test_bad_rows_are_named_and_nothing_is_kept(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other()) + b"not json\n"
        upload_id = announce(tenant, len(content))
        ids = [send(tenant, upload_id, content[:30]), send(tenant, upload_id, content[30:])]
        reply = complete(tenant, upload_id, ids)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "invalid_training_file"
        assert "line 2" in reply.json()["error"]["message"]
        assert not stored(tenant, content)
        assert tenant.get("/v1/files")["data"] == []

    def test_again_gives_the_same_file_and_another_order_is_refused(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        upload_id = announce(tenant, len(content))
        ids = [send(tenant, upload_id, content[:9]), send(tenant, upload_id, content[9:])]
        with ThreadPoolExecutor(4) as pool:
            replies = [
                reply.json() for reply in pool.map(lambda _: complete(tenant, upload_id, ids), range(4))
            ]
        assert {reply["file"]["id"] for reply in replies} == {tenant.get("/v1/files")["data"][0]["id"]}
        assert len(tenant.get("/v1/files")["data"]) == 1
        refused(complete(tenant, upload_id, ids[::-1]), 409, code="upload_completed")
        refused(tenant.http.post(f"{PATH}/{upload_id}/cancel"), 409, code="upload_completed")
        tenant.openai.files.delete(replies[0]["file"]["id"])
        refused(complete(tenant, upload_id, ids), 404, param="upload_id")

    def test_large_file_is_left_to_a_worker(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        content = jsonl(unlike_any_other(), unlike_any_other())
        upload_id = announce(tenant, len(content))
        file = complete(tenant, upload_id, [send(tenant, upload_id, content)]).json()["file"]
        assert file["status"] == "uploaded"
        work = tenant.work_of_file(file["id"])
        assert (work.kind, work.queue, work.state) == ("validate_file", "cpu", "queued")


class TestCleanUp:
    def test_late_part_and_late_completion_are_refused(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        upload_id = announce(tenant, len(content))
        part_id = send(tenant, upload_id, content)
        age(tenant, upload_id, LIFE)
        late = tenant.http.post(f"{PATH}/{upload_id}/parts", files={"data": ("part", b"x")})
        assert "create a new one" in refused(late, 409, code="upload_expired")
        refused(complete(tenant, upload_id, [part_id]), 409, code="upload_expired")
        tidy(tenant)
        assert stored(tenant, content), "a completion may still be under way"
        age(tenant, upload_id, LEEWAY)
        tidy(tenant)
        assert parts_of(tenant, upload_id) == []
        assert not stored(tenant, content)
        refused(complete(tenant, upload_id, [part_id]), 409, code="upload_expired")
        assert tenant.http.post(f"{PATH}/{upload_id}/cancel").json()["status"] == "expired"

    def test_parts_go_after_completion_and_the_file_stays(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        upload_id = announce(tenant, len(content))
        ids = [send(tenant, upload_id, content[:9]), send(tenant, upload_id, content[9:])]
        whole_id = announce(tenant, len(content))
        whole = complete(tenant, whole_id, [send(tenant, whole_id, content)]).json()
        complete(tenant, upload_id, ids)
        tidy(tenant)
        assert parts_of(tenant, upload_id) == []
        assert not stored(tenant, content[:9])
        assert tenant.openai.files.content(whole["file"]["id"]).read() == content

    def test_part_stays_while_another_upload_needs_its_bytes(self, tenant: Tenant, stranger: Tenant) -> None:
        content = jsonl(unlike_any_other())
        ours, theirs = announce(tenant, len(content)), announce(stranger, len(content))
        send(tenant, ours, content)
        part_id = send(stranger, theirs, content)
        tenant.http.post(f"{PATH}/{ours}/cancel")
        tidy(tenant)
        assert parts_of(tenant, ours) == []
        assert complete(stranger, theirs, [part_id]).status_code == 200

    def test_completed_upload_does_not_expire(self, tenant: Tenant) -> None:
        content = jsonl(unlike_any_other())
        upload_id = announce(tenant, len(content))
        complete(tenant, upload_id, [send(tenant, upload_id, content)])
        age(tenant, upload_id, LIFE + 2 * LEEWAY)
        tidy(tenant)
        with read_only(tenant.server.database) as session:
            assert session.get_one(Upload, upload_id).status == "completed"

    def test_parts_stay_a_while_after_the_end(self, tenant: Tenant) -> None:
        upload_id = announce(tenant, 100)
        send(tenant, upload_id, new_id("unlike any other ").encode())
        tenant.http.post(f"{PATH}/{upload_id}/cancel")
        clean_up(tenant.server.database, tenant.server.settings)
        assert len(parts_of(tenant, upload_id)) == 1
        with unit_of_work(tenant.server.database) as session:
            session.execute(
                update(Upload).where(Upload.id == upload_id).values(ended_at=utc_now() - timedelta(hours=2))
            )
        clean_up(tenant.server.database, tenant.server.settings)
        # The bytes were stored just now: another part with the same ones may be on its way.
        assert len(parts_of(tenant, upload_id)) == 1
