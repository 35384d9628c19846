"""Worker processes that begin with torch in memory: each is fresh and its own, forked from one that did the imports.

Importing torch, transformers and peft takes longer than most of what the tests have a worker do.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from app.settings import TRAINER_DEFAULTS, TRAINER_WALLS

ROOT = Path(__file__).parents[1]
IMPORTED = [
    "worker.trainer",
    "worker.evaluator",
    "worker.reporter",
    "worker.critic_fitter",
    "worker.process",
    "transformers.models.llama.modeling_llama",
    __name__,
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


def work(work_id: str, environment: dict[str, str], timeout_s: float) -> None:
    """Do one piece of work as `python -m worker.process` would. Raises TimeoutError."""
    process = start([work_id], environment, Path(os.devnull))
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{work_id} took more than {timeout_s:g} s")
    process.close()


def start(arguments: Sequence[str], environment: dict[str, str], log: Path) -> BaseProcess:
    """Start what `python -m worker.process` with these arguments is; what it writes is added to `log`."""
    # Libraries read some of these when they are imported.
    with mock.patch.dict(os.environ, {**TRAINER_DEFAULTS, **TRAINER_WALLS, "PYTHONPATH": str(ROOT)}):
        forkserver.ensure_running()
    process = _context.Process(target=_run, args=(arguments, environment, log))
    process.start()
    return process


def _run(arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
    from worker.process import main

    # A collection would walk through all that was imported, and copy the pages that the processes share.
    gc.freeze()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["worker.process", *arguments]
    sys.exit(main())
