"""What one optimiser step reports: the numbers of the risk curve, the metrics events and the ledger."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step. Losses are means per loss-bearing token of the whole step, in nats.

    `risk_*`, `alpha_*` and `beta_*` are over the rows of the step, in float64; mean is `math.fsum(x) / n`, so
    that a verifier can demand equality. `risk_*` is None where the job has no critic.
    """

    step: int
    """Counted from 1; `total_steps` is the last."""
    data_epoch: int
    """Which pass over the data, from 0."""
    rows: tuple[int, ...]
    """Indices of the rows in the training file, in the order of the step."""
    tokens: int
    """Loss-bearing tokens."""
    risk_mean: float | None
    risk_max: float | None
    alpha_mean: float
    alpha_min: float
    beta_mean: float
    beta_max: float
    floor: float
    """The run-level floor under every beta of this step."""
    nll: float
    kl: float
    """KL(reference‖model)."""
    loss: float
    token_accuracy: float
    """Share of loss-bearing tokens that the model's greedy choice gets right."""
    grad_norm: float
    lr: float

    def to_dict(self) -> dict[str, object]:
        """Return the record as plain JSON values."""
        return {**asdict(self), "rows": list(self.rows)}
