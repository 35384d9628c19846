"""Faults 3 and 4: a worker that stands still for longer than its lease, and comes back; and one that hangs in a step."""

from pathlib import Path

import pytest

from tests.faults.checks import end_check
from tests.faults.installation import (
    SHORT_LEASE,
    Installation,
    join,
    let_go_on,
    let_stop,
    on_postgresql,
    on_sqlite,
)

PLACES = (
    ("sqlite", "begin.after_commit"),
    ("sqlite", "step.after_commit"),
    ("postgresql", "step.after_commit"),
    ("sqlite", "checkpoint.before_rename"),
    ("postgresql", "finalise.after_commit"),
)
"""Which it is asked on which database; each of the places is in `test_trainer_kills.py` on both."""


@pytest.mark.short
@on_sqlite
def test_a_worker_that_comes_back_after_its_lease_is_fenced_and_exits(
    installation: Installation, reference: bytes
) -> None:
    job_id = installation.submit()
    zombie = installation.start_trainer("step.after_commit=stop@12", **SHORT_LEASE)
    let_stop(installation, zombie)
    installation.wait(lambda: installation.work(job_id).epoch > 1, "a takeover")
    another = installation.start_trainer("step.after_commit=sleep:3@4")
    installation.wait(lambda: installation.kinds(job_id).count("job.resume") == 1, "another owner")
    let_go_on(zombie)
    assert join(zombie, installation) != 0
    # Whichever of its threads notices first.
    fenced = ("no longer owned under epoch 1", f"the lease of {job_id} ran out; exiting")
    assert any(each in installation.read_log() for each in fenced)
    assert join(another, installation) == 0
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


@pytest.mark.parametrize(("template", "place"), PLACES, indirect=["template"])
def test_a_worker_that_comes_back_after_the_end_of_its_job_changes_nothing(
    installation: Installation, reference: bytes, place: str
) -> None:
    job_id = installation.submit()
    zombie = installation.start_trainer(f"{place}=stop", **SHORT_LEASE)
    let_stop(installation, zombie)
    installation.wait(lambda: installation.work(job_id).epoch > 1, "a takeover")
    installation.finish(job_id)
    before = installation.leaves(job_id)
    let_go_on(zombie)
    assert join(zombie, installation) != 0
    assert installation.leaves(job_id) == before
    end_check(installation, job_id, reference=reference)


@pytest.mark.parametrize(
    ("template", "place"),
    [
        ("sqlite", "step.after_commit"),
        ("sqlite", "step.before_commit"),
        ("postgresql", "step.before_commit"),
    ],
    indirect=["template"],
)
def test_a_worker_that_hangs_in_a_step_exits_and_its_job_goes_on(
    installation: Installation, reference: bytes, place: str
) -> None:
    """Outside of a transaction, and inside of one that keeps the job's row from everybody else."""
    job_id = installation.submit()
    # Within a transaction it cannot renew its lease, which is to outlast the watch over its steps.
    code = installation.run_trainer(f"{place}=hang@12", stall_s=8, lease_s=60)
    assert code == 70, installation.read_log()
    assert "has got nowhere for" in installation.read_log()
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


def test_a_process_that_stands_still_inside_a_transaction_is_killed_by_its_worker(
    installation: Installation, reference: bytes, tmp_path: Path
) -> None:
    """On SQLite nobody else can write meanwhile, on PostgreSQL nobody can touch the job: not even to take it over."""
    once = tmp_path / "once"
    once.mkdir()
    job_id = installation.submit()
    installation.start_part("worker", failpoints=f"step.before_commit=stop@12, once={once}", lease_s=5)
    installation.wait_for_success(job_id)
    assert [path.name for path in once.iterdir()] == ["step.before_commit"]
    assert "has lost its work and does not end; killing it" in installation.read_log()
    end_check(installation, job_id, reference=reference)


@on_postgresql
def test_a_worker_that_stands_still_inside_a_transaction_does_not_keep_its_job(
    installation: Installation, reference: bytes
) -> None:
    job_id = installation.submit()
    # Its machine may be gone, so that nobody kills it; the server waits two minutes unless it is told otherwise.
    impatient = f"{installation.settings.database_url}?options=-cidle_in_transaction_session_timeout%3D3000"
    zombie = installation.start_trainer("step.before_commit=stop@12", **SHORT_LEASE, database_url=impatient)
    let_stop(installation, zombie)
    installation.wait(lambda: installation.work(job_id).epoch > 1, "a takeover")
    installation.finish(job_id)
    let_go_on(zombie)
    assert join(zombie, installation) != 0
    end_check(installation, job_id, reference=reference)
