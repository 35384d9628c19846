"""Fine-tuning jobs on the wire."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from app.domain.control_law import is_protected
from app.domain.frozen import Frozen
from app.domain.gate import PASSING
from app.domain.job import WIRE_STATUS, State, waits_for_its_release
from app.domain.safety_spec import DEFAULT_CATEGORY, Safety, safety_from_preset
from app.domain.training_spec import Hyperparameters, Method, TrainingOptions
from app.integrations.schemas import Integration
from app.models.base_model import Critic
from app.models.evaluation import Evaluation
from app.models.job import Checkpoint, Event, Job
from app.models.work import Work

ORGANISATION = "org-tether"


# PostgreSQL can store NUL inside of JSON, and then fails on every query that looks there.
MetadataKey = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class JobCreate(Frozen):
    """The body of `POST /v1/fine_tuning/jobs`. Null means absent everywhere: the client sends it so."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    method: Method = Method()
    hyperparameters: Annotated[Hyperparameters | None, Field(description="Deprecated; use method.")] = None
    safety: Annotated[Safety, BeforeValidator(safety_from_preset)] = Field(
        default_factory=lambda: safety_from_preset(None), validate_default=True
    )
    training: TrainingOptions = TrainingOptions()
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    """Among the project's own jobs that wait, higher goes first."""

    @model_validator(mode="after")
    def _one_place_for_hyperparameters(self) -> "JobCreate":
        if self.hyperparameters is not None and self.method.supervised is not None:
            raise ValueError("give the hyperparameters in method.supervised or at the top level, not in both")
        return self

    def effective_hyperparameters(self) -> Hyperparameters:
        """Return the hyperparameters wherever they were given."""
        supervised = self.method.supervised
        return self.hyperparameters or (supervised and supervised.hyperparameters) or Hyperparameters()


class Decision(Frozen):
    """The body of `POST /v1/fine_tuning/jobs/{job_id}/release` and `…/reject`."""

    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$")]
    """Why. It is kept; the log has its digest."""


def job_to_wire(job: Job, fitted: Sequence[Critic]) -> dict[str, Any]:
    """Return OpenAI's job object with our `safety` and `training` beside it."""
    work = job.work
    state = State(work.state)
    # As they were stored: a job from before a field existed must not be shown with that field's default.
    chosen = job.spec or job.request["hyperparameters"]
    hyperparameters = {name: chosen[name] for name in Hyperparameters.model_fields}
    safety = (job.spec or job.request)["safety"]
    training = job.spec or job.request["training"]
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": _seconds(job.created_at),
        "created_by": work.args.get("actor"),
        "error": work.error,
        "estimated_finish": _seconds(job.estimated_finish_at) if state not in _STANDING else None,
        "fine_tuned_model": job.fine_tuned_model if state is State.SUCCEEDED else None,
        "finished_at": _seconds(work.finished_at),
        "hyperparameters": hyperparameters,
        "integrations": work.args.get("integrations", []),
        "metadata": job.job_metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "model": job.lineage[0]["model"] if job.lineage else job.model,
        "organization_id": ORGANISATION,
        "result_files": job.result_files if state is State.SUCCEEDED else [],
        "seed": job.seed,
        "suffix": job.suffix,
        "status": WIRE_STATUS[state],
        "trained_tokens": job.trained_tokens if state is State.SUCCEEDED else None,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "safety": {
            **safety,
            "critic": critic_to_wire(job, fitted),
            "state": state,
            "gate": gate_to_wire(job),
            "pause_reason": work.args.get("pause", {}).get("reason"),
            "waits_for": _waits_for(work),
            "protected": is_protected(safety),
            "risk_mean": job.risk_mean,
            "beta_mean": job.beta_mean,
            "attempts": work.attempt,
        },
        "training": {
            **{name: training[name] for name in TrainingOptions.model_fields if name in training},
            "base_model": job.model,
            "lineage": job.lineage or [],
            "started_at": _seconds(work.started_at),
            "steps_completed": job.step,
            "total_steps": job.total_steps,
            "steps_pruned_at": _seconds(job.pruned_at),
        },
        "priority": work.priority,
        "queue": work.turn if state is State.QUEUED else None,
    }


def gate_to_wire(job: Job) -> dict[str, Any] | None:
    """Return the gate that a job was created under, and what it found; None where its policy has none."""
    if job.gate is None:
        return None
    found = job.gate_result or {}
    # Only what is held is ever decided about by people.
    decisions = [] if found.get("verdict") in (*PASSING, "fail") else job.decisions
    return {
        "policy": job.gate["policy"],
        "second_person": job.gate["second_person"],
        "start": found.get("start"),
        "verdict": found.get("verdict"),
        "limits": found.get("limits", []),
        "evaluation_error": found.get("evaluation_error"),
        "decisions": [
            {
                "decision": each.decision,
                "by": each.key_id,
                "at": _seconds(each.created_at),
                "reason": each.reason,
            }
            for each in decisions
        ],
    }


def _waits_for(work: Work) -> str | None:
    if waits_for_its_release(work.state, work.args):
        return "the notary's signature on its release"
    found: str | None = (work.turn or {}).get("waits_for") if work.state in _WAITING else None
    return found


_WAITING = (State.QUEUED, State.SIGNING)
_STANDING = (State.PAUSED, State.SIGNING, State.HELD, State.SUCCEEDED, State.FAILED, State.CANCELLED)


def critic_to_wire(job: Job, fitted: Sequence[Critic]) -> dict[str, Any] | None:
    """Return a job's critic with what is known of the quality of each part: a risk number is a critic's estimate."""
    chosen: dict[str, Any] | None = job.request["safety"]["critic"]
    return chosen and _with_quality(chosen, {each.id: each for each in fitted})


def _with_quality(chosen: dict[str, Any], fitted: Mapping[str, Critic]) -> dict[str, Any]:
    if chosen["type"] == "combined":
        return {**chosen, "critics": [_with_quality(part, fitted) for part in chosen["critics"]]}
    # Of a judge nobody knows how good it is; the quality of its fallback says nothing of it.
    if chosen["type"] != "activation" or chosen["id"] not in fitted:
        return chosen
    report = fitted[chosen["id"]].report
    return {**chosen, "quality": {name: report.get(name) for name in ("auroc", "tpr_at_1_percent_fpr")}}


def describe_critic(critic: dict[str, Any] | None) -> str:
    """Return in words who measured the risk, for pictures."""
    return "no critic measured the risk" if critic is None else f"risk by {_describe_part(critic)}"


def _describe_part(critic: dict[str, Any]) -> str:
    kind = critic["type"]
    if kind == "constant":
        return f"a constant critic: s = {critic['s']:g} for every row"
    if kind == "judge":
        return f"a judge, {critic['votes']} vote{'' if critic['votes'] == 1 else 's'} a text"
    if kind == "combined":
        parts = list(map(_describe_part, critic["critics"]))
        if critic["rule"] == "max":
            return f"the highest of: {'; '.join(parts)}"
        weighed = (f"{weight:g} × {part}" for weight, part in zip(critic["weights"], parts, strict=True))
        return f"the weighted sum of: {'; '.join(weighed)}"
    quality = critic["quality"]
    # Jobs from before there were categories do not name one.
    category = critic.get("category", DEFAULT_CATEGORY)
    return (
        f"{critic['id']}{'' if category == DEFAULT_CATEGORY else f' ({category})'}; on held-out topics AUROC {quality['auroc']:.3f},"
        f" TPR at 1 % FPR {quality['tpr_at_1_percent_fpr']:.3f}"
    )


def event_to_wire(event: Event) -> dict[str, Any]:
    """Return OpenAI's event object."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": _seconds(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_to_wire(checkpoint: Checkpoint, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return OpenAI's checkpoint object, with its risk and the newest evaluation of it, to choose one by."""
    metrics = checkpoint.metrics
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": _seconds(checkpoint.created_at),
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job_id,
        "step_number": checkpoint.step,
        "metrics": metrics,
        "safety": {
            "risk_mean": metrics.get("run_risk_mean"),
            "risk_max": metrics.get("run_risk_max"),
            "beta_mean": metrics.get("run_beta_mean"),
            "valid_loss": metrics.get("full_valid_loss"),
            "evaluation": evaluation and {"id": evaluation.id, **(evaluation.result or {})},
        },
    }


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
