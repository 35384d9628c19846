"""Log lines: their form, what they carry, and that no secret gets through."""

import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from app.keys.secret import make_secret
from app.logs import LogFormat, add_fields, begin_fields, configure_logs, redact

KEY = make_secret("key_1")
CANARIES = [
    KEY,
    f"Authorization: Bearer {KEY}",
    "bearer of-any-form-0123456789",
    "postgresql+psycopg://tether:pa55word@db/tether",
    "https://user:pa55word@hooks.example/x?y",
    "redis://:pa55word@redis:6379/0",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "sk-proj-0123456789abcdef",
]
SECRETS = (KEY, "of-any-form", "pa55word", "MfKQ9r8G", "0123456789abcdef")


@pytest.fixture
def no_fields() -> None:
    """What other tests have said of this process is not for these lines."""
    begin_fields()


@pytest.fixture(params=["text", "json"])
def log_format(request: pytest.FixtureRequest) -> LogFormat:
    """Each form."""
    form: LogFormat = request.param
    return form


def write(form: LogFormat, *args: object, **options: object) -> str:
    """Return what one log call writes."""
    stream = io.StringIO()
    configure_logs(form, stream)
    logging.getLogger("app.test").error(*args, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.usefixtures("no_fields")
class TestSecrets:
    @pytest.mark.parametrize("canary", CANARIES, ids=range(len(CANARIES)))
    def test_none_gets_through(self, log_format: LogFormat, canary: str) -> None:
        def fail() -> None:
            raise ValueError(f"found {canary}, which is wrong")

        try:
            fail()
        except ValueError:
            written = write(log_format, "it said %s", canary, exc_info=True, extra={"fields": {"a": canary}})
        assert "which is wrong" in written
        assert "[removed]" in written
        assert not [secret for secret in SECRETS if secret in written]

    def test_the_rest_stays(self) -> None:
        plain = "ftjob-abc: https://host/path and req_0123456789abcdef, model ft:tether-mini:x, tether serve"
        assert redact(plain) == plain

    def test_what_leads_a_terminal_is_shown_as_a_sign(self, log_format: LogFormat) -> None:
        written = write(log_format, "name \x1b[2Kevil\u202e\r")
        assert not set(written) & set("\x1b\u202e\r")


@pytest.mark.usefixtures("no_fields")
class TestForms:
    def test_json_is_one_object_a_line(self) -> None:
        written = write("json", "two\nlines %d", 5, extra={"fields": {"status": 200, "nothing": None}})
        (line,) = written.splitlines()
        found = json.loads(line)
        assert found.pop("time").endswith("+00:00")
        assert found == {"level": "error", "logger": "app.test", "message": "two\nlines 5", "status": 200}

    def test_text_has_the_fields_behind(self) -> None:
        written = write("text", "hello", extra={"fields": {"status": 200}})
        assert written.endswith(" ERROR app.test: hello [status=200]\n")

    def test_lines_of_a_request_carry_what_its_threads_found_out(self, log_format: LogFormat) -> None:
        def answer() -> str:
            begin_fields(request="req_1")
            with ThreadPoolExecutor(1) as thread:
                thread.submit(copy_context().run, lambda: add_fields(project="proj_1")).result()
            return write(log_format, "hello")

        written = copy_context().run(answer)
        assert "req_1" in written
        assert "proj_1" in written
        assert "req_1" not in write(log_format, "after")
