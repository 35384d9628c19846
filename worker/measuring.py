"""The reference pass of a job, and what of it goes on record: the risk of every row and the registered sets."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain import risk_table
from app.domain.control_law import compute_treatment
from app.errors import JobFailure
from app.models.safety_set import SafetySet
from worker.assignment import Assignment, load_set
from worker.context import Context
from worker.journal import Journal
from worker.progress import micro_batch_tokens
from worker.training.critics.combined import read_texts
from worker.training.critics.judge import Conversation
from worker.training.critics.protocol import Critic as LoadedCritic
from worker.training.data import TokenizedData, TokenizedRow
from worker.training.reference import RowRisk
from worker.training.replies import BATCH_SIZE
from worker.training.run import Prepared, prepare
from worker.training.step import RunData

MAX_DROPPED = 8000
"""Overlong rows of an alignment set that are named on record; as many indices of seven digits fit into a leaf."""


def measure(
    context: Context,
    journal: Journal,
    assignment: Assignment,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TokenizedData,
    texts: Mapping[int, Conversation],
    alignment: Sequence[TokenizedRow],
    critic: LoadedCritic | None,
) -> RunData:
    """Run the reference pass, and commit to the risk of every row and to what it is trained on.

    A resumed job keeps the risks that it committed to; the pass then only fills the cache again, and the rows, the
    registered sets and the reference's replies must be the same.
    """
    recorded = {entry.row: entry for entry in journal.load_risks()}
    known = {
        row: RowRisk(row, name_log_odds(assignment, entry), entry.s, entry.status, entry.votes)
        for row, entry in recorded.items()
    } or None
    if known is not None and known.keys() != {row.index for row in data.rows}:
        raise _data_changed()
    if known is None and critic is not None:
        critic = read_texts(critic, texts, on_progress=lambda _: context.check())
    anchors = load_set(context, assignment.anchors)
    # What is on record must come out as it did, also where memory has run out since.
    reply_split = journal.load_reply_split() if recorded else context.split
    found = prepare(
        base,
        tokenizer,
        data.rows,
        assignment.spec,
        critic,
        anchors=anchors,
        alignment=alignment,
        known=known,
        cache_budget_bytes=context.settings.reference_cache_bytes,
        micro_batch_tokens=micro_batch_tokens(context),
        reply_batch=BATCH_SIZE // reply_split,
        on_progress=lambda _: context.check(),
    )
    entries = risk_entries(assignment, data, found)
    sets = {
        "anchors": describe_anchors(assignment.anchors, found.data),
        "alignment": describe_alignment(assignment.alignment, found.data),
    }
    if recorded:
        if recorded != {entry.row: entry for entry in entries}:
            raise _data_changed()
        check_sets(journal.load_sets(), sets)
        return found.data
    journal.record_reference_pass(
        entries,
        dropped=len(data.dropped),
        fitted=[risk_table.FittedPoints(each.digest, each.low, each.high) for each in assignment.fitted],
        **sets,
    )
    return found.data


def risk_entries(assignment: Assignment, data: TokenizedData, found: Prepared) -> list[risk_table.RiskRow]:
    """Return what is committed of each row: its risk, what becomes of it, and what it is trained on instead."""
    key = assignment.training_file.commitment_key
    if not key:
        raise JobFailure(
            f"the training file {assignment.training_file.id} was erased; train on another file",
            code="invalid_training_file",
            param="training_file",
        )
    law = assignment.spec.safety.model_dump()
    entries = []
    for row, risk in zip(data.rows, found.risks, strict=True):
        replay = found.replayed.get(row.index)
        entries.append(
            risk_table.RiskRow(
                row.index,
                commit_row(key, row),
                tuple(risk.log_odds.get(fitted.digest) for fitted in assignment.fitted),
                risk.s,
                risk.status,
                compute_treatment(law, risk.s),
                commit_row(key, replay) if replay else None,
                risk.votes,
            )
        )
    return entries


def name_log_odds(assignment: Assignment, entry: risk_table.RiskRow) -> dict[str, float]:
    """Return the readings of a recorded row by the digests of the critics, as a reference pass has them."""
    pairs = zip(assignment.fitted, entry.log_odds, strict=True)
    return {fitted.digest: log_odds for fitted, log_odds in pairs if log_odds is not None}


def check_sets(
    recorded: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any] | None]
) -> None:
    """Raise JobFailure unless the registered sets are, and the reference replies to them, as an earlier attempt recorded."""
    for name, body in found.items():
        if body != recorded.get(name):
            raise JobFailure(
                f"the {name} are no longer what this job recorded: their set, the base model's replies, the tokenizer or"
                " its template changed. Submit the job again",
                code="data_changed",
                param="safety.alignment_file" if name == "alignment" else "safety.anchors",
            )


def describe_anchors(registered: SafetySet | None, data: RunData) -> dict[str, Any] | None:
    """Return the body of the leaf `anchors`: the set, and what of it is trained on and watched."""
    if registered is None:
        return None
    trained, monitored = (
        [{"row": row.index, "commitment": commit_row(registered.commitment_key, row)} for row in rows]
        for rows in (data.anchors, data.monitored)
    )
    return {
        "id": registered.id,
        "sha256": registered.sha256,
        "rows": registered.rows,
        "trained": trained,
        "monitored": monitored,
    }


def describe_alignment(registered: SafetySet | None, data: RunData) -> dict[str, Any] | None:
    """Return the body of the leaf `alignment`: the set, and which of its rows were too long.

    Raises JobFailure where they are too many for a leaf.
    """
    if registered is None:
        return None
    kept = {row.index for row in data.alignment}
    dropped = [row for row in range(registered.rows) if row not in kept]
    if len(dropped) > MAX_DROPPED:
        raise JobFailure(
            f"{len(dropped)} of {registered.rows} rows of the set {registered.id} are longer than max_seq_length;"
            f" the record has room for {MAX_DROPPED}. Raise max_seq_length, or register a set of shorter rows",
            param="safety.alignment_file",
        )
    return {
        "id": registered.id,
        "sha256": registered.sha256,
        "rows": registered.rows,
        "dropped": dropped,
    }


def commit_row(key: bytes, row: TokenizedRow) -> str:
    """Return the commitment of a row under the key of its dataset."""
    return risk_table.row_commitment(key, row.input_ids, row.loss_mask)


def _data_changed() -> JobFailure:
    return JobFailure(
        "the rows are no longer the ones that this job recorded; their file, the tokenizer or its template changed."
        " Submit the job again",
        code="data_changed",
        param="training_file",
    )
