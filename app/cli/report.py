"""A dataset's report and the estimate of a job: waiting for them, and their summaries on a terminal."""

import time
from typing import Any

from app.cli.client import Server, describe_problems, headline_of
from app.cli.output import err, get_in, print_fields, print_line, print_table, show_cell, show_size

POLL_S = 1.0
UNFINISHED = ("running", "validating")
RISKIEST_SHOWN = 10


def wait_for_report(server: Server, file_id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Ask for a report until the server has made it."""
    with err.status("the report is being made …"):
        while True:
            report = server.get("files", file_id, "report", **query)
            if report["status"] not in UNFINISHED:
                return report
            time.sleep(POLL_S)


def wait_for_estimate(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """Ask what a job of this body would be until the server has worked it out. The same body is worked out once."""
    with err.status("the job is being estimated …"):
        while True:
            estimate: dict[str, Any] = server.call("POST", "fine_tuning", "jobs", "estimate", json=body)
            if estimate["status"] not in UNFINISHED:
                return estimate
            time.sleep(POLL_S)


def is_good(report: dict[str, Any]) -> bool:
    """Say whether a report was made and names nothing that keeps the file from being trained on."""
    return report["status"] == "succeeded" and not get_in(report, "rows", "refused", "count")


def print_report(report: dict[str, Any]) -> None:
    """Print what a report says in short; the page (--out) and --json have all of it."""
    if report["status"] != "succeeded":
        reason = get_in(report, "error", "message") or report.get("message")
        problems = describe_problems(report)
        headline = headline_of(str(reason)) if problems else reason
        print_line(f"{report['training_file']}: {report['status']}: {headline}")
        for problem in problems:
            print_line(f"  {problem}")
        return
    rows, lengths = report.get("rows"), get_in(report, "lengths", "tokens")
    memory, seconds = (
        get_in(report, "memory", "estimated_bytes"),
        get_in(report, "training", "time", "seconds"),
    )
    print_fields(
        {
            "file": report["training_file"],
            "format": get_in(report, "format", "name"),
            "rows": f"{get_in(rows, 'kept')} of {get_in(rows, 'total')} would be trained on",
            "dropped": get_in(rows, "dropped", "count"),
            "truncated": get_in(rows, "truncated", "count"),
            "refused": get_in(rows, "refused", "count"),
            "tokens a row": lengths and f"{lengths['min']} to {lengths['max']}, mean {lengths['mean']:.1f}",
            "end of turn": "trained" if get_in(report, "end_of_turn", "trained") else "NOT always trained",
            "repeated rows": get_in(report, "duplicates", "exact", "rows"),
            "in validation": get_in(report, "leaks", "rows"),
            "trained tokens": get_in(report, "training", "trained_tokens"),
            "steps": get_in(report, "training", "steps"),
            "expected beta": get_in(report, "training", "expected_beta_mean"),
            "memory": None if memory is None else f"about {show_size(memory)}",
            "time": None if seconds is None else f"about {seconds:.0f} s",
            "risk by": get_in(report, "risk", "critic", "id"),
            "note": get_in(report, "risk", "note"),
        }
    )
    for name in ("refused", "dropped", "truncated"):
        for row in get_in(rows, name, "rows") or ():
            print_line(f"  {name}: row {row['row']} ({row['tokens']} tokens): {row['reason']}")
    riskiest = get_in(report, "risk", "riskiest") or []
    if riskiest:
        # Which of these are told is for the operator's policy to say.
        columns = [name for name in ("row", "bucket", "s", "beta", "treatment") if name in riskiest[0]]
        print_line("riskiest rows first:")
        print_table(
            columns, [[show_cell(row.get(name)) for name in columns] for row in riskiest[:RISKIEST_SHOWN]]
        )


def print_estimate(estimate: dict[str, Any]) -> None:
    """Print as a table what a job would be; of what nobody knows, that it is not known."""
    if estimate["status"] != "succeeded":
        print_line(
            f"{estimate['training_file']}: {estimate['status']}: {get_in(estimate, 'error', 'message')}"
        )
        return
    safety, rows = estimate.get("safety") or {}, estimate.get("rows")
    training = estimate.get("training") or {}
    seconds, memory = get_in(training, "time", "seconds"), get_in(estimate, "memory", "estimated_bytes")
    unknown = get_in(training, "time", "reason")
    found = {
        "base model": estimate.get("model"),
        "method": safety.get("method"),
        "rows": f"{get_in(rows, 'kept')} of {get_in(rows, 'total')} would be trained on",
        "refused rows": get_in(rows, "refused", "count"),
        "passes": training.get("n_epochs"),
        "rows a step": training.get("batch_size"),
        "steps": training.get("steps"),
        "trained tokens": training.get("trained_tokens"),
        "expected beta": show_cell(training.get("expected_beta_mean")),
        "risk by": get_in(estimate, "risk", "critic", "id"),
        "memory": None if memory is None else f"about {show_size(memory)}",
        "time": (unknown and f"not known: {unknown}") if seconds is None else f"about {seconds:.0f} s",
    }
    print_table(("what", "estimate"), [row for row in found.items() if row[1] is not None])
    print_line("no job was created; tether jobs create does that")
