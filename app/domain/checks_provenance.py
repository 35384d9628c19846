"""The check of the statement about the adapter: who signed it, and that it says what the record and the zip say.

Standard library only.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.domain.bundle import DAMAGE, DERIVED, POLICY, PROVENANCE
from app.domain.canary import parse_canary
from app.domain.canonical import parse_canonical
from app.domain.checks_files import hash_file, hash_members, read_adapter_manifest
from app.domain.dsse import DsseError, Envelope, find_signers, key_id, parse_envelope
from app.domain.provenance import (
    ADAPTER,
    ADAPTER_MANIFEST,
    KINDS,
    PAYLOAD_TYPE,
    format_statement,
    origin_of,
)
from app.domain.verification import Broken, JobSoFar, NotChecked, ensured


def _provenance_each(job: JobSoFar) -> None:
    if job.kind in KINDS:
        job.chronicle.add(job.record, job.hash.hex())


def _provenance_at_end(job: JobSoFar) -> str:
    _check_policy(job)
    _check_canary(job)
    if job.adapter is not None:
        _check_manifest(job, job.adapter)
    data = job.provenance
    if data is None:
        # Nobody outside has an adapter before its statement is signed.
        if job.adapter is not None and job.trust is not None and "canary" in (job.published or {}):
            raise Broken(
                "the trust policy asks for a signed statement about the adapter; the bundle has none"
            )
        raise NotChecked("the bundle has no statement about an adapter")
    envelope, statement, origin = _read(data)
    _compare(job, statement, origin)
    told = f"is what the records say{_describe(job)}"
    return f"the statement is signed by {_signers(job, envelope, origin, told)}, and {told}"


def check_without_records(job: JobSoFar) -> str:
    """Check a statement of which the first and the last record are left, and hold the adapter against it alone."""
    _check_policy(job)
    envelope, statement, origin = _read(ensured(job.provenance))
    try:
        subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
        build, details = (statement["predicate"][name] for name in ("buildDefinition", "runDetails"))
        products = {each["name"]: each for each in details["byproducts"]}
        found = {
            "job": details["metadata"]["invocationId"],
            "ledger": (products["ledger"]["digest"], products["ledger"]["annotations"]),
            "spec and actor": build["externalParameters"],
        }
        saved = {name: each["digest"].get("sha256") for name, each in products.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise Broken(f"{PROVENANCE}: the statement is not in its form") from error
    manifest, created = job.manifest, ensured(job.created)
    expected = {
        "job": manifest["job"],
        "ledger": (
            {"tetherSha256": manifest["head"]},
            {"size": manifest["size"], "root": manifest["root"]},
        ),
        "spec and actor": {"spec": created["spec"], "actor": created["actor"]},
    }
    wrong = [name for name, value in expected.items() if found[name] != value]
    if wrong:
        raise Broken(f"the statement is not what the records that are left say, in {', '.join(wrong)}")
    if ensured(job.end)["state"] != "succeeded":
        raise Broken(f"{PROVENANCE} is there, and the record is not one of a job that ended with an adapter")
    adapter = "" if job.adapter is None else _compare_with_subjects(job.adapter, subjects, saved)
    told = f"fits the records that are left{adapter}{_describe(job)}"
    return f"the statement is signed by {_signers(job, envelope, origin, told)}, and {told}"


def _compare_with_subjects(adapter: Path, subjects: Mapping[str, object], saved: Mapping[str, object]) -> str:
    """Return what an adapter is by a statement. Raises Broken where it is nothing of what the statement names."""
    digest = hash_file(adapter)
    step = next((name for name, sha256 in saved.items() if sha256 == digest), None)
    if digest != subjects.get(ADAPTER) and step is not None:
        return f"; the zip is its {step}, not the adapter"
    if digest != subjects.get(ADAPTER):
        raise Broken(f"the zip's SHA-256 is {digest}; the statement is about {subjects.get(ADAPTER)}")
    if hash_members(adapter) != {name: sha256 for name, sha256 in subjects.items() if name != ADAPTER}:
        raise Broken("the zip has other files than the statement is about")
    return "; the zip and its files are those that it is about"


def _read(data: bytes) -> tuple[Envelope, Any, str]:
    """Return an envelope, the statement in it, and the log that this names."""
    try:
        envelope = parse_envelope(data)
        if envelope.payload_type != PAYLOAD_TYPE:
            raise Broken(f"the payload is {envelope.payload_type[:80]!r}; expected {PAYLOAD_TYPE}")
        statement = parse_canonical(envelope.payload)
        return envelope, statement, origin_of(statement)
    except ValueError as error:
        raise Broken(f"{PROVENANCE}: {error}") from error


def _compare(job: JobSoFar, statement: Any, origin: str) -> None:
    try:
        expected: dict[str, Any] = job.chronicle.state(job.manifest, origin)
    except ValueError as error:
        raise Broken(f"{PROVENANCE} is there, and {error}") from error
    if statement.get("subject") != expected["subject"]:
        raise Broken("the statement is about other files than the adapter that the record has published")
    if format_statement(statement) != format_statement(expected):
        parts = expected["predicate"]
        found = statement.get("predicate")
        wrong = [name for name in parts if not isinstance(found, dict) or found.get(name) != parts[name]]
        raise Broken(f"the statement is not what the records say, in {', '.join(wrong) or 'its form'}")


def _signers(job: JobSoFar, envelope: Envelope, origin: str, told: str) -> str:
    if job.trust is None:
        raise NotChecked(f"the statement {told}; no trust policy was given that says whose signature counts")
    keys = job.trust.logs.get(origin)
    if keys is None:
        raise Broken(f"the statement is of the log {origin[:200]!r}, which the trust policy does not name")
    try:
        return ", ".join(map(key_id, find_signers(envelope, keys)))
    except DsseError as error:
        raise Broken(f"{PROVENANCE}: {error}") from error


def _check_canary(job: JobSoFar) -> None:
    published = job.published or {}
    if "canary" in published:
        try:
            parse_canary(published["canary"])
        except ValueError as error:
            raise Broken(str(error)) from error


def _check_policy(job: JobSoFar) -> None:
    text = job.documents.get(POLICY)
    if text is not None and text != ensured(job.created)["policy_sha256"]:
        raise Broken(f"{POLICY} is not the policy that the record names: its SHA-256 is {text}")


def _check_manifest(job: JobSoFar, adapter: Path) -> None:
    """Compare what the adapter says of itself with the record; the check of the adapter has compared its bytes."""
    published = ensured(job.published)
    if "canary" not in published:
        return
    try:
        data = read_adapter_manifest(adapter)
        found = parse_canonical(data)
    except (*DAMAGE, KeyError) as error:
        raise Broken(f"{ADAPTER_MANIFEST} of the adapter cannot be read: {error}") from error
    digest = published["files"].get(ADAPTER_MANIFEST)
    if hashlib.sha256(data).hexdigest() != digest:
        # The zip of a checkpoint: the record has its digest alone.
        return
    files = {name: sha256 for name, sha256 in published["files"].items() if name != ADAPTER_MANIFEST}
    expected = {"base": published["base"], "canary": published["canary"], "files": files}
    for name, value in expected.items():
        if not isinstance(found, dict) or found.get(name) != value:
            raise Broken(f"{ADAPTER_MANIFEST} of the adapter has another {name!r} than the record")


def _describe(job: JobSoFar) -> str:
    derived = sorted(DERIVED & job.documents.keys())
    policy = "; the policy is the one on record" if POLICY in job.documents else ""
    return policy + (
        f"; {', '.join(derived)} are derived from records and database, and prove nothing" if derived else ""
    )


EACH: dict[str, Callable[[JobSoFar], None]] = {"provenance": _provenance_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"provenance": _provenance_at_end}
