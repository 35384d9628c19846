"""The Celery worker of one queue: it answers knocks by starting the process that works, and looks for work without any.

`python -m worker.celery_app --queue gpu`
"""

import argparse
import logging
import os
import socket
import threading
import warnings
from functools import partial
from typing import Any

from celery.platforms import SecurityWarning
from celery.signals import worker_shutdown
from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, open_engine, read_only, unit_of_work
from app.logs import configure_logs
from app.migration import current_revision, how_to_mend, newest_revision
from app.models.base import new_id
from app.queue import QUEUES, WAKE, build_celery, build_publisher
from app.settings import Settings, load_settings
from app.work.fair_queue import find_next
from app.work.repository import holds_lease, record_worker, remove_worker
from worker.abandoned import give_back
from worker.memory_limit import remove_empty_groups
from worker.orphan import die_with
from worker.tasks import Processes

log = logging.getLogger(__name__)

LIVENESS_INTERVAL_S = 5.0


def main() -> None:
    """Run the worker until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queue", choices=QUEUES, required=True)
    parser.add_argument("--parent", type=int, help="die with this process")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        die_with(arguments.parent)
    settings = load_settings()
    configure_logs(settings.log_format)
    run_worker(settings, arguments.queue)


def run_worker(settings: Settings, queue: str) -> None:
    """Consume one queue, one piece of work at a time, and say every few seconds that this worker lives."""
    remove_empty_groups()
    celery = build_celery(settings)
    stop = threading.Event()
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    revision = newest_revision()

    def has_work() -> bool:
        with read_only(database) as session:
            found = current_revision(session.connection())
            if found != revision:
                # This worker has outlived a migration. What it started would write what the newer version may not read.
                log.error("no work is taken: the database is at revision %s; %s", found, how_to_mend(found))
                return False
            return find_next(session, settings, queue) is not None

    def owns(owner: str) -> bool:
        with read_only(database) as session:
            return holds_lease(session, owner)

    processes = Processes(settings, queue, has_work, partial(give_back, database, settings), owns)
    celery.task(name=WAKE)(processes.wake)
    threads = [
        threading.Thread(target=_tell_liveness, args=(database, queue, stop), name="liveness"),
        threading.Thread(target=processes.look_for_work, args=(stop,), name="look"),
    ]

    def on_shutdown(**_: Any) -> None:
        stop.set()

    worker_shutdown.connect(on_shutdown, weak=False)
    processes.drain_on_shutdown()
    # Neither needs the broker, which may be away for long.
    for thread in threads:
        thread.start()
    # Celery warns root against pickled messages; here a message is JSON and holds an id.
    warnings.simplefilter("ignore", SecurityWarning)
    try:
        celery.worker_main(_arguments(queue))
    finally:
        # Celery that stops by an error of its own tells nobody; the work must not go on without it.
        processes.drain()
        stop.set()
        for thread in threads:
            thread.join()


def _arguments(queue: str) -> list[str]:
    return [
        "--quiet",
        "worker",
        # Threads, because a task only waits for a process; forking would bring nothing but torch's locks.
        "--pool=threads",
        "--concurrency=1",
        f"--queues={queue}",
        f"--hostname={queue}-{os.getpid()}@%h",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel=WARNING",
    ]


def _tell_liveness(database: Database, queue: str, stop: threading.Event) -> None:
    worker_id = new_id("worker-")
    while True:
        try:
            with unit_of_work(database) as session:
                record_worker(session, worker_id=worker_id, queue=queue, host=socket.gethostname())
        except SQLAlchemyError as error:
            log.warning("the database cannot be reached (%s); trying again", type(error).__name__)
        if stop.wait(LIVENESS_INTERVAL_S):
            break
    try:
        with unit_of_work(database) as session:
            remove_worker(session, worker_id)
    except SQLAlchemyError as error:
        log.warning("could not say goodbye (%s); this worker counts as alive a little longer", error)


if __name__ == "__main__":
    main()
