"""The notary's second act: a signed statement about the adapter of each job whose whole record is under its signature.

It is made of the records that the notary has put into its own tree, and of nothing that anybody tells it.
"""

import logging
from collections.abc import Callable

from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.database import Database, read_only, unit_of_work
from app.domain.dsse import sign_envelope
from app.domain.ledger import parse_leaf, peek_kind
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.note import VerifierKey
from app.domain.provenance import KINDS, PAYLOAD_TYPE, Chronicle, format_statement
from app.models.attestation import Attestation
from app.models.base import utc_now
from app.notary import repository

log = logging.getLogger(__name__)


def attest_adapters(
    database: Database,
    origin: str,
    key: VerifierKey,
    sign: Callable[[bytes], bytes],
    passed_over: set[str],
) -> None:
    """Sign the statement of every job that waits for one. `sign` signs with the private half of `key`.

    A job whose record says of no adapter that it was published stays where it is: the notary's log says so, and the job is
    added to `passed_over`.
    """
    with read_only(database) as session:
        due = [each for each in repository.list_unattested(session) if each not in passed_over]
    for work_id in due:
        try:
            with read_only(database) as session:
                statement = format_statement(build_statement(session, work_id, origin))
        except ValueError as error:
            log.error("the notary signs no statement about the adapter of %s: %s", work_id, error)
            passed_over.add(work_id)
            continue
        with unit_of_work(database) as session:
            # Of two notaries the first one signs.
            repository.lock_log(session)
            if session.get(Attestation, work_id) is None:
                envelope = sign_envelope(PAYLOAD_TYPE, statement, key, sign)
                session.add(
                    Attestation(work_id=work_id, envelope=envelope, key=key.id.hex(), created_at=utc_now())
                )


def build_statement(session: Session, work_id: str, origin: str) -> dict[str, object]:
    """Return the statement about a job's adapter, from its records."""
    chronicle, tree, head = Chronicle(), RootBuilder(), b""
    for leaf in iterate_leaves(session, work_id):
        head = leaf_hash(leaf)
        tree.append(head)
        if peek_kind(leaf) in KINDS:
            chronicle.add(parse_leaf(leaf), head.hex())
    ledger = {"job": work_id, "size": tree.size, "root": tree.root().hex(), "head": head.hex()}
    return chronicle.state(ledger, origin)
