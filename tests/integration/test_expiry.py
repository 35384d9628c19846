"""Files that expire, on both databases."""

from datetime import timedelta
from typing import Any

import pytest

from app.database import read_only, unit_of_work
from app.files.service import delete_expired
from app.models.base import utc_now
from app.models.file import File
from app.reconciler import reconcile
from tests.integration.conftest import Tenant, jsonl, refused, run_worker, unlike_any_other
from tests.integration.test_jobs import PATH, set_work
from tests.integration.test_pause import claim, load
from tests.integration.wire_schema import check_wire


def expire(tenant: Tenant, file_id: str) -> None:
    """Let the time of a file be over."""
    with unit_of_work(tenant.server.database) as session:
        session.get_one(File, file_id).expires_at = utc_now() - timedelta(seconds=1)


def is_deleted(tenant: Tenant, file_id: str) -> bool:
    """Say whether a file is marked as deleted."""
    with read_only(tenant.server.database) as session:
        return session.get_one(File, file_id).deleted_at is not None


def upload(tenant: Tenant) -> str:
    """Upload a training file that expires in an hour."""
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    return str(tenant.post_file(jsonl(unlike_any_other()), **fields).json()["id"])


class TestExpiresAfter:
    def test_the_client_sets_it(self, tenant: Tenant) -> None:
        file = tenant.openai.files.create(
            file=("rows.jsonl", jsonl(unlike_any_other())),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 2592000},
        )
        assert file.expires_at == file.created_at + 2592000
        check_wire("OpenAIFile", tenant.get(f"/v1/files/{file.id}"))
        assert tenant.get(f"/v1/files/{tenant.upload()}")["expires_at"] is None

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"anchor": "created_at", "seconds": "3599"}, "expires_after[seconds]"),
            ({"anchor": "created_at", "seconds": "2592001"}, "expires_after[seconds]"),
            ({"anchor": "last_used", "seconds": "3600"}, "expires_after[anchor]"),
            ({"anchor": "created_at"}, "expires_after"),
            ({"seconds": "3600"}, "expires_after"),
        ],
    )
    def test_unusable_expiry_is_refused(self, tenant: Tenant, fields: dict[str, str], param: str) -> None:
        named: dict[str, Any] = {f"expires_after[{name}]": value for name, value in fields.items()}
        refused(tenant.post_file(jsonl(unlike_any_other()), **named), 400, param=param)
        assert tenant.get("/v1/files")["data"] == []


class TestExpired:
    def test_file_is_gone_at_once(self, tenant: Tenant) -> None:
        file_id = upload(tenant)
        assert tenant.get(f"/v1/files/{file_id}")["id"] == file_id
        expire(tenant, file_id)
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
            refused(tenant.http.get(path), 404, param="file_id")
        assert tenant.get("/v1/files")["data"] == []
        refused(tenant.post_job(training_file=file_id), 404, param="training_file", code="file_not_found")

    def test_reconciler_deletes_it_as_its_owner_would(self, tenant: Tenant) -> None:
        late, early, kept = upload(tenant), upload(tenant), tenant.upload()
        expire(tenant, late)
        delete_expired(tenant.server.database)
        assert [is_deleted(tenant, each) for each in (late, early, kept)] == [True, False, False]

    def test_job_that_still_waits_for_it_fails_and_says_why(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        file_id = upload(tenant)
        job = tenant.create_job(training_file=file_id)
        assert job["status"] == "validating_files"
        expire(tenant, file_id)
        reconcile(tenant.server.database, tenant.server.settings)
        found = tenant.get(f"{PATH}/{job['id']}")
        assert (found["status"], found["error"]["code"]) == ("failed", "invalid_training_file")
        assert "was deleted or has expired" in found["error"]["message"]
        assert is_deleted(tenant, file_id)

    def test_job_that_was_queued_only_fails_and_says_why(self, tenant: Tenant) -> None:
        file_id = upload(tenant)
        job_id = tenant.create_job(training_file=file_id)["id"]
        expire(tenant, file_id)
        delete_expired(tenant.server.database)
        assert is_deleted(tenant, file_id)
        run_worker(tenant, load(tenant, job_id))
        found = tenant.get(f"{PATH}/{job_id}")
        assert (found["status"], found["error"]["code"]) == ("failed", "file_not_found")
        assert "has expired before the job began" in found["error"]["message"]

    @pytest.mark.parametrize("param", ["training_file", "validation_file"])
    def test_job_that_has_begun_keeps_it_to_its_end(self, tenant: Tenant, param: str) -> None:
        file_id = upload(tenant)
        job_id = tenant.create_job(**{param: file_id})["id"]
        claim(tenant, job_id)
        expire(tenant, file_id)
        refused(tenant.http.get(f"/v1/files/{file_id}"), 404, param="file_id")
        for state in ("running", "paused", "queued"):
            set_work(tenant, job_id, state=state)
            delete_expired(tenant.server.database)
            assert not is_deleted(tenant, file_id), state
        set_work(tenant, job_id, state="succeeded")
        delete_expired(tenant.server.database)
        assert is_deleted(tenant, file_id)
