"""Fault 7: PostgreSQL is lost under a running job, and a replica that had not heard of everything takes its place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.checks import end_check, is_signed
from tests.faults.installation import (
    EVERY_STEP,
    JOBS,
    Installation,
    Template,
    desk,
    installed,
    join,
    let_go_on,
    let_stop,
    move_template,
    reference_run,
)
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.servers import PostgreSQL, postgresql, replica_of

HEARD_STEPS = 4
"""So many steps the replica knows of; of each there is a checkpoint, and the newest two are kept."""


@dataclass
class Pair:
    """An installation on a server that has a replica."""

    installation: Installation
    primary: PostgreSQL
    replica: PostgreSQL
    line: Proxy
    """Between the two."""

    def fall_behind(self) -> None:
        """Wait until the replica knows everything, and let it hear no more."""
        with (
            psycopg.connect(self.primary.url(), autocommit=True) as primary,
            psycopg.connect(self.replica.url(), autocommit=True) as replica,
        ):
            # Steps are committed without waiting for the disk: what is written may be less than what is committed.
            (everything,) = primary.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            has_heard = "SELECT 1 WHERE pg_last_wal_replay_lsn() >= %s::pg_lsn"
            self.installation.wait(
                lambda: replica.execute(has_heard, (everything,)).fetchone(), f"a replica at {everything}"
            )
        self.line.stall()

    def fail_over(self) -> None:
        """Lose the primary, and put the replica in its place."""
        self.primary.stop("immediate")
        self.line.cut()
        # What is in the pool leads to the one that is gone.
        self.installation.database.engine.dispose()
        self.replica.take_over(self.primary.port)


@contextmanager
def paired(sqlite_template: Template, folder: Path, **settings: Any) -> Iterator[Pair]:
    """Give a copy of the template with its whole desk, on a server that has a replica; each of them is new."""
    with (
        postgresql() as primary,
        proxy_to(primary.port) as line,
        replica_of(primary, port=line.port) as replica,
        installed(move_template(sqlite_template, primary), folder, **settings) as installation,
        desk(installation),
    ):
        yield Pair(installation, primary, replica, line)


def train_to(installation: Installation, job_id: str, trainer: BaseProcess, step: int) -> None:
    """Let a trainer that stops in every step go on until so many are recorded."""
    let_stop(installation, trainer)
    while installation.kinds(job_id).count("step") < step:
        let_go_on(trainer)
        let_stop(installation, trainer)


@pytest.mark.parametrize(
    ("place", "lost_steps", "state"),
    [
        # What the trainer does next, when it is back: it records a checkpoint, or a step.
        ("step.after_commit", 1, "succeeded"),
        ("checkpoint.after_commit", 1, "succeeded"),
        ("step.after_commit", 5, "failed"),
    ],
)
def test_records_that_the_replica_never_heard_of_are_done_again_or_the_job_says_why_not(
    sqlite_template: Template, tmp_path: Path, place: str, lost_steps: int, state: str
) -> None:
    """Nothing that was lost was signed. The trainer comes back with more records than the database has, and adds none."""
    reference = reference_run(sqlite_template, tmp_path)
    with paired(sqlite_template, tmp_path, head_interval_s=3600) as pair:
        installation = pair.installation
        job_id = installation.submit(**EVERY_STEP)
        trainer = installation.start_trainer(f"{place}=stop@*", lease_s=20)
        train_to(installation, job_id, trainer, HEARD_STEPS)
        pair.fall_behind()
        heard = installation.leaves(job_id)
        train_to(installation, job_id, trainer, HEARD_STEPS + lost_steps)
        assert len(installation.leaves(job_id)) > len(heard)
        pair.fail_over()
        assert installation.leaves(job_id) == heard
        let_go_on(trainer)
        assert join(trainer, installation) != 0
        assert installation.finish(job_id) == state, installation.read_log()
        assert installation.leaves(job_id)[: len(heard)] == heard
        end_check(installation, job_id, reference=reference if state == "succeeded" else None, states=[state])
        if state == "failed":
            # The checkpoints that this database knows of made room for those of steps that it does not know of.
            assert installation.job(job_id)["error"]["code"] == "checkpoint_lost"


def test_a_replica_that_lacks_what_was_signed_is_not_signed_over(
    sqlite_template: Template, tmp_path: Path
) -> None:
    reference = reference_run(sqlite_template, tmp_path)
    with paired(sqlite_template, tmp_path) as pair:
        installation = pair.installation
        job_id = installation.submit(**EVERY_STEP)
        trainer = installation.start_trainer("step.after_commit=stop@*", lease_s=20)
        train_to(installation, job_id, trainer, HEARD_STEPS)
        pair.fall_behind()
        train_to(installation, job_id, trainer, HEARD_STEPS + 1)
        installation.wait(lambda: is_signed(installation, job_id), "a signature over what the replica lacks")
        pair.fail_over()
        let_go_on(trainer)
        assert join(trainer, installation) != 0
        assert installation.finish(job_id, until=frozenset({"signing"})) == "signing"

        def waits_for() -> str:
            return installation.job(job_id)["safety"]["waits_for"] or ""

        installation.wait(lambda: "the notary refuses to sign since" in waits_for(), "why it waits")
        # A table would break the sentence where it is too long for a line.
        assert installation.start_part("doctor", "--json").wait(600) == 1
        assert "It was rolled back or changed" in installation.read_log()
        assert installation.request("GET", f"{JOBS}/{job_id}/adapter").status_code != 200
        assert installation.start_part("log", "fork", "--yes").wait(600) == 0, installation.read_log()
        assert installation.finish(job_id) == "succeeded"
        end_check(installation, job_id, reference=reference)
