"""A judge model behind any OpenAI-compatible chat endpoint.

The server is the operator's choice and its replies are hostile all the same: each is bounded in size and time, taken
only in the one shape that was asked for, and none of its text goes any further. What goes wrong is a JudgeFailed and
nothing else; no failure is ever a score.
"""

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from random import SystemRandom
from typing import Any, Generic, NamedTuple, TypeVar

import httpx
from pydantic import SecretStr

from app.domain import preference
from app.domain.rubric import SCHEMA, Vote, build_messages, parse_verdict
from app.errors import CriticUnusable
from app.settings import Settings
from worker.training.critics.judge import JudgeFailed

MAX_REPLY_BYTES = 64 * 1024
MAX_REPLY_TOKENS = 2048
"""Room for a model that thinks before it answers; the verdict itself is short."""
MAX_UNUSABLE = 3
"""Replies without a usable verdict before a vote counts as failed. What the network does is tried until the deadline."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0

OK, BAD_REQUEST, TIMEOUT, UNPROCESSABLE, TOO_MANY = 200, 400, 408, 422, 429

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """What a judge is asked, and how its answer is read."""

    build: Callable[[], list[dict[str, str]]]
    """Returns the messages of one request, each time between other markers."""
    name: str
    schema: Mapping[str, Any]
    """JSON schema of the answer, for servers that can hold a model to one."""
    parse: Callable[[str], T]
    """Returns the verdict that an answer is; raises ValueError where it is none."""


class JudgeClient:
    """Asks one model on one server. Safe to use from many threads."""

    def __init__(
        self, url: str, model: str, *, api_key: SecretStr | None = None, timeout_s: float, concurrency: int
    ) -> None:
        """Take the base URL (ending in /v1, as a rule), and the time for one vote, retries included.

        `concurrency` is how many votes those who ask may ask for at once.
        """
        self.model = model
        self.concurrency = concurrency
        self._url = url.rstrip("/") + "/chat/completions"
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._structured = True
        # The machine's own certificates, so that an operator's authority counts. Made once: it takes a while.
        self._certificates = ssl.create_default_context()

    def ask(self, text: str) -> Vote:
        """Return the model's vote on a text, as `rubric.render_pieces` makes it. Raises JudgeFailed, within the time."""
        return self._ask(Question(partial(build_messages, text), "verdict", SCHEMA, parse_verdict))

    def prefer(self, request: Sequence[Mapping[str, Any]], first: str, second: str) -> preference.Winner:
        """Return which of two replies to a request the model prefers. Raises JudgeFailed, within the time."""
        build = partial(preference.build_comparison, request, first, second)
        return self._ask(Question(build, "preference", preference.SCHEMA, preference.parse_preference))

    def _ask(self, question: "Question[T]") -> T:
        # Only a name server that hangs can add its own time-out.
        try:
            return asyncio.run(self._ask_within_time(question))
        except TimeoutError:
            raise JudgeFailed(
                f"the judge gave no verdict within {self._timeout_s:g} s", code="judge_timeout"
            ) from None

    async def _ask_within_time(self, question: "Question[T]") -> T:
        # One clock over everything: a server that sends a byte now and then must not win time with each of them.
        async with (
            asyncio.timeout(self._timeout_s) as limit,
            httpx.AsyncClient(
                verify=self._certificates,
                timeout=None,  # noqa: S113
                # Neither a proxy nor a .netrc of the machine has any business here.
                trust_env=False,
                follow_redirects=False,
                headers=self._headers(),
            ) as client,
        ):
            deadline = limit.when() or 0.0
            pauses = _backoff()
            unusable = 0
            while True:
                try:
                    return await self._attempt(client, question)
                except _Failed as failed:
                    unusable += failed.is_unusable
                    pause = max(next(pauses), failed.retry_after_s or 0.0)
                    late = asyncio.get_running_loop().time() + pause >= deadline
                    if not failed.may_pass or unusable >= MAX_UNUSABLE or late:
                        raise JudgeFailed(failed.message, code=failed.code) from None
                await asyncio.sleep(pause)

    async def _attempt(self, client: httpx.AsyncClient, question: "Question[T]") -> T:
        """Ask once; where the server refuses the schema, ask again without it."""
        reply = await self._post(client, question, structured=self._structured)
        if reply.status in (BAD_REQUEST, UNPROCESSABLE) and self._structured:
            reply = await self._post(client, question, structured=False)
            # The server's way and not this text's fault: without the schema it took the same text.
            self._structured = reply.status != OK
        if reply.status != OK:
            raise _refused(reply)
        try:
            return question.parse(_content(reply.body))
        except ValueError as error:
            raise _Failed(
                f"the judge's reply is no verdict: {error}", "judge_invalid", is_unusable=True
            ) from None

    async def _post(
        self, client: httpx.AsyncClient, question: "Question[Any]", *, structured: bool
    ) -> "_Reply":
        body: dict[str, Any] = {
            "model": self.model,
            "messages": question.build(),
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        if structured:
            form = {"name": question.name, "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            async with client.stream("POST", self._url, json=body) as response:
                retry_after = response.headers.get("retry-after")
                content = await _read_capped(response) if response.status_code == OK else b""
                return _Reply(response.status_code, content, retry_after)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise _Failed(
                f"the judge's address names no host ({type(error).__name__}); see to TETHER_JUDGE_URL",
                "judge_unreachable",
                may_pass=False,
            ) from None
        except (httpx.HTTPError, OSError) as error:
            # By its kind alone: the text of such an error names addresses.
            raise _Failed(
                f"the judge cannot be reached ({type(error).__name__})", "judge_unreachable"
            ) from None

    def _headers(self) -> dict[str, str]:
        # Compressed replies are not asked for, and refused, since a small one can unfold into gigabytes.
        headers = {"Accept-Encoding": "identity", "User-Agent": "tether"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        return headers


def build_judge(settings: Settings) -> JudgeClient:
    """Return the client of the operator's judge. Raises CriticUnusable where there is none."""
    if not settings.judge_url:
        raise CriticUnusable(
            "this installation has no judge; set TETHER_JUDGE_URL and TETHER_JUDGE_MODEL, or choose another critic",
            code="judge_not_configured",
            param="safety.critic",
        )
    return JudgeClient(
        settings.judge_url,
        settings.judge_model,
        api_key=settings.judge_api_key,
        timeout_s=settings.judge_timeout_s,
        concurrency=settings.judge_concurrency,
    )


class _Reply(NamedTuple):
    status: int
    body: bytes
    """Empty unless the status is 200."""
    retry_after: str | None


class _Failed(Exception):
    """One attempt that gave no vote."""

    def __init__(
        self,
        message: str,
        code: str,
        *,
        is_unusable: bool = False,
        may_pass: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.is_unusable = is_unusable
        self.may_pass = may_pass
        self.retry_after_s = retry_after_s


async def _read_capped(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _Failed("the judge's reply is compressed, unasked", "judge_invalid", is_unusable=True)
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise _Failed(
                f"the judge's reply is longer than {MAX_REPLY_BYTES} bytes", "judge_invalid", is_unusable=True
            )
    return body


def _refused(reply: _Reply) -> _Failed:
    passing = reply.status in (TIMEOUT, TOO_MANY) or reply.status >= 500
    return _Failed(
        f"the judge's server answered with status {reply.status}",
        "judge_unreachable" if passing else "judge_refused",
        may_pass=passing,
        retry_after_s=_seconds(reply.retry_after),
    )


def _content(body: bytes) -> str:
    """Return what the model wrote. Raises ValueError where the reply has not the form of the endpoint."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (LookupError, TypeError, RecursionError):
        raise ValueError("it is not a chat completion") from None
    if not isinstance(content, str):
        raise ValueError("it has no text")
    return content


def _seconds(retry_after: str | None) -> float | None:
    """Return how long a Retry-After asks to wait: seconds, or an HTTP date. None for anything else."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    return (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _backoff() -> Iterator[float]:
    """Yield pauses that double, each with jitter, so that what failed together does not come back together."""
    random = SystemRandom()
    pause = FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(2 * pause, LONGEST_PAUSE_S)
