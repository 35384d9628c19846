"""Checking an uploaded file that was too large to be checked while it was uploaded."""

import json
import os
import subprocess
import sys
from typing import Any, BinaryIO

from app import storage
from app.database import unit_of_work
from app.domain.job import State
from app.errors import JobFailure
from app.files.service import keep_findings
from app.models.file import File
from app.work import repository
from worker.context import Context
from worker.row_check import CPU_S, MEMORY_BYTES

INTERVAL_S = 0.2
"""How long a check may keep its caller from hearing that it should stop."""


def check_file(context: Context) -> None:
    """Give the file its status: processed with its count of rows, or error with every problem found."""
    with unit_of_work(context.database) as session:
        file_id: str = context.lease.load(session).args["file"]
        file = session.get(File, file_id)
    if file is None or file.deleted_at is not None:
        raise JobFailure(f"the file {file_id} was deleted before it was checked", code="file_not_found")
    context.lease.move(State.RUNNING)
    with storage.open_stored(context.settings.storage, file.sha256) as stored:
        found = check_apart(context, stored)
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        keep_findings(session.get_one(File, file_id), found)
        repository.move(session, work, State.FINALISING)
        repository.move(session, work, State.SUCCEEDED)


def check_apart(context: Context, stored: BinaryIO) -> dict[str, Any]:
    """Check a training file in a restricted process, and return `Findings.to_record` of it. Raises JobFailure."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.row_check", "--parent", str(os.getpid())],
        stdin=stored,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
    )
    with process:
        try:
            answer = _wait(context, process)
        finally:
            process.kill()
    if process.returncode != 0:
        raise JobFailure(
            f"the file could not be checked: its rows need more than {MEMORY_BYTES >> 20} MiB of memory or {CPU_S} s;"
            " upload it in several parts",
            code="invalid_training_file",
            param="file",
        )
    found: dict[str, Any] = json.loads(answer)
    return found


def _wait(context: Context, process: subprocess.Popen[bytes]) -> bytes:
    while True:
        try:
            return process.communicate(timeout=INTERVAL_S)[0]
        except subprocess.TimeoutExpired:
            context.check()
