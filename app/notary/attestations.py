"""The notary's second act: a signed statement about the adapter of each job whose whole record is under its signature.

It is made of the records that the notary has put into its own tree, and of nothing that anybody tells it.
"""

from collections.abc import Callable
from itertools import islice

from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.database import Database, read_only, unit_of_work
from app.domain.dsse import sign_envelope
from app.domain.installation_log import parse_log_leaf
from app.domain.ledger import parse_leaf, peek_kind
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.note import VerifierKey
from app.domain.provenance import KINDS, PAYLOAD_TYPE, Chronicle, format_statement
from app.models.attestation import Attestation
from app.models.base import utc_now
from app.models.installation_log import InstallationLog
from app.notary import repository
from app.notary.refusals import RefusedJobs


def attest_adapters(
    database: Database,
    log: InstallationLog,
    key: VerifierKey,
    sign: Callable[[bytes], bytes],
    refused: RefusedJobs,
) -> None:
    """Sign the statement of every job that waits for one. `sign` signs with the private half of `key`.

    A job whose record says of no adapter that it was published, or is not the one under the signed head, stays where it is,
    and is added to `refused`.
    """
    with read_only(database) as session:
        due = [each for each in repository.list_unattested(session) if each not in refused]
    for work_id in due:
        try:
            with read_only(database) as session:
                statement = format_statement(build_statement(session, work_id, log))
        except ValueError as error:
            refused.add(work_id, f"there is no statement about its adapter: {error}")
            continue
        with unit_of_work(database) as session:
            # Of two notaries the first one signs.
            repository.lock_log(session)
            if session.get(Attestation, work_id) is None:
                envelope = sign_envelope(PAYLOAD_TYPE, statement, key, sign)
                session.add(
                    Attestation(work_id=work_id, envelope=envelope, key=key.id.hex(), created_at=utc_now())
                )


def build_statement(session: Session, work_id: str, log: InstallationLog) -> dict[str, object]:
    """Return the statement about a job's adapter, from the records that its newest signed head is over, and no others.

    Raises ValueError where the records are not the ones that were signed, or not those of a job that ended well.
    """
    leaf = repository.get_signed_head(session, log.number, work_id)
    signed = parse_log_leaf(leaf) if leaf is not None else {}
    if signed.get("job") != work_id:
        raise ValueError(f"the log {log.origin} has no signed head of the job")
    chronicle, tree, head = Chronicle(), RootBuilder(), b""
    for leaf in islice(iterate_leaves(session, work_id), signed["size"]):
        head = leaf_hash(leaf)
        tree.append(head)
        if peek_kind(leaf) in KINDS:
            chronicle.add(parse_leaf(leaf), head.hex())
    if (tree.size, tree.root().hex()) != (signed["size"], signed["root"]):
        raise ValueError(
            f"the record has {tree.size} of the {signed['size']} leaves under its signed head, or one of them was changed"
        )
    ledger = {"job": work_id, "size": tree.size, "root": tree.root().hex(), "head": head.hex()}
    return chronicle.state(ledger, log.origin)
