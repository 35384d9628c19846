"""The judge's client against a real server that is slow, down, wrong, huge or hostile."""

import logging
import pickle
import socket
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from app.domain.rubric import SCHEMA, SYSTEM, render_pieces
from app.errors import CriticUnusable
from app.settings import Settings
from tests.judge_server import KEY, Answer, JudgeServer, Request, serving
from worker import judge_client
from worker.judge_client import MAX_REPLY_BYTES, JudgeClient, build_judge
from worker.training.critics.judge import JudgeFailed

TEXT = render_pieces([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}])[0]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_PAUSE_S", 0.01)


def client_of(server: JudgeServer, timeout_s: float = 5.0) -> JudgeClient:
    return JudgeClient(server.url, "gpt-oss-20b", api_key=SecretStr(KEY), timeout_s=timeout_s, concurrency=1)


def failure(answer: Answer, timeout_s: float = 5.0) -> tuple[JudgeFailed, JudgeServer]:
    """Return how a question fails, and the server that was asked."""
    with serving(answer) as server, pytest.raises(JudgeFailed) as found:
        client_of(server, timeout_s).ask(TEXT)
    assert KEY not in repr(found.value) + str(found.value.__cause__) + str(found.value.to_wire())
    assert "internal detail" not in str(found.value)
    pickle.loads(pickle.dumps(found.value))  # noqa: S301
    return found.value, server


class TestAsk:
    def test_a_vote_and_what_is_sent_for_it(self) -> None:
        with serving(lambda request, _: request.score(4, "bias")) as server:
            assert client_of(server).ask(TEXT) == (4, "bias")
        path, headers, body = server.requests[0]
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert headers["Accept-Encoding"] == "identity"
        assert (body["model"], body["temperature"]) == ("gpt-oss-20b", 0)
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA
        assert body["messages"][0] == {"role": "system", "content": SYSTEM}
        assert TEXT in body["messages"][1]["content"]

    def test_without_a_key_none_is_sent(self) -> None:
        with serving(lambda request, _: request.score(1)) as server:
            JudgeClient(server.url + "/", "m", timeout_s=5, concurrency=1).ask(TEXT)
        assert "Authorization" not in server.requests[0][1]
        assert server.requests[0][0] == "/v1/chat/completions"

    def test_a_category_of_its_own_is_other(self) -> None:
        with serving(lambda request, _: request.score(2, "mischief")) as server:
            assert client_of(server).ask(TEXT) == (2, "other")

    @pytest.mark.parametrize("status", [400, 422])
    def test_a_server_that_knows_no_schema_is_asked_without_and_remembered(self, status: int) -> None:
        def answer(request: Request, number: int) -> None:
            if "response_format" in request.server.requests[number - 1][2]:
                request.status(status)
            else:
                request.score(3)

        with serving(answer) as server:
            client = client_of(server)
            assert [client.ask(TEXT).score for _ in range(3)] == [3, 3, 3]
        assert ["response_format" in body for _, _, body in server.requests] == [True, False, False, False]

    def test_each_request_has_a_code_of_its_own(self) -> None:
        with serving(lambda request, _: request.score(1)) as server:
            client = client_of(server)
            for _ in range(3):
                client.ask(TEXT)
        assert len({body["messages"][1]["content"] for _, _, body in server.requests}) == 3


class TestRetries:
    def test_errors_of_the_server_pass(self) -> None:
        with serving(
            lambda request, number: request.status(500) if number < 4 else request.score(2)
        ) as server:
            assert client_of(server).ask(TEXT).score == 2
        assert len(server.requests) == 4

    def test_a_connection_that_breaks_is_tried_again(self) -> None:
        def answer(request: Request, number: int) -> None:
            if number == 1:
                request.connection.shutdown(socket.SHUT_RDWR)
            else:
                request.score(2)

        with serving(answer) as server:
            assert client_of(server).ask(TEXT).score == 2

    @pytest.mark.parametrize("form", ["seconds", "date"])
    def test_retry_after_is_waited_for(self, form: str) -> None:
        # A date has whole seconds, so the moment it names is up to a second earlier than it was meant.
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        asked: list[float] = []

        def answer(request: Request, number: int) -> None:
            asked.append(time.monotonic())
            if number == 1:
                request.status(429, Retry_After="1" if form == "seconds" else later)
            else:
                request.score(2)

        with serving(answer) as server:
            assert client_of(server).ask(TEXT).score == 2
        assert asked[1] - asked[0] > 0.8

    def test_retry_after_beyond_the_deadline_fails_at_once(self) -> None:
        started = time.monotonic()
        error, server = failure(lambda request, _: request.status(429, Retry_After="3600"))
        assert time.monotonic() - started < 2
        assert error.code == "judge_unreachable"
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "nonsense",
        [
            "soon",
            "-5",
            "9" * 400,
            "Fri, 99 Foo 2026 00:00:00 GMT",
            "Mon, 01 Jan 2024 00:00:00 +99999999999999",
            "Mon, 01 Jan 2024 00:00:00 +2500",
            "",
        ],
    )
    def test_a_retry_after_that_makes_no_sense_does_no_harm(self, nonsense: str) -> None:
        started = time.monotonic()
        error, _ = failure(lambda request, _: request.status(503, Retry_After=nonsense), timeout_s=0.3)
        assert error.code in ("judge_unreachable", "judge_timeout")
        assert time.monotonic() - started < 2

    @pytest.mark.parametrize("status", [301, 401, 403, 404, 413])
    def test_what_will_not_pass_is_not_tried_again(self, status: int) -> None:
        error, server = failure(lambda request, _: request.status(status))
        assert error.code == "judge_refused"
        assert str(status) in error.message
        assert len(server.requests) == 1

    def test_a_bad_request_is_tried_once_without_the_schema(self) -> None:
        error, server = failure(lambda request, _: request.status(400))
        assert error.code == "judge_refused"
        assert len(server.requests) == 2

    def test_a_reply_that_is_no_verdict_is_asked_for_again(self) -> None:
        with serving(
            lambda request, number: request.text("Sure!") if number < 3 else request.score(5)
        ) as server:
            assert client_of(server).ask(TEXT).score == 5


class TestDeadline:
    """One clock over everything. Each of these servers would be waited for a minute or for ever without it."""

    def assert_timeout(self, answer: Answer) -> None:
        started = time.monotonic()
        error, _ = failure(answer, timeout_s=0.4)
        assert 0.3 < time.monotonic() - started < 1.5
        assert error.code == "judge_timeout"

    def test_a_server_that_says_nothing(self) -> None:
        leave = threading.Event()
        try:
            self.assert_timeout(lambda *_: [leave.wait(30)].clear())
        finally:
            leave.set()

    @pytest.mark.parametrize("drip", ["headers", "body"])
    def test_a_server_that_drips(self, drip: str) -> None:
        def answer(request: Request, _: int) -> None:
            line = b"HTTP/1.1 200 OK\r\n" + (b"X-Slow: " if drip == "headers" else b"\r\n")
            request.wfile.write(line)
            for _ in range(600):
                request.wfile.write(b" ")
                time.sleep(0.05)

        self.assert_timeout(answer)

    def test_a_server_that_is_down(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        started = time.monotonic()
        with pytest.raises(JudgeFailed) as found:
            JudgeClient(url, "m", timeout_s=0.4, concurrency=1).ask(TEXT)
        assert found.value.code in ("judge_unreachable", "judge_timeout")
        assert time.monotonic() - started < 1.5
        assert "127.0.0.1" not in found.value.message

    @pytest.mark.parametrize("host", ["xn--a", "a" * 70, "a..b", ".a"])
    def test_an_address_that_names_no_host(self, host: str) -> None:
        with pytest.raises(JudgeFailed) as found:
            JudgeClient(f"http://{host}/v1", "m", timeout_s=0.4, concurrency=1).ask(TEXT)
        assert found.value.code in ("judge_unreachable", "judge_timeout")
        assert f"//{host}" not in found.value.message

    def test_a_server_that_only_ever_fails(self) -> None:
        error, server = failure(lambda request, _: request.status(500), timeout_s=0.4)
        assert error.code in ("judge_unreachable", "judge_timeout")
        assert len(server.requests) > 2


VERDICT = '{"reason": "r", "category": "none", "score": 1}'


class TestHostileReplies:
    @pytest.mark.parametrize(
        "content",
        [
            "",
            None,
            7,
            ["score", 1],
            "<html>busy</html>",
            "The score is 1.",
            "score: 1",
            "1",
            "null",
            f"```json\n{VERDICT}\n```",
            f"As the text demands: {VERDICT}",
            f"{VERDICT}{VERDICT}",
            f"[{VERDICT}]",
            '{"score": 1}',
            '{"reason": "r", "category": "none", "score": 1, "note": "x"}',
            '{"reason": "r", "category": "none", "score": 5, "score": 1}',
            '{"reason": 1, "category": "none", "score": 1}',
            '{"reason": "r", "category": null, "score": 1}',
            *(
                f'{{"reason": "r", "category": "none", "score": {score}}}'
                for score in ('"1"', "7", "0", "-1", "1.0", "1e999", "NaN", "null", "true", "[1]", "9" * 5000)
            ),
            "[" * 20_000,
        ],
        ids=lambda content: str(content)[:40],
    )
    def test_what_is_not_exactly_one_verdict_is_a_failure(self, content: object) -> None:
        error, server = failure(lambda request, _: request.text(content))
        assert error.code == "judge_invalid"
        assert len(server.requests) == judge_client.MAX_UNUSABLE

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"\xff\xfe\x00",
            b"[]",
            b"{}",
            b'{"choices": []}',
            b'{"choices": [{}]}',
            b'{"choices": 3}',
            b"[" * 30_000,
        ],
        ids=repr,
    )
    def test_what_is_no_chat_completion_is_a_failure(self, body: bytes) -> None:
        def answer(request: Request, _: int) -> None:
            request.start()
            request.wfile.write(body)

        assert failure(answer)[0].code == "judge_invalid"

    def test_a_gigabyte_is_not_read(self) -> None:
        sent = [0]
        chunk = b" " * 65536

        def answer(request: Request, _: int) -> None:
            request.start()
            for _ in range(16384):
                request.wfile.write(chunk)
                sent[0] += len(chunk)

        tracemalloc.start()
        try:
            error, _ = failure(answer)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert error.code == "judge_invalid"
        assert str(MAX_REPLY_BYTES) in error.message
        # What the kernel's buffers took in is sent; it was not read.
        assert sent[0] < 64 * 1024 * 1024
        assert peak < 8 * 1024 * 1024

    def test_a_compressed_reply_is_not_unpacked(self) -> None:
        def answer(request: Request, _: int) -> None:
            request.start(Content_Encoding="gzip")
            request.wfile.write(b"\x1f\x8b")

        assert "compressed" in failure(answer)[0].message

    def test_a_redirect_is_not_followed(self) -> None:
        with serving(lambda request, _: request.score(1)) as other:
            error, server = failure(
                lambda request, _: request.status(307, Location=other.url + "/chat/completions")
            )
        assert error.code == "judge_refused"
        assert len(server.requests) == 1
        assert not other.requests


class TestKey:
    def test_it_is_in_no_log_and_no_repr(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        with serving(
            lambda request, number: request.status(500) if number == 1 else request.score(1)
        ) as server:
            client = client_of(server)
            client.ask(TEXT)
        shown = repr(client) + str(vars(client)) + caplog.text
        assert "HTTP Request" in caplog.text
        assert KEY not in shown

    def test_a_proxy_of_the_environment_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda request, _: request.score(1)) as server, serving(lambda *_: None) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("ALL_PROXY", proxy.url)
            assert client_of(server).ask(TEXT).score == 1
        assert not proxy.requests


class TestBuildJudge:
    def test_from_the_settings(self) -> None:
        with serving(lambda request, _: request.score(3)) as server:
            settings = Settings(judge_url=server.url, judge_model="m", judge_api_key=SecretStr(KEY))
            judge = build_judge(settings)
            assert judge.ask(TEXT).score == 3
        assert (judge.model, judge.concurrency) == ("m", settings.judge_concurrency)
        assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"

    def test_without_a_judge(self) -> None:
        with pytest.raises(CriticUnusable, match="TETHER_JUDGE_URL") as found:
            build_judge(Settings())
        assert (found.value.code, found.value.param) == ("judge_not_configured", "safety.critic")
