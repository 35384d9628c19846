"""What one optimiser step reports: the numbers of the risk curve, the metrics events and the ledger."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step. Losses are means per loss-bearing token of the whole step, in nats.

    `risk_*`, `alpha_*` and `beta_*` are `control_law.summarise_step`, in float64, so that a verifier can demand
    equality. `risk_*` is None where the job has no critic.
    """

    step: int
    """Counted from 1; `total_steps` is the last."""
    data_epoch: int
    """Which pass over the data, from 0."""
    rows: tuple[int, ...]
    """Indices of the rows in the training file, in the order of the step; none where all are alignment data."""
    tokens: int
    """Loss-bearing tokens of the rows, alignment rows included, anchors not."""
    risk_mean: float | None
    risk_max: float | None
    alpha_mean: float
    alpha_min: float
    beta_mean: float
    beta_max: float
    floor: float
    """The run-level floor under every beta of this step."""
    nll: float
    kl: float | None
    """The penalty: KL(reference‖model), or whatever kind the method asks for; None where the method has none."""
    loss: float
    token_accuracy: float
    """Share of loss-bearing tokens that the model's greedy choice gets right."""
    grad_norm: float
    lr: float
    anchors: tuple[int, ...] = ()
    """Indices of the anchors of this step in their set."""
    anchor_kl: float | None = None
    """Mean KL(reference‖model) on the anchors; None without any."""
    anchor_weight: float = 0.0
    """Its weight in this step, the monitor's factor included."""
    s_smoothed: float | None = None
    """The s that every row's beta comes from, under the scope batch."""
    skipped: bool = False
    """Whether loss or gradient was not finite, so that no weight changed."""
    alignment_rows: tuple[int, ...] = ()
    """Indices of the step's rows of alignment data in their set."""

    def to_dict(self) -> dict[str, object]:
        """Return the record as plain JSON values."""
        values = ((name, getattr(self, name)) for name in _NAMES)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


_NAMES = tuple(field.name for field in fields(StepRecord))
