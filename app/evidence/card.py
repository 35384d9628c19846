"""The model card: one page that needs nothing but itself. No script, no link, no picture from elsewhere, every text escaped."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from app.domain.bom import all_evaluations
from app.domain.canary import TOLERANCE, distance
from app.domain.control_law import is_protected
from app.evidence.curves import draw_panels
from app.evidence.questions import NOT_RECORDED, answer_questions

Facts = Mapping[str, Any]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; } h2 { margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; }
th { font-weight: 600; min-width: 3rem; } .wide th { width: 17rem; } table + table { margin-top: 1rem; } td { overflow-wrap: anywhere; } tr + tr { border-top: 1px solid #eee; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .8rem; }
svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { font-size: 13px; color: #555; }
.warn { background: #fdecea; border-left: 4px solid #b3261e; padding: .5rem .8rem; } .none { color: #a33; }
.lead { color: #555; margin-top: .2rem; } .by { font-size: 13px; color: #777; font-weight: 400; }
"""
STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_SHA256}'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

NOT_PROVEN = (
    "that the adapter is safe, or that it complies with any rule: this page supplies evidence, and claims no compliance",
    "that the critic was right: a risk is one critic's estimate",
    "that the numbers which only the worker could see (losses, KL, gradients, log-probabilities) are true, or that training really"
    " used what was recorded",
    "how the adapter behaves on prompts that no evaluation has",
    "anything by this page itself: it is made from the records and the database. The records are in the archive beside it, and"
    " tether verify checks them without this installation",
    "that nobody who holds both the database and the notary's key wrote another history, unless a receipt or a checkpoint is kept"
    " where they cannot reach it",
)


def render_card(facts: Facts) -> str:
    """Return the page about a job; `facts` are those of app/evidence/facts.py."""
    job = facts["job"]
    title = job["fine_tuned_model"] or job["id"]
    safety = job["spec"]["safety"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="content-security-policy" content="{POLICY}">',
        f"<title>Model card: {escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p class=lead>LoRA adapter for {escape(facts['base']['name'])}, job {escape(job['id'])}, state"
        f" {escape(job['state'])}. Made from the job's records.</p>",
        *_warnings(facts),
        "<h2>What it is</h2>",
        _table(_summary(facts, safety)),
        "<h2>While it was trained</h2>",
        *_curves(facts),
        "<h2>Gate</h2>",
        *_gate(facts),
        "<h2>Evaluations, before and after</h2>",
        *_evaluations(facts),
        "<h2>Checkpoints</h2>",
        *_checkpoints(facts),
        "<h2>Questions of auditors</h2>",
        _questions(facts),
        "<h2>What this does not prove</h2><ul>",
        *(f"<li>{escape(each)}</li>" for each in NOT_PROVEN),
        "</ul><h2>Policy</h2>",
        f"<p>SHA-256 {escape(facts['policy']['sha256'])}</p>",
        _text(facts["policy"]["text"]),
        "<h2>Settings</h2>",
        _text(json.dumps(job["spec"], indent=2, sort_keys=True, ensure_ascii=False)),
        "</body></html>\n",
    ]
    return "".join(parts)


def _warnings(facts: Facts) -> Iterable[str]:
    job = facts["job"]
    if not is_protected(job["spec"]["safety"]):
        yield "<p class=warn>Trained <strong>unprotected</strong>: nothing held this model to its base where the data are risky.</p>"
    if job["state"] == "held":
        yield "<p class=warn>Held by the gate: its weights have not been released.</p>"
    if job["error"]:
        yield f"<p class=warn>The job failed: {escape(str(job['error'].get('message')))}</p>"


def _summary(facts: Facts, safety: Facts) -> list[tuple[str, object]]:
    job, base, records = facts["job"], facts["base"], facts["records"]
    published, lineage = records["published"], facts["lineage"]
    generations = " ← ".join(str(each["model"]) for each in lineage["generations"])
    return [
        ("Base model", f"{base['name']}, revision {base['revision'] or NOT_RECORDED}"),
        ("Digest of the base model's files", base["sha256"]),
        ("Goes on from", generations or "a fresh adapter"),
        ("Training file", f"{job['training_file']}, SHA-256 {records['created']['training_sha256']}"),
        ("Method", safety["method"]),
        ("Critic", ", ".join(_critic(each) for each in facts["critics"]) or _critic_name(safety)),
        ("Steps", f"{job['steps']} of {job['total_steps']}"),
        ("Adapter", f"SHA-256 {published['zip_sha256']}" if published else None),
        ("Statement about it", _attestation(facts)),
        ("Canary", _canary(facts)),
        ("Records", f"{records['size']}"),
    ]


def _critic(critic: Facts) -> str:
    report = critic["report"]
    quality = {"AUROC": report.get("auroc"), "TPR at 1 % FPR": report.get("tpr_at_1_percent_fpr")}
    shown = ", ".join(
        f"{name} {value:.3f}" if isinstance(value, int | float) else f"{name} {NOT_RECORDED}"
        for name, value in quality.items()
    )
    return f"{critic['id']} ({critic['category']}; on held-out topics {shown})"


def _critic_name(safety: Facts) -> str | None:
    critic = safety.get("critic")
    return f"{critic['type']}; its quality is {NOT_RECORDED}" if critic else "none: nobody measured the risk"


def _attestation(facts: Facts) -> str | None:
    found = facts["attestation"]
    return found and f"signed by the key {found['key']} at {found['created_at']}"


def _canary(facts: Facts) -> str | None:
    found = facts["canary"]
    if not found:
        return None
    apart = distance(found["tuned"], found["base"])
    told = "" if apart >= 2 * TOLERANCE else "; too near for a server in low precision to be told"
    return f"with and without the adapter {apart:.3f} nats a token apart, over {len(found['tuned'])} tokens{told}"


def _curves(facts: Facts) -> Iterable[str]:
    if facts["curve"] is None:
        why = "the records of the steps were pruned" if facts["job"]["steps_pruned"] else NOT_RECORDED
        yield f"<p class=none>{why}</p>"
        return
    for panel, picture in draw_panels(facts["curve"]):
        legend = " · ".join(f"{each.name}" for each in panel.lines)
        shown = picture or f"<p class=none>{NOT_RECORDED}</p>"
        marks = "".join(
            f'<svg width="22" height="8"><path d="M0,4H18" stroke="{each.colour}" stroke-width="3"/></svg>{escape(each.name)} '
            for each in panel.lines
        )
        yield f'<figure aria-label="{escape(legend)}"><figcaption><strong>{escape(panel.title)}</strong> {marks}</figcaption>{shown}</figure>'


def _gate(facts: Facts) -> Iterable[str]:
    gates = facts["records"]["gates"]
    if not gates:
        yield f"<p class=none>{NOT_RECORDED}: the job's policy has no gate, or the gate has not been reached</p>"
        return
    for gate in gates:
        where = "Before the first step" if gate["stage"] == "gate.start" else "Before release"
        yield f"<h3>{where}: {escape(str(gate.get('verdict')))}</h3>"
        limits = gate.get("limits") or []
        yield _grid(
            ("limit", "found", "bound", "action", "broken"),
            [[each.get(name) for name in ("limit", "found", "bound", "action", "broken")] for each in limits],
        )
    decisions = (facts["gate"] or {}).get("decisions", [])
    if decisions:
        yield _grid(
            ("decision", "by", "reason"),
            [[each["decision"], each["by"], each["reason"]] for each in decisions],
        )


def _evaluations(facts: Facts) -> Iterable[str]:
    found = all_evaluations(facts)
    if not found:
        yield f"<p class=none>{NOT_RECORDED}</p>"
    for result in found:
        yield f"<h3>{escape(str(result['suite']))}</h3>"
        yield _grid(
            ("what", "judge", "before", "after", "difference"),
            [
                [
                    each["name"],
                    each["judge"] or "none",
                    *(_interval(each[when]) for when in ("before", "after", "difference")),
                ]
                for each in result["comparisons"]
            ],
        )


def _interval(measure: Facts) -> str | None:
    if measure["value"] is None:
        return None
    bounds = "" if measure["low"] is None else f" [{measure['low']:.3f}, {measure['high']:.3f}]"
    return f"{measure['value']:.3f}{bounds}, n {measure['n']}"


def _checkpoints(facts: Facts) -> Iterable[str]:
    names = ("run_risk_mean", "run_risk_max", "run_beta_mean", "train_loss", "full_valid_loss")
    if not facts["checkpoints"]:
        yield f"<p class=none>{NOT_RECORDED}</p>"
        return
    yield _grid(
        ("step", "model", "mean risk", "highest risk", "mean beta", "training loss", "validation loss"),
        [
            [each["step"], each["name"], *(each["metrics"].get(name) for name in names)]
            for each in facts["checkpoints"]
        ],
    )


def _questions(facts: Facts) -> str:
    rows = (
        f"<tr><th>{escape(each.text)}<br><span class=by>{escape(each.asked_by)}</span></th><td>{_cell(each.answer)}</td></tr>"
        for each in answer_questions(facts)
    )
    return f"<table class=wide>{''.join(rows)}</table>"


def _table(rows: Sequence[tuple[str, object]]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{_cell(value)}</td></tr>" for name, value in rows)
    return f"<table class=wide>{''.join(cells)}</table>"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if value is None or value == NOT_RECORDED:
        return f"<span class=none>{NOT_RECORDED}</span>"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _text(value: str | None) -> str:
    return f"<p class=none>{NOT_RECORDED}</p>" if value is None else f"<pre>{escape(value)}</pre>"
