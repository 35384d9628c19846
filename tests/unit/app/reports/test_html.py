"""The page of a report: self-contained, and nobody's markup but ours."""

import base64
import hashlib
import re

from app.reports.html import HEADERS, ROWS_SHOWN, render_report

ATTACK = "</pre><script>alert(1)</script>"
FILENAME = f"{ATTACK}.jsonl"
REPORT = {
    "training_file": "file-1",
    "format": {"name": "chat", "read_as": "as it stands"},
    "model": ATTACK,
    "rows": {"total": 2, "kept": 2, **{name: {"count": 0} for name in ("truncated", "dropped", "refused")}},
    "end_of_turn": {"trained": False},
    "duplicates": {"normalised": {"rows": 0}},
    "leaks": {"normalised": {"rows": 1}},
    "training": {
        "steps": 1,
        "trained_tokens": 3,
        "expected_beta_mean": 0.5,
        "expected_beta_bounds": [0.42, 0.58],
        "time": {"seconds": 12.5, "reason": "10.0 s to start and to finish"},
    },
    "memory": {"estimated_bytes": 10},
    "risk": {
        "critic": {
            "id": "critic_1",
            "category": "harm",
            "quality": {"auroc": 0.98765, "tpr_at_1_percent_fpr": None},
        },
        "note": "asked no judge",
        "rows": 500,
        "distribution": [{"bucket": "0 to 0.2", "rows": 460}, {"bucket": "0.8 to 1", "rows": 40}],
        "riskiest": [
            {"row": row, "bucket": "0.8 to 1", "treatment": "replay", "text": f"user: {ATTACK} {row}"}
            for row in range(40)
        ],
    },
    "preview": [
        {
            "row": 0,
            "cut": True,
            "segments": [{"text": ATTACK, "trained": False}, {"text": f"& {ATTACK}", "trained": True}],
        }
    ],
}


def test_every_text_is_escaped() -> None:
    page = render_report(REPORT, FILENAME)
    assert "<script" not in page
    # The file's name, twice; the model; the risky rows; the preview, twice.
    assert page.count("&lt;script&gt;") == 2 + 1 + ROWS_SHOWN + 2
    assert "<mark>&amp; &lt;/pre&gt;" in page
    assert "no: the model may never stop" in page
    assert "0.8 to 1" in page


def test_the_only_style_is_the_one_that_the_headers_allow() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", render_report(REPORT, FILENAME), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = HEADERS["content-security-policy"]
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_risk_says_of_which_file_by_which_critic_and_how_much_is_shown() -> None:
    page = render_report(REPORT, "rows.jsonl")
    assert "<h1>Dataset report: rows.jsonl</h1>" in page
    assert "critic_1 (harm); on held-out topics AUROC 0.988, TPR at 1 % FPR not known." in page
    assert "asked no judge" in page
    assert "<h3>Distribution over 500 rows</h3>" in page
    assert "<td>0.8 to 1</td><td>40</td>" in page
    assert "<h3>Riskiest rows: 30 of 500</h3>" in page
    assert (
        "<th scope=col>Row</th><th scope=col>Bucket</th><th scope=col>Treatment</th><th scope=col>Text</th>"
        in page
    )
    assert "<td>29</td><td>0.8 to 1</td><td>replay</td><td>user: " in page
    assert "<td>30</td>" not in page
    assert "0.50, for sure between 0.42 and 0.58" in page
    assert "12.5 s: 10.0 s to start and to finish" in page


def test_page_without_risks_says_why() -> None:
    risk = {"critic": None, "note": "the operator's policy shows no risks of rows", "rows_failed": None}
    page = render_report({**REPORT, "risk": risk}, "rows.jsonl")
    assert "No fitted critic measured the rows." in page
    assert "the operator&#x27;s policy shows no risks of rows" in page
    assert "Riskiest" not in page


def test_combined_critics_are_all_named() -> None:
    one = REPORT["risk"]["critic"]
    both = {
        "id": "combined",
        "rule": "max",
        "weights": None,
        "critics": [one, {"type": "constant", "s": 0.2}],
    }
    page = render_report({**REPORT, "risk": {**REPORT["risk"], "critic": both}}, "rows.jsonl")
    assert "Combined by max: critic_1 (harm); on held-out topics" in page
    assert "A constant." in page
