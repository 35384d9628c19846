"""Antidote (arXiv 2408.09600): after tuning, the adapter's weights that harmful data use most are set to zero.

The score of a weight is `|W_ij|·‖X_j‖₂`, X being the inputs of its linear layer over the loss-bearing rows of a set of
harmful examples. Within each output row the `density` share with the highest scores becomes zero. Both matrices of every
adapted layer are pruned.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from app.domain import safety_spec
from worker.training.data import TokenizedRow
from worker.training.methods.plain import Method
from worker.training.models import ADAPTER_NAME, final_states
from worker.training.packing import collate


class Antidote(Method):
    """Plain, and pruned at the end."""

    def finish(self, model: PeftModel, alignment: Sequence[TokenizedRow]) -> None:
        """Prune the adapter by its inputs on the harmful rows, read one row at a time."""
        density = cast(safety_spec.Antidote, self.safety).density
        linears = adapter_linears(model)
        device = next(model.parameters()).device
        with torch.no_grad():
            with _input_squares(linears) as squares:
                for row in alignment:
                    final_states(model, collate([row], device, packed=False))
            for name, linear in linears.items():
                prune_(linear.weight, squares[name].sqrt(), density)


def adapter_linears(model: PeftModel) -> dict[str, nn.Linear]:
    """Return both matrices of every adapted layer, as the linear layers that they are."""
    return {
        f"{path}.{part}": getattr(module, part)[ADAPTER_NAME]
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for part in ("lora_A", "lora_B")
    }


def prune_(weight: Tensor, input_norms: Tensor, density: float) -> None:
    """Zero, in each row of `weight` (out, in), the `density` share of its entries with the highest |W_ij|·norm_j.

    The number is rounded down, but at least one where density is above 0. Ties go to the lower column.
    """
    count = min(weight.shape[1], max(int(density * weight.shape[1]), density > 0))
    score = weight.abs() * input_norms.to(weight.dtype)
    highest = torch.argsort(score, dim=1, descending=True, stable=True)[:, :count]
    weight.scatter_(1, highest, 0.0)


@contextmanager
def _input_squares(linears: dict[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Sum, per input of each layer, the squares of what it is given, in float64."""
    squares = {
        name: torch.zeros(linear.in_features, dtype=torch.float64, device=linear.weight.device)
        for name, linear in linears.items()
    }

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            squares[name] += (inputs[0].double() ** 2).flatten(0, -2).sum(0)

        return hook

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
