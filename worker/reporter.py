"""Making the report on a dataset: what training on it would be, before anybody pays for it."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app import storage
from app.database import unit_of_work
from app.domain.control_law import compute_treatment, fitted_ids
from app.domain.conversion import Row, begin_text, find_format, to_chat
from app.domain.dataset import parse_rows, read_lines
from app.domain.duplicates import SAMENESSES, digest_rows, find_duplicates, find_leaks
from app.domain.job import State
from app.domain.row_risks import VISIBILITIES, describe_risks, expect_beta, pack_scores
from app.domain.safety_spec import AnyCritic, ConstantCritic
from app.domain.safety_spec import Critic as AnyFields
from app.domain.training_spec import TrainingSpec
from app.models.base_model import BaseModel, Critic
from app.models.report import Report, reading_of
from app.work import repository
from worker.context import Context
from worker.critic_loader import load_pinned_critic, scale_of
from worker.progress import mark_forwards, micro_batch_tokens
from worker.training.critics.protocol import Critic as LoadedCritic
from worker.training.data import TokenizedRow
from worker.training.inspection import (
    PREVIEW_ROWS,
    Inspection,
    describe_ends,
    describe_lengths,
    inspect_rows,
    list_unusable,
    preview_row,
)
from worker.training.loop import DEFAULT_MICRO_BATCH_TOKENS, plan_run
from worker.training.models import load_base, set_determinism
from worker.training.reference import RowRisk, run_reference_pass

_CRITIC: TypeAdapter[AnyCritic | None] = TypeAdapter(AnyFields | None)

MAX_SHOWN_CHARS = 2000
"""Of the one row that shows how a file is read."""
ROWS_WITH_TEXT = 30
BYTES_PER_TRAINED_PARAMETER = 16
"""The weight, its gradient and AdamW's two moments, each in float32."""
ACTIVATIONS_PER_HIDDEN = 16
"""Numbers that a block keeps for the backward pass, for each of a token's hidden numbers: a rough constant."""


def make_report(context: Context) -> None:
    """Make a report and keep it. Raises JobFailure where base model or critic cannot be used any more."""
    with unit_of_work(context.database) as session:
        args = context.lease.load(session).args
        base_row = session.get_one(BaseModel, args["base_model"])
        reading = _CRITIC.validate_python(reading_of(args))
        fitted = [session.get_one(Critic, each) for each in fitted_ids(reading_of(args))]
    context.lease.move(State.RUNNING)
    if context.settings.threads:
        torch.set_num_threads(context.settings.threads)
    spec = TrainingSpec.model_validate(args["spec"])
    set_determinism(spec.seed)
    # Reports are the work of processors: the accelerator belongs to the jobs.
    base, tokenizer = load_base(Path(base_row.path), device=torch.device("cpu"), files=base_row.files)
    mark_forwards(context, base)
    sources = _read(context, args["data_sha256"])
    rows = [to_chat(row) for row in sources]
    inspection = _inspect(context, tokenizer, rows, spec)
    body = describe_rows(tokenizer, rows, spec, inspection)
    body["format"] = describe_format(sources)
    if args["validation_sha256"]:
        validation = [to_chat(row) for row in _read(context, args["validation_sha256"])]
        body["leaks"] = describe_leaks(rows, validation)
        body["validation_rows"] = describe_kept(
            len(validation), _inspect(context, tokenizer, validation, spec)
        )
    scores: dict[int, float | None] = {row.index: None for row in inspection.rows}
    if isinstance(reading, ConstantCritic):
        scores = dict.fromkeys(scores, reading.s)
    elif reading is not None:
        scale = scale_of(spec.safety)
        critic = load_pinned_critic(context, reading, fitted, base_row, tokenizer, s_scale=scale)
        risks = _measure(context, base, inspection.rows, critic, spec)
        scores = {risk.row: risk.s for risk in risks}
        body["risk_failed"] = sum(risk.status == "failed" for risk in risks)
    body["by_visibility"] = describe_steering(spec, scores, n_alignment=args["alignment_rows"])
    show_riskiest(body["by_visibility"], rows)
    body["training"] = describe_training(spec, inspection.rows)
    body["memory"] = estimate_memory(Path(base_row.path), base, spec, inspection.rows)
    context.check()
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        report = session.get_one(Report, work.id)
        report.body = body
        report.scores = pack_scores(scores, len(rows)) if fitted else None
        repository.move(session, work, State.FINALISING)
        repository.move(session, work, State.SUCCEEDED)


def describe_format(sources: list[Row]) -> dict[str, Any]:
    """Return which format was found, how it was read, and one row before and after."""
    found = find_format(sources[0])
    if found is None:
        raise ValueError("a file of no known format reached its report")
    return {
        "name": found.name,
        "read_as": found.read_as,
        "before": _shorten(sources[0]),
        "after": _shorten(to_chat(sources[0])),
    }


def describe_rows(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], spec: TrainingSpec, inspection: Inspection
) -> dict[str, Any]:
    """Return what can be said of the rows without a model."""
    kept = inspection.rows
    return {
        "rows": describe_kept(len(rows), inspection),
        "policy": {"max_seq_length": spec.max_seq_length, "overlength": spec.overlength},
        "lengths": {
            "tokens": describe_lengths([len(row.input_ids) for row in kept]),
            "trained_tokens": describe_lengths([row.loss_tokens for row in kept]),
        },
        "end_of_turn": describe_ends(tokenizer, kept),
        "preview": [preview_row(tokenizer, row) for row in kept[:PREVIEW_ROWS]],
        "duplicates": {sameness: find_duplicates(digest_rows(rows, sameness)) for sameness in SAMENESSES},
        "leaks": None,
    }


def describe_kept(total: int, inspection: Inspection) -> dict[str, Any]:
    """Return what the policy leaves of a file."""
    return {
        "total": total,
        "kept": len(inspection.rows),
        "dropped": list_unusable(inspection.dropped),
        "truncated": list_unusable(inspection.truncated),
        "refused": list_unusable(inspection.refused),
    }


def describe_leaks(training: list[Row], validation: list[Row]) -> dict[str, Any]:
    """Return which rows of the validation file are trained on."""
    return {
        sameness: find_leaks(digest_rows(training, sameness), digest_rows(validation, sameness))
        for sameness in SAMENESSES
    }


def describe_steering(
    spec: TrainingSpec, scores: dict[int, float | None], *, n_alignment: int
) -> dict[str, dict[str, Any]]:
    """Return, for each visibility, what is shown of the risks and of what follows from them."""
    law = spec.safety.model_dump()
    found: dict[str, dict[str, Any]] = {}
    for visibility in VISIBILITIES:
        n_rows = len(scores)
        if visibility != "none" and None not in scores.values():
            n_rows = sum(compute_treatment(law, s) != "drop" for s in scores.values())
        plan = plan_run(spec, n_rows=n_rows, n_alignment=n_alignment) if n_rows else None
        found[visibility] = {
            "risk": describe_risks(law, scores, visibility),
            "expected_beta_mean": expect_beta(law, scores, visibility),
            "steps": plan.total_steps if plan else 0,
        }
    return found


def show_riskiest(by_visibility: dict[str, dict[str, Any]], rows: list[Row]) -> None:
    """Add the beginning of their text to the first of the riskiest rows, as each visibility lists them."""
    for shown in by_visibility.values():
        for each in (shown["risk"] or {"riskiest": ()})["riskiest"][:ROWS_WITH_TEXT]:
            each["text"] = begin_text(rows[each["row"]])


def describe_training(spec: TrainingSpec, rows: tuple[TokenizedRow, ...]) -> dict[str, Any]:
    """Return how much a job would train."""
    tokens = sum(len(row.input_ids) for row in rows)
    trained = sum(row.loss_tokens for row in rows)
    return {
        "n_epochs": spec.n_epochs,
        "batch_size": spec.batch_size,
        "tokens": tokens * spec.n_epochs,
        "trained_tokens": trained * spec.n_epochs,
        "tokens_per_epoch": tokens,
        "trained_tokens_per_epoch": trained,
    }


def estimate_memory(
    path: Path, base: PreTrainedModel, spec: TrainingSpec, rows: tuple[TokenizedRow, ...]
) -> dict[str, Any]:
    """Return what training would need of an accelerator's memory, by a formula that the report states."""
    weights = adapter = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (It is no mapping.)
                shape = tensors.get_slice(name).get_shape()
                weights += int(torch.Size(shape).numel())
                in_block = any(part.isdigit() for part in name.split("."))
                adapter += spec.lora_r * sum(shape) if in_block and len(shape) == 2 else 0
    config = base.config.get_text_config()
    tokens = max(DEFAULT_MICRO_BATCH_TOKENS, *(len(row.input_ids) for row in rows), 0)
    parts = {
        "weights": 2 * weights,
        "adapter": BYTES_PER_TRAINED_PARAMETER * adapter,
        "activations": 2 * ACTIVATIONS_PER_HIDDEN * tokens * config.hidden_size * config.num_hidden_layers,
    }
    return {
        "estimated_bytes": sum(parts.values()),
        "parts": parts,
        "formula": f"2 bytes for each of {weights} weights, {BYTES_PER_TRAINED_PARAMETER} for each of {adapter} trained"
        f" ones, and 2 x {ACTIVATIONS_PER_HIDDEN} x {tokens} tokens x {config.hidden_size} hidden x"
        f" {config.num_hidden_layers} layers for what the backward pass keeps, in bfloat16; an estimate, not a measurement",
    }


def _read(context: Context, sha256: str) -> list[Row]:
    with storage.open_stored(context.settings.storage, sha256) as stored:
        return parse_rows(read_lines(stored))


def _inspect(
    context: Context, tokenizer: PreTrainedTokenizerBase, rows: list[Row], spec: TrainingSpec
) -> Inspection:
    return inspect_rows(
        tokenizer,
        rows,
        max_seq_length=spec.max_seq_length,
        overlength=spec.overlength,
        on_progress=context.check,
    )


def _measure(
    context: Context,
    base: PreTrainedModel,
    rows: tuple[TokenizedRow, ...],
    critic: LoadedCritic,
    spec: TrainingSpec,
) -> tuple[RowRisk, ...]:
    if not rows:
        return ()
    return run_reference_pass(
        base,
        rows,
        critic,
        spec,
        cache_budget_bytes=0,
        micro_batch_tokens=micro_batch_tokens(context),
        on_progress=lambda _: context.check(),
    ).risks


def _shorten(row: Row) -> Row | str:
    text = json.dumps(row, ensure_ascii=False)
    return row if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
