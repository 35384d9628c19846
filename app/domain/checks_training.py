"""The checks of what the record says was trained: risk table, control law, coverage, end.

A check may look at each record in turn (`EACH`) and says at the end what came of it (`AT_END`). Standard
library only.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from app.domain.bundle import RISK_TABLE, BundleError
from app.domain.control_law import (
    compute_anchor_weight,
    compute_monitor_state,
    compute_row_betas,
    compute_treatment,
    is_too_much,
    raise_s,
    summarise_step,
)
from app.domain.leaf_schema import Leaf
from app.domain.live_scores import check_scores
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.risk_table import RiskRow, check_readings, parse_risk_row
from app.domain.safety_law import (
    check_fitted,
    check_threshold,
    is_share,
    law_of,
    measure_recorded,
    name_readings,
)
from app.domain.verification import MAX_TABLE_ROWS, Broken, JobSoFar, NotChecked, Step, counted, ensured

Safety = Mapping[str, Any]

MAX_SKIPPED = 3
"""Skipped steps in a row, the last of which is a job's last."""


# --- risk table -------------------------------------------------------------------------------------------


def _risk_table_each(job: JobSoFar) -> None:
    if job.kind != "risk.table":
        return
    leaf, created, safety = job.body, ensured(job.created), ensured(job.spec)["safety"]
    _check_critic(job, leaf, created["critic"])
    builder = RootBuilder()
    counts = dict.fromkeys(leaf["counts"], 0)
    treatments = dict.fromkeys(leaf.get("treatments", ()), 0)
    last = -1
    for number, entry in enumerate(_table_entries(job)):
        try:
            row = parse_risk_row(entry, job.version)
            if row.row <= last:
                raise ValueError(f"row {row.row} comes after row {last}")
            _check_risk_row(row, job, safety)
            _check_treatment(row, job)
        except ValueError as error:
            raise Broken(str(error), number, RISK_TABLE) from error
        last = row.row
        _keep_row(row, job)
        counts[row.status] += 1
        if treatments:
            treatments[row.treatment] += 1
        builder.append(leaf_hash(entry))
    found = {"rows": builder.size, "root": builder.root().hex(), "counts": counts}
    if treatments:
        found["treatments"] = treatments
    for name, value in found.items():
        if leaf[name] != value:
            raise Broken(f"the record's {name} is {leaf[name]}; the table gives {value}", job.seq)
    if job.version > 1 and leaf["dropped"] and ensured(job.spec).get("overlength") != "drop":
        raise Broken(f"{counted(leaf['dropped'], 'row')} dropped, but spec.overlength is not drop", job.seq)
    expected = created["training_rows"]
    if expected is not None and builder.size + leaf["dropped"] != expected:
        raise Broken(
            f"{builder.size} rows and {leaf['dropped']} dropped are not the {expected} of the file", job.seq
        )
    if expected is not None and last >= expected:
        raise Broken(f"the table names row {last} of a file of {expected} rows (from 0)", job.seq)


def _keep_row(row: RiskRow, job: JobSoFar) -> None:
    job.s_of_row[row.row] = row.s
    if row.treatment == "drop":
        job.dropped_rows.add(row.row)
    if job.rows is not None:
        job.commitments[row.row] = row.commitment


def _table_entries(job: JobSoFar) -> Iterator[bytes]:
    if job.table_entries is None:
        raise Broken(f"a risk table was recorded, but the bundle has no {RISK_TABLE}", job.seq)
    try:
        for number, entry in enumerate(job.table_entries):
            if number == MAX_TABLE_ROWS:
                raise BundleError(f"{RISK_TABLE} has more than {MAX_TABLE_ROWS} lines, and no more are read")
            yield entry
    except BundleError as error:
        raise Broken(str(error)) from error


def _check_critic(job: JobSoFar, leaf: Leaf, created: Leaf | None) -> None:
    """Check that the table was made by the critic that the job was created with, at its points."""
    expected = created["sha256"] if created else None
    if leaf["critic_sha256"] != expected:
        raise Broken(
            f"the critic's sha256 is {leaf['critic_sha256']}; the job was created with {expected}", job.seq
        )
    try:
        check_fitted(job)
        check_threshold(job)
    except ValueError as error:
        raise Broken(str(error), job.seq) from error


def _check_risk_row(row: RiskRow, job: JobSoFar, safety: Safety) -> None:
    """Raise ValueError unless the entry's status fits the critic and its s is what the control law gives."""
    if job.version > 2:
        check_readings(row, len(job.fitted))
    critic = safety.get("critic")
    kind = critic.get("type") if isinstance(critic, dict) else None
    allowed = _statuses(job, kind)
    if allowed == ("unmeasured",) and safety["method"] in ("adaptive_kl", "filter"):
        raise ValueError(f"the method {safety['method']} steers by risk, but no critic measured any")
    if row.status not in allowed:
        raise ValueError(f"row {row.row} has status {row.status}; under this critic: {' or '.join(allowed)}")
    if row.status in ("failed", "unmeasured"):
        return
    readings = name_readings(row, job)
    if readings and kind in ("judge", "combined"):
        # Only beside a live judge are they looked at again.
        job.readings_of_row[row.row] = readings
    if kind in ("judge", "combined"):
        status, s = measure_recorded(ensured(critic), readings, row.votes)
        if status != row.status:
            raise ValueError(f"row {row.row} has status {row.status}; its record gives {status}")
    elif row.status == "constant":
        if not isinstance(critic, dict) or not is_share(critic.get("s")):
            raise ValueError(
                f"row {row.row} has the constant critic's s, but the spec has no constant critic"
            )
        s = critic["s"]
    else:
        s = next(iter(readings.values()))
    if s != row.s:
        raise ValueError(f"row {row.row} has s {row.s}; its record gives {s}")


def _statuses(job: JobSoFar, kind: object) -> tuple[str, ...]:
    """Return what can become of a row under the critic of this kind that measured the table."""
    if job.body["critic_sha256"] is None:
        return ("unmeasured",)
    if kind in ("judge", "combined"):
        return ("ok", "constant", "judged", "fallback", "failed")
    return ("ok", "failed") if job.fitted else ("constant",)


def _check_treatment(row: RiskRow, job: JobSoFar) -> None:
    """Raise ValueError unless what became of the row is what the control law says of its s."""
    safety = ensured(job.spec)["safety"]
    steers = safety["method"] == "filter" or safety.get("replay")
    expected = compute_treatment(law_of(job), row.s) if steers else "own"
    if row.treatment != expected:
        raise ValueError(
            f"row {row.row} with s {row.s} has the treatment {row.treatment}; expected {expected}"
        )


def _risk_table_at_end(job: JobSoFar) -> str:
    if job.table is None:
        if job.table_entries is not None:
            raise Broken("the bundle has a risk table that no record commits to")
        raise NotChecked("the job ended, or stands, before its risk table")
    counts = ", ".join(f"{count} {status}" for status, count in job.table["counts"].items() if count)
    return (
        f"{counted(job.table['rows'], 'row')} ({counts}) under the recorded root; s and treatment re-derived"
    )


# --- control law ------------------------------------------------------------------------------------------


def _control_law_each(job: JobSoFar) -> None:
    if job.kind not in ("step", "monitor", "live", "ckpt", "adapter.published"):
        return
    try:
        law = law_of(job)
        _check_not_given_up(job)
        _check_not_due_to_pause(job)
        if job.kind == "monitor":
            _check_measurement(job, law)
            return
        _check_measured(job, law)
        if job.kind == "live":
            check_scores(job, law)
        expected = _replay(job, law) if job.kind == "step" else {}
    except ValueError as error:
        raise Broken(str(error), job.seq) from error
    for name, value in expected.items():
        if job.body[name] != value:
            raise Broken(f"{name} is {job.body[name]}; the replay gives {value}", job.seq)
    job.replayed += job.kind == "step"


def _replay(job: JobSoFar, law: Safety) -> dict[str, Any]:
    """Return what the control law makes of a step whose rows have these s, after the steps before it."""
    step, before = job.body, job.controls[-1]
    unknown = next((row for row in step["rows"] if row not in job.s_of_row), None)
    if unknown is not None:
        raise ValueError(f"row {unknown} is not in the risk table")
    risks = [job.s_of_row[row] for row in step["rows"]]
    live = [job.live_s_of_row.get(row) for row in step["rows"]]
    floor = float(step["floor"])
    betas, smoothed = compute_row_betas(law, risks, floor, before.smoothed, live)
    expected = {
        "critic_sha256": ensured(job.table)["critic_sha256"],
        "policy_sha256": ensured(job.created)["policy_sha256"],
        **summarise_step(list(map(raise_s, risks, live)), betas)._asdict(),
    }
    if job.version == 1:
        return expected
    _check_finite(job, law)
    return expected | {
        "floor": max(before.monitor.floor, job.gate_floor),
        "s_smoothed": smoothed,
        "anchor_weight": compute_anchor_weight(law, before.monitor),
    }


def _check_finite(job: JobSoFar, law: Safety) -> None:
    """Check what says whether the step was skipped, and whether it has a penalty."""
    step = job.body
    # Numbers that are not finite are words on record.
    finite = not isinstance(step["loss"], str) and not isinstance(step["grad_norm"], str)
    if step["skipped"] is finite:
        raise ValueError(
            f"skipped is {str(step['skipped']).lower()} with the loss {step['loss']} and the gradient norm"
            f" {step['grad_norm']}; a step is skipped where one of these is not finite"
        )
    penalised = law["method"] in ("adaptive_kl", "fixed_kl") and bool(step["rows"])
    if (step["kl"] is None) is penalised:
        raise ValueError(f"kl is {step['kl']} in a step {'with' if penalised else 'without'} a penalty")


def _check_not_given_up(job: JobSoFar) -> None:
    """Check that the job did not go on after as many skipped steps in a row as end it."""
    last = job.steps[-MAX_SKIPPED:]
    if len(last) == MAX_SKIPPED and all(step.skipped for step in last):
        raise ValueError(f"{job.kind} after {MAX_SKIPPED} skipped steps in a row, which end a job")


def _check_not_due_to_pause(job: JobSoFar) -> None:
    """Check that a job whose monitor pauses it took no further step, and released nothing, before it had paused."""
    if job.pause_due is not None and job.kind in ("step", "live", "adapter.published"):
        raise ValueError(
            f"{job.kind} without a pause after step {job.pause_due}, where the monitor found too much"
        )


def _check_measurement(job: JobSoFar, law: Safety) -> None:
    """Check a record of the monitor: that it was due after the last step, and what came of it."""
    body, last = job.body, len(job.steps)
    if law["monitor"] is None:
        raise ValueError("a measurement of the monitor, but the spec has none")
    if body["step"] != last or last in job.measured or last % law["monitor"]["every"]:
        raise ValueError(f"a measurement of the monitor at step {body['step']}, where none was due")
    # float() reads the words for numbers that are not finite.
    state = compute_monitor_state(law["monitor"], float(body["kl"]), job.controls[-1].monitor)
    for name, value in state._asdict().items():
        if body[name] != value:
            raise ValueError(f"{name} is {body[name]}; the replay gives {value}")
    if law["monitor"]["action"] == "pause" and is_too_much(law["monitor"], float(body["kl"])):
        job.pause_due = last


def _check_measured(job: JobSoFar, law: Safety) -> None:
    """Check that nothing follows a step at which the monitor was due before it has measured."""
    last = len(job.steps)
    if law["monitor"] and last and last % law["monitor"]["every"] == 0 and last not in job.measured:
        raise ValueError(f"{job.kind} before the measurement of the monitor that was due at step {last}")


def _control_law_at_end(job: JobSoFar) -> str:
    if not job.replayed:
        raise NotChecked("no step was recorded")
    live = f", {counted(len(job.live), 'live score')} re-derived" if job.live else ""
    skipped = f", {sum(step.skipped for step in job.steps)} skipped" if job.steps else ""
    return f"risk, alpha and beta of {counted(job.replayed, 'step')} replayed bit for bit{skipped}{live}"


# --- coverage ---------------------------------------------------------------------------------------------


def _coverage_at_end(job: JobSoFar) -> str:
    if not job.steps:
        raise NotChecked("no step was recorded")
    trained = job.s_of_row.keys() - job.dropped_rows
    data_epoch, left = 0, set(trained)
    last = job.steps[0]
    for step in job.steps:
        if step.data_epoch != data_epoch:
            if step.data_epoch != data_epoch + 1 or last is step:
                raise Broken(f"data epoch {step.data_epoch} where {data_epoch} or its end was due", step.seq)
            _check_all_seen(left, last)
            data_epoch, left = step.data_epoch, set(trained)
        for row in step.rows:
            if row in job.dropped_rows:
                raise Broken(f"row {row} is trained on, though the risk table drops it", step.seq)
            if row not in left:
                raise Broken(f"row {row} is trained on twice in data epoch {data_epoch}", step.seq)
            left.discard(row)
        last = step
    if job.end is None or job.end["state"] != "succeeded":
        return f"no row twice in a data epoch; {data_epoch} complete, one under way"
    _check_all_seen(left, last)
    planned = job.spec.get("n_epochs") if job.spec else None
    if planned != data_epoch + 1:
        raise Broken(f"{counted(data_epoch + 1, 'data epoch')} trained; the spec says {planned!r}", last.seq)
    return f"each of {counted(len(trained), 'row')} once in each of {counted(planned, 'data epoch')}"


def _check_all_seen(left: set[int], last: Step) -> None:
    if left:
        raise Broken(
            f"data epoch {last.data_epoch} ends without {counted(len(left), 'row')}, such as row {min(left)}",
            last.seq,
        )


# --- end --------------------------------------------------------------------------------------------------


def _end_at_end(job: JobSoFar) -> str:
    if job.end is None:
        said = "the job had not ended when the bundle was made; records after these are not shown"
        raise Broken(said) if job.must_have_ended else NotChecked(said)
    seq = job.tree.size - 1
    found = {"steps": len(job.steps), "trained_tokens": sum(step.trained_tokens for step in job.steps)}
    for name, value in found.items():
        if job.end[name] != value:
            raise Broken(f"job.end says {name} {job.end[name]}; the steps that count give {value}", seq)
    state, error = job.end["state"], job.end["error"]
    if (state == "failed" and error is None) or (state == "succeeded" and error is not None):
        raise Broken(f"job.end says {state} with the error {error}", seq)
    if state == "succeeded" and (not job.published or job.published["step"] != len(job.steps)):
        raise Broken("the job succeeded, but no adapter of its last step was published", seq)
    if state == "succeeded" and not job.steps:
        raise Broken("the job succeeded without a step", seq)
    because = f" ({error})" if error else ""
    return f"{state}{because} after {counted(len(job.steps), 'step')}, {found['trained_tokens']} tokens"


EACH: dict[str, Callable[[JobSoFar], None]] = {
    "risk table": _risk_table_each,
    "control law": _control_law_each,
}
AT_END: dict[str, Callable[[JobSoFar], str]] = {
    "risk table": _risk_table_at_end,
    "control law": _control_law_at_end,
    "coverage": _coverage_at_end,
    "end": _end_at_end,
}
