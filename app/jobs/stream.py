"""A job as server-sent events, and long polls: both wait for the waker, and hold no thread and no connection meanwhile.

A stream sends the job as it stands, every event after the client's cursor, and then what happens: `event` for a line
of the log, with its id; `step` for the newest step's record, at most one a look; `job` whenever its state is another;
and at last `end`, whose data say why nothing comes after it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.auth import Caller
from app.database import Database
from app.errors import NotAuthenticated
from app.jobs import live
from app.jobs.messages import message
from app.jobs.waker import Ended, Waker

RETRY_MS = 2000
"""How long a client waits before it comes back."""
HEARTBEAT_S = 15.0
"""A comment after so long a silence, so that nobody in between takes the connection for dead."""
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for this long is gone."""
JOB_ENDED = "job_ended"
ADVICE = {
    JOB_ENDED: "the job has ended",
    Ended.KEY_REVOKED: "the API key was revoked or has expired; come back with another one",
    Ended.SLOW_CLIENT: "more happened than was fetched; come back with Last-Event-ID and fetch faster",
    Ended.SHUTDOWN: "the server stops; come back with Last-Event-ID",
}

Messages = AsyncGenerator[bytes, None]


class EventStream(Response):
    """A response of server-sent events. It ends with its messages, or when the client leaves or takes nothing more."""

    media_type = "text/event-stream"

    def __init__(self, messages: Messages) -> None:
        # A proxy that collects the reply, or compresses it, would hold it back.
        super().__init__(headers={"cache-control": "no-store, no-transform", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the messages until they or the client end."""
        tasks = [asyncio.create_task(self._send_all(send)), asyncio.create_task(_wait_until_gone(receive))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            # An error from before the first message becomes an ordinary reply.
            task.result()

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._messages) as messages:
            first = await anext(messages)
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await _send(send, first)
            try:
                async for message in messages:
                    await _send(send, message)
            except TimeoutError:
                return
            await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, message: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await send({"type": "http.response.body", "body": message, "more_body": True})


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def follow_job(
    database: Database, waker: Waker, caller: Caller, job_id: str, after: int
) -> AsyncGenerator[bytes, None]:
    """Yield the messages of a stream that begins after the event with this number."""
    async with waker.watch(job_id, caller) as watch:
        yield format_sse_event(retry=RETRY_MS)
        job: dict[str, Any] | None = None
        has_more = True
        is_over = False
        while has_more and watch.ended is None:
            backlog = await run_in_threadpool(live.read_backlog, database, caller.project_id, job_id, after)
            if job is None or job["safety"]["state"] != backlog.job["safety"]["state"]:
                job = backlog.job
                yield message("job", job)
            for number, event in backlog.events:
                after = number
                if watch.ended is None:
                    yield event
            has_more, is_over = backlog.has_more, backlog.is_over
            if not has_more and backlog.step:
                yield backlog.step
        is_over = is_over and not has_more
        while not is_over and watch.ended is None:
            update = await watch.next(HEARTBEAT_S)
            if update is None:
                if watch.ended is None:
                    yield format_sse_event(comment="heartbeat")
                continue
            # What the backlog brought comes once more with the first look after it.
            news = b"".join(event for number, event in update.events if number > after) + update.rest
            after = max(after, update.head.event_number)
            if news:
                yield news
            is_over = update.is_over
        reason = watch.ended or JOB_ENDED
        yield message(
            "end", {"object": "fine_tuning.job.stream_end", "reason": reason, "message": ADVICE[reason]}
        )


async def reply_when_changed(
    request: Request,
    waker: Waker,
    caller: Caller,
    job_id: str,
    wait_s: float,
    make: Callable[[], Awaitable[Response]],
) -> Response:
    """Return a reply at once where the client does not have it yet, else when the job changes or the time is over.

    `make` makes the reply, 304 for what the client has. Raises NotAuthenticated where the key ends meanwhile.
    """
    reply = await make()
    if reply.status_code != 304 or not wait_s:
        return reply
    clock = asyncio.get_running_loop().time
    until = clock() + wait_s
    async with waker.watch(job_id, caller) as watch:
        # It may have changed before the watch began.
        reply = await make()
        while reply.status_code == 304 and (left := until - clock()) > 0:
            update = await watch.next(min(left, 1.0))
            if watch.ended is Ended.KEY_REVOKED:
                raise NotAuthenticated(ADVICE[Ended.KEY_REVOKED])
            if watch.ended is not None or await request.is_disconnected():
                break
            if update is not None:
                reply = await make()
    return reply
