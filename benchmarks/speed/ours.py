"""Our own training core as a job uses it: the reference pass, then the loop.

Everything that the benchmark knows of the core's interface is in this file and in `head.py`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.domain.safety_spec import AdaptiveKL, AnySafety, Monitor, NoPenalty
from app.domain.step_record import StepRecord
from benchmarks.speed.shapes import (
    ANCHORS,
    BATCH_SIZE,
    REPLY_TOKENS,
    Shape,
    anchor_messages,
    build_model,
    build_spec,
    build_tokenizer,
    fill_adapter,
    trainable,
)
from worker.training import replies
from worker.training.critics.activation import ActivationCritic, Points, Probe, Probes
from worker.training.data import TokenizedRow
from worker.training.loop import Drift, Stop, fit
from worker.training.models import add_adapter, set_determinism
from worker.training.run import Prepared, prepare

PLAIN = NoPenalty()
PENALTY = AdaptiveKL(replay=False, anchors=None, monitor=None)
"""The per-row penalty alone."""
WATCHED = AdaptiveKL(replay=False, anchors=None, monitor=Monitor(every=1))
"""The penalty and the monitor, which measures after every step here, so that it can be timed."""
DEFAULT = AdaptiveKL(monitor=None)
"""The default preset without its monitor: the penalty, replay and anchors."""
MONITOR_EVERY = Monitor().every


class Timing(NamedTuple):
    """What the parts of a run took, in seconds."""

    set_up: float
    """Between the reference pass and the first step, and after the last."""
    steps: tuple[float, ...]
    """Of each optimiser step."""
    drifts: tuple[float, ...] = ()
    """Of each measurement of the monitor."""


class Gradients(NamedTuple):
    """The first step of a run, before any weight changed."""

    loss: float
    gradients: dict[str, Tensor]
    """By the parameter's name."""


class OurRun:
    """A job on our own core, over and over on the same model. Its adapter is trained on from run to run."""

    def __init__(
        self,
        shape: Shape,
        rows: Sequence[TokenizedRow],
        safety: AnySafety,
        *,
        n_epochs: int,
        batch_size: int = BATCH_SIZE,
        flagged: float = 0.1,
        max_grad_norm: float = 1.0,
    ) -> None:
        """`flagged` is the share of the rows above the threshold from which a row is replayed."""
        self._rows = rows
        self._tokenizer = build_tokenizer(shape.vocabulary)
        is_adaptive = isinstance(safety, AdaptiveKL)
        self._critic = build_critic(shape) if is_adaptive else None
        self._anchors = anchor_messages(ANCHORS, shape.vocabulary) if is_adaptive else ()
        base = build_model(shape)
        threshold = 0.5
        if is_adaptive:
            spec = build_spec(shape, PENALTY, rows=len(rows), n_epochs=n_epochs)
            risks = prepare(base, self._tokenizer, rows, spec, self._critic).risks
            threshold = float(np.quantile([risk.s or 0.0 for risk in risks], 1 - flagged))
        self._spec = build_spec(
            shape,
            safety,
            rows=len(rows),
            n_epochs=n_epochs,
            batch_size=batch_size,
            threshold=threshold,
            max_grad_norm=max_grad_norm,
        )
        self._model = add_adapter(base, self._spec, 0)
        fill_adapter(self._model)
        self._prepared: Prepared | None = None

    def prepare(self) -> float:
        """Do all that comes before the loop, the reference pass, and return its seconds."""
        with job_settings():
            began = time.perf_counter()
            self._prepared = prepare(
                self._model, self._tokenizer, self._rows, self._spec, self._critic, anchors=self._anchors
            )
            return time.perf_counter() - began

    def train(self, max_steps: int | None = None) -> Timing:
        """Run the loop over all epochs, or as far as `max_steps`, on what was prepared."""
        if self._prepared is None:
            self.prepare()
        assert self._prepared is not None  # noqa: S101  # For mypy: `prepare` sets it.
        steps: list[float] = []
        drifts: list[float] = []
        since = 0.0

        def lap(into: list[float]) -> None:
            nonlocal since
            now = time.perf_counter()
            into.append(now - since)
            since = now

        def before_step() -> Stop | None:
            nonlocal since
            since = time.perf_counter()
            return "cancel" if len(steps) == max_steps else None

        def after_step(_: StepRecord) -> None:
            lap(steps)

        def after_drift(_: Drift) -> None:
            lap(drifts)

        with job_settings():
            began = time.perf_counter()
            fit(
                self._model,
                self._prepared.data,
                self._spec,
                on_step=after_step,
                on_drift=after_drift,
                should_stop=before_step,
            )
            whole = time.perf_counter() - began
        return Timing(whole - sum(steps) - sum(drifts), tuple(steps), tuple(drifts))

    def first_gradients(self) -> Gradients:
        """Take one step and return its loss and gradients; the weights are no longer fresh afterwards."""
        if self._prepared is None:
            self.prepare()
        assert self._prepared is not None  # noqa: S101
        losses: list[float] = []
        with job_settings():
            fit(
                self._model,
                self._prepared.data,
                self._spec,
                on_step=lambda record: losses.append(record.loss),
                should_stop=lambda: "cancel" if losses else None,
            )
        found = trainable(self._model).items()
        return Gradients(losses[0], {name: each.grad for name, each in found if each.grad is not None})

    def betas(self) -> dict[int, float]:
        """Return the KL weight of each row of a linear schedule, by index, from its recorded s."""
        safety = self._spec.safety
        if not isinstance(safety, AdaptiveKL) or self._prepared is None:
            raise ValueError("betas belong to a prepared run with the adaptive penalty")
        spread = safety.beta_max - safety.beta_min
        return {risk.row: safety.beta_min + spread * (risk.s or 0.0) for risk in self._prepared.risks}


@contextmanager
def job_settings() -> Iterator[None]:
    """Run with a job's deterministic algorithms and replies of the usual length, and leave the peers without them."""
    set_determinism(0)
    longest = replies.MAX_REPLY_TOKENS
    replies.MAX_REPLY_TOKENS = REPLY_TOKENS
    try:
        yield
    finally:
        replies.MAX_REPLY_TOKENS = longest
        torch.use_deterministic_algorithms(False)


def build_critic(shape: Shape) -> ActivationCritic:
    """Return an activation critic with random directions, which reads all that a fitted one reads.

    Its points lie about where the rows of a random model score, so that s is spread over [0, 1].
    """
    generator = np.random.default_rng(0)

    def probe() -> Probe:
        direction = generator.standard_normal((shape.layers, shape.hidden)) / shape.hidden
        return Probe(direction, np.zeros(shape.layers), np.array([1.0, 0.0]))

    return ActivationCritic(Probes(probe(), probe()), Points(-0.1, 0.1, 0.1), digest="", metadata={})
