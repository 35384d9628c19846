"""The policy's gate, as a job comes to it: before its first step, and before its adapter is released."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from app import storage
from app.database import read_only, unit_of_work
from app.domain.dataset import check_prompt_lines, read_lines
from app.domain.evaluation_spec import BUILTIN_SUITES, EvaluationSpec
from app.domain.gate import (
    CRITIC_QUALITY,
    LIMITS,
    Finding,
    describe,
    end_verdict,
    fallback_share,
    find_in_evaluation,
    judge,
    start_floor,
    start_verdict,
)
from app.domain.gate_policy import Gate
from app.domain.safety_spec import ActivationCritic, AnyCritic, CombinedCritic
from app.errors import JobFailure
from app.jobs.repository import add_event, load_job
from app.models.base_model import Critic
from app.models.file import File
from app.models.job import Job
from app.work.service import SAFETY_GATE
from worker.context import Context, Paused
from worker.evaluation.judges import build_judges
from worker.evaluation.paired import evaluate_paired
from worker.evaluation.prefixes import find_prefixes
from worker.evaluation.suites import Suite, load_builtin, read_suite
from worker.journal import Journal
from worker.training.reference import RowRisk

NOT_OF_GATE = ("policy", "weights_bounded")
"""What a job keeps of its policy beside the gate."""


class Opening(NamedTuple):
    """What the gate found before the first step."""

    gate: Gate
    limits: list[dict[str, Any]]
    """The limits that are known by then, in their plain form."""
    floor: float
    """The KL weight that no row falls below in any step."""


class Closing(NamedTuple):
    """What the gate found before the release."""

    limits: list[dict[str, Any]]
    """Every limit, in its plain form."""
    evaluation: dict[str, Any] | None
    """What was evaluated for it, as its record has it; None where nothing was."""
    evaluation_error: str | None
    """Why the evaluation that the policy asks for could not be done."""

    @property
    def verdict(self) -> str:
        """What all limits come to."""
        return end_verdict(self.limits)

    def describe_broken(self) -> str:
        """Return the broken limits in words."""
        broken = "; ".join(describe(each) for each in self.limits if each["broken"])
        return f"{broken} ({self.evaluation_error})" if self.evaluation_error else broken


def read_gate(job: Job) -> Gate | None:
    """Return the gate that a job was created under; None where its policy had none."""
    if job.gate is None:
        return None
    return Gate.model_validate({name: value for name, value in job.gate.items() if name not in NOT_OF_GATE})


def open_gate(
    context: Context,
    journal: Journal,
    critic: AnyCritic | None,
    fitted: Sequence[Critic],
    risks: Mapping[int, RowRisk],
) -> Opening | None:
    """Judge the limits that are known before the first step, once; None for a job whose policy has no gate.

    Raises Paused where the policy has the job wait for approval, and JobFailure where it refuses the job.
    """
    with read_only(context.database) as session:
        job = load_job(session, context.lease.work_id)
    gate = read_gate(job)
    if gate is None:
        return None
    known = (job.gate_result or {}).get("start")
    if known is None:
        bounded = bool((job.gate or {}).get("weights_bounded"))
        limits = find_at_start(gate, critic, fitted, risks, weights_bounded=bounded)
        journal.record_gate_start(limits)
    else:
        limits = known["limits"]
    if start_verdict(limits) == "fail":
        raise refused(limits)
    if known is None and start_verdict(limits) == "pause":
        raise Paused("the policy's gate has the job wait for approval")
    return Opening(gate, limits, start_floor(limits))


def find_at_start(
    gate: Gate,
    critic: AnyCritic | None,
    fitted: Sequence[Critic],
    risks: Mapping[int, RowRisk],
    *,
    weights_bounded: bool = False,
) -> list[dict[str, Any]]:
    """Return the limits that are known before the first step, with what was found, in their plain form.

    `weights_bounded` says whether the policy sets a floor to the weights of critics.
    """
    share = fallback_share(Counter(risk.status for risk in risks.values()))
    found = {"fallback_share": share}
    for limit, quality in CRITIC_QUALITY.items():
        found[limit] = find_quality(critic, fitted, quality, weights_bounded=weights_bounded)
    return [each.to_body() for each in _judge_all(gate, found)]


def find_quality(
    critic: AnyCritic | None, fitted: Sequence[Critic], quality: str, *, weights_bounded: bool = False
) -> float | None:
    """Return how good the worst of the activation critics that measure was on held-out data.

    None where there is none, or its report does not say. How good a judge or a constant is nobody knows, and what a
    judge falls back on says nothing of the judge. Nor does a critic say anything of a weighted sum in which it may count
    for next to nothing.
    """
    if isinstance(critic, CombinedCritic) and critic.rule == "weighted" and not weights_bounded:
        return None
    parts = critic.critics if isinstance(critic, CombinedCritic) else (critic,)
    measuring = {part.id for part in parts if isinstance(part, ActivationCritic)}
    found = [each.report.get(quality) for each in fitted if each.id in measuring]
    known = [float(each) for each in found if each is not None]
    return min(known) if known and len(known) == len(found) else None


def close_gate(
    context: Context,
    opening: Opening,
    rows: Sequence[Mapping[str, Any]],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    step: int,
) -> Closing:
    """Evaluate what the policy asks for, after the last step, and judge every limit.

    `rows` are those of the training file, whose beginnings an evaluation may put before its prompts. An evaluation
    that cannot be done leaves its limits without evidence, and so broken.
    """
    gate, body, error = opening.gate, None, None
    if gate.evaluation is not None:
        try:
            body = {**_evaluate(context, gate.evaluation, rows, model, tokenizer), "step": step}
        except JobFailure as failure:
            error = f"the evaluation could not be done: {failure.message}"
    comparisons = body["comparisons"] if body else []
    error = error or (body and describe_missed(gate, body)) or describe_unjudged(comparisons)
    names = [name for name in gate.limits() if LIMITS[name].stage == "end"]
    found = {name: find_in_evaluation(name, comparisons) for name in names}
    limits = [*opening.limits, *(each.to_body() for each in _judge_all(gate, found))]
    return Closing(limits, body, error)


def describe_missed(gate: Gate, body: Mapping[str, Any]) -> str | None:
    """Return in words that the training data have no beginnings to try; None where they have, or none were asked for."""
    asked = gate.evaluation.decoding.data_prefixes if gate.evaluation else 0
    if not asked or body["decoding"]["prefixes"]:
        return None
    return (
        f"the policy asks for {asked} beginnings of the training data (decoding.data_prefixes), and no two rows of them begin"
        " alike and none has a system message, so that how harmful prompts fare behind them is not known. Ask for 0 in a"
        " policy for such data"
    )


def describe_unjudged(comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """Return in words which judges gave no verdict, and on how many prompts; None where every prompt has its verdicts."""
    worst: dict[str, tuple[int, int]] = {}
    for each in comparisons:
        if each["judge"] is not None and each["unjudged"]:
            asked = each["unjudged"] + each["difference"]["n"]
            worst[each["judge"]] = max(worst.get(each["judge"], (0, 0)), (each["unjudged"], asked))
    if not worst:
        return None
    missing = "; ".join(
        f"the judge {judge!r} gave no verdict on {unjudged} of {asked} prompts"
        for judge, (unjudged, asked) in worst.items()
    )
    return f"{missing}; such a prompt counts as one that got worse. See that the judge answers, and run the job again"


def refused(limits: Sequence[Mapping[str, Any]]) -> JobFailure:
    """Return what ends a job that its gate refuses."""
    why = "; ".join(describe(each) for each in limits if each["broken"] and each["action"] == "fail")
    return JobFailure(f"the gate of the operator's policy refuses the job: {why}", code=SAFETY_GATE)


def _judge_all(gate: Gate, found: Mapping[str, float | None]) -> list[Finding]:
    return [
        judge(each["limit"], each["bound"], each["action"], each["beta_min"], found[each["limit"]])
        for each in gate.list_limits()
        if each["limit"] in found
    ]


def _evaluate(
    context: Context,
    spec: EvaluationSpec,
    rows: Sequence[Mapping[str, Any]],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    suite = _load_suite(context, spec.suite)
    judges, comparers = build_judges(spec.judge, context.settings)
    with unit_of_work(context.database) as session:
        job = load_job(session, context.lease.load(session).id)
        message = f"The gate of the operator's policy evaluates the adapter on {len(suite.rows)} prompts of {suite.name}"
        add_event(session, job, message)
    evaluated = evaluate_paired(
        model,
        tokenizer,
        suite,
        judges,
        spec.decoding,
        prefixes=find_prefixes(rows, spec.decoding.data_prefixes),
        comparers=comparers,
        split=context.split,
        on_progress=context.check,
    )
    return evaluated.result.to_body()


def _load_suite(context: Context, name: str) -> Suite:
    """Return the prompts that the policy names. Its file may be of any project: the operator named it."""
    if name in BUILTIN_SUITES:
        return load_builtin(name)
    with read_only(context.database) as session:
        file = session.get(File, name)
    if file is None or file.deleted_at is not None:
        raise JobFailure(f"there is no file of evaluation prompts {name!r}", code="suite_not_found")
    with storage.open_stored(context.settings.storage, file.sha256) as stored:
        if check_prompt_lines(read_lines(stored)).problems:
            raise JobFailure(f"the file {name} is no good file of evaluation prompts", code="suite_unusable")
    with storage.open_stored(context.settings.storage, file.sha256) as stored:
        return read_suite(name, file.sha256, stored)
