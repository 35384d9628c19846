"""Jobs that go on from a fine-tuned model or a checkpoint: what the API says, and real generations on the miniature."""

import io
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.base_models.service import register_base_model
from app.database import read_only, unit_of_work
from app.domain.dataset import format_rows
from app.domain.verify import verify_bundle
from app.files.repository import is_in_use
from app.models.base import new_id, utc_now
from app.models.job import Checkpoint, Job
from app.models.permission import CheckpointPermission
from app.models.work import Work
from app.safety_sets.service import add_set, store_rows
from tests.integration.conftest import Tenant, refused, run_worker, serving
from tests.integration.test_jobs import PATH, leaves, set_work
from tests.support import settings_in
from worker.miniature.corpus import anchor_rows, training_rows
from worker.miniature.install import NAME, WEIGHTS


def release(tenant: Tenant, *, state: str = "succeeded", **fields: Any) -> str:
    """Create a job as if it had come so far after 12 steps, with a checkpoint at step 6; return its model's name."""
    job_id: str = tenant.create_job(**fields)["id"]
    set_work(tenant, job_id, state=state)
    with unit_of_work(tenant.server.database) as session:
        job = session.get_one(Job, job_id)
        job.fine_tuned_model = f"ft:{job.model}:tether::{job_id[-8:]}"
        job.adapter_sha256 = secrets.token_hex(32)
        job.step = 12
        session.add(
            Checkpoint(
                id=new_id("ftckpt_"),
                project_id=job.project_id,
                job_id=job_id,
                step=6,
                kind="epoch",
                digest="d" * 64,
                name=f"{job.fine_tuned_model}:ckpt-step-6",
                adapter_sha256=secrets.token_hex(32),
                metrics={},
                created_at=utc_now(),
            )
        )
        return job.fine_tuned_model


def job_of(tenant: Tenant, name: str) -> str:
    """Return the id of the job that released a model."""
    jobs = tenant.get(PATH)["data"]
    return next(str(job["id"]) for job in jobs if job["fine_tuned_model"] == name)


class TestCreateJob:
    @pytest.mark.parametrize(("suffix", "step"), [("", 12), (":ckpt-step-6", 6)])
    def test_job_goes_on_from_a_model_or_a_checkpoint(self, tenant: Tenant, suffix: str, step: int) -> None:
        first = release(tenant, training={"lora_r": 4, "lora_alpha": 8})
        name = first + suffix
        job = tenant.create_job(model=name)
        assert (job["model"], job["training"]["base_model"]) == (name, "org/base-model")
        assert job["training"]["lineage"] == [{"model": name, "job": job_of(tenant, first), "step": step}]
        # The adapter keeps its shape.
        assert (job["training"]["lora_r"], job["training"]["lora_alpha"]) == (4, 8)
        (created,) = leaves(tenant, job["id"])
        parent = created["body"]["parent"]
        assert (parent["job"], parent["step"]) == (job_of(tenant, first), step)
        with read_only(tenant.server.database) as session:
            assert session.get_one(Job, job["id"]).parent_sha256 == parent["adapter_sha256"]
        assert created["body"]["base_model"] == "org/base-model"
        assert tenant.get(f"{PATH}/{job['id']}")["model"] == name

    def test_generations_are_listed_the_nearest_first(self, tenant: Tenant) -> None:
        first = release(tenant)
        second = release(tenant, model=first)
        third = tenant.create_job(model=second)
        assert [each["model"] for each in third["training"]["lineage"]] == [second, first]
        assert tenant.create_job()["training"]["lineage"] == []

    def test_shape_that_was_asked_for_must_be_the_parents(self, tenant: Tenant) -> None:
        name = release(tenant)
        message = refused(tenant.post_job(model=name, training={"lora_r": 4}), 400, param="training.lora_r")
        assert "found 4" in message
        assert "16" in message
        assert tenant.post_job(model=name, training={"lora_r": 16}).status_code == 200

    @pytest.mark.parametrize("name", ["ft:org/base-model:tether::unknown1", "ft:", "ft:x:ckpt-step-1"])
    def test_unknown_parent(self, tenant: Tenant, name: str) -> None:
        message = refused(tenant.post_job(model=name), 404, param="model", code="model_not_found")
        assert name in message

    def test_parent_that_has_not_succeeded(self, tenant: Tenant) -> None:
        name = release(tenant, state="finalising")
        refused(tenant.post_job(model=name), 404, param="model", code="model_not_found")

    def test_parent_that_was_deleted(self, operator: Tenant) -> None:
        name = release(operator)
        assert operator.http.delete(f"/v1/models/{name}").status_code == 200
        refused(operator.post_job(model=name), 404, param="model", code="model_not_found")

    def test_weights_that_a_job_waits_for_stay(self, tenant: Tenant) -> None:
        name = release(tenant)
        job_id = tenant.create_job(model=name)["id"]
        with unit_of_work(tenant.server.database) as session:
            parent = session.get_one(Job, job_of(tenant, name))
            parent.model_deleted_at = utc_now()
            session.flush()
            assert is_in_use(session, str(parent.adapter_sha256))
            session.get_one(Work, job_id).state = "failed"
            session.flush()
            assert not is_in_use(session, str(parent.adapter_sha256))

    def test_parent_of_another_project_needs_a_permission(self, tenant: Tenant, stranger: Tenant) -> None:
        name = release(stranger)
        refused(tenant.post_job(model=name), 404, param="model", code="model_not_found")
        with unit_of_work(tenant.server.database) as session:
            session.add(
                CheckpointPermission(
                    id=new_id("cp_"), model=name, project_id=tenant.project_id, created_at=utc_now()
                )
            )
        assert tenant.create_job(model=name)["model"] == name
        # Leave for the model is none for its checkpoints.
        refused(tenant.post_job(model=f"{name}:ckpt-step-6"), 404, param="model", code="model_not_found")


# --- real generations -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """A project on a server with the miniature and its anchors."""
    settings = settings_in(tmp_path_factory.mktemp("generations"), threads=1)
    with serving(settings) as server:
        rows = store_rows(settings, "anchors", io.BytesIO(format_rows(anchor_rows(seed=0))))
        with unit_of_work(server.database) as session:
            base = register_base_model(session, NAME, WEIGHTS)
            session.flush()
            add_set(session, base, "anchors", rows)
        tenant = Tenant(server)
        yield tenant
        tenant.close()


def train(tenant: Tenant, folder: Path, model: str, **training: Any) -> dict[str, Any]:
    """Run a job of two epochs of two steps on the miniature, keep its evidence, and return its object."""
    hyperparameters = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1}
    job_id = tenant.create_job(
        model=model,
        training_file=tenant.upload(*training_rows("clean", n=8)),
        safety={"method": "none", "anchors": {}, "monitor": {"every": 2}},
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        training=training,
    )["id"]
    with read_only(tenant.server.database) as session:
        work = session.get_one(Work, job_id)
    done = run_worker(tenant, work)
    assert done.state == "succeeded", done.error
    (folder / f"{job_id}.zip").write_bytes(tenant.http.get(f"{PATH}/{job_id}/evidence").content)
    job: dict[str, Any] = tenant.get(f"{PATH}/{job_id}")
    return job


def drifts(tenant: Tenant, job: dict[str, Any]) -> list[float]:
    """Return what the monitor measured."""
    return [leaf["body"]["kl"] for leaf in leaves(tenant, job["id"]) if ".monitor" in leaf["t"]]


def weights(tenant: Tenant, job: dict[str, Any]) -> bytes:
    """Return the weights of a job's adapter."""
    with zipfile.ZipFile(io.BytesIO(tenant.http.get(f"{PATH}/{job['id']}/adapter").content)) as archive:
        return archive.read("adapter_model.safetensors")


def test_generations_go_on_from_each_other_and_are_measured_against_the_base(
    miniature: Tenant, tmp_path: Path
) -> None:
    first = train(miniature, tmp_path, NAME)
    checkpoints = miniature.get(f"{PATH}/{first['id']}/checkpoints")["data"]
    middle = next(each for each in checkpoints if each["step_number"] == 2)["fine_tuned_model_checkpoint"]
    second = train(miniature, tmp_path, first["fine_tuned_model"])
    # A learning rate of next to nothing leaves the weights where the checkpoint has them.
    still = train(miniature, tmp_path, middle, learning_rate=1e-30)
    anchor_kl = [
        miniature.get(f"{PATH}/{job['id']}/steps")["data"][0]["anchor_kl"] for job in (first, second, still)
    ]
    # A fresh adapter is the reference itself; a later generation has drifted from the first step on.
    assert anchor_kl[0] == 0
    assert min(anchor_kl[1:]) > 0
    after_two, after_four = drifts(miniature, first)
    assert drifts(miniature, still) == [after_two] * 2
    assert weights(miniature, second) != weights(miniature, first)
    assert after_four != after_two
    for job, parent in ((second, first), (still, first)):
        report = verify_bundle(tmp_path / f"{job['id']}.zip", parent=tmp_path / f"{parent['id']}.zip")
        assert report.ok, report.lines()
        assert {check.name: check.outcome for check in report.checks}["lineage"] == "ok"
    wrong = verify_bundle(tmp_path / f"{second['id']}.zip", parent=tmp_path / f"{still['id']}.zip")
    assert wrong.exit_code == 26
