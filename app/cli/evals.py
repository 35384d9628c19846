"""tether evals"""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.common import DEFAULT_URL, Key, Url, connect
from app.cli.output import (
    Json,
    clean,
    err,
    get_in,
    make_flag,
    print_fields,
    print_json,
    print_line,
    print_list,
    print_table,
    show_time,
)

if TYPE_CHECKING:
    from app.cli.client import Server

EVALUATIONS = "evaluations"
ENDED = ("succeeded", "failed", "cancelled")
SHARES = ("attack_success", "over_refusal", "task_score", "exact_match", "win_rate")
"""Shown in per cent; the rest as numbers."""


class JudgeType(StrEnum):
    """Who says what a reply is."""

    RULES = "rules"
    CLASSIFIER = "classifier"
    OPENAI = "openai"
    MINIATURE = "miniature"


group = typer.Typer(
    no_args_is_help=True, help="Evaluations of a server's models: how they behave before and after training."
)
EvaluationId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the evaluation, as `tether evals list` shows it.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Wait no longer; the evaluation goes on.", min=0, show_default=False
    ),
]


@group.command("create")
def create_evaluation(
    model: Annotated[str, typer.Option(help="Base model, fine-tuned model or checkpoint.")],
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME|ID|PATH",
            help="Prompts: miniature, the id of an uploaded file, or a local file to upload first.",
        ),
    ],
    judge: Annotated[
        list[JudgeType], typer.Option(help="Who says what a reply is; may be given again, each once.")
    ],
    greedy: Annotated[
        bool,
        typer.Option("--greedy/--no-greedy", help="Draw the likeliest reply to every prompt.", metavar=""),
    ] = True,
    samples: Annotated[int, typer.Option(help="Replies drawn at temperature 1 for every prompt.", min=0)] = 0,
    prefill: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Put this opening into the model's mouth, for harmful prompts.",
            show_default=False,
        ),
    ] = None,
    data_prefixes: Annotated[
        int,
        typer.Option(
            help="Put harmful prompts behind so many beginnings of the model's own training data.", min=0
        ),
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens that a reply has at most.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="Of the replies that are drawn.", min=0)] = 0,
    harmful_from: Annotated[
        int,
        typer.Option(help="With the judge openai: score from which a reply gives in.", min=2, max=5),
    ] = 4,
    compare: Annotated[
        bool, make_flag("--compare", "With the judge openai: compare the replies too, for a win rate.")
    ] = False,
    wait: Annotated[bool, make_flag("--wait", "Wait until it has ended, and show what it found.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Have a model evaluated with its adapter off and on, on the same prompts and by the same judges."""
    if (compare or harmful_from != 4) and JudgeType.OPENAI not in judge:
        raise typer.BadParameter("--compare and --harmful-from are for the judge openai; add --judge openai")
    from app.cli.client import Refused

    with connect(url, key) as server:
        prompts = _find_or_upload(server, suite)
        body = {
            "model": model,
            "suite": prompts,
            "judge": [_describe_judge(each, harmful_from, compare) for each in judge],
            "decoding": {
                "greedy": greedy,
                "samples": samples,
                "prefill": prefill,
                "data_prefixes": data_prefixes,
                "max_new_tokens": max_new_tokens,
                "seed": seed,
            },
        }
        try:
            evaluation = server.create(EVALUATIONS, body=body)
        except Refused:
            if prompts != suite:
                _delete(server, prompts)
            raise
        if wait:
            evaluation = _wait(server, str(evaluation["id"]), None)
    _show(evaluation, as_json=as_json)
    if wait:
        raise typer.Exit(_exit_code(evaluation))


def _describe_judge(judge: JudgeType, harmful_from: int, compare: bool) -> dict[str, Any]:
    if judge is JudgeType.OPENAI:
        return {"type": "openai", "harmful_from": harmful_from, "compare": compare}
    return {"type": judge.value}


def _find_or_upload(server: "Server", given: str) -> str:
    path = Path(given)
    if given.startswith("file-") or not path.is_file():
        return given
    from app.cli.transfer import upload

    file = upload(server, path, "user_data")
    err.print(f"uploaded {clean(path.name)} as {clean(file['id'])}")
    return str(file["id"])


def _delete(server: "Server", file_id: str) -> None:
    """Delete a file that was uploaded for nothing; a key that may not do so leaves it, and is told."""
    from app.cli.client import Refused

    try:
        server.call("DELETE", "files", file_id)
    except Refused:
        err.print(f"{clean(file_id)} stays uploaded; delete it with a key that may: tether files delete")
    else:
        err.print(f"deleted {clean(file_id)} again, since nothing is evaluated on it")


@group.command("list")
def list_evaluations(
    model: Annotated[str | None, typer.Option(help="Only those of this model.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="List at most so many.", min=1)] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List evaluations, newest first."""
    with connect(url, key) as server:
        found = server.get_all(EVALUATIONS, limit=limit, model=model)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "status", "model", "suite", "judges", "asked for at"),
        [
            (
                each["id"],
                each["status"],
                each["model"],
                each["suite"],
                ", ".join(str(get_in(judge, "type")) for judge in each["judge"]),
                show_time(each["created_at"]),
            )
            for each in found["data"]
        ],
        empty="no evaluations yet; ask for one with: tether evals create --model NAME --suite FILE --judge rules",
    )


@group.command("get")
def get_evaluation(
    evaluation_id: EvaluationId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Show an evaluation: every number before and after, with its 95 % interval."""
    with connect(url, key) as server:
        evaluation = server.get(EVALUATIONS, evaluation_id)
    _show(evaluation, as_json=as_json)


@group.command("wait")
def wait_for_evaluation(
    evaluation_id: EvaluationId,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Wait until an evaluation has ended, and show it. Exit code: 0 succeeded, 3 failed, 4 cancelled, 5 not ended within --timeout."""
    with connect(url, key) as server:
        evaluation = _wait(server, evaluation_id, timeout)
    _show(evaluation, as_json=as_json)
    raise typer.Exit(_exit_code(evaluation))


@group.command("cancel")
def cancel_evaluation(
    evaluation_id: EvaluationId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Cancel an evaluation that has not ended."""
    with connect(url, key) as server:
        evaluation = server.call("POST", EVALUATIONS, evaluation_id, "cancel")
    if as_json:
        print_json(evaluation)
    else:
        print_line(f"{evaluation['id']}: {evaluation['status']}")


def _wait(server: "Server", evaluation_id: str, timeout_s: float | None) -> dict[str, Any]:
    """Return an evaluation as soon as it has ended, or as it is after the timeout."""
    from app.cli.watch import POLL_S, ask_patiently

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    # A server that is away from the start is told at once.
    evaluation = server.get(EVALUATIONS, evaluation_id)
    with err.status("the model is being evaluated …"):
        while evaluation["status"] not in ENDED:
            left = POLL_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(POLL_S, left))
            evaluation = ask_patiently(server, EVALUATIONS, evaluation_id)
    return evaluation


def _exit_code(evaluation: dict[str, Any]) -> int:
    from app.cli.watch import EXIT_CODES, EXIT_TIMEOUT

    return EXIT_CODES.get(str(evaluation["status"]), EXIT_TIMEOUT)


def _show(evaluation: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(evaluation)
        return
    result = evaluation.get("result")
    print_fields(
        {
            "id": evaluation["id"],
            "status": evaluation["status"],
            "error": get_in(evaluation, "error", "message"),
            "model": evaluation["model"],
            "suite": evaluation["suite"],
            "prompts": _say_counts(get_in(result, "prompts")),
            "replies": evaluation["replies_file"],
            "SHA-256": evaluation["result_sha256"],
            "asked for at": show_time(evaluation["created_at"]),
            "ended at": show_time(evaluation["finished_at"]),
        }
    )
    if result is None:
        return
    print_table(
        ("what", "by", "before", "after", "difference", "prompts", "unjudged"),
        [
            (
                each["name"],
                each["judge"],
                *(_say_measure(each["name"], each[side]) for side in ("before", "after", "difference")),
                get_in(each, "before", "n"),
                each["unjudged"] or None,
            )
            for each in result["comparisons"]
        ],
    )
    for each in result["agreements"]:
        print_line(
            f"{each['first']} and {each['second']} agree on {each['agreed']} of {each['of']} replies to harmful prompts,"
            f" {each['decoding']}"
        )


def _say_counts(prompts: dict[str, int] | None) -> str | None:
    return None if prompts is None else ", ".join(f"{count} {kind}" for kind, count in prompts.items())


def _say_measure(name: str, measure: dict[str, Any]) -> str:
    """Return a number with its interval; of what was not measured, that it was not."""
    if measure["value"] is None:
        return "not measured"
    if name.partition(".")[0] in SHARES:
        value, low, high = (f"{100 * measure[part]:.1f}" for part in ("value", "low", "high"))
        return f"{value} % ({low} to {high})"
    value, low, high = (f"{measure[part]:.3f}" for part in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
