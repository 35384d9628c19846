"""The one reader of this process: it looks at the jobs that somebody watches, and wakes those who wait.

Streams and long polls hold no thread and no connection while they wait. A single task asks the database a few times
a second for every watched job at once, and hands what is new to each watcher. While nobody watches, it does not run.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.auth import Caller
from app.errors import TooManyWatchers
from app.jobs.repository import Head

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks. A revoked key ends its streams after one look, which has to be within a second."""
MAX_WAITING_UPDATES = 64
"""What may wait for a slow client: half a minute of a running job."""
MAX_WATCHERS = 1000
"""Streams and long polls of one process."""
MAX_WATCHERS_OF_A_PROJECT = 300
TOLD_AT_ONCE = 8
"""Between so many watchers and the next ones, whoever else asks this process for something has a turn."""


class Ended(StrEnum):
    """Why a watcher gets nothing more."""

    KEY_REVOKED = "key_revoked"
    SLOW_CLIENT = "slow_client"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Update:
    """What is new of a job since the look before."""

    head: Head
    events: tuple[tuple[int, bytes], ...]
    """Number and message of each, oldest first."""
    rest: bytes = b""
    """The messages of the newest step and of the job, where there is a newer one and where its state is another."""
    is_over: bool = False
    """Whether the job has ended."""


class Look(NamedTuple):
    """What one look at the database found."""

    usable_keys: Set[str]
    updates: Mapping[str, Update]
    """By job; only those that changed."""


Read = Callable[[Mapping[str, Head], Set[str]], Look]
"""Looks at the watched jobs, given how each looked before, and at the keys of those who watch."""
ReadHead = Callable[[str], Head]


class Watch:
    """One watcher's place: what it has not fetched yet, and whether there will be more."""

    def __init__(self, job_id: str, caller: Caller) -> None:
        self.job_id = job_id
        self.caller = caller
        self.ended: Ended | None = None
        self._updates: deque[Update] = deque()
        self._news = asyncio.Event()

    def push(self, update: Update) -> None:
        """Add an update; where too many wait already, drop them all and end."""
        if len(self._updates) >= MAX_WAITING_UPDATES:
            self.end(Ended.SLOW_CLIENT)
        elif self.ended is None:
            self._updates.append(update)
            self._news.set()

    def end(self, reason: Ended) -> None:
        """Say that nothing comes any more."""
        self.ended = self.ended or reason
        self._updates.clear()
        self._news.set()

    async def next(self, timeout_s: float) -> Update | None:
        """Return the next update; None after the timeout, or at once where `ended` says why nothing comes."""
        if not self._updates and self.ended is None:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout_s)
        return self._updates.popleft() if self._updates else None


class Waker:
    """Who watches which job, and the task that looks on their behalf."""

    def __init__(self, read: Read, read_head: ReadHead) -> None:
        self._read = read
        self._read_head = read_head
        self._watches: set[Watch] = set()
        self._heads: dict[str, Head] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @asynccontextmanager
    async def watch(self, job_id: str, caller: Caller) -> AsyncIterator[Watch]:
        """Watch a job that the caller may see: whatever happens from here on arrives. Raises TooManyWatchers."""
        same_project = sum(watch.caller.project_id == caller.project_id for watch in self._watches)
        if len(self._watches) >= MAX_WATCHERS or same_project >= MAX_WATCHERS_OF_A_PROJECT:
            raise TooManyWatchers(
                f"{same_project} streams and long polls of this project are open, {len(self._watches)} of all; the limits"
                f" are {MAX_WATCHERS_OF_A_PROJECT} and {MAX_WATCHERS}. Close some, or ask without waiting"
            )
        watch = Watch(job_id, caller)
        self._watches.add(watch)
        try:
            if job_id not in self._heads:
                head = await run_in_threadpool(self._read_head, job_id)
                self._heads.setdefault(job_id, head)
            if self._closed:
                watch.end(Ended.SHUTDOWN)
            elif self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), name="waker")
            yield watch
        finally:
            self._watches.discard(watch)
            if all(other.job_id != job_id for other in self._watches):
                self._heads.pop(job_id, None)

    def close(self) -> None:
        """End every watch, because the server stops."""
        self._closed = True
        for watch in self._watches:
            watch.end(Ended.SHUTDOWN)

    async def _run(self) -> None:
        while self._watches and not self._closed:
            await asyncio.sleep(POLL_S)
            heads, keys = dict(self._heads), {watch.caller.key_id for watch in self._watches}
            try:
                look = await run_in_threadpool(self._read, heads, keys)
            except SQLAlchemyError as error:
                log.warning("watched jobs could not be looked at (%s); trying again", type(error).__name__)
                continue
            except Exception:
                # Whoever waits would wait for ever if the only reader ended.
                log.exception("watched jobs could not be looked at; trying again")
                continue
            await self._tell(look, keys)

    async def _tell(self, look: Look, asked: Set[str]) -> None:
        for job_id, update in look.updates.items():
            # Where somebody came meanwhile, the head is newer; then a few events come twice, and watchers know.
            if job_id in self._heads:
                self._heads[job_id] = update.head
        for count, watch in enumerate(tuple(self._watches), start=1):
            key_id = watch.caller.key_id
            if key_id in asked and key_id not in look.usable_keys:
                watch.end(Ended.KEY_REVOKED)
            elif (news := look.updates.get(watch.job_id)) is not None:
                watch.push(news)
            if count % TOLD_AT_ONCE == 0:
                await asyncio.sleep(0)
