"""Every method has what trains it."""

from app.domain.safety_policy import METHODS as ON_THE_WIRE
from worker.training.methods.registry import METHODS


def test_every_method_of_the_wire_is_registered():
    assert set(METHODS) == set(ON_THE_WIRE)
