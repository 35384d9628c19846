"""Whatever a server answers, or does not, becomes an error in words."""

from collections.abc import Callable

import httpx
import pytest

from app.cli.client import Interrupted, Refused, Server, Unreachable, connect
from app.errors import ConfigurationError

Answer = Callable[[httpx.Request], httpx.Response]


def server_that(answer: Answer) -> Server:
    """Return a client of a server that answers so."""
    http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://tether.test")
    return Server(http, "http://tether.test")


def error_of(status: int, **fields: object) -> Answer:
    error = {"message": "it is wrong", "type": "t", "param": None, "code": None, **fields}
    return lambda _: httpx.Response(status, json={"error": error}, headers={"x-request-id": "req_1"})


def failing(error: Exception) -> Answer:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


class TestConnect:
    @pytest.mark.parametrize(
        "url",
        [
            "tether",
            "ftp://tether",
            "http://",
            "http://a:b@tether",
            "http://tether?x",
            "http://tether:x",
            "http://\x1b",
        ],
    )
    def test_url_that_is_none_is_refused_and_not_repeated(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="TETHER_URL") as found, connect(url, "key"):
            pass
        assert url not in found.value.message.split()

    @pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
    def test_url_may_be_the_one_of_the_openai_client(self, url: str) -> None:
        with connect(url, "key") as server:
            assert server.url == "http://h:1"

    @pytest.mark.parametrize("key", [None, "", "  "])
    def test_no_key_says_where_keys_come_from(self, key: str | None) -> None:
        with (
            pytest.raises(ConfigurationError, match=r"TETHER_API_KEY.*tether keys add"),
            connect("http://h", key),
        ):
            pass

    @pytest.mark.parametrize("key", ["sécret-key", "secret\nkey", "secret\x1bkey"])
    def test_key_that_no_header_can_carry_is_shown_to_nobody(self, key: str) -> None:
        with pytest.raises(ConfigurationError, match="no HTTP header") as found, connect("http://h", key):
            pass
        assert "cret" not in found.value.message

    def test_no_redirect_takes_the_key_elsewhere(self) -> None:
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.url.host)
            return httpx.Response(307, headers={"location": "http://elsewhere/"})

        with pytest.raises(Unreachable, match="answered 307, and not as a Tether server"):
            server_that(answer).get("files")
        assert seen == ["tether.test"]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "kind", "words"),
        [
            (httpx.ConnectError("Connection refused"), Unreachable, "cannot be reached.*tether serve"),
            (httpx.ReadTimeout("x"), Interrupted, "did not answer in time"),
            (httpx.RemoteProtocolError("gone"), Interrupted, "broke .gone"),
        ],
    )
    def test_no_answer(self, error: Exception, kind: type[Unreachable], words: str) -> None:
        with pytest.raises(kind, match=words):
            server_that(failing(error)).get("files")

    def test_lost_answer_to_a_change_says_that_it_may_have_happened(self) -> None:
        server = server_that(failing(httpx.ReadTimeout("x")))
        with pytest.raises(Interrupted, match="may have happened"):
            server.call("POST", "fine_tuning", "jobs")
        with pytest.raises(Interrupted) as found:
            server.get("fine_tuning", "jobs")
        assert "may have happened" not in found.value.message

    @pytest.mark.parametrize(
        ("status", "code", "advice"),
        [
            (400, None, None),
            (401, None, "TETHER_API_KEY"),
            (403, None, None),
            (404, "not_found", "tether jobs list"),
            (404, "model_deleted", None),
            (404, "unknown_url", "another version"),
        ],
    )
    def test_refusal_has_the_servers_words_and_what_to_do(
        self, status: int, code: str | None, advice: str | None
    ) -> None:
        with pytest.raises(Refused) as found:
            server_that(error_of(status, code=code)).get("fine_tuning", "jobs", "x")
        first, *rest = found.value.lines()
        assert first == "it is wrong"
        assert [advice in line for line in rest] == [True] if advice else rest == []

    def test_error_of_the_server_has_the_request_id(self) -> None:
        with pytest.raises(Refused, match=r"it is wrong \(request req_1\)"):
            server_that(error_of(500)).get("files")

    def test_every_problem_of_a_file_and_how_to_mend_each_kind(self) -> None:
        problems = [
            {"line": line, "path": "$", "kind": kind, "found": "x", "expected": "y", "example": "{}"}
            for line, kind in ((1, "a"), (2, "b"), (3, "a"))
        ]
        with pytest.raises(Refused) as found:
            server_that(error_of(400, message="5 problems: x; y", problems=problems, problem_count=5)).get(
                "files"
            )
        assert found.value.lines() == (
            "5 problems:",
            *(f"  line {line}, $: found x; expected y" for line in (1, 2, 3)),
            "  and 2 more",
            "  how to mend a, b: {}",
        )

    def test_headline_of_all_problems_does_not_speak_of_the_first(self) -> None:
        problems = [
            {"line": line, "path": "$", "kind": "a", "found": "x", "expected": "y", "example": "{}"}
            for line in range(1, 39)
        ]
        message = "38 problems in the training file (38 a), the first 20 are: line 1, $: found x; and so on"
        with pytest.raises(Refused) as found:
            server_that(error_of(400, message=message, problems=problems, problem_count=38)).get("files")
        first, *rest = found.value.lines()
        assert first == "38 problems in the training file (38 a):"
        assert len([line for line in rest if line.startswith("  line ")]) == 38

    @pytest.mark.parametrize(
        "reply",
        [
            httpx.Response(200, text="<html>"),
            httpx.Response(200, json=[1]),
            httpx.Response(404, text="no"),
            httpx.Response(502, json={"detail": "x"}),
            httpx.Response(400, json={"error": "x"}),
        ],
    )
    def test_what_is_no_tether_server_is_said_to_be_none(self, reply: httpx.Response) -> None:
        with pytest.raises(Unreachable, match="not as a Tether server does; mend --url"):
            server_that(lambda _: reply).get("files")


class TestRequests:
    def test_what_was_typed_stays_one_part_of_the_path(self) -> None:
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.url.raw_path)
            return httpx.Response(200, json={})

        server = server_that(answer)
        server.get("models", "ft:org/base:x")
        server.get("files", "../keys?x#y")
        assert seen == [b"/v1/models/ft:org%2Fbase:x", b"/v1/files/..%2Fkeys%3Fx%23y"]

    def test_pages_are_put_together_up_to_the_limit(self) -> None:
        items = [{"id": str(number)} for number in range(250)]

        def answer(request: httpx.Request) -> httpx.Response:
            after, limit = request.url.params.get("after"), int(request.url.params["limit"])
            start = 0 if after is None else int(after) + 1
            page = items[start : start + limit]
            return httpx.Response(200, json={"data": page, "has_more": start + limit < len(items)})

        server = server_that(answer)
        assert server.get_all("files", limit=1000) == {"object": "list", "data": items, "has_more": False}
        assert server.get_all("files", limit=120) == {"object": "list", "data": items[:120], "has_more": True}

    def test_page_that_promises_more_and_has_nothing_ends_the_list(self) -> None:
        server = server_that(lambda _: httpx.Response(200, json={"data": [], "has_more": True}))
        assert server.get_all("files", limit=10)["data"] == []
