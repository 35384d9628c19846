"""What this program writes about itself: lines for people, or JSON for machines, and never a secret.

A line that is written while a request is answered carries the request's id, key's project and job; one of a worker
carries the job. Whatever looks like a key, or like a URL with a password, is taken out of every line, tracebacks too.
"""

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Literal

from app.failpoints import VARIABLE, list_armed

LogFormat = Literal["text", "json"]

_SECRETS = re.compile(
    r"""
    (?P<scheme>\b(?:bearer|basic)\s+)[^\s'",;]+          # an Authorization header
    | (?P<url>\b[a-z][a-z0-9+.-]*://)[^\s/@'"]*@         # user and password of a URL
    | \b(?P<prefix>ftk|tether|sk|whsec)[_-][A-Za-z0-9_+/=-]{16,}  # a key of ours or of a model server, a webhook's secret
    """,
    re.IGNORECASE | re.VERBOSE,
)
REMOVED = "[removed]"
QUIET = ("httpx", "httpcore", "uvicorn.access", "alembic")
"""Loggers that tell each request that goes out, or what `app.requests` tells better."""
# Whoever reads a log in a terminal must not be led by what a client sent.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

# A dict that is added to in place: the threads that answer a request have copies of its context.
_fields: ContextVar[dict[str, object]] = ContextVar("log_fields")
_of_the_process: dict[str, object] = {}


def begin_fields(**fields: object) -> None:
    """Have every line of this request carry these fields from here on."""
    _fields.set(fields)


def add_fields(**fields: object) -> None:
    """Have every later line of this request, or of this process outside of one, carry these fields too."""
    _fields.get(_of_the_process).update(fields)


def redact(text: str) -> str:
    """Return a text without what looks like a secret, and without signs that lead a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _SECRETS.sub(_stand_in, text))


def _stand_in(found: re.Match[str]) -> str:
    if found["scheme"]:
        return found["scheme"] + REMOVED
    if found["url"]:
        return f"{found['url']}{REMOVED}@"
    return f"{found['prefix']}_{REMOVED}"


class TextFormatter(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the fields behind it."""
        fields = " ".join(f"{name}={value}" for name, value in _fields_of(record).items())
        return redact(super().format(record) + (f" [{fields}]" if fields else ""))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object: time, level, logger, message, the fields, and the traceback where there is one."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        line |= {
            name: redact(value) if isinstance(value, str) else value
            for name, value in _fields_of(record).items()
        }
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=lambda value: redact(str(value)))


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    own = getattr(record, "fields", {})
    return {
        name: value for name, value in {**_fields.get(_of_the_process), **own}.items() if value is not None
    }


def configure_logs(log_format: LogFormat, stream: IO[str] | None = None) -> None:
    """Have every log line of this process written in one form, to stderr unless a stream is given."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if list_armed():
        logging.getLogger(__name__).warning(
            "%s makes this process fail at: %s. That is for tests alone", VARIABLE, ", ".join(list_armed())
        )
