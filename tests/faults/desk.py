"""The desk of an installation in threads of the test: what answers, repairs, signs and tells."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import uvicorn

from app.main import create_app
from app.notary.service import run_notary
from app.reconciler import run_reconciler
from app.serve import listen
from app.webhooks.delivery import run_deliveries
from app.work.release import run_releases

if TYPE_CHECKING:
    from tests.faults.installation import Installation

DESK = ("api", "reconciler", "releases", "notary", "webhooks")
START_TIMEOUT_S = 120.0


@contextmanager
def desk(installation: "Installation", parts: Sequence[str] = DESK) -> Iterator[None]:
    """Run these parts in threads of the test; one that is named twice runs twice. They end with the block."""
    database, settings, stop = installation.database, installation.settings, threading.Event()
    runs: dict[str, Callable[[], None]] = {
        "reconciler": lambda: run_reconciler(database, settings, stop),
        "releases": lambda: run_releases(database, stop),
        "notary": lambda: run_notary(database, settings, stop),
        "webhooks": lambda: run_deliveries(database, settings, stop),
    }
    threads = [threading.Thread(target=runs[part], name=part) for part in parts if part != "api"]
    with ExitStack() as stack:
        if "api" in parts:
            stack.enter_context(_api(installation))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextmanager
def _api(installation: "Installation") -> Iterator[None]:
    app = create_app(installation.settings)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", ws="none", lifespan="on", timeout_graceful_shutdown=5)
    )
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="api")
        thread.start()
        try:
            installation.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.started:
                assert thread.is_alive(), "the API ended at its start"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            server.should_exit = True
            thread.join()
