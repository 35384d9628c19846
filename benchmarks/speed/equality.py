"""That the contenders compute the same thing: loss and gradients, before anything is timed.

Three implementations that share no code beyond transformers' model and PEFT's layers must agree: ours, TRL's, and the
plain formula over the whole vocabulary in `paper_peer`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.speed.head import build_case, head_contenders, loss_and_gradient
from benchmarks.speed.ours import PENALTY, PLAIN, Gradients, OurRun
from benchmarks.speed.paper_peer import ACCUMULATION, PaperRun
from benchmarks.speed.shapes import BATCH_SIZE, Shape
from benchmarks.speed.trl_peer import LOSSES, TRLRun, why_missing
from worker.training.data import TokenizedRow

TOLERANCE = 1e-4
"""Relative; float32 leaves about 1e-6."""
UNCLIPPED = 1000.0
HEAD_PAIRS = (("nll", "torch_nll"), ("kl", "torch_kl"), ("kl_states", "torch_kl"))


class Unequal(Exception):
    """Two contenders do not compute the same loss or gradient, so their times say nothing."""


class Check(NamedTuple):
    """How far two contenders are apart."""

    name: str
    error: float
    """The greatest relative difference of the loss and of each parameter's gradient."""


def check_all(shape: Shape, fixed: Sequence[TokenizedRow], mixed: Sequence[TokenizedRow]) -> Iterator[Check]:
    """Compare every contender with ours on a few rows of each kind. Raises Unequal at the first that differs."""
    for kind, rows in (("fixed", fixed[:ACCUMULATION]), ("mixed", mixed[:ACCUMULATION])):
        if why_missing() is None:
            ours = OurRun(shape, rows, PLAIN, n_epochs=1, max_grad_norm=UNCLIPPED).first_gradients()
            for loss in LOSSES:
                peer = TRLRun(shape, rows, loss, n_epochs=1, max_grad_norm=UNCLIPPED)
                yield _check(f"plain SFT, {kind} lengths, TRL's {loss}", ours, peer.first_gradients())
    some = fixed[:ACCUMULATION]
    for n_epochs, kind in ((1, "states"), (3, "expectation")):
        run = OurRun(
            shape, some, PENALTY, n_epochs=n_epochs, batch_size=ACCUMULATION, max_grad_norm=UNCLIPPED
        )
        ours = run.first_gradients()
        formula = PaperRun(shape, some, checkpointing=n_epochs == 1, betas=run.betas())
        yield _check(
            f"adaptive KL from cached {kind}, the published loop's formula", ours, formula.first_gradients()
        )
    case = build_case(shape, 4 * BATCH_SIZE)
    contenders = head_contenders(case)
    for name, other in HEAD_PAIRS:
        value, gradient = loss_and_gradient(case, contenders[name])
        expected = loss_and_gradient(case, contenders[other])
        yield _check(
            f"the head alone, {name}",
            Gradients(value, {"states": gradient}),
            Gradients(expected[0], {"states": expected[1]}),
        )


def compare(found: Gradients, expected: Gradients) -> float:
    """Return the greatest relative difference of the loss and of each parameter's gradient."""
    if found.gradients.keys() != expected.gradients.keys():
        raise Unequal(
            f"different parameters have gradients: {found.gradients.keys() ^ expected.gradients.keys()}"
        )
    errors = [abs(found.loss - expected.loss) / abs(expected.loss)]
    for name, gradient in expected.gradients.items():
        errors.append(float(torch.norm(found.gradients[name] - gradient) / torch.norm(gradient)))
    # Python's max would pass over a NaN.
    return float(np.max(errors))


def _check(name: str, ours: Gradients, peer: Gradients) -> Check:
    error = compare(ours, peer)
    # A NaN is not within anything.
    if not error <= TOLERANCE:
        raise Unequal(f"{name}: loss or gradients differ by {error:.1e}; nothing was timed")
    return Check(name, error)
