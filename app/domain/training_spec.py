"""Everything a training job is told: the wire's `method`, our `training` and `safety`, and what they resolve to.

Each knob is defined, bounded and described once: those of `safety` in `safety_spec`, all others here. `resolve` turns
every `auto` and every default into a number by the rules in the field descriptions; the result is frozen, stored with
the job, digested into its record and sent back to the client.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.domain.frozen import Frozen
from app.domain.safety_spec import AdaptiveKL, AnySafety, Filter, Safety
from app.errors import NotSupported

Auto = Literal["auto"]


# --- what the wire calls hyperparameters ------------------------------------------------------------------


class Hyperparameters(Frozen):
    """OpenAI's three hyperparameters of supervised fine-tuning."""

    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = Field(
        "auto", description="Rows per optimiser step. auto: 8."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        "auto", description="Factor on the automatic learning rate. auto: 1."
    )
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = Field(
        "auto", description="Passes over the data. auto: 1000 / rows, rounded up, between 1 and 10."
    )


class SupervisedMethod(Frozen):
    """`method.supervised`."""

    hyperparameters: Annotated[Hyperparameters | None, Field()] = None


NOT_SUPPORTED = {
    "dpo": "preference optimisation is not supported yet; use 'supervised', with the preferred answers as the rows",
    "reinforcement": "reinforcement fine-tuning is not supported; use 'supervised', with answers that a grader would"
    " reward as the rows",
}
"""Methods that the wire knows and this service does not, and what to do instead."""


class Method(Frozen):
    """The wire's `method`. Only supervised fine-tuning is supported."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod | None = None

    @model_validator(mode="before")
    @classmethod
    def _say_what_to_do_instead(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind in NOT_SUPPORTED:
            raise NotSupported(f"method.type: {NOT_SUPPORTED[kind]}", param="method.type")
        return values


# --- `training` -------------------------------------------------------------------------------------------


class TrainingOptions(Frozen):
    """Our `training` object: what OpenAI's wire has no words for."""

    adapter: Literal["lora"] = Field("lora", description="Kind of adapter.")
    lora_r: int = Field(16, ge=1, le=256, description="Rank of the adapter.")
    lora_alpha: int = Field(
        32, ge=1, le=1024, description="Scale of the adapter; its factor is lora_alpha / lora_r."
    )
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] | Auto = Field(
        "auto",
        description="Peak learning rate. auto: 5e-4·(2000 / hidden_size)^0.775, at most 2e-3,"
        " times learning_rate_multiplier.",
    )
    max_seq_length: Annotated[int, Field(ge=8, le=131072)] | Auto = Field(
        "auto", description="Longest row in tokens. auto: what the base model was built for, at most 4096."
    )
    overlength: Literal["error", "truncate", "drop"] = Field(
        "error", description="What happens to a row longer than max_seq_length."
    )
    warmup_ratio: float = Field(
        0.03, ge=0, le=0.5, description="Share of the steps in which the rate rises from 0."
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How the rate falls after the warm-up."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are scaled down to this norm.")
    eval_interval: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="Steps between validations. auto: ten in a run, at the end in any case."
    )
    checkpoint_interval_s: float = Field(
        60.0, ge=0, le=86400, description="Seconds between checkpoints to resume from; 0 is after every step."
    )


# --- resolved ---------------------------------------------------------------------------------------------


class TrainingSpec(Frozen):
    """A training job with nothing left open. Every number is final."""

    seed: int = Field(ge=0, le=2**31 - 1)
    batch_size: int
    n_epochs: int
    learning_rate_multiplier: float
    learning_rate: float
    adapter: Literal["lora"]
    lora_r: int
    lora_alpha: int
    max_seq_length: int
    overlength: Literal["error", "truncate", "drop"]
    warmup_ratio: float
    lr_scheduler: Literal["constant", "linear", "cosine"]
    weight_decay: float
    max_grad_norm: float
    eval_interval: int
    checkpoint_interval_s: float
    safety: Safety

    def training(self) -> dict[str, Any]:
        """Return the resolved `training` object as the wire shows it."""
        return {name: getattr(self, name) for name in TrainingOptions.model_fields}


def resolve(
    *,
    hyperparameters: Hyperparameters,
    options: TrainingOptions,
    safety: AnySafety,
    seed: int,
    rows: int,
    hidden_size: int,
    max_position_embeddings: int,
    critic_threshold: float | None = None,
) -> TrainingSpec:
    """Resolve every `auto` by the rules in the field descriptions.

    `critic_threshold` is the s that the automatic threshold stands for (`control_law.compute_threshold`); a method
    that has one and leaves it open cannot do without. Raises ValueError.

    The automatic learning rate follows the scaling with hidden size that "LoRA Without Regret" (Thinking
    Machines, 2025) found for Llama models, capped because very small models diverge far above 2e-3.
    """
    batch_size = 8 if hyperparameters.batch_size == "auto" else hyperparameters.batch_size
    multiplier = (
        1.0
        if hyperparameters.learning_rate_multiplier == "auto"
        else hyperparameters.learning_rate_multiplier
    )
    n_epochs = (
        min(10, max(1, math.ceil(1000 / rows)))
        if hyperparameters.n_epochs == "auto"
        else hyperparameters.n_epochs
    )
    learning_rate = options.learning_rate
    if learning_rate == "auto":
        learning_rate = min(2e-3, 5e-4 * (2000 / hidden_size) ** 0.775) * multiplier
    max_seq_length = options.max_seq_length
    if max_seq_length == "auto":
        max_seq_length = min(4096, max_position_embeddings)
    eval_interval = options.eval_interval
    if eval_interval == "auto":
        eval_interval = max(1, math.ceil(n_epochs * math.ceil(rows / batch_size) / 10))
    resolved = {
        "learning_rate": learning_rate,
        "max_seq_length": max_seq_length,
        "eval_interval": eval_interval,
    }
    return TrainingSpec(
        seed=seed,
        batch_size=batch_size,
        n_epochs=n_epochs,
        learning_rate_multiplier=multiplier,
        safety=_resolve_threshold(safety, critic_threshold),
        **{**options.model_dump(), **resolved},
    )


def _resolve_threshold(safety: AnySafety, critic_threshold: float | None) -> AnySafety:
    if not isinstance(safety, AdaptiveKL | Filter) or safety.threshold != "auto":
        return safety
    if critic_threshold is None:
        raise ValueError("safety.threshold is auto, but the critic's own threshold is not given")
    return safety.model_copy(update={"threshold": critic_threshold})
