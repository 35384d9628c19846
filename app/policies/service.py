"""Safety policies: stored in versions, given to projects, and the one that holds for a job that is created now."""

from typing import Any

from sqlalchemy.orm import Session

from app import storage
from app.auth import Caller
from app.database import Database, read_only, unit_of_work
from app.domain.canonical import canonical_bytes
from app.domain.dataset import check_prompt_lines, read_lines
from app.domain.evaluation_spec import BUILTIN_SUITES, EvaluationSpec
from app.domain.safety_policy import Format, SafetyPolicy, digest_policy, parse_policy
from app.errors import Conflict, InvalidRequest, NotFound
from app.evaluations.service import check_judges
from app.files.service import DATA, refuse_rows
from app.models.base import new_id, utc_now
from app.models.file import File
from app.models.policy import Policy
from app.models.tenancy import Project
from app.notary.repository import add_event
from app.policies import repository
from app.policies.repository import read_policy
from app.policies.schemas import PolicyCreate
from app.settings import Settings

InForce = tuple[SafetyPolicy, str]
"""A policy, and the SHA-256 by which records name it."""


def policy_in_force(session: Session, project_id: str, installation: InForce) -> InForce:
    """Return the policy that holds for a project now: its own, else the installation's."""
    stored = repository.get_policy_of(session, project_id)
    return installation if stored is None else (read_policy(stored), stored.sha256)


def pin_gate(policy: SafetyPolicy, sha256: str) -> dict[str, Any] | None:
    """Return what a job keeps of the gate that it is created under, whatever becomes of the policy."""
    if policy.gate is None:
        return None
    named = {"name": policy.name, "version": policy.version, "sha256": sha256}
    gate = policy.gate.model_dump(mode="json", exclude_none=True)
    return {"policy": named, "weights_bounded": bool(policy.category_weights), **gate}


def get_policy(session: Session, policy_id: str) -> Policy:
    """Return a stored policy. Raises NotFound."""
    stored = repository.get_policy(session, policy_id)
    if stored is None:
        raise NotFound(f"no policy has the id {policy_id!r}", param="policy_id")
    return stored


def store_policy(database: Database, settings: Settings, caller: Caller, body: PolicyCreate) -> Policy:
    """Store a version of a policy; the same content again gives the one from before.

    Raises InvalidRequest, naming the field, for what is no policy or asks for an evaluation that cannot be done here,
    InvalidTrainingFile with every problem of its prompts, and Conflict where its name and version stand for another
    content. The prompts are read between two transactions, so that nobody waits for them.
    """
    written_in: Format = "toml" if body.toml is not None else "json"
    try:
        content = canonical_bytes(body.policy) if body.toml is None else body.toml.encode("utf-8")
        policy = parse_policy(content, written_in)
    except ValueError as error:
        field = str(error).partition(": ")[0]
        raise InvalidRequest(
            str(error), param=field if field.isidentifier() or "." in field else None
        ) from None
    sha256 = digest_policy(content)
    wanted = policy.gate.evaluation if policy.gate is not None else None
    with read_only(database) as session:
        known = _find_known(session, policy, sha256)
        if known is not None:
            return known
        suite = _find_suite(session, settings, wanted) if wanted is not None else None
    if suite is not None and wanted is not None:
        _check_prompts(settings, suite, wanted)
    with unit_of_work(database) as session:
        known = _find_known(session, policy, sha256)
        if known is not None:
            return known
        if wanted is not None:
            # Whoever deletes or erases the prompts locks them too, and so is found here or finds this policy.
            _find_suite(session, settings, wanted, lock=True)
        stored = Policy(
            id=new_id("policy_"),
            name=policy.name,
            version=policy.version,
            sha256=sha256,
            content=content,
            written_in=written_in,
            key_id=caller.key_id,
            created_at=utc_now(),
        )
        session.add(stored)
        session.flush()
        add_event(session, "policy.created", actor=caller.key_id, subject=stored.id, sha256=sha256)
        return stored


def _find_known(session: Session, policy: SafetyPolicy, sha256: str) -> Policy | None:
    """Return the policy that was stored with these bytes. Raises Conflict where name and version stand for others."""
    known = repository.find_version(session, policy.name, policy.version)
    if known is not None and known.sha256 != sha256:
        raise Conflict(
            f"version {policy.version} of the policy {policy.name!r} is {known.id}, with other content (SHA-256"
            f" {known.sha256[:12]}…); raise `version` in the file",
            code="policy_version_exists",
        )
    return known


def _check_prompts(settings: Settings, suite: File, wanted: EvaluationSpec) -> None:
    """Raise InvalidTrainingFile for prompts that cannot be used, InvalidRequest for too many: every job would be held."""
    with storage.open_stored(settings.storage, suite.sha256) as stream:
        found = check_prompt_lines(read_lines(stream))
    if found.problems:
        raise refuse_rows(found, "file of prompts", param="gate.evaluation.suite", code="invalid_prompt_file")
    try:
        wanted.decoding.check_size(found.rows)
    except ValueError as error:
        raise InvalidRequest(
            f"gate.evaluation.decoding: {error}",
            param="gate.evaluation.decoding",
            code="evaluation_too_large",
        ) from None


def _find_suite(
    session: Session, settings: Settings, wanted: EvaluationSpec, *, lock: bool = False
) -> File | None:
    """Return the file of prompts that a gate evaluates with; None for a suite that comes with Tether.

    Raises InvalidRequest for prompts or judges that there are not: a job would find that out when it is trained.
    """
    try:
        check_judges(settings, wanted)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="gate.evaluation.judge", code=error.code) from None
    if wanted.suite in BUILTIN_SUITES:
        return None
    file = session.get(File, wanted.suite, with_for_update=lock)
    if (
        file is None
        or file.deleted_at is not None
        or (file.expires_at is not None and file.expires_at <= utc_now())
        or file.purpose != DATA
    ):
        raise InvalidRequest(
            f"gate.evaluation.suite: no suite and no file is called {wanted.suite!r}; suites: {', '.join(BUILTIN_SUITES)}, or"
            f" the id of a file of prompts that was uploaded with the purpose {DATA!r}, in whatever project",
            param="gate.evaluation.suite",
            code="suite_not_found",
        )
    return file


def assign_policy(session: Session, caller: Caller, project: Project, policy_id: str | None) -> None:
    """Give a project a policy for the jobs that it creates from now on; None gives it the installation's.

    Raises NotFound.
    """
    stored = None if policy_id is None else get_policy(session, policy_id)
    project.policy_id = stored.id if stored else None
    session.flush()
    add_event(
        session,
        "policy.assigned" if stored else "policy.unassigned",
        actor=caller.key_id,
        subject=project.id,
        sha256=stored.sha256 if stored else None,
    )
