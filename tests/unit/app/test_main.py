"""From a pydantic error to the wire's: the path that names the field, and one sentence."""

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from app.jobs.schemas import JobCreate
from app.main import describe_validation_error, locate

HALF = "\ud800"
REQUIRED = {"model": "base", "training_file": "file-1"}


def describe(body: Any) -> tuple[str | None, str]:
    """Return param and message for a body that is no valid job."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(JobCreate).validate_python(body)
    errors = [{**each, "loc": ("body", *each["loc"])} for each in caught.value.errors()]
    error = describe_validation_error(RequestValidationError(errors, body=body))
    assert error.status == 400
    return error.param, error.message


class TestDescribeValidationError:
    @pytest.mark.parametrize(
        ("more", "param", "message"),
        [
            ({"model": None}, "model", "this field is required"),
            ({"model": 5}, "model", "input should be a valid string; found 5"),
            ({"lora_r": 4}, "lora_r", "unknown field; this service does not know it"),
            ({"training": {"lora_r": 0}}, "training.lora_r", "greater than or equal to 1; found 0"),
            ({"training": {"lora": 0}}, "training.lora", "unknown field"),
            ({"safety": {"method": "fixed_kl"}}, "safety.beta", "this field is required"),
            ({"safety": {"beta_min": 0.1}}, "safety.method", "missing"),
            ({"safety": {"method": "magic"}}, "safety.method", "magic"),
            ({"safety": "lax"}, "safety", "no preset is called 'lax'"),
            (
                {"safety": {"method": "adaptive_kl", "beta_min": 0.9, "beta_max": 0.1}},
                "safety",
                "beta_min (0.9) is above beta_max (0.1)",
            ),
            (
                {"safety": {"method": "adaptive_kl", "critic": {"type": "constant", "s": 7}}},
                "safety.critic.s",
                "less than or equal to 1; found 7",
            ),
            (
                {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}},
                "method.supervised.hyperparameters.n_epochs",
                "greater than or equal to 1; found 0",
            ),
            ({"method": {"type": "sft"}}, "method.type", "input should be 'supervised'; found 'sft'"),
            ({"integrations": [{"type": "mlflow"}]}, "integrations[0].mlflow", "required"),
            ({"suffix": "no spaces"}, "suffix", "match pattern"),
            ({"suffix": ""}, "suffix", "at least 1 character"),
            ({"metadata": {"k" * 65: "v"}}, "metadata", "at most 64 characters"),
            ({"metadata": {"k": "v" * 513}}, "metadata.k", "at most 512 characters"),
            ({"metadata": {"k": 5}}, "metadata.k", "valid string; found 5"),
            ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "at most 16 items"),
            ({"seed": 2**31}, "seed", "less than or equal to 2147483647"),
        ],
    )
    def test_param_is_the_path_of_the_field(self, more: dict[str, Any], param: str, message: str) -> None:
        found, said = describe({**REQUIRED, **more})
        assert message in said
        assert found is not None
        assert found.startswith(param) if param == "metadata" else found == param
        assert said.startswith(f"{found}: ")

    def test_two_places_for_hyperparameters(self) -> None:
        hyperparameters = {"n_epochs": 1}
        param, message = describe(
            {
                **REQUIRED,
                "hyperparameters": hyperparameters,
                "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            }
        )
        assert param is None
        assert message.endswith("not in both")

    @pytest.mark.parametrize("body", [[], "text", 5])
    def test_body_that_is_no_object(self, body: Any) -> None:
        param, message = describe(body)
        assert param is None
        assert message.startswith("body: ")

    def test_long_input_is_not_repeated(self) -> None:
        _, message = describe({**REQUIRED, "seed": "9" * 100_000})
        assert len(message) < 200

    @pytest.mark.parametrize(
        ("more", "param"),
        [
            ({"model": HALF}, "model"),
            ({"validation_file": f"file-{HALF}"}, "validation_file"),
            ({"metadata": {"k": HALF}}, "metadata.k"),
            ({"metadata": {HALF: "v"}}, "metadata"),
            (
                {"safety": {"method": "none", "critic": {"type": "activation", "id": HALF}}},
                "safety.critic.id",
            ),
            ({"safety": HALF}, "safety"),
            ({"safety": {"method": HALF}}, "safety.method"),
            ({"seed": HALF}, "seed"),
            ({HALF: 1}, None),
            ({"training": {HALF: 1}}, "training"),
        ],
        ids=["model", "file", "value", "key", "critic", "preset", "method", "number", "field", "inner_field"],
    )
    def test_half_a_character_is_refused_and_can_be_answered(
        self, more: dict[str, Any], param: str | None
    ) -> None:
        found, said = describe({**REQUIRED, **more})
        assert found == param
        # The reply is JSON in UTF-8.
        assert f"{found} {said}".encode()

    def test_half_a_character_is_called_so(self) -> None:
        assert describe({**REQUIRED, "model": HALF})[1] == (
            "model: holds half of a surrogate pair, which is no character; send both halves, or the character itself"
        )


class TestLocate:
    @pytest.mark.parametrize(
        ("location", "body", "path"),
        [
            (("a", "b"), {"a": {"b": 1}}, "a.b"),
            (("a", "AdaptiveKL", "b"), {"a": {"b": 1}}, "a.b"),
            (("a", 1, "b"), {"a": [{}, {"b": 1}]}, "a[1].b"),
            (("a", "int"), {"a": "x"}, "a"),
            (("limit",), None, "limit"),
            ((), {}, ""),
        ],
    )
    def test_only_what_the_body_has_is_named(self, location: tuple[Any, ...], body: Any, path: str) -> None:
        assert locate(location, body) == path

    def test_missing_field_is_named_though_the_body_has_it_not(self) -> None:
        assert locate(("a", "FixedKL", "beta"), {"a": {}}, missing=True) == "a.beta"
