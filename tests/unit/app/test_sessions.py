"""A browser's session: what its cookie carries, and what a request that changes something must show."""

import base64
import re
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import Response

from app.errors import PermissionDenied
from app.sessions import (
    COOKIE,
    TOKEN_HEADER,
    close_session,
    open_session,
    read_authorization,
    read_session,
    token_of,
)

KEY = "a key; with = signs, and ünïcode"


def request(
    method: str = "GET", *, scheme: str = "http", cookie: str | None = None, **headers: str
) -> Request:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if cookie is not None:
        sent["cookie"] = f"{COOKIE}={cookie}"
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "path": "/",
        "query_string": b"",
        "server": ("localhost", 80),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    return Request(scope)


def cookie_of(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_script_reads_the_cookie_and_no_other_site_sends_it(scheme: str) -> None:
    reply = Response()
    open_session(request(scheme=scheme), reply, KEY)
    name, *attributes = reply.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} <= set(attributes)
    assert ("Secure" in attributes) is (scheme == "https")
    value = name.removeprefix(f"{COOKIE}=").strip('"')
    assert read_session(request(cookie=value)) == KEY
    close_session(reply)
    assert re.search(r"Max-Age=0|01 Jan 1970", reply.headers.getlist("set-cookie")[-1])


@pytest.mark.parametrize(
    "cookie", [None, "", "%%%", "????", cookie_of("x")[:-2], base64.urlsafe_b64encode(b"\xff\xfe").decode()]
)
def test_a_cookie_that_is_no_session_is_none(cookie: str | None) -> None:
    assert not read_session(request(cookie=cookie))


def test_reading_needs_the_cookie_alone() -> None:
    assert read_authorization(request(cookie=cookie_of(KEY))) == f"Bearer {KEY}"
    assert read_authorization(request()) is None


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "PUT"])
def test_a_change_needs_the_token_of_the_session(method: str) -> None:
    cookie = cookie_of(KEY)
    for token in ("", "junk", token_of("another key"), "tökén"):
        with pytest.raises(PermissionDenied) as refused:
            read_authorization(request(method, cookie=cookie, **{TOKEN_HEADER: token}))
        assert refused.value.code == "csrf_token"
    assert (
        read_authorization(request(method, cookie=cookie, **{TOKEN_HEADER: token_of(KEY)})) == f"Bearer {KEY}"
    )
    # A program that shows its key was not made to by another page.
    assert read_authorization(request(method, cookie=cookie, authorization="Bearer other")) == "Bearer other"


def test_the_header_of_a_proxy_leaves_the_session_as_it_is() -> None:
    proxy = {"authorization": "Basic dXNlcjpwYXNz"}
    assert read_authorization(request(cookie=cookie_of(KEY), **proxy)) == f"Bearer {KEY}"
    assert read_authorization(request(**proxy)) == proxy["authorization"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_page_asked_for_is_refused_even_with_the_token(site: str, method: str) -> None:
    with pytest.raises(PermissionDenied) as refused:
        read_authorization(
            request(method, cookie=cookie_of(KEY), sec_fetch_site=site, **{TOKEN_HEADER: token_of(KEY)})
        )
    assert refused.value.code == "cross_site"


def test_the_token_tells_nothing_of_the_key() -> None:
    assert re.fullmatch("[0-9a-f]{64}", token_of(KEY))
    assert token_of(KEY) != token_of(KEY + "x")
