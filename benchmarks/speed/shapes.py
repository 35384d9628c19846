"""What is measured on: a Llama with random weights, rows of fixed and of mixed lengths, and the settings of a run.

Weights and tokens come from stated seeds. Token ids follow Zipf's law, because a constant token would be kinder to
caches and softmaxes than text is. Peers get the same rows in their own form.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TokenizersBackend
from transformers.trainer_pt_utils import get_length_grouped_indices

from app.domain.safety_spec import AnySafety
from app.domain.training_spec import Hyperparameters, TrainingOptions, TrainingSpec, resolve
from worker.training.data import TokenizedRow
from worker.training.models import lora_targets

MODEL_SEED, DATA_SEED, ADAPTER_SEED = 1, 2, 3
BATCH_SIZE = 8
LORA_R, LORA_ALPHA = 16, 32
LEARNING_RATE = 1e-4
MAX_POSITIONS = 2048
PROMPT_TOKENS = RESPONSE_TOKENS = 96
SPECIAL_WORDS = ("<no word>", "<the end>")
"""Tokens 0, for padding, and 1, the end. Neither is drawn, and no text gives a word with a space in it."""

EPOCH_ROWS = 1600
"""Rows of the mixed set: as many as the length grouping of transformers' Trainer needs to work at its best."""
PROMPT_MEDIAN, RESPONSE_MEDIAN, LENGTH_SIGMA = 64, 96, 0.8
MIN_TOKENS, MAX_TOKENS = 8, 768
"""Bounds of a prompt and of a response."""
ANCHORS, ANCHOR_TOKENS = 96, 24
"""Anchor prompts of a job, and the tokens of one."""
REPLY_TOKENS = 32
"""The length of the reference's replies, which is that of a refusal. A model with random weights never ends one."""


class Shape(NamedTuple):
    """A Llama's sizes."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    vocabulary: int


def bench_shape(vocabulary: int) -> Shape:
    """Return the shape of every CPU figure. At 4,096 its head has the share of the weights that large models' have."""
    return Shape(512, 8, 1408, 8, vocabulary)


def build_model(shape: Shape) -> PreTrainedModel:
    """Return a frozen float32 Llama in eval mode; the same shape always gets the same weights."""
    config: Any = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(MODEL_SEED)
        model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    return cast(PreTrainedModel, cast(nn.Module, model).eval())


def build_peft_model(shape: Shape) -> PeftModel:
    """Return the model under PEFT's own LoRA layers, as the peers get it, with the weights of `fill_adapter`."""
    model = build_model(shape)
    config = LoraConfig(
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        bias="none",
        target_modules=lora_targets(model),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = cast(PeftModel, get_peft_model(model, config))
    fill_adapter(adapted)
    return adapted


def fill_adapter(model: PeftModel) -> None:
    """Give an adapter the weights of a run that has begun, by name.

    A fresh LoRA is zero in one of its factors: model and reference would be equal, and half of the gradients zero.
    """
    generator = torch.Generator().manual_seed(ADAPTER_SEED)
    with torch.no_grad():
        for _, parameter in sorted(trainable(model).items()):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what a run changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer of the words w2, w3, … with a plain chat template. Rows are token ids already."""
    words = [*SPECIAL_WORDS, *(f"w{token}" for token in range(len(SPECIAL_WORDS), vocabulary))]
    padding, end = SPECIAL_WORDS
    plain = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token=padding))
    plain.pre_tokenizer = WhitespaceSplit()
    tokenizer: Any = TokenizersBackend(  # type: ignore[no-untyped-call]
        tokenizer_object=plain, pad_token=padding, eos_token=end
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


def anchor_messages(count: int, vocabulary: int) -> tuple[dict[str, Any], ...]:
    """Return anchor prompts as an operator registers them, ANCHOR_TOKENS tokens each."""
    generator = np.random.default_rng(DATA_SEED + 1)
    requests = zipf_tokens(generator, count * ANCHOR_TOKENS, vocabulary).reshape(count, ANCHOR_TOKENS)
    return tuple(
        {"messages": [{"role": "user", "content": " ".join(f"w{token}" for token in request)}]}
        for request in requests
    )


def fixed_rows(
    count: int, vocabulary: int, *, prompt: int = PROMPT_TOKENS, response: int = RESPONSE_TOKENS
) -> tuple[TokenizedRow, ...]:
    """Return rows of one length."""
    return _rows([prompt] * count, [response] * count, vocabulary)


def mixed_rows(count: int, vocabulary: int) -> tuple[TokenizedRow, ...]:
    """Return rows of log-normal lengths in batches of BATCH_SIZE rows that hardly differ in length.

    An epoch of EPOCH_ROWS rows is grouped as transformers' Trainer groups them, and `count` rows are taken in whole
    batches at even quantiles of the batches' lengths: what a peer that groups by length gets from a large data set,
    with as little padding.
    """
    generator = np.random.default_rng(DATA_SEED)
    prompts, responses = (
        np.clip(generator.lognormal(np.log(median), LENGTH_SIGMA, EPOCH_ROWS), MIN_TOKENS, MAX_TOKENS)
        .astype(int)
        .tolist()
        for median in (PROMPT_MEDIAN, RESPONSE_MEDIAN)
    )
    lengths = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    order: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
        lengths, BATCH_SIZE, generator=torch.Generator().manual_seed(DATA_SEED)
    )
    batches = [order[start : start + BATCH_SIZE] for start in range(0, EPOCH_ROWS, BATCH_SIZE)]
    batches.sort(key=lambda batch: max(lengths[row] for row in batch))
    n_batches = -(-count // BATCH_SIZE)
    chosen = [batches[int((place + 0.5) / n_batches * len(batches))] for place in range(n_batches)]
    picked = [row for batch in chosen for row in batch][:count]
    return _rows([prompts[row] for row in picked], [responses[row] for row in picked], vocabulary)


def zipf_tokens(generator: np.random.Generator, count: int, vocabulary: int) -> NDArray[np.int64]:
    """Draw token ids with probability 1/rank, special tokens apart."""
    weights = 1.0 / np.arange(1, vocabulary - len(SPECIAL_WORDS) + 1)
    return len(SPECIAL_WORDS) + generator.choice(len(weights), size=count, p=weights / weights.sum())


def _rows(prompts: Sequence[int], responses: Sequence[int], vocabulary: int) -> tuple[TokenizedRow, ...]:
    generator = np.random.default_rng(DATA_SEED)
    return tuple(
        TokenizedRow(
            index,
            tuple(zipf_tokens(generator, prompt + response, vocabulary).tolist()),
            (False,) * prompt + (True,) * response,
            (prompt - 1,),
        )
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    )


def build_spec(
    shape: Shape,
    safety: AnySafety,
    *,
    rows: int,
    n_epochs: int,
    batch_size: int = BATCH_SIZE,
    threshold: float = 0.5,
    max_grad_norm: float = 1.0,
) -> TrainingSpec:
    """Return a job's specification. `threshold` is the s that an automatic one stands for."""
    return resolve(
        hyperparameters=Hyperparameters(batch_size=batch_size, n_epochs=n_epochs),
        options=TrainingOptions(
            lora_r=LORA_R, lora_alpha=LORA_ALPHA, learning_rate=LEARNING_RATE, max_grad_norm=max_grad_norm
        ),
        safety=safety,
        seed=0,
        rows=rows,
        hidden_size=shape.hidden,
        max_position_embeddings=MAX_POSITIONS,
        critic_threshold=threshold,
    )
