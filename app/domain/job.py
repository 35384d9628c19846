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

_GIVEN_BACK = (
    "Its owner gives it back, or has died or fallen silent: it was preempted, or failed and has budget left."
)
_OBEYED = "The client wants it to end: its owner obeys, or whoever takes over from a dead one."
_SPENT = "Its owner meets an error that nothing mends, or a budget of attempts is spent."
TRANSITIONS: dict[State, dict[State, str]] = {
    State.VALIDATING: {
        State.QUEUED: "The reconciler finds its files checked and good.",
        State.FAILED: "The reconciler finds that a file cannot be trained on, was deleted or has expired.",
        State.CANCELLED: "The client cancels; nobody owns it, so the API does it.",
    },
    State.QUEUED: {
        State.STARTING: "A worker claims it: the epoch rises and a lease begins.",
        State.PAUSED: "The client pauses; nobody owns it, so the API does it, or the reconciler for a wish that came late.",
        State.CANCELLED: "The client cancels; nobody owns it, so the API does it, or the reconciler.",
    },
    State.STARTING: {
        State.RUNNING: "Its owner has checked the digests, loaded the model and recorded where it begins.",
        State.PAUSED: "The client wants a pause before anything has begun; its last checkpoint stands.",
        State.QUEUED: _GIVEN_BACK,
        State.FAILED: _SPENT,
        State.CANCELLED: _OBEYED,
    },
    State.RUNNING: {
        State.PAUSING: "Its owner has done the step after which it pauses, and writes a checkpoint.",
        State.PAUSED: "A pause is wanted where there is nothing to save, or by whoever takes over from a dead owner.",
        State.FINALISING: "Its owner has recorded the last step, and publishes what came of it.",
        State.QUEUED: _GIVEN_BACK,
        State.FAILED: _SPENT,
        State.CANCELLED: _OBEYED,
    },
    State.PAUSING: {
        State.PAUSED: "The checkpoint is recorded, or the owner has died and the checkpoint before it stands.",
        State.FAILED: _SPENT,
        State.CANCELLED: _OBEYED,
    },
    State.PAUSED: {
        State.QUEUED: "The client resumes it, or whoever may release jobs where the gate paused it.",
        State.CANCELLED: "The client cancels; nobody owns it, so the API does it.",
    },
    State.FINALISING: {
        State.SIGNING: "A job's owner has stored the adapter and written the last leaf of its record.",
        State.SUCCEEDED: "The owner of work that is no job has stored its result.",
        State.QUEUED: _GIVEN_BACK,
        State.FAILED: _SPENT,
        State.CANCELLED: _OBEYED,
    },
    State.SIGNING: {
        State.HELD: "The record is under a signed checkpoint, and the gate does not let the weights leave.",
        State.SUCCEEDED: "The record is under a signed checkpoint.",
    },
    State.HELD: {
        State.SUCCEEDED: "People have released it, and that is under a signed checkpoint.",
        State.FAILED: "People have rejected it.",
    },
    State.SUCCEEDED: {},
    State.FAILED: {},
    State.CANCELLED: {},
}
"""Every arrow of the machine, with who moves work along it and when."""

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
