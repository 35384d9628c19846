"""The page of the API: whole, harmless, and readable without a network."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api_page import render_page
from app.main import create_app
from tests.support import settings_in


@pytest.fixture
def schema(tmp_path: Path) -> dict[str, Any]:
    """The description of the whole application."""
    app = create_app(settings_in(tmp_path))
    app.state.database.engine.dispose()
    return app.openapi()


class TestPage:
    def test_every_operation_and_object_is_there_once_and_links_lead_somewhere(
        self, schema: dict[str, Any]
    ) -> None:
        page = render_page(schema)
        anchors = re.findall(r' id="([^"]+)"', page)
        assert len(anchors) == len(set(anchors))
        assert set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
        for path, operations in schema["paths"].items():
            assert f"<code>{path}</code>" in page
            assert {each["operationId"].replace("_", "-") for each in operations.values()} <= set(anchors)

    def test_nothing_comes_from_elsewhere_and_nothing_runs(self, schema: dict[str, Any]) -> None:
        page = render_page(schema)
        assert not re.search(r"<(script|link|img|iframe|object|embed|base|form)\b", page)
        assert not re.search(r"(https?:)?//|url\(|@import|javascript:|\son\w+=", page)

    def test_texts_are_escaped(self, schema: dict[str, Any]) -> None:
        schema["info"]["description"] = "<script>alert(1)</script> `<b>`"
        page = render_page(schema)
        assert "<script>" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt; <code>&lt;b&gt;</code>" in page

    def test_policy_allows_this_style_and_nothing_else(self, tmp_path: Path) -> None:
        with TestClient(create_app(settings_in(tmp_path))) as client:
            reply = client.get("/docs")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/html")
        style = re.findall(r"<style>(.*?)</style>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
        policy = reply.headers["content-security-policy"]
        assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
        assert "unsafe" not in policy
        assert len(style) == 1
