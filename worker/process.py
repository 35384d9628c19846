"""The process that works: claim one row of work, do it under its lease, end it or give it back.

`python -m worker.process --queue gpu` is what a knock starts: it claims the work whose turn it is. With the id of a row
of work instead it claims that one, or nothing. It ends with 0 when there is nothing more to do here,
with 75 when it was preempted and gave the work back, and with 1 after an error that is in its log.
"""

import argparse
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State, WorkKind
from app.errors import LeaseLost, StorageUnavailable, TetherError
from app.failpoints import failpoint
from app.logs import add_fields, configure_logs
from app.models.work import Work
from app.queue import QUEUES, build_publisher
from app.settings import Settings, load_settings, make_home
from app.work import repository
from app.work import service as work_service
from app.work.fair_queue import claim_next
from worker.context import Cancelled, Context, Paused, Preempted
from worker.device import NO_DEVICE, list_devices, take_device
from worker.lease import Lease
from worker.memory_limit import limit_memory
from worker.orphan import die_with
from worker.training import model_folder
from worker.training.memory import is_out_of_memory
from worker.walls import check_walls, raise_walls

log = logging.getLogger("worker")


def main() -> int:
    """Work on one row and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("work_id", nargs="?")
    what.add_argument("--queue", choices=QUEUES)
    parser.add_argument("--parent", type=int, help="die with this process")
    parser.add_argument("--owner", default=_owner(), help="what the work is to name as who has it")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        die_with(arguments.parent)
    settings = load_settings()
    configure_logs(settings.log_format)
    raise_walls(settings)
    # On a machine of its own nothing else has made the folder yet, and temporary files go there.
    make_home(settings)
    model_folder.parent = settings.home
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    queue = arguments.queue or _queue_of(database, arguments.work_id)
    on_gpu = queue == "gpu" and bool(list_devices())
    limit_memory(settings.trainer_memory_bytes, arguments.owner, on_gpu=on_gpu)
    # Before anything is claimed: what waits for a GPU costs no attempt.
    if not take_device(settings, queue, wait=arguments.queue is None):
        return NO_DEVICE
    if arguments.queue is not None:
        return run_next(database, settings, arguments.queue, arguments.owner)
    return run(database, settings, arguments.work_id, arguments.owner)


def run(database: Database, settings: Settings, work_id: str, owner: str | None = None) -> int:
    """Claim a row of work and do it; return the exit code. Not claimable is no error.

    By default the owner is this process by its id.
    """
    with unit_of_work(database) as session:
        lease_ms = int(settings.lease_s * 1000)
        work = repository.claim(session, work_id, owner=owner or _owner(), lease_ms=lease_ms)
        if work is not None:
            work_service.note_claim(session, work)
    return 0 if work is None else _do(database, settings, work)


def run_next(database: Database, settings: Settings, queue: str, owner: str) -> int:
    """Claim the work of a queue whose turn it is, and do it; return the exit code. A knock proves nothing."""
    work = claim_next(database, settings, queue, owner=owner, lease_ms=int(settings.lease_s * 1000))
    return 0 if work is None else _do(database, settings, work)


def _queue_of(database: Database, work_id: str) -> str:
    with read_only(database) as session:
        work = repository.get_work(session, work_id)
        return "cpu" if work is None else work.queue


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _do(database: Database, settings: Settings, work: Work) -> int:
    work_id = work.id
    add_fields(job=work_id, project=work.project_id)
    lease = Lease(database, settings, work)
    lease.start()
    context = Context(database, settings, lease, split=work.args.get("split", 1))
    signal.signal(signal.SIGTERM, lambda *_: context.preempt())
    log.info("%s %s: attempt %d", work.kind, work_id, work.attempt)
    try:
        _work(context, WorkKind(work.kind))
        log.info("%s %s: done", work.kind, work_id)
        lease.stop()
        _forget_checkpoints(context)
    except Cancelled:
        log.info("%s: cancelled", work_id)
        return 0 if _end(context, State.CANCELLED, None) else 1
    except Paused as why:
        log.info("%s: %s", work_id, why)
        return 0 if _give_back(context, reason="its pause was taken back") else 1
    except Preempted as why:
        log.info("%s: %s", work_id, why)
        return Preempted.exit_code if _give_back(context, reason="its worker was told to stop") else 1
    except LeaseLost as error:
        log.warning("%s", error)
        return 1
    except OutOfMemory as error:
        log.exception("%s: memory ran out", work_id)
        return 0 if _split(context, reason=str(error)) else 1
    except (StorageUnavailable, OSError, SQLAlchemyError) as error:
        log.exception("%s: the surroundings failed", work_id)
        _postpone(context, reason=describe(error))
        return 1
    except TetherError as error:
        log.error("%s failed: %s", work_id, error.message)
        found = {"code": error.code, "message": error.message, "param": error.param}
        return 0 if _end(context, State.FAILED, found) else 1
    except Exception:
        # Anything else may pass: the work is tried again within its budget.
        log.exception("%s: unexpected error", work_id)
        _give_back(context, reason=f"an unexpected error ({type(sys.exception()).__name__})")
        return 1
    finally:
        lease.stop()
    return 0


class OutOfMemory(Exception):
    """Memory ran out at the work."""


def _work(context: Context, kind: WorkKind) -> None:
    try:
        KINDS[kind](context)
    except Exception as error:
        # A library may have packed it into an error of its own.
        check_walls()
        # It comes as an error of many types, some of which mean something else otherwise.
        if is_out_of_memory(error):
            raise OutOfMemory(f"{type(error).__name__} in its process") from error
        raise


def _run_train(context: Context) -> None:
    from worker.trainer import train

    train(context)


def _run_fit_critic(context: Context) -> None:
    from worker.critic_fitter import fit_critic

    fit_critic(context)


def _run_validate_file(context: Context) -> None:
    from worker.file_checker import check_file

    check_file(context)


def _run_report(context: Context) -> None:
    from worker.reporter import make_report

    make_report(context)


def _run_evaluate(context: Context) -> None:
    from worker.evaluator import evaluate

    evaluate(context)


def _run_export(context: Context) -> None:
    from worker.exporter import export_job

    export_job(context)


# Each kind imports what it needs when it runs: a file is checked without loading torch.
KINDS: dict[WorkKind, Callable[[Context], None]] = {
    WorkKind.TRAIN: _run_train,
    WorkKind.FIT_CRITIC: _run_fit_critic,
    WorkKind.VALIDATE_FILE: _run_validate_file,
    WorkKind.REPORT: _run_report,
    WorkKind.EVALUATE: _run_evaluate,
    WorkKind.EXPORT: _run_export,
}


def describe(error: Exception) -> str:
    """Return what failed, as the client may read it: no path and no address of the operator's."""
    if isinstance(error, StorageUnavailable):
        return error.message
    if isinstance(error, OSError):
        return f"a file could not be written or read ({error.strerror})"
    return "the database could not be used"


def _end(context: Context, state: State, error: work_service.Error | None) -> bool:
    context.lease.leave()
    try:
        with unit_of_work(context.database) as session:
            work_service.end(session, context.lease.load(session), state, error)
            failpoint("end.before_commit")
    except (LeaseLost, SQLAlchemyError):
        return False
    # Before the commit it would be too early: what has not ended is resumed from them.
    _forget_checkpoints(context)
    return True


def _forget_checkpoints(context: Context) -> None:
    """Remove the checkpoints of what has ended, because nobody resumes it."""
    shutil.rmtree(context.checkpoint_folder, ignore_errors=True)


def _split(context: Context, *, reason: str) -> bool:
    context.lease.leave()
    with contextlib.suppress(LeaseLost, SQLAlchemyError), unit_of_work(context.database) as session:
        work_service.split(session, context.lease.load(session), reason=reason)
        return True
    return False


def _postpone(context: Context, *, reason: str) -> None:
    context.lease.leave()
    with contextlib.suppress(LeaseLost, SQLAlchemyError), unit_of_work(context.database) as session:
        work_service.postpone(session, context.settings, context.lease.load(session), reason=reason)


def _give_back(context: Context, *, reason: str) -> bool:
    context.lease.leave()
    with contextlib.suppress(LeaseLost, SQLAlchemyError), unit_of_work(context.database) as session:
        work = context.lease.load(session)
        if context.preempted or context.pausing:
            # Being told to stop is no failure and costs no budget.
            work.attempts_without_progress = 0
        work_service.release(session, context.settings, work, reason=reason)
        failpoint("release.before_commit")
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
