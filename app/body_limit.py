"""How large the body of a request may be, and that a large one is read only for who has a key.

FastAPI reads a body before it looks at anything else, JSON into memory and forms to the disk.
"""

import contextlib
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import authenticate
from app.database import DATABASE_AWAY
from app.errors import PayloadTooLarge, TetherError
from app.sessions import read_authorization
from app.uploads.service import MAX_PART_BYTES

FORM_BYTES = 64 * 1024
"""What a form has around its file."""
MAX_JSON_BYTES = 16 * 1024 * 1024
"""The longest that makes sense, a million rows to exclude, has twelve million bytes."""
UNCHECKED_BYTES = 64 * 1024
"""A body up to this costs less than to look for its key twice."""


class BodyLimit:
    """Refuse a body beyond its route's limit as soon as that is known, and a large one that comes without a good key."""

    def __init__(self, app: ASGIApp, max_file_bytes: int, refuse: Callable[[TetherError], Response]) -> None:
        self.app = app
        self.max_file_bytes = max_file_bytes
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at what the head says of the body, then wrap `receive` so that it counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes = self._limit_of(scope["path"])
        headers = Headers(scope=scope)
        # A body whose length nobody knows yet may become a large one.
        length = headers.get("content-length", "0")
        declared = int(length) if length.isdecimal() and "transfer-encoding" not in headers else None
        try:
            if declared is not None and declared > max_bytes:
                raise PayloadTooLarge(_describe(max_bytes))
            if declared is None or declared > UNCHECKED_BYTES:
                database = scope["app"].state.database
                # Where the database is away, the application says so in its own words.
                with contextlib.suppress(*DATABASE_AWAY):
                    await run_in_threadpool(authenticate, database, read_authorization(Request(scope)))
        except TetherError as error:
            await self.refuse(error)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                # Of what is raised here FastAPI leaves only this kind as it is.
                raise HTTPException(413, _describe(max_bytes))
            return message

        await self.app(scope, receive_counted, send)

    def _limit_of(self, path: str) -> int:
        if path == "/v1/files":
            return self.max_file_bytes + FORM_BYTES
        if path.startswith("/v1/uploads/") and path.endswith("/parts"):
            return MAX_PART_BYTES + FORM_BYTES
        return MAX_JSON_BYTES


def _describe(max_bytes: int) -> str:
    return f"the body is larger than {max_bytes} bytes, the most that this path takes"
