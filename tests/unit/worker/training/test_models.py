"""Loading, the adapter, and the reference."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface, FalconConfig, FalconForCausalLM, Gemma2Config, Gemma2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from app.errors import InvalidBaseModel
from worker.training.attention import IMPLEMENTATION
from worker.training.data import TokenizedRow
from worker.training.models import (
    add_adapter,
    apply_head,
    can_pack,
    environment,
    final_states,
    full_logits,
    head_is_separable,
    layer_states,
    load_base,
    lora_targets,
    reference,
    set_determinism,
    template_digest,
    trainable_parameters,
)
from worker.training.packing import collate

CPU = torch.device("cpu")
TOKENS = collate([TokenizedRow(0, (65, 66, 67, 68, 69), (False,) * 5, ())], CPU, packed=False)


@pytest.fixture
def base_folder(tmp_path, make_base, make_tokenizer):
    make_base(torch.bfloat16).save_pretrained(tmp_path / "base")
    make_tokenizer("qwen").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_load_base_states_its_dtype_and_uses_no_cache(base_folder, make_tokenizer):
    model, tokenizer = load_base(base_folder, device=CPU)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert template_digest(tokenizer) == template_digest(make_tokenizer("qwen"))
    assert load_base(base_folder, device=CPU, dtype=torch.float64)[0].dtype == torch.float64


def test_load_base_refuses_what_is_not_a_model(tmp_path, base_folder):
    with pytest.raises(InvalidBaseModel, match=r"has no config.json"):
        load_base(tmp_path / "nothing", device=CPU)
    (base_folder / "model.safetensors").rename(base_folder / "pytorch_model.bin")
    with pytest.raises(InvalidBaseModel, match="could not be loaded"):
        load_base(base_folder, device=CPU)


def test_load_base_runs_no_code_of_the_folder(base_folder):
    config = json.loads((base_folder / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (base_folder / "config.json").write_text(json.dumps(config))
    (base_folder / "mine.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(InvalidBaseModel, match="auto_map: this key makes the loader run code"):
        load_base(base_folder, device=CPU)


def test_load_base_demands_a_chat_template(base_folder):
    (base_folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidBaseModel, match="no chat template"):
        load_base(base_folder, device=CPU)


def test_the_adapter_is_on_every_linear_layer_of_the_blocks_by_short_name(make_base):
    expected = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert lora_targets(make_base()) == expected


def test_the_adapter_is_float32_without_bias_on_a_bfloat16_base(make_base, make_spec):
    model = add_adapter(make_base(torch.bfloat16), make_spec(), seed=3)
    parameters = trainable_parameters(model)
    assert len(parameters) == 2 * 7 * 2
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert all("lora_" in name for name in parameters)
    assert model.get_base_model().dtype == torch.bfloat16


def test_the_adapter_is_a_pure_function_of_its_seed(make_base, make_spec):
    def weights(seed):
        return [p.clone() for p in trainable_parameters(add_adapter(make_base(), make_spec(), seed)).values()]

    torch.manual_seed(1)
    first = weights(3)
    before = torch.get_rng_state()
    second = weights(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(4), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_off_is_the_base_bit_for_bit(make_base, make_model, dtype):
    model = make_model(dtype, drift=0.1)
    trainable = set(trainable_parameters(model))
    base = full_logits(make_base(dtype), TOKENS)
    with reference(model):
        found = full_logits(model, TOKENS)
        assert not found.requires_grad
    assert torch.equal(found, base)
    assert not torch.equal(full_logits(model, TOKENS), base)
    assert set(trainable_parameters(model)) == trainable
    assert not model.training


def test_a_bare_base_is_its_own_reference(make_base):
    with reference(make_base()):
        assert not torch.is_grad_enabled()


def test_a_llama_head_is_separable_and_equal(make_model):
    model = make_model(drift=0.1)
    assert head_is_separable(model)
    assert torch.equal(apply_head(model, final_states(model, TOKENS)), full_logits(model, TOKENS))


@pytest.mark.parametrize("packed", [False, True])
def test_layer_states_are_those_of_transformers_flattened(make_model, packed):
    model = make_model(drift=0.1)
    rows = [TokenizedRow(0, (65, 66, 67), (False,) * 3, ()), TokenizedRow(1, (70, 71), (False,) * 2, ())]
    batch = collate(rows, CPU, packed=packed)
    final, layers = layer_states(model, batch)
    assert torch.equal(final, final_states(model, batch))
    assert torch.equal(final, layers[-1])
    assert final.shape == (batch.input_ids.numel(), 32)
    for row, start in zip(rows, batch.starts, strict=True):
        output = model(torch.tensor([row.input_ids]), use_cache=False, output_hidden_states=True)
        for found, expected in zip(layers, output.hidden_states[1:], strict=True):
            torch.testing.assert_close(found[start : start + len(row.input_ids)], expected[0])


def test_a_cap_on_the_logits_is_noticed():
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0,
    )  # fmt: skip
    assert not head_is_separable(Gemma2ForCausalLM(config).eval())
    config.final_logit_softcapping = None
    assert head_is_separable(Gemma2ForCausalLM(config).eval())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_llama_can_be_packed(make_model, dtype):
    assert can_pack(make_model(dtype, drift=0.1))


def small(config_class, **changes):
    return config_class(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, attn_implementation="sdpa",
        pad_token_id=0, bos_token_id=0, eos_token_id=0, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("alibi", [False, True])
def test_attention_of_a_model_s_own_is_noticed(alibi):
    model = FalconForCausalLM(small(FalconConfig, alibi=alibi)).eval()
    assert not can_pack(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_looks_across_rows_is_noticed(make_model, monkeypatch):
    def across(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    model = make_model(drift=0.1)
    monkeypatch.setitem(AttentionInterface._global_mapping, IMPLEMENTATION, across)
    assert not can_pack(model)


def test_a_model_that_mixes_positions_by_other_means_is_noticed(make_base):
    model = make_base()
    mix = nn.Conv1d(32, 32, 3, padding=2).requires_grad_(False)

    def blend(_module, _inputs, output):
        return output + mix(output.transpose(1, 2))[..., :-2].transpose(1, 2)

    model.model.layers[0].mlp.register_forward_hook(blend)
    assert not can_pack(model)


def test_determinism_seeds_every_generator():
    def draw():
        set_determinism(4)
        return torch.rand(1).item(), np.random.rand()

    try:
        assert draw() == draw()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_environment_names_what_bits_depend_on():
    found = environment(CPU)
    assert found["device"] == "cpu"
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["threads"] == 1
    assert "scikit_learn" in found
