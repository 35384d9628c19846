"""The API with its bytes in a bucket: the same wire, nothing in the folder, and clear words when the store is away."""

import hashlib
from typing import Any

import httpx
import pytest

from app import doctor
from app.files.service import remove_deleted_bytes
from app.storage.content import key_of
from app.uploads.service import clean_up
from tests.integration.conftest import Tenant, jsonl, refused, unlike_any_other
from tests.object_store import point_at

S3Store = pytest.importorskip("obstore.store", reason="obstore is not installed").S3Store


@pytest.fixture
def tenant_of_bucket(own_server: Any, bucket: str) -> Tenant:
    """A tenant of a server that keeps its bytes in a bucket."""
    tenant: Tenant = own_server(storage_url=bucket)
    return tenant


def keys_in(url: str) -> list[str]:
    """Return the name of every object."""
    return [found["path"] for page in S3Store.from_url(url).list() for found in page]


class TestFiles:
    def test_file_comes_back_whole_and_in_part(self, tenant_of_bucket: Tenant, bucket: str) -> None:
        content = jsonl(unlike_any_other())
        file = tenant_of_bucket.post_file(content).json()
        reply = tenant_of_bucket.http.get(f"/v1/files/{file['id']}/content")
        assert (reply.status_code, reply.content) == (200, content)
        again = {"range": "bytes=5-", "if-range": reply.headers["etag"]}
        part = tenant_of_bucket.http.get(f"/v1/files/{file['id']}/content", headers=again)
        assert (part.status_code, part.content) == (206, content[5:])
        assert tenant_of_bucket.openai.files.content(file["id"]).read() == content
        assert len(keys_in(bucket)) == 1
        assert not tenant_of_bucket.server.settings.storage_dir.exists()

    def test_forgotten_and_refused_files_leave_no_object(self, tenant_of_bucket: Tenant, bucket: str) -> None:
        file_id = tenant_of_bucket.upload()
        tenant_of_bucket.openai.files.delete(file_id)
        settings = tenant_of_bucket.server.settings.model_copy(update={"deletion_grace_s": 0})
        remove_deleted_bytes(tenant_of_bucket.server.database, settings)
        refused(tenant_of_bucket.post_file(b"no row"), 400, param="file")
        assert keys_in(bucket) == []

    def test_upload_in_parts(self, tenant_of_bucket: Tenant, bucket: str) -> None:
        content = jsonl(unlike_any_other(), unlike_any_other())
        upload = tenant_of_bucket.openai.uploads.upload_file_chunked(
            file=content,
            filename="rows.jsonl",
            bytes=len(content),
            mime_type="application/jsonl",
            purpose="fine-tune",
            part_size=100,
        )
        assert upload.file is not None
        assert tenant_of_bucket.openai.files.content(upload.file.id).read() == content
        settings = tenant_of_bucket.server.settings.model_copy(update={"deletion_grace_s": 0})
        clean_up(tenant_of_bucket.server.database, settings)
        assert keys_in(bucket) == [key_of(hashlib.sha256(content).hexdigest())]

    def test_damaged_object_breaks_the_download_off(self, tenant_of_bucket: Tenant, bucket: str) -> None:
        file_id = tenant_of_bucket.upload()
        (key,) = keys_in(bucket)
        S3Store.from_url(bucket).put(key, b"something else")
        with pytest.raises(httpx.RemoteProtocolError):
            tenant_of_bucket.http.get(f"/v1/files/{file_id}/content")


class TestStoreThatIsAway:
    def test_it_is_said_and_nothing_is_kept(
        self, own_server: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        point_at(monkeypatch, "http://127.0.0.1:9")  # The discard service; nothing listens there.
        tenant: Tenant = own_server(storage_url="s3://bucket-of-a-store-that-is-away")
        message = refused(tenant.post_file(jsonl(unlike_any_other())), 503, code="storage_unavailable")
        assert "the object store cannot be used" in message
        assert tenant.get("/v1/files")["data"] == []
        ready = tenant.http.get("/readyz")
        assert ready.status_code == 503
        assert any("the object store cannot be used" in missing for missing in ready.json()["missing"])
        # Loading torch takes seconds and has nothing to do with storage.
        monkeypatch.setattr(doctor, "DEVICE", """print('{"device": "none", "threads": 1}')""")
        finding = next(each for each in doctor.examine(tenant.server.settings) if each.what == "storage")
        assert finding.found == "s3://bucket-of-a-store-that-is-away"
        assert "AWS_" in str(finding.todo)
