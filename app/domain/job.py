"""The states of work, the arrows between them, and the wire's word for each state."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class WorkKind(StrEnum):
    """What a row in the table of work asks for."""

    TRAIN = "train"
    """A fine-tuning job."""
    FIT_CRITIC = "fit_critic"
    """Fit the activation critic of a base model."""
    VALIDATE_FILE = "validate_file"
    """Check a data file that was too large to be checked while it was uploaded."""
    REPORT = "report"
    """Say what training on a dataset would be: its lengths, its risks, its doubles, its cost."""
    EVALUATE = "evaluate"
    """Compare how a model behaves with its adapter off and on."""
    EXPORT = "export"
    """Show a job in the operator's MLflow; a round at a time, until the job has ended."""


class State(StrEnum):
    """Where a piece of work stands. Only a compare-and-set on (state, epoch) changes it."""

    VALIDATING = "validating"
    """Its data file is still being checked."""
    QUEUED = "queued"
    """Claimable by any worker of its queue."""
    STARTING = "starting"
    """Claimed; digests are being verified and the model loaded."""
    RUNNING = "running"
    """The reference pass or a training step is under way."""
    PAUSING = "pausing"
    """The last step before a pause is done; its checkpoint is being written."""
    PAUSED = "paused"
    """Nobody owns it, and nobody may claim it before it is resumed."""
    FINALISING = "finalising"
    """The last step is committed; the adapter is being published."""
    SIGNING = "signing"
    """The record of a job that did well is complete; nothing leaves before it is under a signed checkpoint."""
    HELD = "held"
    """The record is complete and signed, and the policy's gate keeps the weights until somebody releases them."""
    SUCCEEDED = "succeeded"
    """Done; of a job, its record is complete and signed."""
    FAILED = "failed"
    """Ended by an error that is in `error`."""
    CANCELLED = "cancelled"
    """Ended at the client's wish."""


class Desired(StrEnum):
    """What the client wants of a piece of work; the owner obeys at the next step boundary."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
RECORDED = TERMINAL | {State.SIGNING, State.HELD}
"""States in which a job's record has its last leaf."""
OWNED = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.FINALISING})
"""States in which a worker holds the lease."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.VALIDATING: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSED, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset(
        {State.PAUSING, State.PAUSED, State.FINALISING, State.QUEUED, State.FAILED, State.CANCELLED}
    ),
    State.PAUSING: frozenset({State.PAUSED, State.FAILED, State.CANCELLED}),
    State.PAUSED: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.FINALISING: frozenset(
        {State.SIGNING, State.SUCCEEDED, State.QUEUED, State.FAILED, State.CANCELLED}
    ),
    State.SIGNING: frozenset({State.HELD, State.SUCCEEDED}),
    State.HELD: frozenset({State.SUCCEEDED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

WIRE_STATUS: dict[State, str] = {
    State.VALIDATING: "validating_files",
    State.QUEUED: "queued",
    State.STARTING: "running",
    State.RUNNING: "running",
    State.PAUSING: "running",
    State.PAUSED: "paused",
    State.FINALISING: "running",
    State.SIGNING: "running",
    State.HELD: "running",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


def check_transition(before: State, after: State) -> None:
    """Raise ValueError where the machine has no arrow from `before` to `after`."""
    if after not in TRANSITIONS[before]:
        allowed = ", ".join(sorted(TRANSITIONS[before])) or "nothing: it is terminal"
        raise ValueError(f"no transition from {before} to {after}; from {before} one may go to {allowed}")


def model_name(base: str, suffix: str | None, job_id: str, *, step: int | None = None) -> str:
    """Return a tuned model's name in the wire's form, ft:base:organisation:suffix:id, of a checkpoint with its step."""
    name = f"ft:{base}:tether:{suffix or ''}:{job_id[-8:]}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def waits_for_its_release(state: str, args: Mapping[str, Any]) -> bool:
    """Say whether people have released a held job, and only the signature on that is missing. `args` are its work's."""
    return state == State.HELD and "release" in args
