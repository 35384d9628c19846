"""Everything a training job is told: the wire's `method`, our `safety` and `training`, and what they resolve to.

Each knob is defined, bounded and described here and nowhere else. `resolve` turns every `auto` and every
default into a number by the rules in the field descriptions; the result is frozen, stored with the job,
digested into its record and sent back to the client.
"""

import hashlib
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]


class Frozen(BaseModel):
    """A frozen configuration that refuses unknown keys and non-finite numbers. Null means absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        # The openai client sends `null` for every optional argument that was given as None.
        if not isinstance(values, dict):
            return values
        return {
            key: value for key, value in values.items() if value is not None or key not in cls.model_fields
        }


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


class Method(Frozen):
    """The wire's `method`. Only supervised fine-tuning is supported."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod | None = None


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


# --- `safety` ---------------------------------------------------------------------------------------------


class ActivationCritic(Frozen):
    """A probe on the reference's activations before it answers."""

    type: Literal["activation"] = "activation"
    id: str | None = Field(None, description="Which fitted critic. Default: the newest of the base model.")


class ConstantCritic(Frozen):
    """The same s for every row: a control for experiments."""

    type: Literal["constant"]
    s: float = Field(ge=0, le=1, description="The s of every row.")

    def digest(self) -> str:
        """Return what names this critic in records: the SHA-256 of its type and s."""
        return hashlib.sha256(f"constant/{self.s!r}".encode()).hexdigest()


Critic = Annotated[ActivationCritic | ConstantCritic, Field(discriminator="type")]


class AdaptiveKL(Frozen):
    """`L = alpha·NLL + beta·KL(reference‖model)` with beta from each row's risk (arXiv 2602.17546)."""

    method: Literal["adaptive_kl"] = "adaptive_kl"
    critic: Critic = Field(default_factory=ActivationCritic, description="Who measures the risk.")
    beta_min: float = Field(0.0, ge=0, le=1, description="KL weight of a row without risk.")
    beta_max: float = Field(0.99, ge=0, le=1, description="KL weight of the riskiest row.")
    schedule: Literal["linear", "threshold"] = Field(
        "linear",
        description="linear: beta_min + (beta_max − beta_min)·s. threshold: beta_max from `threshold` on.",
    )
    threshold: float = Field(
        0.5, ge=0, le=1, description="The s from which the threshold schedule gives beta_max."
    )

    @model_validator(mode="after")
    def _beta_range_is_ordered(self) -> "AdaptiveKL":
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min ({self.beta_min}) is above beta_max ({self.beta_max})")
        return self


class FixedKL(Frozen):
    """The same penalty at one beta for every row: the control of every claim for an adaptive one."""

    method: Literal["fixed_kl"]
    beta: float = Field(ge=0, le=1, description="KL weight of every row.")
    critic: Critic | None = Field(
        None,
        description="Measures the risk without steering. Default: the base model's critic where it has one.",
    )


class NoPenalty(Frozen):
    """Plain supervised fine-tuning. The job is marked unprotected everywhere."""

    method: Literal["none"]
    critic: Critic | None = Field(
        None,
        description="Measures the risk without steering. Default: the base model's critic where it has one.",
    )


Safety = Annotated[AdaptiveKL | FixedKL | NoPenalty, Field(discriminator="method")]

PRESETS: dict[str, AdaptiveKL | FixedKL | NoPenalty] = {
    "default": AdaptiveKL(),
    "strict": AdaptiveKL(beta_min=0.1, beta_max=1.0),
    "off": NoPenalty(method="none"),
}


def safety_from_preset(value: object) -> object:
    """Return the preset that a name stands for; anything but a name passes unchanged. Null is `default`."""
    if value is None:
        value = "default"
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(f"no preset is called {value!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[value]


def beta_range(safety: AdaptiveKL | FixedKL | NoPenalty) -> tuple[float, float]:
    """Return the least and the greatest beta that a row can get."""
    if isinstance(safety, AdaptiveKL):
        return safety.beta_min, safety.beta_max
    beta = safety.beta if isinstance(safety, FixedKL) else 0.0
    return beta, beta


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
    safety: AdaptiveKL | FixedKL | NoPenalty,
    seed: int,
    rows: int,
    hidden_size: int,
    max_position_embeddings: int,
) -> TrainingSpec:
    """Resolve every `auto` by the rules in the field descriptions.

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
        safety=safety,
        **{**options.model_dump(), **resolved},
    )
