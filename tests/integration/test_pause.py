"""Pausing and resuming jobs: what the API says, what the reconciler does, and that no bit of the result changes."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.base_models.service import register_base_model
from app.database import read_only, unit_of_work
from app.domain.canary import Canary
from app.domain.dataset import format_rows
from app.domain.training_spec import TrainingSpec
from app.domain.verify import verify_bundle
from app.files.service import RESULTS
from app.models.base import utc_now
from app.models.file import File
from app.models.job import Job
from app.models.work import Work
from app.reconciler import reconcile
from app.safety_sets.service import add_set, store_rows
from app.storage import store_stream
from app.work import repository
from app.work.service import ask_for_pause, postpone, release
from tests.integration.conftest import Tenant, jsonl, refused, run_worker, serving, unlike_any_other
from tests.integration.test_jobs import PATH, kinds, leaves, set_work
from tests.support import settings_in
from worker.context import Cancelled, Context
from worker.journal import Journal
from worker.lease import Lease
from worker.miniature.corpus import anchor_rows, training_rows
from worker.miniature.install import NAME, WEIGHTS
from worker.publisher import StoredAdapter, publish


def pause(tenant: Tenant, job_id: str) -> dict[str, Any]:
    """Pause a job, without a body, as the client does it, and return its object."""
    return _post(tenant, job_id, "pause")


def resume(tenant: Tenant, job_id: str) -> dict[str, Any]:
    """Resume a job likewise."""
    return _post(tenant, job_id, "resume")


def _post(tenant: Tenant, job_id: str, action: str) -> dict[str, Any]:
    headers = {"content-type": "application/json", "content-length": "0"}
    reply = tenant.http.post(f"{PATH}/{job_id}/{action}", headers=headers)
    assert reply.status_code == 200, reply.text
    job: dict[str, Any] = reply.json()
    return job


def state_of(tenant: Tenant, job_id: str) -> str:
    """Return the internal state of a job."""
    state: str = tenant.get(f"{PATH}/{job_id}")["safety"]["state"]
    return state


def load(tenant: Tenant, job_id: str) -> Work:
    """Return the row of work."""
    with read_only(tenant.server.database) as session:
        return session.get_one(Work, job_id)


def claim(tenant: Tenant, job_id: str, *, state: str = "running") -> Work:
    """Own a job as a worker does, up to this state."""
    with unit_of_work(tenant.server.database) as session:
        claimed = repository.claim(session, job_id, owner="someone", lease_ms=60_000)
        assert claimed is not None
    set_work(tenant, job_id, state=state)
    return load(tenant, job_id)


def let_lease_expire(tenant: Tenant, job_id: str) -> None:
    """Let the reconciler find a job whose owner fell silent."""
    set_work(tenant, job_id, lease_until_ms=1)
    reconcile(tenant.server.database, tenant.server.settings)


def commands(tenant: Tenant, job_id: str) -> list[tuple[str, str]]:
    """Return what the record says of commands: each with its actor."""
    found = [leaf["body"] for leaf in leaves(tenant, job_id) if leaf["t"] == "tether.cmd/1"]
    return [(body["command"], body["actor"]) for body in found]


def messages(tenant: Tenant, job_id: str) -> list[str]:
    """Return the events of a job, newest first."""
    return [event["message"] for event in tenant.get(f"{PATH}/{job_id}/events", limit=100)["data"]]


def verify(tenant: Tenant, job_id: str, folder: Path) -> None:
    """Check the record of a job as a stranger would."""
    bundle = folder / "evidence.zip"
    bundle.write_bytes(tenant.http.get(f"{PATH}/{job_id}/evidence").content)
    report = verify_bundle(bundle)
    assert report.ok, report.lines()


class TestQueuedJob:
    def test_is_paused_at_once_and_goes_back_to_the_queue(self, tenant: Tenant, tmp_path: Path) -> None:
        job_id = tenant.create_job()["id"]
        paused = pause(tenant, job_id)
        assert (paused["status"], paused["safety"]["state"], paused["safety"]["pause_reason"]) == (
            "paused",
            "paused",
            None,
        )
        assert messages(tenant, job_id)[0] == "The job is paused after step 0"
        with unit_of_work(tenant.server.database) as session:
            assert repository.claim(session, job_id, owner="someone", lease_ms=1) is None
        reconcile(tenant.server.database, tenant.server.settings)
        assert state_of(tenant, job_id) == "paused"
        assert resume(tenant, job_id)["status"] == "queued"
        assert messages(tenant, job_id)[0] == "The job was resumed and is queued"
        (by,) = {actor for _, actor in commands(tenant, job_id)}
        assert commands(tenant, job_id) == [("pause", by), ("resume", by)]
        assert by.startswith("key_")
        verify(tenant, job_id, tmp_path)
        assert claim(tenant, job_id).epoch == 3

    def test_openais_client_pauses_and_resumes(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        assert str(tenant.openai.fine_tuning.jobs.pause(job_id).status) == "paused"
        assert tenant.openai.fine_tuning.jobs.resume(job_id).status == "queued"

    def test_asking_twice_changes_nothing(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        assert resume(tenant, job_id)["status"] == "queued"
        for action, status in ((pause, "paused"), (resume, "queued")):
            assert [action(tenant, job_id)["status"] for _ in range(2)] == [status] * 2
        assert kinds(tenant, job_id) == ["job.created", "cmd", "cmd"]

    def test_paused_job_can_be_cancelled(self, tenant: Tenant, tmp_path: Path) -> None:
        job_id = tenant.create_job()["id"]
        pause(tenant, job_id)
        assert tenant.openai.fine_tuning.jobs.cancel(job_id).status == "cancelled"
        assert [command for command, _ in commands(tenant, job_id)] == ["pause", "cancel"]
        verify(tenant, job_id, tmp_path)

    def test_wish_that_came_while_the_job_changed_hands_is_obeyed(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        with unit_of_work(tenant.server.database) as session:
            ask_for_pause(session, session.get_one(Work, job_id), by="key_1")
        reconcile(tenant.server.database, tenant.server.settings)
        assert state_of(tenant, job_id) == "paused"


class TestValidatingJob:
    def test_pauses_once_its_files_are_good(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=200)
        big = tenant.post_file(jsonl(*(unlike_any_other() for _ in range(9)))).json()["id"]
        job_id = tenant.create_job(training_file=big)["id"]
        assert pause(tenant, job_id)["status"] == "validating_files"
        run_worker(tenant, tenant.work_of_file(big))
        # One round of repairs finds the file good and queues the job, the next obeys.
        for _ in range(2):
            reconcile(tenant.server.database, tenant.server.settings)
        assert state_of(tenant, job_id) == "paused"


class TestOwnedJob:
    @pytest.mark.parametrize("state", ["starting", "running"])
    def test_its_owner_is_asked(self, tenant: Tenant, state: str) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id, state=state)
        asked = pause(tenant, job_id)
        assert (asked["status"], asked["safety"]["state"]) == ("running", state)
        assert load(tenant, job_id).desired == "pause"
        # Only the owner writes the record.
        assert kinds(tenant, job_id) == ["job.created"]
        assert messages(tenant, job_id)[0].startswith("Pause requested")

    @pytest.mark.parametrize("state", ["starting", "running", "pausing"])
    def test_owner_that_fell_silent_leaves_it_paused(
        self, tenant: Tenant, state: str, tmp_path: Path
    ) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id, state="running" if state == "pausing" else state)
        pause(tenant, job_id)
        set_work(tenant, job_id, state=state)
        let_lease_expire(tenant, job_id)
        assert state_of(tenant, job_id) == "paused"
        assert [command for command, _ in commands(tenant, job_id)] == ["pause"]
        verify(tenant, job_id, tmp_path)
        assert resume(tenant, job_id)["status"] == "queued"

    def test_failing_surroundings_leave_it_paused(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id)
        pause(tenant, job_id)
        with unit_of_work(tenant.server.database) as session:
            postpone(session, tenant.server.settings, session.get_one(Work, job_id), reason="a full disk")
        assert state_of(tenant, job_id) == "paused"

    def test_pause_that_has_not_begun_is_taken_back(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id)
        pause(tenant, job_id)
        assert resume(tenant, job_id)["safety"]["state"] == "running"
        assert load(tenant, job_id).desired == "run"
        let_lease_expire(tenant, job_id)
        assert state_of(tenant, job_id) == "queued"
        assert commands(tenant, job_id) == []

    @pytest.mark.parametrize("by_itself", [False, True])
    def test_pause_that_has_begun_is_on_record_though_the_job_goes_on(
        self, tenant: Tenant, by_itself: bool, tmp_path: Path
    ) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id)
        if by_itself:
            with unit_of_work(tenant.server.database) as session:
                ask_for_pause(session, session.get_one(Work, job_id), by="monitor", reason="too much")
        else:
            pause(tenant, job_id)
            set_work(tenant, job_id, state="pausing")
        resume(tenant, job_id)
        with unit_of_work(tenant.server.database) as session:
            release(session, tenant.server.settings, session.get_one(Work, job_id), reason="given back")
        assert state_of(tenant, job_id) == "queued"
        assert [command for command, _ in commands(tenant, job_id)] == ["pause", "resume"]
        verify(tenant, job_id, tmp_path)

    def test_job_that_pauses_itself_says_why(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id)
        with unit_of_work(tenant.server.database) as session:
            work = session.get_one(Work, job_id)
            ask_for_pause(session, work, by="monitor", reason="it drifted")
            release(session, tenant.server.settings, work, reason="given back")
        job = tenant.get(f"{PATH}/{job_id}")
        assert (job["status"], job["safety"]["pause_reason"]) == ("paused", "it drifted")
        assert messages(tenant, job_id)[0] == "The job is paused after step 0: it drifted"
        assert commands(tenant, job_id) == [("pause", "monitor")]
        assert resume(tenant, job_id)["safety"]["pause_reason"] is None


class TestRefusals:
    @pytest.mark.parametrize("action", ["pause", "resume"])
    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_ended_job_is_a_conflict(self, tenant: Tenant, action: str, state: str) -> None:
        job_id = tenant.create_job()["id"]
        set_work(tenant, job_id, state=state)
        reply = tenant.http.post(f"{PATH}/{job_id}/{action}")
        assert state in refused(reply, 409, code="job_ended")
        assert load(tenant, job_id).desired == "run"

    @pytest.mark.parametrize("action", ["pause", "resume"])
    def test_cancellation_is_not_taken_back(self, tenant: Tenant, action: str) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id)
        tenant.openai.fine_tuning.jobs.cancel(job_id)
        reply = tenant.http.post(f"{PATH}/{job_id}/{action}")
        assert "is being cancelled" in refused(reply, 409, code="job_cancelling")
        let_lease_expire(tenant, job_id)
        assert state_of(tenant, job_id) == "cancelled"

    def test_job_that_is_being_published_ends_by_itself(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        claim(tenant, job_id, state="finalising")
        reply = tenant.http.post(f"{PATH}/{job_id}/pause")
        assert "ends by itself" in refused(reply, 409, code="job_finalising")
        assert load(tenant, job_id).desired == "run"

    def test_cancellation_that_comes_while_it_is_published_is_kept(self, tenant: Tenant) -> None:
        database, settings = tenant.server.database, tenant.server.settings
        job_id = tenant.create_job()["id"]
        context = Context(
            database, settings, Lease(database, settings, claim(tenant, job_id, state="finalising"))
        )
        with read_only(database) as session:
            spec = TrainingSpec.model_validate(session.get_one(Job, job_id).spec)
        journal = Journal(context, spec, critic_sha256=None, policy_sha256="0" * 64)
        stored = store_stream(settings.storage, io.BytesIO(b"an adapter"))
        base = {"name": NAME, "revision": None, "sha256": "0" * 64}
        canary = Canary((1,), (2,), (-1.0,), (-2.0,))
        adapter = StoredAdapter(stored, {"adapter_model.safetensors": "0" * 64}, base, canary)
        assert tenant.openai.fine_tuning.jobs.cancel(job_id).status == "running"
        with pytest.raises(Cancelled):
            publish(context, journal, adapter, compute={})
        let_lease_expire(tenant, job_id)
        job = tenant.get(f"{PATH}/{job_id}")
        assert (job["status"], job["fine_tuned_model"], job["result_files"]) == ("cancelled", None, [])
        # What was stored for it is let go as the bytes of deleted files are.
        with read_only(database) as session:
            left = session.scalars(
                select(File).where(File.project_id == tenant.project_id, File.purpose == RESULTS)
            )
            assert sorted((each.filename, each.deleted_at is not None) for each in left) == [
                ("adapter.zip", True),
                ("metrics.csv", True),
            ]

    @pytest.mark.parametrize("action", ["pause", "resume"])
    def test_job_of_another_project_is_unknown(self, tenant: Tenant, stranger: Tenant, action: str) -> None:
        job_id = tenant.create_job()["id"]
        reply = stranger.http.post(f"{PATH}/{job_id}/{action}")
        refused(reply, 404, param="fine_tuning_job_id")
        assert state_of(tenant, job_id) == "queued"


# --- real runs on the miniature ---------------------------------------------------------------------------


EVERY = 4
STEPS = 8


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """A project on a server with the miniature and its anchors."""
    settings = settings_in(tmp_path_factory.mktemp("paused"), threads=1, heartbeat_s=0.2)
    with serving(settings) as server:
        rows = store_rows(settings, "anchors", io.BytesIO(format_rows(anchor_rows(seed=0))))
        with unit_of_work(server.database) as session:
            base = register_base_model(session, NAME, WEIGHTS)
            session.flush()
            add_set(session, base, "anchors", rows)
        tenant = Tenant(server)
        yield tenant
        tenant.close()


def submit(tenant: Tenant, action: str) -> str:
    """Create a job whose drift is beyond its monitor's limit from the first step on."""
    monitor = {"every": EVERY, "limit": 1e-9, "action": action}
    job_id: str = tenant.create_job(
        model=NAME,
        training_file=tenant.upload(*training_rows("clean", n=16)),
        seed=5,
        safety={"method": "none", "anchors": {"per_step": 2}, "monitor": monitor},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )["id"]
    return job_id


def weights(tenant: Tenant, job_id: str) -> bytes:
    """Return the weights of a job's adapter."""
    with zipfile.ZipFile(io.BytesIO(tenant.http.get(f"{PATH}/{job_id}/adapter").content)) as archive:
        return archive.read("adapter_model.safetensors")


def test_job_that_its_monitor_pauses_ends_with_the_same_adapter(miniature: Tenant, tmp_path: Path) -> None:
    undisturbed = submit(miniature, "warn")
    assert run_worker(miniature, load(miniature, undisturbed)).state == "succeeded"
    job_id = submit(miniature, "pause")
    file_id = miniature.get(f"{PATH}/{job_id}")["training_file"]
    # The limit counts again from the next measurement; the last is after the last step, before the release.
    for step in range(EVERY, STEPS + 1, EVERY):
        work = run_worker(miniature, load(miniature, job_id))
        job = miniature.get(f"{PATH}/{job_id}")
        assert (work.state, job["training"]["steps_completed"]) == ("paused", step)
        assert f"after step {step} the model has drifted" in job["safety"]["pause_reason"]
        assert (work.attempts_without_progress, job["estimated_finish"], job["result_files"]) == (0, None, [])
        verify(miniature, job_id, tmp_path)
        # A job that has begun does not lose its file.
        with unit_of_work(miniature.server.database) as session:
            session.get_one(File, file_id).expires_at = utc_now()
        reconcile(miniature.server.database, miniature.server.settings)
        resume(miniature, job_id)
    assert run_worker(miniature, load(miniature, job_id)).state == "succeeded"
    verify(miniature, job_id, tmp_path)
    assert weights(miniature, job_id) == weights(miniature, undisturbed)
    resumes = [leaf["body"]["from_step"] for leaf in leaves(miniature, job_id) if ".resume" in leaf["t"]]
    assert resumes == [4, 8]
