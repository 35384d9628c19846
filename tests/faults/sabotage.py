"""Protections, how each is taken out of a copy of the tree, and the tests that must notice.

A test that passes without the protection that it is there for proves nothing. The product has no switch for this: one
exact edit is made in a copy, which must match exactly once, so that a line that has moved is noticed here.
"""

from typing import NamedTuple


class Protection(NamedTuple):
    """What is taken out, and who must notice."""

    name: str
    path: str
    before: str
    """Text that stands in the file exactly once."""
    after: str
    tests: tuple[str, ...]
    """Each of them must fail."""


WORK = "tests/integration/test_work.py"
RECONCILER = "tests/integration/test_reconciler.py"
LEASE = "tests/unit/worker/test_lease.py"
WORLD = "tests/faults/test_world.py"
DURABILITY = "tests/faults/test_durability.py::test_what_is_kept_outlives_a_power_cut"
DAMAGE = "tests/unit/worker/training/test_checkpoint.py::test_a_damaged_file_is_refused"
HOSTILE_MODELS = "tests/unit/worker/training/test_hostile_models.py::TestWhatIsCheckedIsWhatIsLoaded"
PROTECTIONS = (
    # --- the fence: nothing is written under an epoch that is gone ---------------------------------------
    Protection(
        "the fence of the ledger",
        "app/audit/repository.py",
        '_WORK.c.epoch == bindparam("under")',
        '_WORK.c.epoch >= bindparam("under")',
        (f"{WORK}::TestAppendLeaf::test_stale_owner_records_nothing[sqlite]",),
    ),
    Protection(
        "the fence of a move",
        "app/work/repository.py",
        "Work.epoch == work.epoch, Work.state == before",
        "Work.epoch >= work.epoch, Work.state == before",
        (f"{WORK}::TestMove::test_stale_owner_moves_nothing[sqlite]",),
    ),
    Protection(
        "the fence of a renewal",
        "app/work/repository.py",
        "Work.id == work_id, Work.epoch == epoch, Work.state.in_(OWNED)",
        "Work.id == work_id, Work.epoch >= epoch, Work.state.in_(OWNED)",
        (f"{WORK}::TestRenew::test_other_epoch_has_no_lease[sqlite-0]",),
    ),
    Protection(
        "the fence of every row that an owner writes",
        "worker/lease.py",
        "work.epoch != self.epoch",
        "work.epoch < self.epoch",
        (f"{LEASE}::test_owner_that_was_taken_over_is_told_and_fenced",),
    ),
    Protection(
        "the fence of a step's row and of how far a job is",
        "worker/journal.py",
        "if not repository.advance(session, owned.id, before, self._progress()):",
        "if repository.advance(session, owned.id, before, self._progress()) is None:",
        ("tests/unit/worker/test_journal.py::test_nobody_goes_on_after_steps_that_the_database_has_lost",),
    ),
    # --- states: one mover, one way ----------------------------------------------------------------------
    Protection(
        "compare-and-set on the state",
        "app/work/repository.py",
        "Work.epoch == work.epoch, Work.state == before",
        "Work.epoch == work.epoch",
        (f"{WORK}::TestMove::test_row_that_was_moved_meanwhile_stays_where_it_is[sqlite]",),
    ),
    Protection(
        "one claim of queued work",
        "app/work/repository.py",
        "Work.id == work_id, Work.state == State.QUEUED, Work.desired == Desired.RUN",
        "Work.id == work_id, Work.desired == Desired.RUN",
        (f"{WORK}::TestClaim::test_one_of_many_gets_it[sqlite]",),
    ),
    Protection(
        "no claim of what is to be cancelled",
        "app/work/repository.py",
        "Work.id == work_id, Work.state == State.QUEUED, Work.desired == Desired.RUN",
        "Work.id == work_id, Work.state == State.QUEUED",
        (f"{WORK}::TestClaim::test_work_that_is_to_be_cancelled_is_not_claimed[sqlite]",),
    ),
    Protection(
        "a cancellation is never taken back",
        "app/work/repository.py",
        "wanted = case((Work.desired == Desired.CANCEL, Desired.CANCEL), else_=desired)",
        "wanted = desired",
        (
            "tests/integration/test_pause.py::TestRefusals::test_cancellation_is_not_taken_back[sqlite-resume]",
        ),
    ),
    Protection(
        "what is cancelled is not published",
        "worker/publisher.py",
        "if work.desired == Desired.CANCEL:",
        "if work.desired == Desired.PAUSE:",
        (f"{WORLD}::test_a_job_that_is_cancelled_while_it_is_published_does_not_succeed",),
    ),
    Protection(
        "the trigger that closes terminal states",
        "app/seat_belts.py",
        " WHEN OLD.state IN ({_ENDED}) AND NEW.state <> OLD.state",
        " WHEN OLD.state IN ({_ENDED}) AND NEW.state = OLD.state",
        ("tests/unit/app/test_seat_belts.py::test_work_that_has_ended_stays_ended[sqlite-failed]",),
    ),
    # --- leases and budgets ------------------------------------------------------------------------------
    Protection(
        "the lease's own end, where nobody can be asked",
        "worker/lease.py",
        "if self._taken or silent_s > 0.75 * self._settings.lease_s:",
        "if self._taken:",
        (f"{LEASE}::test_silence_for_three_quarters_of_the_lease_counts_as_lost",),
    ),
    Protection(
        "a heartbeat that is tied to progress",
        "worker/lease.py",
        "if now - self._advanced_at > self._settings.stall_s:",
        "if now < self._advanced_at:",
        (f"{WORLD}::test_a_worker_that_gets_nowhere_exits_and_its_work_is_given_back_at_once",),
    ),
    Protection(
        "the database's clock, in place of the worker's",
        "app/work/repository.py",
        "Work.epoch == epoch, Work.state.in_(OWNED))\n        .values(lease_until_ms=now_ms() + lease_ms)",
        "Work.epoch == epoch, Work.state.in_(OWNED))\n"
        '        .values(lease_until_ms=__import__("time").time_ns() // 1_000_000 + lease_ms)',
        (f"{WORLD}::test_leases_run_by_the_clock_of_the_database_alone",),
    ),
    Protection(
        "the budget of a poison job",
        "app/work/service.py",
        "if work.attempts_without_progress >= settings.max_attempts_without_progress:",
        "if work.attempts_without_progress < 0:",
        (f"{RECONCILER}::TestExpiredLease::test_poison_fails_when_its_budget_is_spent[sqlite]",),
    ),
    # --- bytes: whole on the disk, and checked when they are read ------------------------------------------
    Protection(
        "fsync of a stored file",
        "app/storage/local.py",
        "os.fsync(file.fileno())",
        "pass",
        (f"{DURABILITY}[a file in storage]",),
    ),
    Protection(
        "fsync of a checkpoint's files",
        "worker/training/checkpoint.py",
        "os.fsync(file.fileno())",
        "pass",
        (f"{DURABILITY}[a checkpoint]",),
    ),
    Protection(
        "fsync of what the notary signs next",
        "app/notary/keyfile.py",
        "os.fsync(file.fileno())",
        "pass",
        (f"{DURABILITY}[what the notary signed last]",),
    ),
    Protection(
        "a checkpoint that is there whole or not at all",
        "worker/training/checkpoint.py",
        "_rename_unless_there(temporary, path)\n        failpoint",
        "shutil.copytree(temporary, path, dirs_exist_ok=True)\n        failpoint",
        (f"{DURABILITY}[a checkpoint]",),
    ),
    Protection(
        "the digest of a checkpoint's file",
        "worker/training/checkpoint.py",
        "if hashlib.sha256(data).hexdigest() != files[name]:",
        "if name not in files:",
        (f"{DAMAGE}[flip-adapter.safetensors]", f"{DAMAGE}[flip-random.safetensors]"),
    ),
    Protection(
        "the digest of stored bytes",
        "app/storage/local.py",
        'if hashlib.file_digest(file, "sha256").hexdigest() != sha256:',
        'if not hashlib.file_digest(file, "sha256").hexdigest():',
        (
            "tests/unit/app/test_storage.py::TestBothPlaces::test_damage_is_noticed_before_the_first_byte[folder-a raw]",
        ),
    ),
    Protection(
        "the digests of the base model, on the bytes that are loaded",
        "worker/training/model_folder.py",
        '_compare(name, hashlib.file_digest(file, "sha256").hexdigest(), wanted)',
        "_compare(name, wanted, wanted)",
        (f"{HOSTILE_MODELS}::test_another_byte_is_refused[model.safetensors]",),
    ),
    # --- the log -------------------------------------------------------------------------------------------
    Protection(
        "the notary's refusal of a database that was rolled back",
        "app/notary/service.py",
        "if last is not None and self._tree.size < last.size:",
        "if last is not None and self._tree.size < 0:",
        ("tests/unit/app/notary/test_database_admin.py::test_a_log_that_lost_its_end_is_refused[sqlite]",),
    ),
)
