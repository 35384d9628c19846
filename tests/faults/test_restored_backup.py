"""Fault 9: an old backup of the database is put back under a notary that remembers what came after it."""

from pathlib import Path

from tests.faults.checks import end_check
from tests.faults.installation import EVERY_STEP, JOBS, Template, desk, installed, reference_run
from tests.support import copy_database


def test_an_old_backup_is_not_signed_over_and_a_fork_on_purpose_mends_it(
    sqlite_template: Template, tmp_path: Path
) -> None:
    reference = reference_run(sqlite_template, tmp_path)
    backup = tmp_path / "backup.db"
    with installed(sqlite_template, tmp_path) as installation:
        with desk(installation):
            cut = installation.submit(**EVERY_STEP)
            assert installation.run_trainer("step.before_commit=kill@10") == -9
            copy_database(installation.home / "tether.db", backup)
            # What comes now is in no backup: the notary signs it all the same.
            assert installation.finish(cut) == "succeeded"
        installation.database.engine.dispose()
        copy_database(backup, installation.home / "tether.db")
        with desk(installation):
            # Its checkpoints went when it succeeded, in a time that the database does not know of any more.
            assert installation.finish(cut) == "failed"
            assert installation.job(cut)["error"]["code"] == "checkpoint_lost"
            job_id = installation.submit()
            assert installation.finish(job_id, until=frozenset({"signing"})) == "signing"

            def waits_for() -> str:
                return installation.job(job_id)["safety"]["waits_for"] or ""

            installation.wait(lambda: "the notary refuses to sign since" in waits_for(), "why it waits")
            # A table would break the sentences where they are too long for a line.
            assert installation.start_part("doctor", "--json").wait(600) == 1
            for said in ("It was rolled back or changed", "open a new log with: tether log fork"):
                assert said in installation.read_log()
            assert installation.request("GET", f"{JOBS}/{job_id}/adapter").status_code != 200
            assert installation.job(job_id)["status"] == "running"
            assert installation.start_part("log", "fork", "--yes").wait(600) == 0, installation.read_log()
            assert installation.finish(job_id) == "succeeded"
            end_check(installation, job_id, reference=reference)
            end_check(installation, cut, states=["failed"])
