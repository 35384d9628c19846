"""Shared reads: what many requests ask at the same time is read once.

A hop into a thread and a transaction cost more than the rows that a request needs. So questions that come while a
read is under way wait for it to end, and the next one answers them all. A read begins after its questions, never
before, so that nobody is told what was true earlier. Alone, a question is answered as fast as without this.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

Key = TypeVar("Key")
Value = TypeVar("Value")


class Gathered(Generic[Key, Value]):
    """Answers the questions of one event loop, with a function that answers many at once and runs in a thread."""

    def __init__(self, read: Callable[[Collection[Key]], Mapping[Key, Value]]) -> None:
        self._read = read
        self._asked: dict[Key, list[asyncio.Future[Value | None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Value | None:
        """Return what is found for a key, or None. Raises what the read raises."""
        answer: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, []).append(answer)
        if self._task is None or self._task.done():
            # It reads for others, too: its log lines are not this request's.
            self._task = asyncio.create_task(self._read_all(), name="gathered", context=Context())
        return await answer

    async def _read_all(self) -> None:
        while self._asked:
            # Requests that have arrived, and were not looked at yet, come along.
            await asyncio.sleep(0)
            asked, self._asked = self._asked, {}
            try:
                found = await run_in_threadpool(self._read, asked.keys())
            except Exception:
                # What spoils one question must not spoil those of others.
                await asyncio.gather(*(self._read_one(key, answers) for key, answers in asked.items()))
            else:
                for key, answers in asked.items():
                    for answer in _waiting(answers):
                        answer.set_result(found.get(key))

    async def _read_one(self, key: Key, answers: list["asyncio.Future[Value | None]"]) -> None:
        try:
            found = await run_in_threadpool(self._read, {key})
        except Exception as error:
            for answer in _waiting(answers):
                answer.set_exception(error)
        else:
            for answer in _waiting(answers):
                answer.set_result(found.get(key))


def _waiting(answers: list["asyncio.Future[Value | None]"]) -> list["asyncio.Future[Value | None]"]:
    """Leave out those whose client has gone."""
    return [answer for answer in answers if not answer.done()]
