"""Fault 16: two of every part of the desk, and a notary that is killed between its file and the database."""

import random
import signal
from pathlib import Path

import pytest

from app.database import read_only
from app.notary import keyfile, repository
from tests.faults.checks import end_check
from tests.faults.installation import Installation, Template, desk, installed, join, reference_run

TWICE = ("api", *("reconciler", "releases", "notary", "webhooks") * 2)


def test_two_of_each_do_nothing_twice(template: Template, tmp_path: Path, rng: random.Random) -> None:
    reference = reference_run(template, tmp_path)
    with installed(template, tmp_path) as installation, desk(installation, TWICE):
        jobs = [installation.submit() for _ in range(2)]
        cancelled = installation.submit()
        assert installation.command(cancelled, "cancel").status_code == 200
        while any(installation.work(job_id).state == "queued" for job_id in jobs):
            # Nobody gives back what it had: both reconcilers see the lease run out.
            trainer = installation.start_trainer(
                f"step.before_commit=kill@{rng.randint(2, 19)}, once={tmp_path}"
            )
            join(trainer, installation)
            installation.wait(lambda: not _owned(installation, jobs), "a takeover")
        for job_id in jobs:
            installation.finish(job_id)
            end_check(installation, job_id, reference=reference)
        end_check(installation, cancelled, states=["cancelled"])
        assert sum(installation.work(job_id).attempt for job_id in jobs) > len(jobs)
        assert is_one_log(installation)


@pytest.mark.parametrize("place", ["notary.before_file", "notary.after_file"])
def test_a_notary_killed_around_its_file_goes_on(template: Template, tmp_path: Path, place: str) -> None:
    """Whichever of file and database is ahead, the next notary signs what the log has, and refuses nothing."""
    reference = reference_run(template, tmp_path)
    without = ("api", "reconciler", "releases")
    with installed(template, tmp_path) as installation, desk(installation, without):
        job_id = installation.submit()
        for _ in range(2):
            notary = installation.start_part("notary", failpoints=f"{place}=kill")
            # The first may be killed at the head of a running job already, the second at that of its end at the latest.
            installation.finish(job_id, until=frozenset({"signing"}))
            assert notary.wait(60) == -signal.SIGKILL, installation.read_log()
        another = installation.start_part("notary")
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)
        assert is_one_log(installation)
        assert another.poll() is None, installation.read_log()
        assert "refuse" not in installation.read_log()


def _owned(installation: Installation, jobs: list[str]) -> bool:
    return any(installation.work(job_id).owner is not None for job_id in jobs)


def is_one_log(installation: Installation) -> bool:
    """Say whether the notary's file and the database name the same log, none of which was refused."""
    last = keyfile.load_last(installation.settings.notary_dir)
    with read_only(installation.database) as session:
        log, refusal = repository.get_log(session), repository.get_refusal(session)
    return last is not None and log is not None and log.origin == last.origin and refusal is None
