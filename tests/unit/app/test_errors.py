"""Errors cross processes, and become the wire's form."""

import pickle

import pytest

from app import errors
from app.errors import TetherError

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TetherError)]


class TestPickle:
    @pytest.mark.parametrize("cls", CLASSES)
    def test_nothing_is_lost(self, cls: type[TetherError]) -> None:
        error = pickle.loads(pickle.dumps(cls("what happened", param="training.lora_r", code="special")))  # noqa: S301
        assert type(error) is cls
        assert error.to_wire() == {
            "message": "what happened",
            "type": cls.type,
            "param": "training.lora_r",
            "code": "special",
        }
        assert str(error) == "what happened"


class TestInvalidTrainingFile:
    def test_problems_are_in_the_message_and_beside_it(self) -> None:
        error = errors.InvalidTrainingFile("2 problems in the file", problems=("line 1", "line 2"))
        assert error.message == "2 problems in the file: line 1; line 2"
        assert error.lines() == ("2 problems in the file:", "  line 1", "  line 2")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert again.to_wire() == error.to_wire()
        assert errors.InvalidTrainingFile("one thing").lines() == ("one thing",)


class TestToWire:
    def test_code_is_the_one_of_the_class_unless_given(self) -> None:
        assert errors.PolicyViolation("no").to_wire() == {
            "message": "no",
            "type": "invalid_request_error",
            "param": None,
            "code": "policy_violation",
        }

    @pytest.mark.parametrize("cls", CLASSES)
    def test_type_and_status_agree(self, cls: type[TetherError]) -> None:
        # The openai client chooses its exception by the status, people read the type. Two have types of the wire's.
        special = {"QuotaExceeded": "insufficient_quota", "RateLimited": "requests"}
        assert cls.type == special.get(
            cls.__name__,
            "server_error"
            if cls.status >= 500
            else "authentication_error"
            if cls.status == 401
            else "invalid_request_error",
        )

    @pytest.mark.parametrize("cls", CLASSES[1:])
    def test_every_class_below_the_base_has_a_code(self, cls: type[TetherError]) -> None:
        assert cls.code
