"""/v1/models: fine-tuned models and checkpoints, their weights, and what is left of them when they are deleted."""

import hashlib
from datetime import timedelta

import openai
import pytest

from app.base_models.weights import remove_unwanted_weights
from app.database import read_only, unit_of_work
from app.domain.job import State
from app.files.service import remove_deleted_bytes
from app.models.base import utc_now
from app.models.job import Checkpoint, Job
from app.models.work import Work
from app.storage import path_of
from tests.integration.conftest import MODEL, Tenant, refused
from tests.integration.released import Released, names, release_job
from tests.integration.wire_schema import check_wire

JOBS = "/v1/fine_tuning/jobs"


def stored(tenant: Tenant, content: bytes) -> bool:
    """Say whether these bytes are in storage."""
    return path_of(tenant.server.settings.storage_dir, hashlib.sha256(content).hexdigest()).exists()


def tidy(tenant: Tenant) -> None:
    """Do what the reconciler does, without the grace."""
    settings = tenant.server.settings.model_copy(update={"deletion_grace_s": 0.0})
    remove_deleted_bytes(tenant.server.database, settings)
    remove_unwanted_weights(tenant.server.database, settings)


def paths(released: Released) -> tuple[str, str]:
    """Return where the adapters of a job and of its checkpoint are downloaded."""
    job = f"{JOBS}/{released.job_id}"
    return f"{job}/adapter", f"{job}/checkpoints/{released.checkpoint_id}/adapter"


class TestList:
    def test_models_and_checkpoints_show_once_the_job_has_succeeded(
        self, tenant: Tenant, stranger: Tenant
    ) -> None:
        unfinished = release_job(tenant, State.RUNNING)
        failed = release_job(tenant, State.FAILED)
        released = release_job(tenant)
        assert set(names(tenant)) == {MODEL, released.model, released.checkpoint}
        assert names(stranger) == [MODEL]
        page = tenant.get("/v1/models")
        check_wire("ListModelsResponse", page)
        final, checkpoint = paths(released)
        assert {model["id"]: model.get("adapter") for model in page["data"]} == {
            MODEL: None,
            released.model: final,
            released.checkpoint: checkpoint,
        }
        for model in tenant.openai.models.list():
            assert tenant.openai.models.retrieve(model.id) == model
            assert model.owned_by == ("tether" if model.id == MODEL else tenant.project_id)
        for name in (unfinished.checkpoint, failed.checkpoint, failed.model):
            refused(tenant.http.get(f"/v1/models/{name}"), 404, param="model", code="model_not_found")


class TestAdapter:
    def test_adapters_of_job_and_checkpoint(self, tenant: Tenant, stranger: Tenant) -> None:
        released = release_job(tenant)
        for path, content in zip(
            paths(released), (released.adapter, released.checkpoint_adapter), strict=True
        ):
            reply = tenant.http.get(path)
            assert (reply.status_code, reply.content) == (200, content)
            assert reply.headers["content-type"] == "application/zip"
            assert tenant.http.get(path, headers={"range": "bytes=0-6"}).content == content[:7]
        final, checkpoint = paths(released)
        refused(stranger.http.get(final), 404, param="fine_tuning_job_id")
        refused(stranger.http.get(checkpoint), 404, param="checkpoint_id")

    @pytest.mark.parametrize("state", [State.RUNNING, State.FAILED, State.CANCELLED])
    def test_no_weights_leave_a_job_that_has_not_succeeded(self, tenant: Tenant, state: State) -> None:
        released = release_job(tenant, state)
        for path in paths(released):
            message = refused(tenant.http.get(path), 409, code="adapter_not_ready")
            assert f"state is {state}" in message

    def test_checkpoint_of_another_job_is_not_found(self, tenant: Tenant) -> None:
        one, other = release_job(tenant), release_job(tenant)
        path = f"{JOBS}/{one.job_id}/checkpoints/{other.checkpoint_id}/adapter"
        refused(tenant.http.get(path), 404, param="checkpoint_id")

    def test_checkpoint_to_resume_from_is_none_to_download(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        with unit_of_work(tenant.server.database) as session:
            session.get_one(Checkpoint, released.checkpoint_id).name = None
        refused(tenant.http.get(paths(released)[1]), 404, param="checkpoint_id")

    def test_checkpoint_from_before_adapters_were_kept(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        with unit_of_work(tenant.server.database) as session:
            session.get_one(Checkpoint, released.checkpoint_id).adapter_sha256 = None
        refused(tenant.http.get(paths(released)[1]), 409, code="adapter_not_kept")
        assert tenant.get(f"/v1/models/{released.checkpoint}")["adapter"] is None


class TestDelete:
    def test_model_goes_and_its_record_stays(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        (result,) = tenant.get(f"{JOBS}/{released.job_id}")["result_files"]
        deleted = tenant.openai.models.delete(released.model)
        check_wire("DeleteModelResponse", deleted.model_dump())
        assert (deleted.id, deleted.object, deleted.deleted) == (released.model, "model", True)
        assert released.model not in names(tenant)
        with pytest.raises(openai.NotFoundError):
            tenant.openai.models.retrieve(released.model)
        final, checkpoint = paths(released)
        refused(tenant.http.get(final), 404, param="model", code="model_deleted")
        refused(tenant.http.get(f"/v1/files/{result}/content"), 404, param="file_id")
        job = tenant.get(f"{JOBS}/{released.job_id}")
        assert (job["status"], job["fine_tuned_model"], job["result_files"]) == (
            "succeeded",
            released.model,
            [],
        )
        assert tenant.http.get(f"{JOBS}/{released.job_id}/evidence").status_code == 200
        events = tenant.get(f"{JOBS}/{released.job_id}/events")["data"]
        assert events[0]["message"] == f"The model {released.model} was deleted"
        refused(tenant.http.delete(f"/v1/models/{released.model}"), 404, param="model")
        tidy(tenant)
        assert not stored(tenant, released.adapter)
        assert tenant.http.get(checkpoint).content == released.checkpoint_adapter

    def test_checkpoint(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        tenant.openai.models.delete(released.checkpoint)
        assert set(names(tenant)) == {MODEL, released.model}
        final, checkpoint = paths(released)
        refused(tenant.http.get(checkpoint), 404, param="model", code="model_deleted")
        tidy(tenant)
        assert not stored(tenant, released.checkpoint_adapter)
        assert tenant.http.get(final).content == released.adapter
        listed = tenant.get(f"{JOBS}/{released.job_id}/checkpoints")["data"]
        assert [each["id"] for each in listed] == [released.checkpoint_id]

    def test_weights_stay_while_the_checkpoint_has_the_same(self, tenant: Tenant) -> None:
        released = release_job(tenant, same_weights=True)
        tenant.openai.models.delete(released.model)
        tidy(tenant)
        assert tenant.http.get(paths(released)[1]).content == released.adapter
        tenant.openai.models.delete(released.checkpoint)
        tidy(tenant)
        assert not stored(tenant, released.adapter)

    def test_weights_stay_a_while(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        tenant.openai.models.delete(released.model)
        settings = tenant.server.settings
        remove_unwanted_weights(tenant.server.database, settings)
        assert stored(tenant, released.adapter)
        with read_only(tenant.server.database) as session:
            assert session.get_one(Job, released.job_id).adapter_sha256 is not None

    def test_base_model_is_refused(self, tenant: Tenant, operator: Tenant) -> None:
        for each in (tenant, operator):
            with pytest.raises(openai.PermissionDeniedError, match="base model"):
                each.openai.models.delete(MODEL)
        assert MODEL in names(tenant)

    def test_foreign_model_is_not_found(self, tenant: Tenant, stranger: Tenant) -> None:
        released = release_job(tenant)
        for name in (released.model, released.checkpoint, "nothing"):
            refused(stranger.http.delete(f"/v1/models/{name}"), 404, param="model", code="model_not_found")
        assert released.model in names(tenant)


class TestUnwantedWeights:
    def test_checkpoints_of_a_failed_job_go(self, tenant: Tenant) -> None:
        failed = release_job(tenant, State.FAILED)
        running = release_job(tenant, State.RUNNING)
        with unit_of_work(tenant.server.database) as session:
            session.get_one(Work, failed.job_id).finished_at = utc_now() - timedelta(seconds=1)
        tidy(tenant)
        assert not stored(tenant, failed.checkpoint_adapter)
        assert stored(tenant, running.checkpoint_adapter)
        with read_only(tenant.server.database) as session:
            assert session.get_one(Checkpoint, failed.checkpoint_id).adapter_sha256 is None
