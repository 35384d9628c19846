"""Each family of models through everything that a job does: load, train, resume, export, and load with plain PEFT."""

import warnings

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from worker.training.adapter import export_adapter
from worker.training.checkpoint import load_checkpoint
from worker.training.data import tokenize_rows
from worker.training.loop import fit
from worker.training.models import (
    add_adapter,
    can_pack,
    final_states,
    full_logits,
    head_is_separable,
    load_base,
    trainable_parameters,
)
from worker.training.packing import collate
from worker.training.reference import run_reference_pass
from worker.training.step import RunData

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 259,
}
GROUPED = {"intermediate_size": 24, "num_key_value_heads": 1}
FAMILIES = {
    "llama": (LlamaConfig, GROUPED),
    "phi3": (Phi3Config, GROUPED),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen3": (Qwen3Config, {**GROUPED, "head_dim": 8}),
    "falcon": (FalconConfig, {"ffn_hidden_size": 24}),
    "falcon-alibi": (FalconConfig, {"ffn_hidden_size": 24, "alibi": True}),
    "gemma": (GemmaConfig, {**GROUPED, "head_dim": 8}),
    # The window is shorter than the rows.
    "mistral": (MistralConfig, {**GROUPED, "sliding_window": 24}),
}


class Family:
    """A base in a folder, and what the tests take from it."""

    def __init__(self, folder, spec, rows):
        self.folder, self.spec, self.rows = folder, spec, rows

    def load(self):
        return load_base(self.folder, device=CPU)

    def adapted(self):
        return add_adapter(self.load()[0], self.spec, seed=3)


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path, make_spec, make_tokenizer, training_rows):
    tokenizer = make_tokenizer()
    config_class, changes = FAMILIES[request.param]
    config = config_class(**SIZES, **changes, vocab_size=len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in base.parameters()) < 20_000
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = tokenize_rows(tokenizer, training_rows[:8], max_seq_length=256, overlength="error").rows
    return Family(
        tmp_path / "base",
        make_spec(n_epochs=1, batch_size=4, safety={"method": "fixed_kl", "beta": 0.3}),
        rows,
    )


def test_it_trains_resumes_bit_for_bit_exports_and_loads_with_plain_peft(family, tmp_path):
    model = family.adapted()
    found = run_reference_pass(model, family.rows, None, family.spec, cache_budget_bytes=10**6)
    assert head_is_separable(model)
    data = RunData(family.rows, {risk.row: risk for risk in found.risks}, found.cache)
    before = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
    records = []
    result = fit(model, data, family.spec, on_step=records.append)
    assert (result.steps, result.stopped) == (2, None)
    assert not any(record.skipped for record in records)
    assert all(
        not torch.equal(parameter, before[name]) for name, parameter in trainable_parameters(model).items()
    )

    stopped, again, written = family.adapted(), [], []
    fit(
        stopped, data, family.spec, checkpoint_folder=tmp_path / "checkpoints", on_step=again.append,
        on_checkpoint=written.append, should_stop=lambda: "preempt" if again else None,
    )  # fmt: skip
    resumed = family.adapted()
    fit(resumed, data, family.spec, resume=load_checkpoint(written[-1].info.path), on_step=again.append)
    assert again == records
    for name, parameter in trainable_parameters(resumed).items():
        assert torch.equal(parameter, trainable_parameters(model)[name]), name

    base, tokenizer = family.load()
    export_adapter(model, tokenizer, tmp_path / "adapter", base_name="tiny", base_digest="00")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    tokens = torch.tensor([family.rows[0].input_ids])
    assert torch.equal(loaded(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)
    assert not torch.equal(loaded(tokens, use_cache=False).logits, family.load()[0](tokens).logits)


def test_packed_rows_are_trained_on_as_each_alone(family, request):
    model = family.adapted()
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    packs = can_pack(model)
    assert packs == ("falcon" not in request.node.name)

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            logits = full_logits(model, batch)[batch.predecessors]
            torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum").backward()
        return [parameter.grad.clone() for parameter in trainable_parameters(model).values()]

    together = collate(family.rows, CPU, packed=packs)
    alone = [collate([row], CPU, packed=False) for row in family.rows]
    states = torch.cat([final_states(model, batch)[batch.predecessors] for batch in alone])
    torch.testing.assert_close(
        final_states(model, together)[together.predecessors], states, rtol=1e-4, atol=1e-5
    )
    for found, expected in zip(gradients([together]), gradients(alone), strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()
