"""A whole run from rows to a trained adapter, usable from a notebook: what a job does, without its records.

`prepare` is the reference pass in all its parts; `worker.training.loop.fit` takes what it returns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.control_law import compute_treatment
from app.domain.conversion import conversation_of
from app.domain.step_plan import split_anchors
from app.domain.step_record import StepRecord
from app.domain.training_spec import TrainingSpec
from app.errors import JobFailure
from worker.training.critics.combined import read_texts
from worker.training.critics.protocol import Critic
from worker.training.data import TokenizedRow, render_prompt, tokenize_rows
from worker.training.loop import DEFAULT_MICRO_BATCH_TOKENS, Drift, fit
from worker.training.models import add_adapter, base_of
from worker.training.reference import (
    ReferenceCache,
    RowRisk,
    Source,
    compute_row_targets,
    run_reference_pass,
)
from worker.training.replies import BATCH_SIZE, Prompt, first_prompt, reply_to
from worker.training.step import RunData

DEFAULT_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class RunResult:
    """A trained adapter and what is known of its run."""

    model: PeftModel
    records: list[StepRecord] = field(default_factory=list)
    risks: tuple[RowRisk, ...] = ()
    drifts: list[Drift] = field(default_factory=list)


class Prepared(NamedTuple):
    """What the reference pass leaves: the data of the run, and what became of each row."""

    data: RunData
    risks: tuple[RowRisk, ...]
    """Of every row, the dropped ones too, in file order."""
    replayed: Mapping[int, TokenizedRow]
    """By index: the row that a risky one is trained on instead."""


def prepare(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TokenizedRow],
    spec: TrainingSpec,
    critic: Critic | None,
    *,
    anchors: Sequence[Mapping[str, Any]] = (),
    alignment: Sequence[TokenizedRow] = (),
    known: Mapping[int, RowRisk] | None = None,
    cache_budget_bytes: int = DEFAULT_CACHE_BYTES,
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
    reply_batch: int = BATCH_SIZE,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Assess every row, let the reference reply where the method wants its replies, and keep its targets.

    `anchors` are the rows `{"messages": […]}` of a registered set, in order; which of them are trained on and which
    are watched is `split_anchors`. `known` has the risks that an earlier attempt committed to; the reference replies in
    batches of `reply_batch`, and to the same prompts by the same bits only in batches of the same size. `on_progress` is
    called often, with a number that says nothing across its parts; what it raises ends the work.
    """
    _check_sets(spec, anchors, alignment)
    trained, monitored = _reply_to_anchors(model, tokenizer, anchors, spec, reply_batch, on_progress)
    # Anchors come up again and again, so they are kept before any row is.
    cache = ReferenceCache({})
    sources: list[tuple[Source, tuple[TokenizedRow, ...]]] = [("anchor", trained), ("monitor", monitored)]
    for source, some in sources:
        cache = cache.merged(
            compute_row_targets(
                model,
                source,
                some,
                spec,
                budget_bytes=cache_budget_bytes - cache.n_bytes,
                micro_batch_tokens=micro_batch_tokens,
            )
        )
    found = run_reference_pass(
        model,
        rows,
        critic,
        spec,
        cache_budget_bytes=cache_budget_bytes - cache.n_bytes,
        known=known,
        micro_batch_tokens=micro_batch_tokens,
        on_progress=on_progress,
    )
    cache = cache.merged(found.cache)
    law = spec.safety.model_dump()
    treatments = {risk.row: compute_treatment(law, risk.s) for risk in found.risks}
    replies = reply_to(
        model,
        tokenizer,
        [first_prompt(row) for row in rows if treatments[row.index] == "replay"],
        max_seq_length=spec.max_seq_length,
        batch_size=reply_batch,
        on_progress=on_progress,
    )
    replayed = {row.index: row for row in replies}
    cache = cache.merged(
        compute_row_targets(
            model,
            "user",
            replies,
            spec,
            budget_bytes=cache_budget_bytes - cache.n_bytes,
            micro_batch_tokens=micro_batch_tokens,
        )
    )
    data = RunData(
        rows=tuple(replayed.get(row.index, row) for row in rows if treatments[row.index] != "drop"),
        risks={risk.row: risk for risk in found.risks},
        cache=cache,
        anchors=trained,
        monitored=monitored,
        alignment=tuple(alignment),
    )
    return Prepared(data, found.risks, replayed)


def train_adapter(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    spec: TrainingSpec,
    *,
    critic: Critic | None = None,
    anchors: Sequence[Mapping[str, Any]] = (),
    alignment: Sequence[Mapping[str, Any]] = (),
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> RunResult:
    """Train an adapter on rows `{"messages": […]}` by `spec`; `base` is left with it inside the returned model."""
    lengths: Any = {"max_seq_length": spec.max_seq_length, "overlength": spec.overlength}
    tokenized = tokenize_rows(tokenizer, rows, **lengths).rows
    aligned = tokenize_rows(tokenizer, alignment, **lengths).rows if alignment else ()
    if critic is not None:
        critic = read_texts(critic, {row.index: conversation_of(rows[row.index]) for row in tokenized})
    prepared = prepare(base, tokenizer, tokenized, spec, critic, anchors=anchors, alignment=aligned)
    model = add_adapter(base, spec, spec.seed)
    result = RunResult(model, risks=prepared.risks)

    def record_step(record: StepRecord) -> None:
        result.records.append(record)
        on_step(record)

    fit(model, prepared.data, spec, on_step=record_step, on_drift=result.drifts.append)
    return result


def _check_sets(spec: TrainingSpec, anchors: Sequence[object], alignment: Sequence[object]) -> None:
    """Raise JobFailure now, and not after the pass, where a set that the method needs was not given."""
    trained, monitored = split_anchors(len(anchors))
    lacking = {
        "anchors": spec.safety.anchors is not None and not trained,
        "monitor": spec.safety.monitor is not None and not monitored,
        "alignment_file": hasattr(spec.safety, "alignment_file") and not alignment,
    }
    for name, is_lacking in lacking.items():
        if is_lacking:
            raise JobFailure(
                f"safety.{name} needs rows of a registered set, and too few were given; give more, or set it to null",
                param=f"safety.{name}",
            )


def _reply_to_anchors(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    anchors: Sequence[Mapping[str, Any]],
    spec: TrainingSpec,
    reply_batch: int,
    on_progress: Callable[[int], None],
) -> tuple[tuple[TokenizedRow, ...], tuple[TokenizedRow, ...]]:
    """Return the anchors that are trained on and those that are watched, as far as the job has either.

    They are the operator's, so that the job's max_seq_length does not shorten them: the model's own context does.
    """
    prompts = [
        Prompt(index, render_prompt(tokenizer, row["messages"], index=index, param="safety.anchors"))
        for index, row in enumerate(anchors)
    ]
    parts = split_anchors(len(prompts))
    wanted = (spec.safety.anchors is not None, spec.safety.monitor is not None)
    trained, monitored = (
        reply_to(
            model,
            tokenizer,
            [prompts[index] for index in part] if is_wanted else (),
            max_seq_length=base_of(model).config.get_text_config().max_position_embeddings,
            param="safety.anchors",
            whole=whole,
            batch_size=reply_batch,
            on_progress=on_progress,
        )
        for part, is_wanted, whole in zip(parts, wanted, (True, False), strict=True)
    )
    return trained, monitored
