"""The machine of states."""

import json
from itertools import pairwise, product
from pathlib import Path

import pytest

from app.domain.job import (
    OWNED,
    RECORDED,
    TERMINAL,
    TRANSITIONS,
    WIRE_STATUS,
    State,
    check_transition,
    model_name,
)
from tests import job_states

SPECIFICATION = Path(__file__).parents[5] / "shared/spec/openai-fine-tuning.json"


class TestTransitions:
    def test_table_is_complete(self) -> None:
        assert set(TRANSITIONS) == set(WIRE_STATUS) == set(State)

    @pytest.mark.parametrize("state", sorted(TERMINAL))
    def test_terminal_states_are_closed(self, state: State) -> None:
        assert not TRANSITIONS[state]

    @pytest.mark.parametrize("state", sorted(set(State) - RECORDED))
    def test_everything_else_can_be_cancelled(self, state: State) -> None:
        assert State.CANCELLED in TRANSITIONS[state]

    def test_what_waits_does_not_fail(self) -> None:
        can_fail = {state for state in State if State.FAILED in TRANSITIONS[state]}
        assert can_fail == {*OWNED, State.VALIDATING, State.HELD}

    def test_every_arrow_has_its_own_sentence(self) -> None:
        for before, arrows in TRANSITIONS.items():
            assert len(set(arrows.values())) == len(arrows), before
            assert all(reason.endswith(".") for reason in arrows.values())

    def test_what_is_recorded_as_done_only_waits_for_its_signature_and_for_people(self) -> None:
        assert TRANSITIONS[State.SIGNING].keys() == {State.HELD, State.SUCCEEDED}
        assert TRANSITIONS[State.HELD].keys() == {State.FAILED, State.SUCCEEDED}
        assert OWNED.isdisjoint({State.SIGNING, State.HELD})

    @pytest.mark.parametrize("state", sorted(OWNED))
    def test_owned_work_can_be_given_back(self, state: State) -> None:
        assert TRANSITIONS[state].keys() & {State.QUEUED, State.PAUSED}

    def test_a_pause_is_left_through_the_queue_or_for_good(self) -> None:
        assert TRANSITIONS[State.PAUSED].keys() == {State.QUEUED, State.CANCELLED}
        assert State.PAUSED not in OWNED

    def test_success_is_reached_through_every_stage(self) -> None:
        path = [
            State.VALIDATING,
            State.QUEUED,
            State.STARTING,
            State.RUNNING,
            State.FINALISING,
            State.SIGNING,
            State.HELD,
            State.SUCCEEDED,
        ]
        for before, after in pairwise(path):
            check_transition(before, after)
        # Work that is no job has no record, and ends without a signature.
        ends = [state for state in State if State.SUCCEEDED in TRANSITIONS[state]]
        assert ends == [State.FINALISING, State.SIGNING, State.HELD]


class TestCheckTransition:
    @pytest.mark.parametrize(("before", "after"), list(product(State, State)))
    def test_only_the_arrows_pass(self, before: State, after: State) -> None:
        if after in TRANSITIONS[before]:
            check_transition(before, after)
            return
        with pytest.raises(ValueError, match=f"no transition from {before} to {after}"):
            check_transition(before, after)


class TestWireStatus:
    def test_every_status_is_one_of_the_wire(self) -> None:
        if not SPECIFICATION.exists():
            pytest.skip(f"{SPECIFICATION} is not here")
        schemas = json.loads(SPECIFICATION.read_text())["components"]["schemas"]
        known = schemas["FineTuningJob"]["properties"]["status"]["enum"]
        # The list of the wire's own description lacks what its example of a paused job has.
        assert set(WIRE_STATUS.values()) <= {*known, "paused"}


def test_states_arrows_and_diagram_are_documented_as_they_are() -> None:
    text = job_states.PAGE.read_text(encoding="utf-8")
    assert job_states.fill_in(text) == text, "write them anew: python -m tests.job_states"


class TestModelName:
    def test_form_of_the_wire(self) -> None:
        assert model_name("org/base", "mine", "ftjob-abcdefghijkl") == "ft:org/base:tether:mine:efghijkl"
        assert model_name("b", None, "ftjob-abcdefghijkl", step=7) == "ft:b:tether::efghijkl:ckpt-step-7"
