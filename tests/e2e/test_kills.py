"""What a killed process costs: nothing that was recorded, and no more steps than since the last checkpoint."""

import io
import json
import os
import signal
import zipfile
from pathlib import Path

import pytest

from app.domain.report import Report
from app.domain.verify import verify_bundle
from tests.e2e.conftest import Service, needs_processes, on_deployed, processes, steps_completed

pytestmark = [needs_processes, on_deployed]

ARGUMENTS = {
    "seed": 11,
    "safety": {"method": "adaptive_kl"},
    "training": {"checkpoint_interval_s": 0.2},
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6}}},
}


@pytest.fixture(scope="module")
def training_file(service: Service, datasets: dict[str, Path]) -> str:
    return service.upload(datasets["poisoned"])


@pytest.fixture(scope="module")
def undisturbed(service: Service, training_file: str) -> dict[str, bytes]:
    """The adapter of a run that nothing happened to."""
    job = service.wait(service.submit(training_file, **ARGUMENTS))
    assert job.status == "succeeded", service.log()
    return weights_of(service, job.id)


def weights_of(service: Service, job_id: str) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(service.fetch(f"{job_id}/adapter").content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def verify(service: Service, job_id: str, folder: Path) -> Report:
    evidence, adapter = folder / "evidence.zip", folder / "adapter.zip"
    evidence.write_bytes(service.fetch(f"{job_id}/evidence").content)
    adapter.write_bytes(service.fetch(f"{job_id}/adapter").content)
    return verify_bundle(evidence, adapter=adapter)


def resumes(folder: Path) -> list[int]:
    """Return the step from which each attempt after the first went on."""
    with zipfile.ZipFile(folder / "evidence.zip") as archive:
        records = [json.loads(line) for line in archive.read("leaves.jsonl").splitlines()]
    return [record["body"]["from_step"] for record in records if record["t"] == "tether.job.resume/2"]


def is_under_way(service: Service, job_id: str) -> bool:
    job = service.wait(job_id, until=lambda job: 12 <= steps_completed(job) <= 40)
    return job.status == "running"


def check_outcome(service: Service, job_id: str, undisturbed: dict[str, bytes], folder: Path) -> None:
    job = service.wait(job_id)
    assert job.status == "succeeded", service.log()
    report = verify(service, job_id, folder)
    assert report.ok, report.lines()
    assert len(resumes(folder)) == 1
    assert resumes(folder)[0] > 0, "the job began anew instead of resuming"
    assert weights_of(service, job_id) == undisturbed
    assert (job.model_extra or {})["safety"]["attempts"] == 2


def test_a_killed_trainer_is_resumed_and_ends_with_the_same_adapter(
    service: Service, training_file: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job_id = service.submit(training_file, **ARGUMENTS)
    assert is_under_way(service, job_id)
    (worker,) = processes("worker.celery_app", "gpu", str(service.process.pid))
    (trainer,) = processes("worker.process", "gpu", str(worker))
    os.kill(trainer, signal.SIGKILL)
    check_outcome(service, job_id, undisturbed, tmp_path)


def test_a_killed_worker_takes_its_trainer_along_and_the_job_is_resumed(
    service: Service, training_file: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job_id = service.submit(training_file, **ARGUMENTS)
    assert is_under_way(service, job_id)
    (worker,) = processes("worker.celery_app", "gpu", str(service.process.pid))
    (trainer,) = processes("worker.process", "gpu", str(worker))
    os.kill(worker, signal.SIGKILL)
    check_outcome(service, job_id, undisturbed, tmp_path)
    assert trainer not in processes("worker.process")


def test_a_worker_that_is_told_to_stop_gives_its_job_back_with_a_checkpoint(
    service: Service, training_file: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job_id = service.submit(training_file, **ARGUMENTS)
    assert is_under_way(service, job_id)
    (worker,) = processes("worker.celery_app", "gpu", str(service.process.pid))
    os.kill(worker, signal.SIGTERM)
    check_outcome(service, job_id, undisturbed, tmp_path)


def test_a_job_that_is_paused_and_resumed_ends_with_the_same_adapter(
    service: Service, training_file: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job_id = service.submit(training_file, **ARGUMENTS)
    assert is_under_way(service, job_id)
    asked = service.client.fine_tuning.jobs.pause(job_id)
    job = service.wait(job_id, until=lambda job: str(job.status) == "paused")
    # One step may have begun before the pause was committed, and one more before it was read.
    assert steps_completed(job) <= steps_completed(asked) + 2
    service.client.fine_tuning.jobs.resume(job_id)
    check_outcome(service, job_id, undisturbed, tmp_path)
    assert resumes(tmp_path) == [steps_completed(job)]


def test_a_running_job_is_cancelled_at_the_next_step(
    service: Service, training_file: str, tmp_path: Path
) -> None:
    job_id = service.submit(training_file, **ARGUMENTS)
    assert is_under_way(service, job_id)
    cancelled = service.client.fine_tuning.jobs.cancel(job_id)
    job = service.wait(job_id)
    # One step may have begun before the cancellation was committed, and one more before it was read.
    assert steps_completed(job) <= steps_completed(cancelled) + 2
    assert job.status == "cancelled"
    assert job.fine_tuned_model is None
    evidence = tmp_path / "evidence.zip"
    evidence.write_bytes(service.fetch(f"{job_id}/evidence").content)
    report = verify_bundle(evidence)
    assert report.ok, report.lines()
    assert report.state == "cancelled"
