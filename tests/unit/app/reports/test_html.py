"""The page of a report: self-contained, and nobody's markup but ours."""

import base64
import hashlib
import re

from app.reports.html import HEADERS, render_report

ATTACK = "</pre><script>alert(1)</script>"
REPORT = {
    "format": {"name": "chat", "read_as": "as it stands"},
    "model": ATTACK,
    "rows": {"total": 2, "kept": 2, **{name: {"count": 0} for name in ("truncated", "dropped", "refused")}},
    "end_of_turn": {"trained": False},
    "duplicates": {"normalised": {"rows": 0}},
    "leaks": {"normalised": {"rows": 1}},
    "training": {"steps": 1, "trained_tokens": 3, "expected_beta_mean": 0.5, "time": {"seconds": None}},
    "memory": {"estimated_bytes": 10},
    "risk": {"riskiest": [{"row": 1, "bucket": "0.8 to 1", "treatment": "replay"}]},
    "preview": [
        {
            "row": 0,
            "cut": True,
            "segments": [{"text": ATTACK, "trained": False}, {"text": f"& {ATTACK}", "trained": True}],
        }
    ],
}


def test_every_text_is_escaped() -> None:
    page = render_report(REPORT)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3
    assert "<mark>&amp; &lt;/pre&gt;" in page
    assert "no: the model may never stop" in page
    assert "0.8 to 1" in page


def test_the_only_style_is_the_one_that_the_headers_allow() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", render_report(REPORT), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = HEADERS["content-security-policy"]
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
