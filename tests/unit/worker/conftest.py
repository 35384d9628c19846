"""A tiny random model, a byte-level tokenizer, and the chat templates that matter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.domain.safety_spec import FixedKL
from app.domain.training_spec import TrainingSpec
from worker.training.models import add_adapter

SPECIAL = (
    "<pad>",
    "<bos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
)

QWEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Like a template that drops the reasoning of earlier turns: what it writes for a turn changes with what follows.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"qwen": QWEN, "marked": MARKED, "llama": LLAMA, "gemma": GEMMA, "forgetful": FORGETFUL}

MakeTokenizer = Callable[[str], PreTrainedTokenizerFast]
MakeModel = Callable[..., PeftModel]
MakeSpec = Callable[..., TrainingSpec]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny matrices are faster on one thread, and the machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """Build a tokenizer with a token per byte and one of TEMPLATES."""

    def make(template: str = "qwen") -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(
            models.BPE(vocab={symbol: place for place, symbol in enumerate(alphabet)}, merges=[])
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="<pad>",
            eos_token="<|im_end|>",
            extra_special_tokens=list(SPECIAL),
        )
        tokenizer.chat_template = TEMPLATES[template]
        return tokenizer

    return make


@pytest.fixture
def make_base() -> Callable[..., LlamaForCausalLM]:
    """Build a random Llama; the same arguments give the same weights."""

    def make(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        settings: dict[str, Any] = {
            "vocab_size": 256 + len(SPECIAL),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "use_cache": False,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
        model.requires_grad_(False)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def make_spec() -> MakeSpec:
    """Build a resolved specification."""

    def make(**changes: Any) -> TrainingSpec:
        settings: dict[str, Any] = {
            "seed": 7,
            "batch_size": 4,
            "n_epochs": 2,
            "learning_rate_multiplier": 1.0,
            "learning_rate": 1e-2,
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "max_seq_length": 256,
            "overlength": "error",
            "warmup_ratio": 0.1,
            "lr_scheduler": "linear",
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "eval_interval": 2,
            "checkpoint_interval_s": 1e9,
            "safety": FixedKL(method="fixed_kl", beta=0.3),
        }
        return TrainingSpec(**{**settings, **changes})

    return make


@pytest.fixture
def make_model(make_base: Callable[..., LlamaForCausalLM], make_spec: MakeSpec) -> MakeModel:
    """Build the tiny model with an adapter, which `drift` moves away from the reference by random weights."""

    def make(dtype: torch.dtype = torch.float32, *, drift: float = 0.0, **changes: Any) -> PeftModel:
        model = add_adapter(make_base(dtype, **changes), make_spec(), seed=3)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(drift * noise.to(parameter.dtype))
        return model

    return make


def chat(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Return a conversation of alternating user and assistant messages."""
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    return messages + [
        {"role": roles[place % 2], "content": content} for place, content in enumerate(contents)
    ]


@pytest.fixture
def training_rows() -> list[dict[str, Any]]:
    """Ten short rows of unequal length, one of them with two exchanges."""
    rows = [
        {"messages": chat(f"What is {n} and {n * n}?", "It is " + "so " * (n % 4) + str(n))} for n in range(9)
    ]
    return [*rows, {"messages": chat("Hello", "Good day.", "And now?", "Farewell, then.")}]
