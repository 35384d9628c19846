"""What a job is told: bounds, null, and what every `auto` becomes."""

import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.domain.safety_spec import PRESETS, AdaptiveKL, AnySafety, Filter
from app.domain.training_spec import Hyperparameters, Method, TrainingOptions, TrainingSpec, resolve
from app.errors import NotSupported


def resolved(
    hyperparameters: dict[str, Any] | None = None,
    *,
    rows: int = 100,
    hidden_size: int = 2000,
    max_position_embeddings: int = 8192,
    safety: AnySafety = PRESETS["default"],
    critic_threshold: float | None = 0.75,
    **options: Any,
) -> TrainingSpec:
    """Resolve a request with these fields, everything else left to its default."""
    return resolve(
        hyperparameters=Hyperparameters(**(hyperparameters or {})),
        options=TrainingOptions(**options),
        safety=safety,
        seed=1,
        rows=rows,
        hidden_size=hidden_size,
        max_position_embeddings=max_position_embeddings,
        critic_threshold=critic_threshold,
    )


class TestResolve:
    def test_everything_is_resolved(self) -> None:
        spec = resolved()
        assert '"auto"' not in spec.model_dump_json()
        assert spec.batch_size == 8
        assert spec.learning_rate_multiplier == 1.0
        assert spec.training().keys() == TrainingOptions.model_fields.keys()

    @pytest.mark.parametrize(
        ("rows", "n_epochs"),
        [(1, 10), (99, 10), (100, 10), (101, 10), (112, 9), (333, 4), (999, 2), (1000, 1), (10**6, 1)],
    )
    def test_epochs_fall_with_the_rows(self, rows: int, n_epochs: int) -> None:
        assert resolved(rows=rows).n_epochs == n_epochs

    @pytest.mark.parametrize(
        ("hidden_size", "learning_rate"),
        [
            (64, 2e-3),  # Capped.
            (2000, 5e-4),
            (4096, 5e-4 * (2000 / 4096) ** 0.775),
        ],
    )
    def test_learning_rate_falls_with_the_hidden_size(self, hidden_size: int, learning_rate: float) -> None:
        assert resolved(hidden_size=hidden_size).learning_rate == learning_rate

    def test_multiplier_scales_the_automatic_rate(self) -> None:
        assert resolved({"learning_rate_multiplier": 0.5}).learning_rate == 2.5e-4
        assert resolved({"learning_rate_multiplier": 3.0}, hidden_size=64).learning_rate == 6e-3

    @pytest.mark.parametrize(
        ("asked", "built_for", "length"),
        [("auto", 512, 512), ("auto", 131072, 4096), (1000, 8192, 1000)],
    )
    def test_length_stays_within_the_model(self, asked: Any, built_for: int, length: int) -> None:
        spec = resolved(max_seq_length=asked, max_position_embeddings=built_for)
        assert spec.max_seq_length == length

    @pytest.mark.parametrize(
        ("rows", "n_epochs", "interval"), [(8, 1, 1), (80, 1, 1), (81, 1, 2), (800, 3, 30)]
    )
    def test_validations_are_ten_in_a_run(self, rows: int, n_epochs: int, interval: int) -> None:
        assert resolved({"n_epochs": n_epochs}, rows=rows).eval_interval == interval

    def test_what_was_asked_for_is_kept(self) -> None:
        spec = resolved(
            {"batch_size": 3, "n_epochs": 7, "learning_rate_multiplier": 2},
            learning_rate=0.01,
            eval_interval=5,
            lora_r=4,
            lr_scheduler="cosine",
        )
        assert (spec.batch_size, spec.n_epochs, spec.learning_rate_multiplier) == (3, 7, 2)
        assert (spec.learning_rate, spec.eval_interval, spec.lora_r) == (0.01, 5, 4)
        assert spec.lr_scheduler == "cosine"

    @pytest.mark.parametrize("method", [AdaptiveKL, Filter])
    def test_automatic_threshold_is_the_critics(self, method: type[AdaptiveKL | Filter]) -> None:
        found = resolved(safety=method()).safety
        assert isinstance(found, method)
        assert found.threshold == 0.75
        given = resolved(safety=method(threshold=0.25), critic_threshold=None).safety
        assert isinstance(given, method)
        assert given.threshold == 0.25
        # Nobody's threshold is no threshold.
        with pytest.raises(ValueError, match="threshold is auto"):
            resolved(safety=method(), critic_threshold=None)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_result_comes_back_from_json(self, preset: str) -> None:
        spec = resolved(safety=PRESETS[preset])
        assert TrainingSpec.model_validate_json(spec.model_dump_json()) == spec


class TestBounds:
    @pytest.mark.parametrize(
        ("model", "field", "accepted", "refused"),
        [
            (Hyperparameters, "batch_size", [1, 256, "auto"], [0, 257, 1.5, "many", -1]),
            (Hyperparameters, "n_epochs", [1, 50, "auto"], [0, 51, "forever"]),
            (
                Hyperparameters,
                "learning_rate_multiplier",
                [0.001, 100, "auto"],
                [0, -1, 101, math.inf, math.nan],
            ),
            (TrainingOptions, "lora_r", [1, 256], [0, 257, "auto"]),
            (TrainingOptions, "lora_alpha", [1, 1024], [0, 1025]),
            (TrainingOptions, "learning_rate", [1e-6, 0.1, "auto"], [0, 0.11, math.nan]),
            (TrainingOptions, "max_seq_length", [8, 131072, "auto"], [7, 131073]),
            (TrainingOptions, "overlength", ["error", "truncate", "drop"], ["ignore"]),
            (TrainingOptions, "warmup_ratio", [0, 0.5], [-0.1, 0.6]),
            (TrainingOptions, "lr_scheduler", ["constant", "linear", "cosine"], ["step"]),
            (TrainingOptions, "weight_decay", [0, 1], [-0.1, 1.1]),
            (TrainingOptions, "max_grad_norm", [0.1, 1000], [0, 1001, math.inf]),
            (TrainingOptions, "eval_interval", [1, "auto"], [0]),
            (TrainingOptions, "checkpoint_interval_s", [0, 86400], [-1, 86401, math.nan]),
            (TrainingOptions, "adapter", ["lora"], ["full"]),
            (Method, "type", ["supervised"], ["sft"]),
        ],
    )
    def test_only_what_is_in_bounds(
        self, model: type[BaseModel], field: str, accepted: list[Any], refused: list[Any]
    ) -> None:
        for value in accepted:
            assert getattr(model.model_validate({field: value}), field) == value
        for value in refused:
            with pytest.raises(ValidationError):
                model.model_validate({field: value})

    @pytest.mark.parametrize("method", ["dpo", "reinforcement"])
    def test_method_of_the_wire_that_is_not_there_says_what_to_do_instead(self, method: str) -> None:
        with pytest.raises(NotSupported, match="use 'supervised'"):
            Method.model_validate({"type": method})

    @pytest.mark.parametrize("model", [Hyperparameters, TrainingOptions, Method])
    def test_unknown_key_is_refused(self, model: type[BaseModel]) -> None:
        for value in (1, None):
            with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
                model.model_validate({"learning_rat": value})


class TestNull:
    """The openai client sends null for every optional argument that was given as None."""

    @pytest.mark.parametrize("model", [Hyperparameters, TrainingOptions, Method])
    def test_null_is_the_default(self, model: type[BaseModel]) -> None:
        nulls = dict.fromkeys(model.model_fields)
        assert model.model_validate(nulls) == model()
