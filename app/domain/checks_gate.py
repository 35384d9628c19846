"""The check of the policy's gate: what its limits came to, and that no weights passed it that should not have.

That the limits are those of the policy is shown by nothing but the policy itself, whose digest is on record; so is how
good a critic was. Where the bundle has the policy, no job with a gate in it may have succeeded without one on record.
Standard library only.
"""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.domain.bundle import MAX_POLICY_BYTES, POLICY
from app.domain.gate import (
    CRITIC_QUALITY,
    LIMITS,
    Stage,
    describe,
    end_verdict,
    fallback_share,
    find_in_evaluation,
    is_broken,
    start_floor,
    start_verdict,
)
from app.domain.leaf_schema import Leaf
from app.domain.verification import Broken, JobSoFar, NotChecked, ensured

SAFETY_GATE = "safety_gate"
_TRAINING = ("step", "live", "monitor", "ckpt", "eval", "gate", "adapter.published")


def _gate_each(job: JobSoFar) -> None:
    kind = job.kind
    if job.gate is not None and kind not in ("adapter.published", "job.end"):
        raise Broken(f"{kind} after the gate; only adapter.published and job.end follow it", job.seq)
    if job.gate_pause_due and kind in _TRAINING:
        raise Broken(f"{kind} without a pause, which the gate asked for at the start", job.seq)
    if job.gate_start and job.gate_start["verdict"] == "fail" and kind in _TRAINING:
        raise Broken(f"{kind} in a job that its gate refused at the start", job.seq)
    if kind == "gate.start":
        _check_start(job)
    elif kind == "gate":
        _check_gate(job)
    elif kind == "adapter.published" and job.gate_start is not None:
        if job.gate is None:
            raise Broken("an adapter was published that did not come to its gate", job.seq)
        if job.gate["verdict"] == "fail":
            raise Broken("an adapter was published that its gate refused", job.seq)
    elif kind == "job.end":
        _check_end(job)


def _check_start(job: JobSoFar) -> None:
    body = job.body
    if job.gate_start is not None:
        raise Broken("a second gate.start", job.seq)
    if job.table is None or job.steps or job.superseded:
        raise Broken("gate.start belongs between the risk.table and the first step", job.seq)
    _check_limits(job, body["limits"], "start")
    _check_found(job, body["limits"], {"fallback_share": fallback_share(job.table["counts"])})
    expected = {"verdict": start_verdict(body["limits"]), "floor": start_floor(body["limits"])}
    for name, value in expected.items():
        if body[name] != value:
            raise Broken(f"{name} is {body[name]}; the limits come to {value}", job.seq)
    job.gate_pause_due = body["verdict"] == "pause"


def _check_gate(job: JobSoFar) -> None:
    body = job.body
    if job.gate_start is None:
        raise Broken("a gate in a job that began without one", job.seq)
    if not job.steps and not job.pruned.size:
        raise Broken("a gate before the first step", job.seq)
    _check_limits(job, body["limits"], "end")
    limits = body["limits"]
    started = [each for each in limits if LIMITS[each["limit"]].stage == "start"]
    if started != job.gate_start["limits"]:
        raise Broken("the limits that are known at the start are not those of gate.start", job.seq)
    comparisons = job.evaluation["comparisons"] if job.evaluation else []
    names = [each["limit"] for each in limits if LIMITS[each["limit"]].stage == "end"]
    _check_found(job, limits, {name: find_in_evaluation(name, comparisons) for name in names})
    verdict = end_verdict(limits)
    if body["verdict"] != verdict:
        raise Broken(f"verdict is {body['verdict']}; the limits come to {verdict}", job.seq)


def _check_limits(job: JobSoFar, limits: Sequence[Leaf], stage: Stage) -> None:
    """Check the policy, and that each limit is one, stands once, and is broken exactly where it says so."""
    policy = ensured(job.created)["policy_sha256"]
    if job.body["policy_sha256"] != policy:
        raise Broken(
            f"policy_sha256 is {job.body['policy_sha256']}; the job was created under {policy}", job.seq
        )
    known = [name for name in LIMITS if stage == "end" or LIMITS[name].stage == "start"]
    names = [each["limit"] for each in limits]
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        raise Broken(f"the limit {strange} is not known here; known: {', '.join(known)}", job.seq)
    if names != [name for name in known if name in names]:
        raise Broken("the limits are not in their order, each once", job.seq)
    for each in limits:
        if LIMITS[each["limit"]].stage == "end" and each["action"] in ("tighten", "pause"):
            raise Broken(f"{each['limit']} has the action {each['action']}, which comes too late", job.seq)
        if (each["beta_min"] is None) is (each["action"] == "tighten"):
            raise Broken(
                f"{each['limit']} has the action {each['action']} and beta_min {each['beta_min']}", job.seq
            )
        broken = is_broken(each["limit"], each["bound"], each["found"])
        if each["broken"] is not broken:
            raise Broken(f"{describe(each)}; it says broken: {str(each['broken']).lower()}", job.seq)


def _check_found(job: JobSoFar, limits: Sequence[Leaf], found: Mapping[str, Any]) -> None:
    for each in limits:
        if each["limit"] in found and each["found"] != found[each["limit"]]:
            raise Broken(
                f"{each['limit']} is {each['found']}; the records give {found[each['limit']]}", job.seq
            )


def _check_end(job: JobSoFar) -> None:
    refused = [each for each in (job.gate, job.gate_start) if each and each["verdict"] == "fail"]
    ended = (job.body["state"], job.body["error"])
    if job.gate is not None and refused and ended != ("failed", SAFETY_GATE):
        raise Broken(f"job.end says {ended[0]} with the error {ended[1]}; the gate refused the job", job.seq)
    if refused and ended[0] == "succeeded":
        raise Broken("the job succeeded, though its gate refused it", job.seq)


def _gate_at_end(job: JobSoFar) -> str:
    if job.gate_start is None:
        raise NotChecked(_say_why_there_is_none(job))
    start, gate = job.gate_start, job.gate
    told = [f"at the start {start['verdict']}"]
    if start["floor"]:
        told.append(f"every beta at least {start['floor']:g}")
    if gate is None:
        return f"{', '.join(told)}{_broken_in(start)}; the job did not come to the end of its training"
    told.append(f"before the release {gate['verdict']}")
    held = ""
    if gate["verdict"] == "hold":
        held = "; HELD: who released or rejected it is in the installation's log"
    claims = "" if not _claims(gate) else f" ({' and '.join(_claims(gate))}: a claim of the worker's)"
    return f"{', '.join(told)}{_broken_in(gate)}{claims}{held}"


def _say_why_there_is_none(job: JobSoFar) -> str:
    """Return why no gate is on record. Raises Broken where the policy has one, and the job succeeded without it."""
    text = job.policy
    # Another policy than the one on record says nothing of this job, and fails the check of the documents.
    if text is None or job.documents.get(POLICY) != ensured(job.created)["policy_sha256"]:
        return "no gate is on record: by its record the policy had none, or the job did not come to it"
    if len(text) > MAX_POLICY_BYTES:
        return f"no gate is on record, and {POLICY} has more than {MAX_POLICY_BYTES} bytes, so that it was not read"
    try:
        has_gate = _has_gate(text)
    except (ValueError, RecursionError) as error:
        return f"no gate is on record, and {POLICY} cannot be read: {str(error)[:200]}"
    if not has_gate:
        return f"no gate is on record, and {POLICY} asks for none"
    if job.end is not None and job.end["state"] == "succeeded":
        raise Broken(
            f"no gate is on record of a job that succeeded; {POLICY}, under which it was created, has one"
        )
    return f"no gate is on record: {POLICY} has one, and the job did not come to it"


def _has_gate(policy: bytes) -> bool:
    """Say whether a policy has a gate. Raises ValueError or RecursionError for one that cannot be read."""
    text = policy.decode("utf-8")
    # Policies of files are TOML, those that were stored by a request may be JSON; nothing is both.
    found = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    return found.get("gate") is not None


def _broken_in(body: Leaf) -> str:
    broken = [f"{describe(each)} ({each['action']})" for each in body["limits"] if each["broken"]]
    return f"; broken: {'; '.join(broken)}" if broken else "; no limit broken"


def _claims(body: Leaf) -> list[str]:
    return [each["limit"] for each in body["limits"] if each["limit"] in CRITIC_QUALITY]


EACH: dict[str, Callable[[JobSoFar], None]] = {"gate": _gate_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"gate": _gate_at_end}
