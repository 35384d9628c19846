"""The page over HTTP: its files and their headers, signing in and out, and what a session may do."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.charts import render
from app.dashboard.endpoints import STATIC
from app.database import unit_of_work
from app.models.base import utc_now
from app.models.tenancy import ApiKey
from app.sessions import COOKIE, TOKEN_HEADER
from tests.integration.conftest import Server, Tenant, refused

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="package")
SESSION = "/dashboard/session"
TEXT = ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'")


@pytest.fixture
def browser(server: Server) -> Iterator[httpx.Client]:
    """Somebody's browser, signed out."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def sign_in(browser: httpx.Client, key: str) -> dict[str, Any]:
    reply = browser.post(SESSION, json={"key": key})
    assert reply.status_code == 200, reply.text
    session: dict[str, Any] = reply.json()
    return session


class TestFiles:
    @pytest.mark.parametrize(
        "path",
        ["/", "/dashboard/static/charts/risk.json"]
        + [f"/dashboard/static/{each.relative_to(STATIC).as_posix()}" for each in sorted(STATIC.glob("*.*"))],
    )
    def test_has_a_strict_policy_and_is_sent_once(self, browser: httpx.Client, path: str) -> None:
        reply = browser.get(path)
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        assert all(each in policy for each in TEXT)
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-cache"
        again = browser.get(path, headers={"if-none-match": reply.headers["etag"]})
        # The page itself is a few hundred bytes, which are sent again.
        assert again.status_code == (200 if path == "/" else 304)
        assert again.headers["content-security-policy"] == policy

    @pytest.mark.parametrize(
        "path",
        [
            "../endpoints.py",
            "..%2fendpoints.py",
            "%2e%2e/schemas.py",
            "charts/../../render.py",
            "charts/%2e%2e/settings.py",
            "/etc/passwd",
            "%2fetc%2fpasswd",
        ],
    )
    def test_nothing_outside_of_the_folder_is_sent(self, browser: httpx.Client, path: str) -> None:
        # httpx would tidy the path; a client that means harm does not.
        request = browser.build_request("GET", "/x")
        request.url = request.url.copy_with(raw_path=f"/dashboard/static/{path}".encode())
        assert browser.send(request).status_code in (404, 405)

    def test_what_is_not_there_is_said_so(self, browser: httpx.Client) -> None:
        assert browser.get("/dashboard/static/charts/nothing.json").status_code == 404
        assert browser.get("/dashboard/static/").status_code == 404
        # The code that draws lies beside the specifications, and is no file of the page.
        assert browser.get("/dashboard/static/charts/render.py").status_code == 404

    def test_what_draws_charts_is_sent_once(self, browser: httpx.Client) -> None:
        pytest.importorskip("vl_convert")
        whole = browser.get("/dashboard/vega.js")
        assert whole.status_code == 200
        assert b"vegaEmbed" in whole.content
        known = {"if-none-match": whole.headers["etag"]}
        assert browser.get("/dashboard/vega.js", headers=known).status_code == 304

    def test_without_the_extra_it_is_refused_with_a_way_out(
        self, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What an installation without the extra does: the module is not to be had.
        monkeypatch.setitem(sys.modules, "vl_convert", None)
        monkeypatch.setattr("app.charts.render.find_spec", lambda _: None)
        render._build_bundle.cache_clear()
        reply = browser.get("/dashboard/vega.js")
        assert "pip install" in refused(reply, 501)


class TestSession:
    def test_nobody_in_between_stores_what_it_is_shown(self, browser: httpx.Client, tenant: Tenant) -> None:
        file = tenant.upload()
        sign_in(browser, tenant.key)
        for path in (SESSION, "/v1/files", f"/v1/files/{file}", f"/v1/files/{file}/content", "/v1/models"):
            reply = browser.get(path)
            assert reply.status_code == 200
            assert reply.headers["cache-control"] == "private, no-store", path
            assert reply.headers["vary"] == "authorization, cookie"

    def test_a_key_opens_it_and_the_cookie_hides_it(self, browser: httpx.Client, tenant: Tenant) -> None:
        assert browser.get(SESSION).json() == {"signed_in": False, "why": None}
        session = sign_in(browser, tenant.key)
        assert session["project"]["id"] == tenant.project_id
        assert "jobs:read" in session["scopes"]
        assert tenant.key not in browser.cookies[COOKIE]
        assert browser.get(SESSION).json() == session
        assert browser.get("/v1/fine_tuning/jobs").status_code == 200
        signed_out = browser.delete(SESSION)
        assert signed_out.json() == {"signed_in": False}
        assert COOKIE not in browser.cookies
        refused(browser.get("/v1/fine_tuning/jobs"), 401, code="invalid_api_key")
        # The key itself is as good as before.
        assert tenant.http.get("/v1/fine_tuning/jobs").status_code == 200

    @pytest.mark.parametrize("key", ["junk", "tether_" + "x" * 40, "ünïcode"])
    def test_junk_opens_nothing(self, browser: httpx.Client, key: str) -> None:
        refused(browser.post(SESSION, json={"key": key}), 401)
        assert COOKIE not in browser.cookies

    def test_a_cookie_that_somebody_made_up_opens_nothing(self, browser: httpx.Client) -> None:
        for made_up in ("junk", "anVuaw==", "é".encode().hex()):
            browser.cookies.set(COOKIE, made_up)
            assert browser.get(SESSION).json()["signed_in"] is False
            refused(browser.get("/v1/fine_tuning/jobs"), 401)
            browser.cookies.clear()

    def test_a_change_needs_the_token_and_a_program_with_its_key_does_not(
        self, browser: httpx.Client, tenant: Tenant
    ) -> None:
        job = tenant.create_job()
        token = sign_in(browser, tenant.key)["csrf_token"]
        path = f"/v1/fine_tuning/jobs/{job['id']}/pause"
        refused(browser.post(path), 403, code="csrf_token")
        refused(browser.delete(f"/v1/files/{job['training_file']}"), 403, code="csrf_token")
        other = {TOKEN_HEADER: token, "sec-fetch-site": "cross-site"}
        refused(browser.post(path, headers=other), 403, code="cross_site")
        assert browser.post(path, headers={TOKEN_HEADER: token}).status_code == 200
        assert tenant.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").status_code == 200

    def test_another_page_can_neither_sign_in_nor_out(self, browser: httpx.Client, tenant: Tenant) -> None:
        elsewhere = {"sec-fetch-site": "cross-site"}
        refused(browser.post(SESSION, json={"key": tenant.key}, headers=elsewhere), 403, code="cross_site")
        sign_in(browser, tenant.key)
        refused(browser.delete(SESSION, headers=elsewhere), 403, code="cross_site")
        assert browser.get(SESSION).json()["signed_in"] is True

    def test_it_ends_with_its_key(self, server: Server, browser: httpx.Client, tenant: Tenant) -> None:
        key_id = sign_in(browser, tenant.key)["key"]["id"]
        with unit_of_work(server.database) as session:
            session.get_one(ApiKey, key_id).revoked_at = utc_now()
        ended = _until_it_ends(browser)
        assert ended["signed_in"] is False
        assert ended["why"]
        assert COOKIE not in browser.cookies
        refused(browser.get("/v1/fine_tuning/jobs"), 401)


def _until_it_ends(browser: httpx.Client) -> dict[str, Any]:
    """Ask until the server does not know the key any more: it remembers a good one for a moment."""
    for _ in range(100):
        session: dict[str, Any] = browser.get(SESSION).json()
        if not session["signed_in"]:
            return session
        time.sleep(0.1)
    raise AssertionError("the session goes on without its key")
