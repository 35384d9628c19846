"""The checks of what the record says was trained: risk table, control law, coverage, files, end.

A check may look at each record in turn (`EACH`) and says at the end what came of it (`AT_END`). Standard
library only.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.domain.bundle import RISK_TABLE, BundleError
from app.domain.control_law import compute_alpha, compute_row_beta, compute_s, mean
from app.domain.leaf_schema import Leaf
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.risk_table import RiskRow, parse_risk_row
from app.domain.verification import Broken, JobSoFar, NotChecked, Step, counted, ensured, is_same

Safety = Mapping[str, Any]


# --- risk table -------------------------------------------------------------------------------------------


def _risk_table_each(job: JobSoFar) -> None:
    if job.kind != "risk.table":
        return
    leaf, created, safety = job.body, ensured(job.created), ensured(job.spec)["safety"]
    _check_critic(job, leaf, created["critic"])
    builder = RootBuilder()
    counts = dict.fromkeys(leaf["counts"], 0)
    last = -1
    for number, entry in enumerate(_table_entries(job)):
        try:
            row = parse_risk_row(entry)
            if row.row <= last:
                raise ValueError(f"row {row.row} comes after row {last}")
            _check_risk_row(row, leaf, safety)
        except ValueError as error:
            raise Broken(str(error), number, RISK_TABLE) from error
        last = row.row
        job.s_of_row[row.row] = row.s
        counts[row.status] += 1
        builder.append(leaf_hash(entry))
    found = {"rows": builder.size, "root": builder.root().hex(), "counts": counts}
    for name, value in found.items():
        if leaf[name] != value:
            raise Broken(f"the record's {name} is {leaf[name]}; the table gives {value}", job.seq)
    expected = created["training_rows"]
    if expected is not None and builder.size + leaf["dropped"] != expected:
        raise Broken(
            f"{builder.size} rows and {leaf['dropped']} dropped are not the {expected} of the file", job.seq
        )
    if expected is not None and last >= expected:
        raise Broken(f"the table names row {last} of a file of {expected} rows (from 0)", job.seq)


def _table_entries(job: JobSoFar) -> Iterator[bytes]:
    if job.table_entries is None:
        raise Broken(f"a risk table was recorded, but the bundle has no {RISK_TABLE}", job.seq)
    try:
        yield from job.table_entries
    except BundleError as error:
        raise Broken(str(error)) from error


def _check_critic(job: JobSoFar, leaf: Leaf, created: Leaf | None) -> None:
    """Check that the table was made by the critic that the job was created with, at its points."""
    used = {"sha256": leaf["critic_sha256"], "low": leaf["low"], "high": leaf["high"]}
    for name, value in used.items():
        expected = created[name] if created else None
        if not is_same(expected, value):
            raise Broken(f"the critic's {name} is {value}; the job was created with {expected}", job.seq)
    if (leaf["low"] is None) is not (leaf["high"] is None):
        raise Broken("one of the critic's two points is missing", job.seq)


def _check_risk_row(row: RiskRow, leaf: Leaf, safety: Safety) -> None:
    """Raise ValueError unless the entry's status fits the critic and its s is what the control law gives."""
    if leaf["critic_sha256"] is None:
        allowed: tuple[str, ...] = ("unmeasured",)
        if safety["method"] not in ("none", "fixed_kl"):
            raise ValueError(f"the method {safety['method']} steers by risk, but no critic measured any")
    elif leaf["low"] is None:
        allowed = ("constant",)
    else:
        allowed = ("ok", "failed")
    if row.status not in allowed:
        raise ValueError(f"row {row.row} has status {row.status}; under this critic: {' or '.join(allowed)}")
    if row.status == "ok":
        s = compute_s(float(ensured(row.log_odds)), float(leaf["low"]), float(leaf["high"]))
    elif row.status == "constant":
        critic = safety.get("critic")
        if not isinstance(critic, dict) or not _is_share(critic.get("s")):
            raise ValueError(
                f"row {row.row} has the constant critic's s, but the spec has no constant critic"
            )
        s = critic["s"]
    else:
        return
    if s != row.s:
        raise ValueError(f"row {row.row} has s {row.s}; its record gives {s}")


def _risk_table_at_end(job: JobSoFar) -> str:
    if job.table is None:
        if job.table_entries is not None:
            raise Broken("the bundle has a risk table that no record commits to")
        raise NotChecked("the job ended, or stands, before its risk table")
    counts = ", ".join(f"{count} {status}" for status, count in job.table["counts"].items() if count)
    return f"{counted(job.table['rows'], 'row')} ({counts}) under the recorded root; every s re-derived"


# --- control law ------------------------------------------------------------------------------------------


def _control_law_each(job: JobSoFar) -> None:
    if job.kind != "step":
        return
    step = job.body
    expected = {
        "critic_sha256": ensured(job.table)["critic_sha256"],
        "policy_sha256": ensured(job.created)["policy_sha256"],
    }
    unknown = next((row for row in step["rows"] if row not in job.s_of_row), None)
    if unknown is not None:
        raise Broken(f"row {unknown} is not in the risk table", job.seq)
    try:
        safety = _safety_numbers(ensured(job.spec)["safety"])
        risks = [job.s_of_row[row] for row in step["rows"]]
        expected |= _replay(safety, risks, float(step["floor"]))
    except ValueError as error:
        raise Broken(str(error), job.seq) from error
    for name, value in expected.items():
        if step[name] != value:
            raise Broken(f"{name} is {step[name]}; the replay gives {value}", job.seq)
    job.replayed += 1


def _replay(safety: Safety, risks: list[float | None], floor: float) -> dict[str, float | None]:
    """Return what the control law makes of a step whose rows have these s."""
    betas = [compute_row_beta(safety, s, floor) for s in risks]
    alphas = [compute_alpha(beta) for beta in betas]
    known = [float(s) for s in risks if s is not None]
    measured = len(known) == len(risks)
    return {
        "risk_mean": mean(known) if measured else None,
        "risk_max": max(known) if measured else None,
        "alpha_mean": mean(alphas),
        "alpha_min": min(alphas),
        "beta_mean": mean(betas),
        "beta_max": max(betas),
    }


_SAFETY_NUMBERS = {"adaptive_kl": ("beta_min", "beta_max", "threshold"), "fixed_kl": ("beta",), "none": ()}


def _safety_numbers(safety: Safety) -> Safety:
    """Return a spec's `safety` with its numbers as floats. Raises ValueError where one is missing or wild."""
    method = safety["method"]
    if method not in _SAFETY_NUMBERS:
        raise ValueError(f"the method {method} is not known; known: {', '.join(_SAFETY_NUMBERS)}")
    numbers = {name: safety.get(name) for name in _SAFETY_NUMBERS[method]}
    for name, value in numbers.items():
        if not _is_share(value):
            raise ValueError(f"safety.{name} is {value!r}; expected a number from 0 to 1")
    if method == "adaptive_kl" and not isinstance(safety.get("schedule"), str):
        raise ValueError(f"safety.schedule is {safety.get('schedule')!r}; expected a word")
    return {**safety, **{name: float(value) for name, value in numbers.items() if value is not None}}


def _control_law_at_end(job: JobSoFar) -> str:
    if not job.replayed:
        raise NotChecked("no step was recorded")
    return f"risk, alpha and beta of {counted(job.replayed, 'step')} replayed bit for bit"


# --- coverage ---------------------------------------------------------------------------------------------


def _coverage_at_end(job: JobSoFar) -> str:
    if not job.steps:
        raise NotChecked("no step was recorded")
    data_epoch, left = 0, set(job.s_of_row)
    last = job.steps[0]
    for step in job.steps:
        if step.data_epoch != data_epoch:
            if step.data_epoch != data_epoch + 1 or last is step:
                raise Broken(f"data epoch {step.data_epoch} where {data_epoch} or its end was due", step.seq)
            _check_all_seen(left, last)
            data_epoch, left = step.data_epoch, set(job.s_of_row)
        for row in step.rows:
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
    return f"each of {counted(len(job.s_of_row), 'row')} once in each of {counted(planned, 'data epoch')}"


def _check_all_seen(left: set[int], last: Step) -> None:
    if left:
        raise Broken(
            f"data epoch {last.data_epoch} ends without {counted(len(left), 'row')}, such as row {min(left)}",
            last.seq,
        )


# --- files beside the bundle ------------------------------------------------------------------------------


def _training_file_at_end(job: JobSoFar) -> str:
    if job.data is None:
        raise NotChecked("no training file was given")
    found, expected = _hash_file(job.data), ensured(job.created)["training_sha256"]
    if found != expected:
        raise Broken(f"its SHA-256 is {found}; the record says {expected}")
    return "the file is the one that the job was created with"


def _adapter_at_end(job: JobSoFar) -> str:
    if job.adapter is None:
        raise NotChecked("no adapter was given")
    if job.published is None:
        raise Broken("an adapter was given, but the record has none published")
    found = _hash_file(job.adapter)
    if found != job.published["zip_sha256"]:
        raise Broken(f"its SHA-256 is {found}; the record says {job.published['zip_sha256']}")
    size = job.adapter.stat().st_size
    if size != job.published["bytes"]:
        raise Broken(f"it has {size} bytes; the record says {job.published['bytes']}")
    files = _hash_members(job.adapter)
    if files != job.published["files"]:
        names = sorted(
            name
            for name in files.keys() | job.published["files"].keys()
            if files.get(name) != job.published["files"].get(name)
        )
        raise Broken(f"the record and the zip differ in {', '.join(map(repr, names[:5]))}")
    return (
        f"the zip and its {counted(len(files), 'file')} are those published at step {job.published['step']}"
    )


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Broken(f"{path.name} cannot be read: {error.strerror}") from error


def _hash_members(path: Path) -> dict[str, str]:
    result: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename in result:
                    raise Broken(f"{info.filename[:80]!r} stands twice in the zip")
                with archive.open(info) as member:
                    result[info.filename] = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        raise Broken(f"the zip cannot be read: {error}") from error
    return result


# --- end --------------------------------------------------------------------------------------------------


def _end_at_end(job: JobSoFar) -> str:
    if job.end is None:
        raise NotChecked("the job had not ended when the bundle was made; records after these are not shown")
    seq = job.tree.size - 1
    found = {"steps": len(job.steps), "trained_tokens": sum(step.tokens for step in job.steps)}
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


def describe_protection(job: JobSoFar) -> str:
    """Return by which method the job was trained, and whether that held the model to anything."""
    spec = job.spec or (job.created["spec"] if job.created else None)
    if spec is None:
        return "unknown: the record does not say by which method the job was trained"
    safety = spec["safety"]
    method = safety["method"]
    if method == "none":
        return "UNPROTECTED: method none, so nothing held the model to its reference"
    numbers = ", ".join(f"{name} {safety.get(name)}" for name in _SAFETY_NUMBERS.get(method, ()))
    greatest = safety.get("beta_max" if method == "adaptive_kl" else "beta")
    if greatest == 0:
        return f"UNPROTECTED: method {method}, but its beta is never above 0"
    return f"{method}, {numbers}" if numbers else f"{method}: not known to this verifier"


# --- small things -----------------------------------------------------------------------------------------


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


EACH: dict[str, Callable[[JobSoFar], None]] = {
    "risk table": _risk_table_each,
    "control law": _control_law_each,
}
AT_END: dict[str, Callable[[JobSoFar], str]] = {
    "risk table": _risk_table_at_end,
    "control law": _control_law_at_end,
    "coverage": _coverage_at_end,
    "training file": _training_file_at_end,
    "adapter": _adapter_at_end,
    "end": _end_at_end,
}
