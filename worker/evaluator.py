"""Evaluating a model: its replies before and after, what judges say of them, and the result on record."""

import io
import json
from pathlib import Path

import torch
from peft import PeftModel
from sqlalchemy.orm import Session
from transformers import PreTrainedModel

from app import storage
from app.base_models.repository import get_tuned_model
from app.base_models.tuned import TunedModel
from app.database import read_only, unit_of_work
from app.domain.evaluation_spec import BUILTIN_SUITES, EvaluationSpec
from app.domain.job import State
from app.domain.ledger import digest_of
from app.domain.training_spec import TrainingSpec
from app.errors import JobFailure, QuotaExceeded
from app.files.repository import get_file
from app.files.service import RESULTS, add_file, note_unwanted
from app.models.base_model import BaseModel
from app.models.evaluation import Evaluation
from app.notary.repository import add_event
from app.quotas.service import take_storage
from app.work import repository
from worker.assignment import read_rows
from worker.context import Context
from worker.evaluation.judges import build_judges
from worker.evaluation.paired import Evaluated, evaluate_paired
from worker.evaluation.prefixes import Prefix, find_prefixes
from worker.evaluation.suites import Suite, load_builtin, read_suite
from worker.progress import mark_forwards
from worker.training.adapter import load_adapter_zip
from worker.training.models import add_adapter, choose_device, load_base, set_determinism

COMPLETED = "evaluation.completed"
"""The event in the installation's log."""


def evaluate(context: Context) -> None:
    """Do an evaluation. Raises JobFailure where model, prompts or judge cannot be used any more."""
    with read_only(context.database) as session:
        evaluation = session.get_one(Evaluation, context.lease.work_id)
        base_row = session.get_one(BaseModel, evaluation.base_model)
        tuned = _find_tuned(session, evaluation)
        training_sha256 = _find_training(session, evaluation, tuned)
        project_id = evaluation.project_id
        data_sha256: str | None = evaluation.work.args["data_sha256"]
    spec = EvaluationSpec.model_validate(evaluation.request)
    context.lease.move(State.RUNNING)
    if context.settings.threads:
        torch.set_num_threads(context.settings.threads)
    set_determinism(spec.decoding.seed)
    # Judges come first: what is not configured should not cost a model's loading.
    judges, comparers = build_judges(spec.judge, context.settings)
    base, tokenizer = load_base(Path(base_row.path), device=choose_device(), files=base_row.files)
    mark_forwards(context, base)
    evaluated = evaluate_paired(
        _load_tuned(context, base, tuned),
        tokenizer,
        _load_suite(context, spec.suite, data_sha256),
        judges,
        spec.decoding,
        prefixes=_load_prefixes(context, training_sha256, spec.decoding.data_prefixes),
        comparers=comparers,
        split=context.split,
        on_progress=context.check,
    )
    _keep(context, project_id, evaluated)


def _find_tuned(session: Session, evaluation: Evaluation) -> TunedModel | None:
    if evaluation.job_id is None:
        return None
    found = get_tuned_model(session, evaluation.project_id, evaluation.model)
    if found is None or found.adapter_sha256 is None:
        raise JobFailure(
            f"the model {evaluation.model} was deleted, or is no longer shared with this project, since its evaluation was"
            " asked for",
            code="model_not_found",
            param="model",
        )
    return found


def _find_training(session: Session, evaluation: Evaluation, tuned: TunedModel | None) -> str | None:
    """Return where the training data are, where their beginnings are asked for."""
    if tuned is None or not evaluation.request["decoding"]["data_prefixes"]:
        return None
    file = get_file(session, evaluation.project_id, tuned.job.training_file)
    if file is None:
        raise JobFailure(
            "the training file was deleted since the evaluation was asked for, so its beginnings cannot be tried; ask"
            " again with decoding.data_prefixes 0",
            code="training_data_unavailable",
            param="decoding.data_prefixes",
        )
    return file.sha256


def _load_tuned(
    context: Context, base: PreTrainedModel, tuned: TunedModel | None
) -> PreTrainedModel | PeftModel:
    if tuned is None or tuned.adapter_sha256 is None:
        return base
    spec = TrainingSpec.model_validate(tuned.job.spec)
    model = add_adapter(base, spec, spec.seed)
    load_adapter_zip(storage.read_checked(context.settings.storage, tuned.adapter_sha256), model)
    return model


def _load_suite(context: Context, name: str, sha256: str | None) -> Suite:
    if name in BUILTIN_SUITES or sha256 is None:
        return load_builtin(name)
    with storage.open_stored(context.settings.storage, sha256) as file:
        return read_suite(name, sha256, file)


def _load_prefixes(context: Context, training_sha256: str | None, count: int) -> list[Prefix]:
    return find_prefixes(read_rows(context, training_sha256), count) if training_sha256 else []


def _keep(context: Context, project_id: str, evaluated: Evaluated) -> None:
    """Keep the replies as a file and the result in its row, and put its digest into the installation's log.

    Raises QuotaExceeded where the project has no room for the replies.
    """
    lines = (json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in evaluated.replies)
    stored = storage.store_stream(context.settings.storage, io.BytesIO(b"".join(lines)))
    body = evaluated.result.to_body()
    filename = f"{context.lease.work_id}.jsonl"
    try:
        with unit_of_work(context.database) as session:
            take_storage(session, context.settings, project_id, stored.size_bytes)
            work = context.lease.load(session)
            evaluation = session.get_one(Evaluation, work.id)
            file = add_file(session, project_id=project_id, filename=filename, purpose=RESULTS, stored=stored)
            evaluation.result, evaluation.result_sha256 = body, digest_of(body)
            evaluation.replies_file = file.id
            add_event(
                session, COMPLETED, actor=work.args["actor"], subject=work.id, sha256=evaluation.result_sha256
            )
            repository.move(session, work, State.FINALISING)
            repository.move(session, work, State.SUCCEEDED)
    except QuotaExceeded:
        note_unwanted(context.database, project_id, filename, RESULTS, stored)
        raise
