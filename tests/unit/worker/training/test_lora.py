"""The lean LoRA layer against PEFT's own, and when it stands aside."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.utils import get_peft_model_state_dict
from torch import nn

from worker.training.lora import lean_linear, use_lean_lora
from worker.training.models import reference, trainable_parameters

TOKENS = torch.arange(65, 75).view(2, 5)


def run(model, tokens=TOKENS):
    """Logits, and the adapter's gradients of a random function of them."""
    model.zero_grad()
    logits = model(tokens, use_cache=False).logits
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (logits * weight.to(logits.dtype)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in trainable_parameters(model).items()}
    assert all(gradient is not None for gradient in gradients.values())
    return logits.detach(), gradients


def is_lean(model):
    """Whether the first adapted layer's result comes from the lean function."""
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    found = layer(torch.randn(2, layer.in_features))
    return found.grad_fn is not None and found.grad_fn.name() == "_LeanLinearBackward"


def adapted(base, **changes):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(base, LoraConfig(**{**settings, **changes}))
    generator = torch.Generator().manual_seed(11)
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 6e-2)]
)
def test_it_equals_peft_in_value_and_gradients(make_model, dtype, tolerance):
    model = make_model(dtype, drift=0.1)
    expected_logits, expected = run(model)
    with use_lean_lora(model):
        logits, gradients = run(model)
    assert logits.dtype == dtype
    assert (logits - expected_logits).norm() <= tolerance * expected_logits.norm()
    for name, gradient in gradients.items():
        assert gradient.dtype == expected[name].dtype
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (0, 7)])
def test_its_gradients_are_those_of_finite_differences(bias, shape):
    generator = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, a, b = (tensor.requires_grad_() for tensor in (draw(*shape), draw(2, 7), draw(5, 2)))
    weight, offset = draw(5, 7), draw(5) if bias else None
    found = lean_linear(x, weight, offset, a, b, 1.5)
    expected = x @ weight.T + 1.5 * (x @ a.T @ b.T) + (0.0 if offset is None else offset)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda x, a, b: lean_linear(x, weight, offset, a, b, 1.5), (x, a, b))


def test_no_gradient_is_computed_for_an_input_that_needs_none():
    a, b = torch.randn(2, 7, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    x = torch.randn(3, 7)
    lean_linear(x, torch.randn(5, 7), None, a, b, 1.0).sum().backward()
    assert x.grad is None
    assert a.grad.shape == a.shape
    assert b.grad.shape == b.shape


def test_the_reference_is_still_the_base_bit_for_bit(make_base, make_model):
    model = make_model(drift=0.1)
    expected = make_base()(TOKENS, use_cache=False).logits
    with use_lean_lora(model), reference(model):
        assert not is_lean(model)
        assert torch.equal(model(TOKENS, use_cache=False).logits, expected)


def test_names_and_saved_tensors_do_not_change_and_it_can_be_undone(make_model):
    model = make_model(drift=0.1)
    names = [name for name, _ in model.named_modules()], list(model.state_dict())
    saved = get_peft_model_state_dict(model)
    assert not is_lean(model)
    with use_lean_lora(model), use_lean_lora(model):
        assert ([name for name, _ in model.named_modules()], list(model.state_dict())) == names
        again = get_peft_model_state_dict(model)
        assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())
        assert is_lean(model)
    assert not is_lean(model)
    assert not any("forward" in vars(module) for module in model.modules())


def with_dropout(base):
    return adapted(base, lora_dropout=0.5).train()


def with_dora(base):
    return adapted(base, use_dora=True)


def merged(base):
    model = adapted(base)
    model.merge_adapter()
    return model


def with_two_adapters(base):
    model = adapted(base)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    return model


def with_a_bias_of_its_own(base):
    base.model.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.ones(32))
    return adapted(base, target_modules=["model.layers.0.self_attn.q_proj"], lora_bias=True)


def with_a_trained_base(base):
    model = adapted(base)
    for name, parameter in model.named_parameters():
        if "base_layer" in name:
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    "make",
    [with_dropout, with_dora, merged, with_two_adapters, with_a_bias_of_its_own, with_a_trained_base],
)
def test_a_layer_that_is_not_plain_runs_peft_s_own_forward(make_base, make):
    model = make(make_base())
    torch.manual_seed(3)
    expected = model(TOKENS, use_cache=False).logits
    with use_lean_lora(model):
        torch.manual_seed(3)
        assert torch.equal(model(TOKENS, use_cache=False).logits, expected)
        assert not is_lean(model)


def test_hooks_on_the_parts_of_a_layer_are_called(make_model):
    model = make_model(drift=0.1)
    assert isinstance(model, PeftModel)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    seen = []
    handle = layer.lora_B["default"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with use_lean_lora(model):
        model(TOKENS, use_cache=False)
        assert [tensor.shape for tensor in seen] == [(2, 5, 4)]
        handle.remove()
        model(TOKENS, use_cache=False)
    assert len(seen) == 1
