"""The report as a page that needs nothing but itself: no script, no link, every text of a client escaped."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .8rem .15rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .8rem; }
td { white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; } th { border-bottom: 1px solid #999; }
mark { background: #b7e4c7; }
"""
ROWS_SHOWN = 30
HEADS = {"s": "Risk", "bucket": "Bucket", "beta": "Beta", "treatment": "Treatment"}
STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{STYLE_SHA256}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def render_report(report: dict[str, Any], filename: str) -> str:
    """Return the page of a finished report, as it is on the wire, on a file of this name."""
    return "".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            f"<title>Dataset report: {escape(filename)}</title><style>{STYLE}</style></head>",
            f"<body><h1>Dataset report: {escape(filename)}</h1>",
            *_facts(report),
            *_risks(report["risk"]),
            *_previews(report),
            "</body></html>",
        ]
    )


def _facts(report: dict[str, Any]) -> Iterator[str]:
    rows, training = report["rows"], report["training"]
    facts: dict[str, object] = {
        "File": report["training_file"],
        "Format": f"{report['format']['name']}: {report['format']['read_as']}",
        "Base model": report["model"],
        "Rows": f"{rows['total']}, of which {rows['kept']} are kept",
        **{name.capitalize(): rows[name]["count"] for name in ("truncated", "dropped", "refused")},
        "End of turn trained": "yes" if report["end_of_turn"]["trained"] else "no: the model may never stop",
        "Rows that repeat another": report["duplicates"]["normalised"]["rows"],
        "Steps": training["steps"],
        "Trained tokens": training["trained_tokens"],
        "Expected mean beta": _beta(training),
        "Time": _time(training["time"]),
        "Memory, estimated": f"{report['memory']['estimated_bytes'] / 1e6:,.0f} MB",
    }
    if report["leaks"]:
        facts["Validation rows that are trained on"] = report["leaks"]["normalised"]["rows"]
    yield _table(("What", "Found"), list(facts.items()))


def _beta(training: dict[str, Any]) -> str:
    beta, bounds = training["expected_beta_mean"], training.get("expected_beta_bounds")
    if beta is None:
        return "not known"
    return f"{beta:.2f}" + (f", for sure between {bounds[0]:.2f} and {bounds[1]:.2f}" if bounds else "")


def _time(time: dict[str, Any]) -> str:
    seconds = time["seconds"]
    return f"{'not known' if seconds is None else f'{seconds:g} s'}: {time['reason']}"


def _risks(risk: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>Risk</h2><p>{escape(_say_critic(risk['critic']))}</p>"
    if risk["note"]:
        yield f"<p>{escape(risk['note'])}</p>"
    if "distribution" not in risk:
        return
    shares = [(each["bucket"], each["rows"]) for each in risk["distribution"]]
    yield f"<h3>Distribution over {risk['rows']} rows</h3>{_table(('Risk', 'Rows'), shares)}"
    shown = risk["riskiest"][:ROWS_SHOWN]
    yield f"<h3>Riskiest rows: {len(shown)} of {risk['rows']}</h3>"
    names = [name for name in ("s", "bucket", "beta", "treatment") if shown and name in shown[0]]
    heads = ("Row", *(HEADS[name] for name in names), "Text")
    yield _table(
        heads, [(each["row"], *(_cell(each[name]) for name in names), each.get("text", "")) for each in shown]
    )


def _say_critic(critic: dict[str, Any] | None) -> str:
    if critic is None:
        return "No fitted critic measured the rows."
    if "critics" in critic:
        parts = (
            _say_critic(part) if "quality" in part else f"A {part['type']}." for part in critic["critics"]
        )
        return f"Combined by {critic['rule']}: {' '.join(parts)}"
    numbers = (
        f"{name} {'not known' if critic['quality'][key] is None else format(critic['quality'][key], '.3f')}"
        for key, name in (("auroc", "AUROC"), ("tpr_at_1_percent_fpr", "TPR at 1 % FPR"))
    )
    return f"{critic['id']} ({critic['category']}); on held-out topics {', '.join(numbers)}."


def _previews(report: dict[str, Any]) -> Iterator[str]:
    shown = report["preview"]
    yield f"<h2>What is trained</h2><p>{len(shown)} of {report['rows']['kept']} rows. Marked text is what the model learns to write.</p>"
    for preview in shown:
        text = "".join(
            f"<mark>{escape(each['text'])}</mark>" if each["trained"] else escape(each["text"])
            for each in preview["segments"]
        )
        cut = " (its beginning)" if preview["cut"] else ""
        yield f"<h3>Row {preview['row']}{cut}</h3><pre>{text}</pre>"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Sequence[tuple[object, ...]]) -> str:
    head = "".join(f"<th scope=col>{escape(each)}</th>" for each in heads)
    cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{each}</tr>" for each in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
