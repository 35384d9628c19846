"""The judges that a request or a policy names, made ready from the operator's settings."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from app.domain.evaluation import TELLS
from app.domain.evaluation_spec import OpenAIJudge
from app.errors import InvalidBaseModel, JobFailure
from app.settings import Settings
from worker.evaluation.classifier import Classifier
from worker.evaluation.judging import Comparer, Judge
from worker.evaluation.miniature_judge import MiniatureJudge
from worker.evaluation.model_judge import ModelJudge
from worker.evaluation.refusal_rules import RefusalRules
from worker.judge_client import build_judge
from worker.training.models import choose_device

log = logging.getLogger(__name__)


def build_judges(specs: Sequence[Any], settings: Settings) -> tuple[list[Judge], list[Comparer]]:
    """Return the judges of these specifications, in order, and those among them that compare replies too.

    Where none of them tells refusals, the refusal rules come last, so that over-refusal is always measured. Raises
    JobFailure where the operator has not configured one of them, or not well.
    """
    judges = [_BUILDERS[spec.type](spec, settings) for spec in specs]
    if not any("over_refusal" in TELLS[judge.type] for judge in judges):
        judges.append(RefusalRules())
    comparers = [
        judge
        for spec, judge in zip(specs, judges, strict=False)
        if isinstance(spec, OpenAIJudge) and spec.compare and isinstance(judge, ModelJudge)
    ]
    return judges, list(comparers)


def _build_classifier(_: Any, settings: Settings) -> Judge:
    if settings.classifier_dir is None:
        raise JobFailure(
            "this installation has no classifier; set TETHER_CLASSIFIER_DIR and TETHER_CLASSIFIER_HARMFUL_LABELS, or"
            " choose another judge",
            code="classifier_not_configured",
            param="judge",
        )
    try:
        return Classifier(
            settings.classifier_dir,
            harmful_labels=settings.harmful_labels,
            threshold=settings.classifier_threshold,
            device=choose_device(),
        )
    except InvalidBaseModel as error:
        # The folder is the operator's, and its place is no client's business.
        log.error("TETHER_CLASSIFIER_DIR cannot be used: %s", error.message)
        raise JobFailure(
            "the classifier of this installation cannot be used; the log of the worker says why",
            code="classifier_unusable",
            param="judge",
        ) from None


def _build_model_judge(spec: OpenAIJudge, settings: Settings) -> Judge:
    if not settings.judge_url:
        raise JobFailure(
            "this installation has no judge model; set TETHER_JUDGE_URL and TETHER_JUDGE_MODEL, or choose another judge",
            code="judge_not_configured",
            param="judge",
        )
    return ModelJudge(build_judge(settings), harmful_from=spec.harmful_from)


_BUILDERS: dict[str, Callable[[Any, Settings], Judge]] = {
    "rules": lambda _spec, _settings: RefusalRules(),
    "classifier": _build_classifier,
    "openai": _build_model_judge,
    "miniature": lambda _spec, _settings: MiniatureJudge(),
}
