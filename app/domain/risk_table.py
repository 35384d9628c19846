"""The risk table: what the critic found about each row that is trained on. A leaf commits to it.

Standard library only.
"""

import hashlib
import hmac
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.control_law import Treatment, compute_s
from app.domain.leaf_schema import BODIES, RISK_ROWS, STATUSES, TREATMENTS, check_fields
from app.domain.merkle import RootBuilder, leaf_hash


class FittedPoints(NamedTuple):
    """A fitted critic that rows were read with, and the log-odds between which its readings become s."""

    sha256: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RiskRow:
    """What the critic found about one row that is trained on."""

    row: int
    """Index in the training file. A row without an entry was dropped before training."""
    commitment: str
    """`row_commitment` of its tokens."""
    log_odds: tuple[float | None, ...]
    """The calibrated reading of each fitted critic of the job, in the order of its record; null where it was not asked."""
    s: float | None
    """The risk on [0, 1]; null only where nothing measured it."""
    status: str
    """ok (by activation critics), failed (no reading: s is 1), constant (s is the constant critic's), judged (by a
    judge's votes), fallback (votes were missing, so an activation critic filled in), unmeasured (no critic). Of several
    critics combined: the first that one of them says of fallback, judged, ok, constant."""
    treatment: Treatment = "own"
    """What becomes of the row: trained on as it is, on the reference's own reply (replay), or not at all (drop)."""
    replay: str | None = None
    """`row_commitment` of what a replayed row is trained on; null for all others."""
    votes: tuple[tuple[int | None, ...], ...] = ()
    """A judge's scores, 1 to 5, per piece of the row; null for a vote that failed. Empty without a judge."""


def row_commitment(key: bytes, input_ids: Sequence[int], loss_mask: Sequence[int]) -> str:
    """Return the keyed digest, in hex, of what a row trains: its tokens and which of them bear loss (0 or 1).

    Keyed (HMAC-SHA256), so that nobody without the dataset's key can test guesses of the text against it.
    """
    if len(input_ids) != len(loss_mask):
        raise ValueError(f"{len(input_ids)} tokens with a loss mask of {len(loss_mask)}")
    if not key:
        raise ValueError("the key is empty, so that the commitment would hide nothing")
    mask = [int(bit) for bit in loss_mask]
    if not set(mask) <= {0, 1}:
        raise ValueError("a loss mask holds 0 and 1 only")
    message = canonical_bytes({"input_ids": [int(token) for token in input_ids], "loss_mask": mask})
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def measured_row(
    row: int, commitment: str, log_odds: float | None, *, low: float, high: float, scale: str = "points"
) -> RiskRow:
    """Return the entry of a row that a critic read. Without a finite reading the critic failed, and s is 1."""
    if log_odds is None or not math.isfinite(log_odds):
        return RiskRow(row, commitment, (None,), 1.0, "failed")
    return RiskRow(row, commitment, (log_odds,), compute_s(log_odds, low, high, scale), "ok")


def constant_row(row: int, commitment: str, s: float) -> RiskRow:
    """Return the entry of a row under a constant critic."""
    return RiskRow(row, commitment, (), s, "constant")


def unmeasured_row(row: int, commitment: str) -> RiskRow:
    """Return the entry of a row in a job without a critic."""
    return RiskRow(row, commitment, (), None, "unmeasured")


def build_risk_table(
    rows: Iterable[RiskRow],
    *,
    dropped: int,
    critic_sha256: str | None,
    fitted: Sequence[FittedPoints] = (),
) -> tuple[list[bytes], dict[str, object]]:
    """Return the canonical entries of a risk table and the body of the `risk.table` leaf that commits to them.

    The rows come in rising order of their index. `dropped` counts the rows of the training file that have no
    entry; `fitted` are the fitted critics whose readings the rows have, in order. Raises ValueError for an entry
    that the verifier would refuse.
    """
    builder = RootBuilder()
    entries: list[bytes] = []
    counts = dict.fromkeys(STATUSES, 0)
    treatments = dict.fromkeys(TREATMENTS, 0)
    last = -1
    for row in rows:
        entry = canonical_bytes(
            {
                **asdict(row),
                "log_odds": list(row.log_odds),
                "votes": [list(piece) for piece in row.votes],
            }
        )
        parsed = parse_risk_row(entry)
        check_readings(parsed, len(fitted))
        if parsed.row <= last:
            raise ValueError(f"row {parsed.row} comes after row {last}; rows must rise")
        last = parsed.row
        counts[parsed.status] += 1
        treatments[parsed.treatment] += 1
        builder.append(leaf_hash(entry))
        entries.append(entry)
    body: dict[str, object] = {
        "rows": len(entries),
        "dropped": dropped,
        "root": builder.root().hex(),
        "critic_sha256": critic_sha256,
        "fitted": [points._asdict() for points in fitted],
        "counts": counts,
        "treatments": treatments,
    }
    check_fields("body", body, BODIES["tether.risk.table/3"])
    return entries, body


def check_readings(row: RiskRow, fitted: int) -> None:
    """Raise ValueError unless an entry has a place for the reading of each of so many fitted critics."""
    if len(row.log_odds) != fitted:
        raise ValueError(
            f"row {row.row} has {len(row.log_odds)} readings; the job has {fitted} fitted critics"
        )


def parse_risk_row(entry: bytes, version: int = 3) -> RiskRow:
    """Return what an entry of a risk table says, of a table of this version.

    Raises ValueError where it is malformed or contradicts itself.
    """
    fields = check_fields("the entry", parse_canonical(entry), RISK_ROWS[version])
    # Tables of old have the reading of the one fitted critic that a job could have.
    log_odds = tuple(fields["log_odds"]) if version > 2 else (fields["log_odds"],)
    row = RiskRow(
        **{**fields, "log_odds": log_odds, "votes": tuple(map(tuple, fields.get("votes", ())))},
    )
    was_read = any(each is not None for each in row.log_odds)
    # Beside a judge an activation critic may have been asked or not.
    if row.status != "judged" and was_read is not (row.status in ("ok", "fallback")):
        raise ValueError(
            f"status {row.status} with log_odds {row.log_odds}; ok and fallback have a reading, others have none"
        )
    if row.status != "failed" and bool(row.votes) is not (row.status in ("judged", "fallback")):
        raise ValueError(
            f"status {row.status} with {len(row.votes)} pieces voted on; judged and fallback have votes"
        )
    if (row.s is None) is not (row.status == "unmeasured"):
        raise ValueError(f"status {row.status} with s {row.s}; only unmeasured rows have none")
    if row.status == "failed" and row.s != 1:
        raise ValueError(
            f"the critic failed, and s is {row.s}; missing evidence is maximal risk: s must be 1"
        )
    if (row.replay is None) is (row.treatment == "replay"):
        raise ValueError(
            f"treatment {row.treatment} with replay {row.replay}; a replayed row names its replacement, others none"
        )
    return row
