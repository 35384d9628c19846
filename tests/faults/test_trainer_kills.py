"""Fault 1: the process that trains is killed, at any moment and at every place where that could matter."""

import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.checks import check_record, end_check
from tests.faults.installation import (
    EVERY_STEP,
    SLOWLY,
    WHOLE,
    Installation,
    Template,
    desk,
    epochs,
    installed,
    on_sqlite,
    reference_run,
)

# A job comes by these in this order, and some of them often.
OF_A_TRAINING = (
    "claim.before_commit",
    "claim.after_commit",
    "begin.before_commit",
    "begin.after_commit",
    "reference.before_commit",
    "reference.after_commit",
    "step.before_commit",
    "step.after_commit",
    "checkpoint.before_write",
    "checkpoint.after_file",
    "checkpoint.before_folder_sync",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "checkpoint.before_commit",
    "checkpoint.after_commit",
    "storage.before_write",
    "storage.before_rename",
    "storage.after_write",
    "finalise.before_commit",
    "finalise.after_commit",
    "publish.before_commit",
    "publish.after_commit",
)
OF_A_PAUSE = ("pause.before_commit", "pause.after_commit", "release.before_commit")
OFTEN = {"step.before_commit": 9, "step.after_commit": 9, "checkpoint.after_file": 6}
"""How often an attempt comes by at least, before anything else that is armed strikes."""
LONG = {**WHOLE, **EVERY_STEP, **epochs(3)}
"""A job that comes by all of them, whatever a machine does in how much time."""


@pytest.fixture
def reference(template: Template, tmp_path: Path) -> bytes:
    """The adapter of the default job when nothing happens to it."""
    return reference_run(template, tmp_path, **WHOLE)


@pytest.mark.short
@on_sqlite
def test_a_trainer_killed_at_a_random_moment_costs_nothing_that_was_recorded(
    installation: Installation, reference: bytes, rng: random.Random
) -> None:
    job_id = installation.submit(**WHOLE)
    trainer = installation.start_trainer(SLOWLY)
    installation.wait_for_step(job_id, rng.randint(1, 15))
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join()
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)
    assert installation.work(job_id).attempt == 2


def test_a_job_survives_a_kill_at_every_place(template: Template, tmp_path: Path, rng: random.Random) -> None:
    """At all of them on SQLite, and on PostgreSQL at half of them, by chance."""
    struck_by_chance = rng.sample(OF_A_TRAINING, len(OF_A_TRAINING) // 2)
    places = [each for each in OF_A_TRAINING if template.backend == "sqlite" or each in struck_by_chance]
    reference = reference_run(template, tmp_path, **LONG)
    struck = tmp_path / "struck"
    struck.mkdir()
    # Such a row of kills is no poison, and need not wait as such; that budget is another test's.
    settings = {"max_attempts_without_progress": 1000, "requeue_after_s": 0.05}
    with installed(template, tmp_path, **settings) as installation, desk(installation):
        job_id = installation.submit(**LONG)
        for place in places:
            nth = rng.randint(1, OFTEN.get(place, 1))
            # One at a time, so that an attempt gets far enough to come by it.
            code = installation.run_trainer(f"{place}=kill@{nth}, once={struck}")
            assert code == -signal.SIGKILL, f"{place}@{nth}: {code}; log:\n{installation.read_log()}"
            if installation.kinds(job_id):
                check_record(installation.leaves(job_id), ended=place == "publish.after_commit")
        assert {path.name for path in struck.iterdir()} == set(places)
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)


@pytest.mark.parametrize("place", OF_A_PAUSE)
@on_sqlite
def test_a_trainer_killed_while_it_pauses_leaves_the_job_paused(
    installation: Installation, reference: bytes, place: str
) -> None:
    job_id = installation.submit(**WHOLE)
    # It waits a moment after a step, so that the pause is there before the training has ended.
    trainer = installation.start_trainer(f"step.after_commit=sleep:1@12, {place}=kill")
    installation.wait_for_step(job_id, 12)
    assert installation.command(job_id, "pause").status_code == 200
    trainer.join()
    assert trainer.exitcode == -signal.SIGKILL, installation.read_log()
    installation.wait(lambda: installation.work(job_id).state == "paused", "a paused job")
    end_check(installation, job_id, states=["paused"])
    assert installation.command(job_id, "resume").status_code == 200
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


def test_a_trainer_killed_while_its_job_is_cancelled_leaves_it_cancelled(installation: Installation) -> None:
    job_id = installation.submit(**WHOLE)
    trainer = installation.start_trainer("step.after_commit=sleep:1@12, end.before_commit=kill")
    installation.wait_for_step(job_id, 12)
    assert installation.command(job_id, "cancel").status_code == 200
    trainer.join()
    assert trainer.exitcode == -signal.SIGKILL, installation.read_log()
    installation.wait(lambda: installation.work(job_id).state == "cancelled", "a cancelled job")
    end_check(installation, job_id, states=["cancelled"])
