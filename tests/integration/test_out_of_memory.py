"""Memory that runs out: answered once by smaller micro-batches, on record, and then the job fails with what to do."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.base_models.service import register_base_model
from app.database import unit_of_work
from app.domain.dataset import format_rows
from app.failpoints import VARIABLE
from app.models.work import Work
from app.safety_sets.service import add_set, store_rows
from tests import warm_worker
from tests.integration.conftest import Tenant, serving
from tests.integration.test_jobs import PATH, leaves
from tests.integration.test_pause import load, messages, run_worker, verify, weights
from tests.support import settings_in
from worker.miniature.corpus import anchor_rows, training_rows
from worker.miniature.install import NAME, WEIGHTS

AFTER_A_CHECKPOINT = "step.before_commit=memory@6"
ALWAYS = "step.before_commit=memory@*"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """A project on a server with the miniature and its anchors."""
    with serving(settings_in(tmp_path_factory.mktemp("memory"), threads=1)) as server:
        rows = store_rows(server.settings, "anchors", io.BytesIO(format_rows(anchor_rows(seed=0))))
        with unit_of_work(server.database) as session:
            base = register_base_model(session, NAME, WEIGHTS)
            session.flush()
            add_set(session, base, "anchors", rows)
        tenant = Tenant(server)
        yield tenant
        tenant.close()


def submit(tenant: Tenant) -> str:
    """Create a job of eight steps in two passes, and return its id."""
    job_id: str = tenant.create_job(
        model=NAME,
        training_file=tenant.upload(*training_rows("clean", n=16)),
        seed=5,
        safety={"method": "none", "anchors": {"per_step": 2}, "monitor": None},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )["id"]
    return job_id


def run_out_of_memory(tenant: Tenant, job_id: str, where: str) -> Work:
    """Do an attempt that lacks memory at a place, and return the row of work."""
    environment = tenant.server.settings.child_environment()
    warm_worker.work(job_id, {**environment, VARIABLE: where}, timeout_s=120)
    return load(tenant, job_id)


def test_job_goes_on_with_smaller_micro_batches_and_ends_as_it_would_have(
    miniature: Tenant, tmp_path: Path
) -> None:
    undisturbed = submit(miniature)
    assert run_worker(miniature, load(miniature, undisturbed)).state == "succeeded"
    job_id = submit(miniature)
    work = run_out_of_memory(miniature, job_id, AFTER_A_CHECKPOINT)
    assert (work.state, work.not_before_ms is not None, work.infrastructure_failures) == ("queued", True, 0)
    assert work.attempts_without_progress == 0
    told = messages(miniature, job_id)[0]
    assert told.startswith("The job goes back to the queue: memory ran out (MemoryError in its process)")
    assert "half the size" in told
    assert run_worker(miniature, load(miniature, job_id)).state == "succeeded"
    verify(miniature, job_id, tmp_path)
    # So short are the rows that each step fits into the smaller micro-batch too: nothing is cut, and no bit differs.
    assert weights(miniature, job_id) == weights(miniature, undisturbed)
    begun = [leaf["body"] for leaf in leaves(miniature, job_id) if leaf["t"].startswith("tether.job.")]
    sizes = [(body["from_step"], body["micro_batch_tokens"]) for body in begun if "from_step" in body]
    assert sizes == [(0, 4096), (4, 2048)]
    told = "\n".join(reversed(messages(miniature, job_id)))
    expected = [
        "A worker takes the job up (attempt 1)",
        "Fine-tuning job started",
        "The job goes back to the queue",
        "A worker takes the job up (attempt 2)",
        "Fine-tuning job resumed from step 4",
        "Training is done after step 8; its adapter is being stored",
        "The adapter is stored; the record of the job is being signed",
        "The job has successfully completed",
    ]
    places = [told.index(each) for each in expected]
    assert places == sorted(places), told


def test_the_references_replies_are_made_again_as_they_were_first_made(
    miniature: Tenant, tmp_path: Path
) -> None:
    job_id = submit(miniature)
    assert run_out_of_memory(miniature, job_id, "reference.before_commit=memory").args["split"] == 2
    environment = miniature.server.settings.child_environment()
    warm_worker.work(job_id, {**environment, VARIABLE: "step.before_commit=EIO@2"}, timeout_s=120)
    assert load(miniature, job_id).args["reply_split"] == 2
    assert run_worker(miniature, load(miniature, job_id)).state == "succeeded"
    verify(miniature, job_id, tmp_path)


def test_job_for_which_memory_runs_out_again_fails_and_says_what_to_do(
    miniature: Tenant, tmp_path: Path
) -> None:
    job_id = submit(miniature)
    assert run_out_of_memory(miniature, job_id, ALWAYS).state == "queued"
    work = run_out_of_memory(miniature, job_id, ALWAYS)
    assert (work.state, work.attempt) == ("failed", 2)
    error = miniature.get(f"{PATH}/{job_id}")["error"]
    assert error["code"] == "out_of_memory"
    for remedy in ("training.max_seq_length", "batch_size", "a smaller model"):
        assert remedy in error["message"]
    verify(miniature, job_id, tmp_path)
