"""Vaccine (arXiv 2402.01109): an alignment stage that holds against the worst small push on the hidden states.

Each step of that stage runs backward twice. The first gives the gradient g of the loss with respect to the output of
every attention layer; the second runs with `rho·g/‖g‖` added to those outputs, with one norm over all layers and the whole
step, so that the result does not depend on the micro-batches. Then follow plain steps on the user's rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from app.domain import safety_spec
from app.domain.step_plan import StepPlan
from app.errors import JobFailure
from worker.training.methods.plain import Method, T
from worker.training.models import decoder_of, trainable_parameters

NORM_EPSILON = 1e-7


class Vaccine(Method):
    """Perturbed steps on the alignment set, then plain ones on the user's rows."""

    @property
    def _vaccine(self) -> safety_spec.Vaccine:
        return cast(safety_spec.Vaccine, self.safety)

    def accumulate(
        self, model: PeftModel, plan: StepPlan, batches: Sequence[T], backward: Callable[[T], None]
    ) -> None:
        """Add the gradient at the perturbed hidden states in the first stage."""
        if not plan.alignment:
            super().accumulate(model, plan, batches, backward)
            return
        parameters = trainable_parameters(model).values()
        before = [parameter.grad for parameter in parameters]
        gradients = []
        for batch in batches:
            with _captured(model) as captured:
                backward(batch)
            gradients.append(captured)
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        norm = (
            torch.stack([(g.double() ** 2).sum() for each in gradients for g in each.values()]).sum().sqrt()
        )
        for batch, captured in zip(batches, gradients, strict=True):
            factor = self._vaccine.rho / (norm + NORM_EPSILON)
            push = {layer: (g.double() * factor).to(g.dtype) for layer, g in captured.items()}
            with _pushed(model, push):
                backward(batch)


def attention_layers(model: PeftModel) -> list[nn.Module]:
    """Return the attention module of every block, first to last."""
    found = [
        module
        for path, module in decoder_of(model).named_modules()
        if path.rsplit(".", 1)[-1] in ("self_attn", "self_attention", "attention", "attn")
    ]
    if not found:
        raise JobFailure("this model's attention layers were not found, which vaccine needs")
    return found


@contextmanager
def _captured(model: PeftModel) -> Iterator[dict[int, Tensor]]:
    """Collect the gradient with respect to each attention layer's output by the layer's place."""
    gradients: dict[int, Tensor] = {}

    def watch(place: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            # A live reference runs through the same layers, without a gradient.
            if states.requires_grad:
                states.register_hook(lambda gradient: gradients.__setitem__(place, gradient.detach().clone()))

        return hook

    handles = [
        layer.register_forward_hook(watch(place)) for place, layer in enumerate(attention_layers(model))
    ]
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _pushed(model: PeftModel, push: dict[int, Tensor]) -> Iterator[None]:
    """Add a fixed tensor to each attention layer's output."""

    def add(place: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not torch.is_grad_enabled():
                return output
            if isinstance(output, tuple):
                return (output[0] + push[place], *output[1:])
            return output + push[place]

        return hook

    handles = [layer.register_forward_hook(add(place)) for place, layer in enumerate(attention_layers(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
