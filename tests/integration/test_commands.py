"""Every command in every state of a job, sent twice each: each has one outcome, and the second changes nothing more."""

from typing import Any

import pytest

from app.database import unit_of_work
from app.domain.job import Desired, State
from app.jobs.repository import load_job
from app.work import repository
from app.work.service import ask_for_pause, pause
from tests.integration.conftest import Tenant
from tests.integration.test_pause import PATH, kinds, load, set_work

COMMANDS = ("pause", "resume", "cancel")
REFUSED_AT_THE_END: dict[State, str] = {
    State.SIGNING: "job_ended",
    State.HELD: "job_held",
    State.SUCCEEDED: "job_ended",
    State.FAILED: "job_ended",
    State.CANCELLED: "job_ended",
}
WAITING = (State.VALIDATING, State.QUEUED, State.PAUSED)
GOING = (State.STARTING, State.RUNNING, State.PAUSING, State.FINALISING)
OUTCOMES: dict[tuple[State, str], tuple[str, str] | str] = {
    # A conflict's code, or state and wish after it was sent once and again.
    **{(state, command): code for state, code in REFUSED_AT_THE_END.items() for command in COMMANDS},
    **{(state, "cancel"): ("cancelled", "cancel") for state in WAITING},
    **{(state, "cancel"): (state, "cancel") for state in GOING},
    (State.VALIDATING, "pause"): ("validating", "pause"),
    (State.VALIDATING, "resume"): ("validating", "run"),
    (State.QUEUED, "pause"): ("paused", "pause"),
    (State.QUEUED, "resume"): ("queued", "run"),
    (State.STARTING, "pause"): ("starting", "pause"),
    (State.STARTING, "resume"): ("starting", "run"),
    (State.RUNNING, "pause"): ("running", "pause"),
    (State.RUNNING, "resume"): ("running", "run"),
    (State.PAUSING, "pause"): ("pausing", "pause"),
    (State.PAUSING, "resume"): ("pausing", "run"),
    (State.PAUSED, "pause"): ("paused", "pause"),
    (State.PAUSED, "resume"): ("queued", "run"),
    (State.FINALISING, "pause"): "job_finalising",
    (State.FINALISING, "resume"): ("finalising", "run"),
}
CHANGES_THE_RECORD = {
    (State.QUEUED, "pause"): ["cmd"],
    (State.PAUSED, "resume"): ["cmd"],
    **{(state, "cancel"): ["cmd", "job.end"] for state in WAITING},
}
"""The leaves that a command adds where nobody owns the job; an owner adds its own."""


def bring(tenant: Tenant, state: State) -> str:
    """Make a job in a state."""
    job_id: str = tenant.create_job()["id"]
    with unit_of_work(tenant.server.database) as session:
        work = load_job(session, job_id).work
        if state is State.PAUSED:
            ask_for_pause(session, work, by="key_1")
            pause(session, work)
        elif state in GOING:
            assert repository.claim(session, job_id, owner="a worker", lease_ms=600_000) is not None
            if state is State.PAUSING:
                ask_for_pause(session, work, by="key_1")
    if state not in (State.QUEUED, State.PAUSED):
        set_work(tenant, job_id, state=state)
    return job_id


def send(tenant: Tenant, job_id: str, command: str) -> Any:
    """Send a command and return the status, and the code of a refusal."""
    reply = tenant.http.post(f"{PATH}/{job_id}/{command}")
    body = reply.json()
    return reply.status_code, body["error"]["code"] if body.get("error") else None


def test_every_pair_has_its_outcome() -> None:
    assert set(OUTCOMES) == {(state, command) for state in State for command in COMMANDS}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_carried_out_once_however_often_it_is_sent(
    tenant: Tenant, state: State, command: str
) -> None:
    job_id = bring(tenant, state)
    before, leaves = load(tenant, job_id), kinds(tenant, job_id)
    expected = OUTCOMES[state, command]
    first = send(tenant, job_id, command)
    after, events = load(tenant, job_id), tenant.get(f"{PATH}/{job_id}/events", limit=100)["data"]
    second = send(tenant, job_id, command)
    last = load(tenant, job_id)
    if isinstance(expected, str):
        assert (first, second) == ((409, expected), (409, expected))
        assert (last.state, last.desired, last.epoch) == (state, before.desired, before.epoch)
    else:
        assert first == (200, None)
        # What has ended in answer to the first is too late for the second.
        assert second == ((409, "job_ended") if expected[0] == State.CANCELLED else (200, None))
        assert (last.state, last.desired) == expected
    assert (last.state, last.desired, last.epoch, last.args.get("pause")) == (
        after.state,
        after.desired,
        after.epoch,
        after.args.get("pause"),
    )
    assert kinds(tenant, job_id) == [*leaves, *CHANGES_THE_RECORD.get((state, command), [])]
    if last.desired != Desired.CANCEL:
        # A second request to stop what is being stopped may be told; of pauses and resumes there is one each.
        assert tenant.get(f"{PATH}/{job_id}/events", limit=100)["data"] == events
    # Only an owner keeps its lease: whoever is told nothing goes on.
    assert last.owner == before.owner or last.state == State.CANCELLED


@pytest.mark.parametrize("state", list(GOING))
@pytest.mark.parametrize("command", ["pause", "resume"])
def test_nothing_takes_a_cancellation_back(tenant: Tenant, state: State, command: str) -> None:
    job_id = bring(tenant, state)
    assert send(tenant, job_id, "cancel") == (200, None)
    assert [send(tenant, job_id, command) for _ in range(2)] == [(409, "job_cancelling")] * 2
    assert (load(tenant, job_id).state, load(tenant, job_id).desired) == (state, "cancel")


def test_no_command_makes_a_step_that_the_machine_does_not_know(tenant: Tenant) -> None:
    job_id = bring(tenant, State.QUEUED)
    with (
        pytest.raises(ValueError, match="no transition from queued to succeeded"),
        unit_of_work(tenant.server.database) as session,
    ):
        repository.move(session, load_job(session, job_id).work, State.SUCCEEDED)
    assert load(tenant, job_id).state == "queued"
