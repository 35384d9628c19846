"""The report as a page that needs nothing but itself: no script, no link, every text of a client escaped."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .8rem .15rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .8rem; }
mark { background: #b7e4c7; }
"""
STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{STYLE_SHA256}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def render_report(report: dict[str, Any]) -> str:
    """Return the page of a finished report, as it is on the wire."""
    rows, training = report["rows"], report["training"]
    facts: dict[str, object] = {
        "Format": f"{report['format']['name']}: {report['format']['read_as']}",
        "Base model": report["model"],
        "Rows": f"{rows['total']}, of which {rows['kept']} are kept",
        **{name.capitalize(): rows[name]["count"] for name in ("truncated", "dropped", "refused")},
        "End of turn trained": "yes" if report["end_of_turn"]["trained"] else "no: the model may never stop",
        "Rows that repeat another": report["duplicates"]["normalised"]["rows"],
        "Steps": training["steps"],
        "Trained tokens": training["trained_tokens"],
        "Expected mean beta": training["expected_beta_mean"],
        "Seconds": training["time"]["seconds"],
        "Memory in bytes, estimated": report["memory"]["estimated_bytes"],
    }
    if report["leaks"]:
        facts["Validation rows that are trained on"] = report["leaks"]["normalised"]["rows"]
    risky = report["risk"].get("riskiest", [])
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Dataset report</title>",
        f"<style>{STYLE}</style></head><body><h1>Dataset report</h1>",
        _table(list(facts.items())),
    ]
    if risky:
        parts += [
            "<h2>Riskiest rows</h2>",
            _table(
                [
                    (f"row {each['row']}", each.get("s", each["bucket"]), each.get("treatment", ""))
                    for each in risky
                ]
            ),
        ]
    parts.append("<h2>What is trained</h2><p>Marked text is what the model learns to write.</p>")
    for preview in report["preview"]:
        text = "".join(
            f"<mark>{escape(each['text'])}</mark>" if each["trained"] else escape(each["text"])
            for each in preview["segments"]
        )
        cut = " (its beginning)" if preview["cut"] else ""
        parts.append(f"<h3>Row {preview['row']}{cut}</h3><pre>{text}</pre>")
    return "".join([*parts, "</body></html>"])


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{each}</tr>' for each in cells)}</table>"
