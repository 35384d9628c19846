"""tether jobs"""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import A_FILE, DEFAULT_URL, Key, Url, connect
from app.cli.job_request import (
    BatchSize,
    Epochs,
    Integrations,
    Metadata,
    Multiplier,
    Safety,
    Training,
    ValidationFile,
    build_method,
    read_integrations,
    read_metadata,
    read_object,
    read_safety,
    send_files,
    without_none,
)
from app.cli.job_words import (
    describe_decisions,
    describe_gate,
    name_critic,
    name_method,
    show_share,
    show_steps,
)
from app.cli.output import (
    Json,
    clean,
    err,
    get_in,
    make_flag,
    out,
    print_fields,
    print_json,
    print_line,
    print_list,
    show_cell,
    show_time,
    state_of,
)

JOBS = ("fine_tuning", "jobs")

group = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs of a server.")
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `tether jobs list` shows it.")]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds to wait at most; then the exit code is 5, and the job goes on.", min=0),
]
Limit = Annotated[int, typer.Option(help="How many.", min=1)]


@group.command("create")
def create_job(
    model: Annotated[str, typer.Option(help="Base model, or a fine-tuned one to go on with.")],
    training_file: Annotated[
        str, typer.Option(metavar="ID|PATH", help="Id of an uploaded file, or a local file to upload first.")
    ],
    validation_file: ValidationFile = None,
    safety: Safety = None,
    training: Training = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: Multiplier = None,
    suffix: Annotated[
        str | None, typer.Option(help="Part of the new model's name.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Default: drawn by the server.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            help="Among the project's own jobs that wait, higher goes first: from -10 to 10. Default: 0.",
            show_default=False,
        ),
    ] = None,
    metadata: Metadata = None,
    integration: Integrations = None,
    wait: Annotated[
        bool, make_flag("--wait", "Wait until it has ended; exit codes as `tether jobs wait`.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Create a job."""
    from app.cli.watch import exit_code, is_deleted, wait_for

    body = {
        "model": model,
        "training_file": training_file,
        "validation_file": validation_file,
        "suffix": suffix,
        "seed": seed,
        "priority": priority,
        "metadata": read_metadata(metadata),
        "integrations": read_integrations(integration),
        "method": build_method(epochs, batch_size, learning_rate_multiplier),
        "safety": read_safety(safety),
        "training": read_object("--training", training),
    }
    with connect(url, key) as server:
        job = server.create(*JOBS, body=send_files(server, without_none(body)))
        if wait:
            job = wait_for(server, job["id"], None)
            deleted = is_deleted(server, job)
    if as_json:
        print_json(job)
    elif not wait:
        print_line(f"created {job['id']}, {job['status']}; watch it with: tether jobs follow {job['id']}")
    else:
        print_end(job, deleted=deleted)
    if wait:
        raise typer.Exit(exit_code(job))


@group.command("estimate")
def estimate_job(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="JSON of the request that would create the job; options go before what it says.",
            show_default=False,
            **A_FILE,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="As for `tether jobs create`.", show_default=False)
    ] = None,
    training_file: Annotated[
        str | None,
        typer.Option(
            metavar="ID|PATH", help="Id of an uploaded file, or a local file to upload.", show_default=False
        ),
    ] = None,
    validation_file: ValidationFile = None,
    safety: Safety = None,
    training: Training = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: Multiplier = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what a job would be, its steps, tokens, time, memory and beta, without creating it.

    Waits until the server has worked it out. The exit code is 1 where the job could not run.
    """
    from app.cli.report import is_good, print_estimate, wait_for_estimate

    said = {
        "model": model,
        "training_file": training_file,
        "validation_file": validation_file,
        "method": build_method(epochs, batch_size, learning_rate_multiplier),
        "safety": read_safety(safety),
        "training": read_object("--training", training),
    }
    body = {**((file and read_object("FILE", f"@{file}")) or {}), **without_none(said)}
    if missing := [name for name in ("model", "training_file") if name not in body]:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise typer.BadParameter(f"give {options}, or a FILE that says it")
    with connect(url, key) as server:
        estimate = wait_for_estimate(server, send_files(server, body, wait=True))
    if as_json:
        print_json(estimate)
    else:
        print_estimate(estimate)
    raise typer.Exit(0 if is_good(estimate) else 1)


@group.command("list")
def list_jobs(
    metadata: Metadata = None,
    limit: Limit = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the project's jobs, newest first; with --metadata those that have all of these labels."""
    filters = {f"metadata[{name}]": value for name, value in (read_metadata(metadata) or {}).items()}
    with connect(url, key) as server:
        found = server.get_all(*JOBS, limit=limit, **filters)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "state", "model", "method", "steps", "risk", "by", "beta", "created at"),
        [
            (
                job["id"],
                state_of(job),
                job["model"],
                name_method(job),
                show_steps(job),
                show_share(get_in(job, "safety", "risk_mean")),
                name_critic(get_in(job, "safety", "critic")),
                show_share(get_in(job, "safety", "beta_mean")),
                show_time(job["created_at"]),
            )
            for job in found["data"]
        ],
        empty=(
            f"no job has the label {' and '.join(metadata)}; all jobs: tether jobs list"
            if metadata
            else "no jobs yet; make one with: tether jobs create --model NAME --training-file FILE"
        ),
    )


@group.command("show")
def show_job(job_id: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Show a job."""
    with connect(url, key) as server:
        job = server.get(*JOBS, job_id)
    if as_json:
        print_json(job)
        return
    labels = ", ".join(f"{name}={value}" for name, value in (job.get("metadata") or {}).items())
    numbers = ", ".join(f"{name} {value}" for name, value in job["hyperparameters"].items())
    print_fields(
        {
            "id": job["id"],
            "state": state_of(job),
            "paused because": get_in(job, "safety", "pause_reason"),
            "waits for": get_in(job, "safety", "waits_for"),
            "gate": describe_gate(get_in(job, "safety", "gate")),
            "decisions": describe_decisions(get_in(job, "safety", "gate")),
            "not evaluated": get_in(job, "safety", "gate", "evaluation_error"),
            "error": get_in(job, "error", "message"),
            "steps": show_steps(job),
            "model": job["model"],
            "fine-tuned model": job["fine_tuned_model"],
            "training file": job["training_file"],
            "validation file": job["validation_file"],
            "result files": ", ".join(job["result_files"]) or None,
            "hyperparameters": numbers,
            "seed": job["seed"],
            "labels": labels or None,
            "method": name_method(job),
            "risk, mean": show_share(get_in(job, "safety", "risk_mean")),
            "risk by": name_critic(get_in(job, "safety", "critic")),
            "beta, mean": show_share(get_in(job, "safety", "beta_mean")),
            "created at": show_time(job["created_at"]),
            "ends about": show_time(job.get("estimated_finish")),
            "ended at": show_time(job["finished_at"]),
        }
    )


@group.command("follow")
def follow_job(job_id: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Follow a job live until it has ended, paused itself or is held: events, steps, risk. Exit codes as `tether jobs wait`.

    --json prints an object a line as things happen: {"name": "job", "event" or "step", "id": …, "data": …}.
    """
    from app.cli.follow import follow
    from app.cli.watch import exit_code, is_deleted

    try:
        with connect(url, key) as server:
            job = follow(server, job_id, as_json=as_json)
            deleted = is_deleted(server, job)
    except KeyboardInterrupt:
        err.print(f"the job goes on; follow it again with: tether jobs follow {clean(job_id)}")
        raise typer.Exit(130) from None
    if not as_json:
        print_end(job, deleted=deleted)
    raise typer.Exit(exit_code(job))


@group.command("wait")
def wait_for_job(
    job_id: JobId,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Wait until a job has ended. Exit code: 0 succeeded, 3 failed, 4 cancelled, 5 not ended within --timeout.

    6: the job has paused itself, and says why. One that somebody paused is waited for. 7: it is held by its policy's gate.
    1 is an error of this command, such as a job that is not there.
    """
    from app.cli.watch import exit_code, is_deleted, wait_for

    with connect(url, key) as server:
        job = wait_for(server, job_id, timeout)
        deleted = is_deleted(server, job)
    if as_json:
        print_json(job)
    else:
        print_end(job, deleted=deleted)
    raise typer.Exit(exit_code(job))


def print_end(job: dict[str, Any], *, deleted: bool) -> None:
    """Say how a job ended, or that it has not; `deleted` where its model is gone again."""
    from app.cli.watch import has_paused, is_held

    line = f"{job['id']}: {job['status']}"
    if job["status"] == "succeeded" and deleted:
        print_line(
            f"{line}, {job['fine_tuned_model']}, which was deleted; its record stays: tether jobs evidence {job['id']}"
        )
    elif job["status"] == "succeeded":
        print_line(f"{line}, {job['fine_tuned_model']}; next: tether jobs adapter {job['id']}")
    elif job["status"] in ("failed", "cancelled"):
        reason = get_in(job, "error", "message")
        print_line(f"{line}: {reason}" if reason else line)
    elif is_held(job):
        broken = [each for each in get_in(job, "safety", "gate", "limits") or () if each["broken"]]
        names = ", ".join(str(each["limit"]) for each in broken) or "no verdict"
        print_line(
            f"{job['id']}: held by the policy's gate ({names}); next: tether jobs release {job['id']} --reason …, or tether"
            f" jobs reject {job['id']} --reason …"
        )
    elif has_paused(job):
        reason = get_in(job, "safety", "pause_reason")
        print_line(
            f"{line} by itself: {reason}. When that is dealt with: tether jobs resume {job['id']}; or give it up:"
            f" tether jobs cancel {job['id']}"
        )
    else:
        print_line(f"{line}; the job goes on: tether jobs follow {job['id']}")


def command_job(job_id: str, command: str, url: str, key: str | None, *, as_json: bool) -> None:
    """Send a job a command and show what it is now."""
    with connect(url, key) as server:
        job = server.call("POST", *JOBS, job_id, command)
    if as_json:
        print_json(job)
    else:
        print_line(f"{job['id']}: {command} requested; it is {state_of(job)}")


@group.command("cancel")
def cancel_job(job_id: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Cancel a job; one that runs stops after its current step."""
    command_job(job_id, "cancel", url, key, as_json=as_json)


@group.command("pause")
def pause_job(job_id: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Pause a job; it keeps its last checkpoint and waits."""
    command_job(job_id, "pause", url, key, as_json=as_json)


@group.command("resume")
def resume_job(job_id: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Resume a paused job where it was."""
    command_job(job_id, "resume", url, key, as_json=as_json)


Reason = Annotated[str, typer.Option(help="Why. It is kept, and the signed log has its digest.")]


def decide_job(job_id: str, command: str, reason: str, url: str, key: str | None, *, as_json: bool) -> None:
    """Release or reject a held job and show what it is now."""
    with connect(url, key) as server:
        job = server.call("POST", *JOBS, job_id, command, json={"reason": reason})
    if as_json:
        print_json(job)
    elif state_of(job) == "held" and get_in(job, "safety", "waits_for"):
        print_line(
            f"{job['id']}: released; its weights leave once the notary has signed that; wait for it with: tether jobs"
            f" wait {job['id']}"
        )
    elif state_of(job) == "held":
        print_line(
            f"{job['id']}: approved; the policy asks for another person's approval, by the same command"
        )
    else:
        print_line(f"{job['id']}: {job['status']}")


@group.command("release")
def release_job(
    job_id: JobId, reason: Reason, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Release a held job, or approve it where the policy asks for two people. Needs the scope jobs:release."""
    decide_job(job_id, "release", reason, url, key, as_json=as_json)


@group.command("reject")
def reject_job(
    job_id: JobId, reason: Reason, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Reject a held job: it has failed, and its weights go. Needs the scope jobs:release."""
    decide_job(job_id, "reject", reason, url, key, as_json=as_json)


@group.command("events")
def list_events(
    job_id: JobId, limit: Limit = 50, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """List a job's newest events, the newest last; as JSON the newest first, as the server has them."""
    with connect(url, key) as server:
        found = server.get_all(*JOBS, job_id, "events", limit=limit)
    if as_json:
        print_json(found)
        return
    from app.cli.follow import describe_event

    for event in reversed(found["data"]):
        out.print(describe_event(event))


@group.command("checkpoints")
def list_checkpoints(
    job_id: JobId, limit: Limit = 20, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """List a job's checkpoints, newest first."""
    with connect(url, key) as server:
        found = server.get_all(*JOBS, job_id, "checkpoints", limit=limit)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "step", "model", "training loss", "validation loss", "made at"),
        [
            (
                each["id"],
                each["step_number"],
                each["fine_tuned_model_checkpoint"],
                show_cell(each["metrics"].get("train_loss")),
                show_cell(each["metrics"].get("full_valid_loss")),
                show_time(each["created_at"]),
            )
            for each in found["data"]
        ],
        empty=f"{job_id} has no checkpoints yet; how far it is: tether jobs show {job_id}",
    )


@group.command("steps")
def list_steps(
    job_id: JobId,
    after: Annotated[int, typer.Option(help="Only the steps after this one.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=10000)] = 1000,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List a job's step records, in order; --json has every field of them."""
    with connect(url, key) as server:
        found = server.get(*JOBS, job_id, "steps", after=after, limit=limit)
    if as_json:
        print_json(found)
        return
    columns = ("step", "risk_mean", "risk_max", "beta_mean", "beta_max", "nll", "kl", "loss", "lr")
    print_list(
        columns,
        [[show_cell(record.get(column)) for column in columns] for record in found["data"]],
        empty=f"{job_id} has no steps {f'after {after}' if after else 'yet'}; how far it is: tether jobs show {job_id}",
    )
    if found["has_more"]:
        print_line(f"there are more; --after {found['data'][-1]['step']} has the next ones")
