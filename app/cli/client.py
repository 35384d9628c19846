"""A client of the public HTTP API. Whatever goes wrong becomes an error in words, with what to do about it."""

import re
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from app.cli.output import get_in
from app.errors import ConfigurationError, TetherError

TIMEOUT = httpx.Timeout(60, connect=10)
UPLOAD_TIMEOUT = httpx.Timeout(600, connect=10)
"""A server checks and stores a file before it answers."""
PAGE = 100
ATTEMPTS = 3

LISTS = {
    "files": "files",
    "fine_tuning": "jobs",
    "models": "models",
    "critics": "critics",
    "evaluations": "evals",
    "api_keys": "keys",
    "policies": "policies",
    "projects": "projects",
    "webhook_endpoints": "webhooks",
}
"""The noun whose `list` shows what there is, by the first part of a path."""
NOUNS = {"file_not_found": "files", "model_not_found": "models"}
"""The same by an error's code, where the path is about something else."""
GONE = ("model_deleted", "not_signed")
"""Codes of what a list does not help to find."""


class Unreachable(TetherError):
    """No answer, or none that a Tether server gives."""

    code = "unreachable"


class Interrupted(Unreachable):
    """The connection broke or nothing came in time: what was asked for may have happened, or not."""


class Refused(TetherError):
    """A server's error, in its own words and with what a person can do about it."""

    def __init__(
        self, status: int, message: str, *, problems: tuple[str, ...] = (), advice: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self._lines = (message, *(f"  {each}" for each in problems), *((f"→ {advice}",) if advice else ()))

    def lines(self) -> tuple[str, ...]:
        """Return the message, a line for each problem, and the advice."""
        return self._lines


class Server:
    """A server and the key for it."""

    def __init__(self, http: httpx.Client, url: str) -> None:
        self.http = http
        self.url = url

    def get(self, *path: str, **query: Any) -> dict[str, Any]:
        """Return the object that a path answers."""
        answer: dict[str, Any] = self.call("GET", *path, params=query)
        return answer

    def call(self, method: str, *path: str, params: dict[str, Any] | None = None, **request: Any) -> Any:
        """Send a request and return the object of the reply. Raises Unreachable and Refused."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            with in_words(self.url):
                reply = self.http.request(method, build_path(path), params=given, **request)
        except Interrupted as error:
            if method == "GET":
                raise
            raise Interrupted(
                f"{error.message}; what was asked for may have happened: look before you ask again"
            ) from error
        self._check(reply, path)
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._not_tether(reply)
        return answer

    def create(self, *path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for a new thing; where the reply is lost, ask again in a way that makes no second one."""
        headers = {"idempotency-key": uuid.uuid4().hex}
        for _ in range(ATTEMPTS - 1):
            try:
                return dict(self.call("POST", *path, json=body, headers=headers))
            except Interrupted:
                continue
        return dict(self.call("POST", *path, json=body, headers=headers))

    def get_all(self, *path: str, limit: int, **query: Any) -> dict[str, Any]:
        """Return one list object of up to `limit` items, from as many pages as it takes."""
        data: list[Any] = []
        while True:
            after = data[-1]["id"] if data else None
            page = self.get(*path, limit=min(PAGE, limit - len(data)), after=after, **query)
            data += page["data"]
            if not page["has_more"] or not page["data"] or len(data) >= limit:
                return {"object": "list", "data": data, "has_more": page["has_more"]}

    @contextmanager
    def stream(
        self,
        *path: str,
        headers: dict[str, str] | None = None,
        accept: tuple[int, ...] = (),
        params: dict[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """Yield a reply whose body is still to be read; `accept` has the errors that the caller understands."""
        # The bytes as they are stored: their digest is of these.
        headers = {"accept-encoding": "identity", **(headers or {})}
        with (
            in_words(self.url),
            self.http.stream("GET", build_path(path), headers=headers, params=params) as reply,
        ):
            if not reply.is_success and reply.status_code not in accept:
                reply.read()
                self._check(reply, path)
            yield reply

    def _check(self, reply: httpx.Response, path: tuple[str, ...]) -> None:
        if reply.is_success:
            return
        try:
            error = reply.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._not_tether(reply) from None
        problems = describe_problems(error)
        if problems:
            # The wire's message has the first of them in the same line.
            message = headline_of(message)
        if reply.status_code >= 500:
            message += f" (request {reply.headers.get('x-request-id', 'without an id')})"
        advice = _advice(reply.status_code, code, path)
        raise Refused(reply.status_code, message, problems=problems, advice=advice)

    def _not_tether(self, reply: httpx.Response) -> Unreachable:
        return Unreachable(
            f"{self.url} answered {reply.status_code}, and not as a Tether server does; mend --url or TETHER_URL"
        )


def headline_of(message: str) -> str:
    """Return the message of a wrong data file without the first of its problems, where all that came follow it."""
    return re.sub(r", the first \d+ are$", "", message.partition(": ")[0]) + ":"


def describe_problems(found: dict[str, Any]) -> tuple[str, ...]:
    """Return what is wrong with a data file: a line for each problem, and how to mend each kind of them."""
    problems = found.get("problems")
    if not isinstance(problems, list):
        return ()
    lines = [
        f"line {get_in(each, 'line')}, {get_in(each, 'path')}: found {get_in(each, 'found')}; expected"
        f" {get_in(each, 'expected')}"
        for each in problems
    ]
    more = (found.get("problem_count") or 0) - len(problems)
    if more > 0:
        lines.append(f"and {more} more")
    mends: dict[str, list[str]] = {}
    for each in problems:
        kinds = mends.setdefault(str(get_in(each, "example")), [])
        if get_in(each, "kind") not in kinds:
            kinds.append(str(get_in(each, "kind")))
    return (*lines, *(f"how to mend {', '.join(kinds)}: {example}" for example, kinds in mends.items()))


def _advice(status: int, code: Any, path: tuple[str, ...]) -> str | None:
    if status == 401:
        return "set TETHER_API_KEY to a key of this server; its operator makes one, on its machine, with: tether keys add --home FOLDER"
    if status == 404 and code == "unknown_url":
        return "the server is of another version, or --url (TETHER_URL) leads elsewhere"
    noun = NOUNS.get(code) or LISTS.get(path[0])
    if status == 404 and noun is not None and code not in GONE:
        return f"a key sees its own project only; what is there: tether {noun} list"
    return None


def build_path(parts: tuple[str, ...]) -> str:
    """Return the path of the wire; what a person typed stays one part of it."""
    return "/v1/" + "/".join(quote(part, safe=":") for part in parts)


@contextmanager
def connect(url: str, key: str | None) -> Iterator[Server]:
    """Open a client. Raises ConfigurationError for a URL or a key that cannot be one."""
    root = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(root)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment or not url.isprintable():
        raise ConfigurationError("--url (TETHER_URL) is not of the form http://host:port or https://host")
    key = (key or "").strip()
    if not key:
        raise ConfigurationError(
            "no API key: set TETHER_API_KEY to the one that `tether serve` showed at its first start, or to one made"
            " on its machine with: tether keys add --home FOLDER"
        )
    if not (key.isascii() and key.isprintable()):
        # The key itself is shown nowhere.
        raise ConfigurationError("the API key has characters that no HTTP header can carry; copy it again")
    # To load whom to trust takes a tenth of a second; plain HTTP needs nobody, and this context trusts nobody.
    trust = True if parts.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=root, headers=headers, timeout=TIMEOUT, follow_redirects=False, verify=trust
    ) as http:
        yield Server(http, root)


@contextmanager
def in_words(url: str) -> Iterator[None]:
    """Turn what httpx raises into an error that says what to do."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unreachable(
            f"the server at {url} cannot be reached ({error}); start it with `tether serve`, or name another one by"
            " --url or TETHER_URL"
        ) from error
    except httpx.TimeoutException as error:
        raise Interrupted(f"the server at {url} did not answer in time") from error
    except httpx.TransportError as error:
        reason = error or type(error).__name__
        raise Interrupted(f"the connection to {url} broke ({reason})") from error
