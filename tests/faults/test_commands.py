"""Fault 15: pause, resume and cancel, each sent after each other one, in every state, also while a job changes hands."""

import itertools
import random
from pathlib import Path

import pytest

from tests.faults.checks import end_check
from tests.faults.installation import (
    SHORT_LEASE,
    Installation,
    Template,
    epochs,
    join,
    let_go_on,
    let_stop,
    on_sqlite,
    reference_run,
)

COMMANDS = ("pause", "resume", "cancel")
PAIRS = tuple(itertools.product(COMMANDS, repeat=2))
SHORT = epochs(1)
"""A job of ten steps."""
WITH_AN_OWNER = {
    "starting": "claim.after_commit=stop",
    "running": "step.after_commit=stop@4",
    "finalising": "finalise.after_commit=stop",
}
REFUSED = frozenset({400, 409})
LONG_LEASE = {"lease_s": 20, "heartbeat_s": 0.5}
"""Of an owner that stands still while the commands come, and keeps its job."""


@pytest.fixture
def reference(template: Template, tmp_path: Path) -> bytes:
    """The adapter of the short job when nothing happens to it."""
    return reference_run(template, tmp_path, **SHORT)


def send(installation: Installation, job_id: str, commands: tuple[str, ...]) -> list[bool]:
    """Send commands; return which were taken."""
    replies = [installation.command(job_id, command) for command in commands]
    assert {reply.status_code for reply in replies} <= {200, *REFUSED}, [reply.text for reply in replies]
    return [reply.status_code == 200 for reply in replies]


def settle(installation: Installation, job_id: str) -> str:
    """Work on a job until it has ended, or waits for somebody to resume it; return its state."""
    return installation.finish(job_id, until=frozenset({"succeeded", "failed", "cancelled", "paused"}))


def check(
    installation: Installation, job_id: str, sent: tuple[str, ...], taken: list[bool], reference: bytes
) -> None:
    """Check that a job went where the commands that were taken lead, and that its record says so."""
    state = settle(installation, job_id)
    obeyed = [command for command, was_taken in zip(sent, taken, strict=True) if was_taken]
    if "cancel" in obeyed:
        assert state == "cancelled", (sent, taken)
    elif state == "paused":
        assert obeyed[-1] == "pause", (sent, taken)
        end_check(installation, job_id, states=["paused"])
        assert installation.command(job_id, "resume").status_code == 200
        state = settle(installation, job_id)
    elif obeyed and obeyed[-1] == "pause":
        # It came too late for a pause, and only then may the job go on.
        assert state == "succeeded", (sent, taken)
    end_check(installation, job_id, reference=reference, states=["succeeded", "cancelled"])
    assert state == ("cancelled" if "cancel" in obeyed else "succeeded"), (sent, taken)


@pytest.mark.parametrize("before", [(), ("pause",)], ids=["queued", "paused"])
@on_sqlite
def test_without_an_owner(installation: Installation, reference: bytes, before: tuple[str, ...]) -> None:
    for pair in PAIRS:
        job_id = installation.submit(**SHORT)
        assert all(send(installation, job_id, before))
        taken = send(installation, job_id, pair)
        check(installation, job_id, before + pair, [True] * len(before) + taken, reference)


@pytest.mark.parametrize("state", WITH_AN_OWNER)
def test_with_an_owner(
    template: Template, installation: Installation, reference: bytes, rng: random.Random, state: str
) -> None:
    """The owner stands still at one place while the commands come. Of the pairs, some by chance on PostgreSQL, all on SQLite."""
    pairs = PAIRS if template.backend == "sqlite" else rng.sample(PAIRS, 2)
    for pair in pairs:
        job_id = installation.submit(**SHORT)
        trainer = installation.start_trainer(WITH_AN_OWNER[state], **LONG_LEASE)
        let_stop(installation, trainer)
        assert installation.work(job_id).state == state
        taken = send(installation, job_id, pair)
        let_go_on(trainer)
        join(trainer, installation)
        check(installation, job_id, pair, taken, reference)


@on_sqlite
def test_while_it_pauses(installation: Installation, reference: bytes) -> None:
    for command in COMMANDS:
        job_id = installation.submit(**SHORT)
        places = "step.after_commit=stop@4, pause.after_commit=stop"
        trainer = installation.start_trainer(places, **LONG_LEASE)
        let_stop(installation, trainer)
        send(installation, job_id, ("pause",))
        let_go_on(trainer)
        installation.wait(lambda: installation.work(job_id).state == "pausing", "a pausing job")  # noqa: B023
        let_stop(installation, trainer)
        taken = send(installation, job_id, (command, command))
        let_go_on(trainer)
        join(trainer, installation)
        check(installation, job_id, ("pause", command, command), [True, *taken], reference)


@pytest.mark.parametrize(
    ("template", "pair"),
    [
        ("sqlite", ("pause", "pause")),
        ("sqlite", ("cancel", "cancel")),
        ("sqlite", ("pause", "resume")),
        ("sqlite", ("pause", "cancel")),
        ("postgresql", ("pause", "resume")),
        ("postgresql", ("pause", "cancel")),
    ],
    indirect=["template"],
)
def test_while_it_changes_hands(installation: Installation, reference: bytes, pair: tuple[str, ...]) -> None:
    """The first comes while a silent owner still has the job, the second when that has lost it."""
    job_id = installation.submit(**SHORT)
    zombie = installation.start_trainer("step.after_commit=stop@4", **SHORT_LEASE)
    let_stop(installation, zombie)
    taken = send(installation, job_id, pair[:1])
    installation.wait(lambda: installation.work(job_id).epoch > 1, "a takeover")
    taken += send(installation, job_id, pair[1:])
    let_go_on(zombie)
    assert join(zombie, installation) != 0
    check(installation, job_id, pair, taken, reference)


def test_an_ended_job_takes_nothing(installation: Installation) -> None:
    job_id = installation.submit(**SHORT)
    assert send(installation, job_id, ("cancel",)) == [True]
    before = installation.leaves(job_id)
    for pair in PAIRS:
        send(installation, job_id, pair)
    assert installation.leaves(job_id) == before
    end_check(installation, job_id, states=["cancelled"])
