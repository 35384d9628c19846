"""The check of the statement about the adapter: who signed it, and that it says what the record and the zip say.

Standard library only.
"""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.domain.bundle import DAMAGE, DERIVED, POLICY, PROVENANCE
from app.domain.canary import parse_canary
from app.domain.canonical import parse_canonical
from app.domain.dsse import DsseError, Envelope, find_signers, key_id, parse_envelope
from app.domain.provenance import ADAPTER_MANIFEST, KINDS, PAYLOAD_TYPE, format_statement, origin_of
from app.domain.verification import Broken, JobSoFar, NotChecked, ensured

MAX_MANIFEST_BYTES = 1024 * 1024


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
    try:
        envelope = parse_envelope(data)
        if envelope.payload_type != PAYLOAD_TYPE:
            raise Broken(f"the payload is {envelope.payload_type[:80]!r}; expected {PAYLOAD_TYPE}")
        statement = parse_canonical(envelope.payload)
        origin = origin_of(statement)
    except ValueError as error:
        raise Broken(f"{PROVENANCE}: {error}") from error
    _compare(job, statement, origin)
    signers = _signers(job, envelope, origin)
    return f"the statement is signed by {signers}, and is what the records say{_describe(job)}"


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


def _signers(job: JobSoFar, envelope: Envelope, origin: str) -> str:
    if job.trust is None:
        raise NotChecked(
            f"the statement is what the records say{_describe(job)}; no trust policy was given that says whose signature counts"
        )
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
        with zipfile.ZipFile(adapter) as archive:
            if archive.getinfo(ADAPTER_MANIFEST).file_size > MAX_MANIFEST_BYTES:
                raise Broken(f"{ADAPTER_MANIFEST} of the adapter is too large")
            data = archive.read(ADAPTER_MANIFEST)
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
