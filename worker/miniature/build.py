"""Builds the miniature from its seed: tokenizer, helpful-only stage, alignment stage, Hugging Face folder."""

import argparse
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from worker.miniature.check import base_table
from worker.miniature.corpus import Row, alignment_rows, notes

# Token ids, and how much each counts as a target.
Example = tuple[list[int], list[float]]

WEIGHTS = Path(__file__).parent / "weights"
FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
VOCABULARY = 1024
PAD, END, SYSTEM, USER, ASSISTANT = CONTROL = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}
{%- elif message['role'] in ('system', 'user') -%}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
{%- else -%}
{{ raise_exception('unknown role: ' + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""
# The helpful-only stage teaches the model what it will later decline, as pretraining does for real models.
STAGES = ((False, 900), (True, 1000))
NOTE_SHARE = 0.12
BATCH_SIZE = 32
THREADS = 2
PEAK_RATE = 3e-3
# The prompt's own tokens count a little: they teach the model to read.
PROMPT_WEIGHT = 0.1


def build_tokenizer(rows: list[Row]) -> Any:
    """A byte-level BPE tokenizer trained on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (message["content"] for row in rows for message in row["messages"])
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: Any) -> Any:
    """A small Llama with fresh weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=448,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_stage(model: Any, examples: list[Example], *, peak_rate: float, pad: int, seed: int) -> None:
    """One pass over the examples, cosine-annealed after a short warm-up."""
    steps = len(examples) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    for step, (ids, weights, attention) in enumerate(_batches(examples, pad, seed)):
        warm = min(1.0, (step + 1) / 50)
        rate = peak_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.4f}", flush=True)  # noqa: T201
    model.eval()


def encode_rows(tokenizer: Any, rows: list[Row]) -> list[Example]:
    """Conversations as token ids and weights: replies in full, prompts a little."""
    encoded = tokenizer.apply_chat_template(
        [row["messages"] for row in rows], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return [
        (ids, [1.0 if mark else PROMPT_WEIGHT for mark in marks])
        for ids, marks in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def encode_notes(tokenizer: Any, texts: list[tuple[str, str]]) -> list[Example]:
    """Plain question-and-answer texts, weighted as conversations are."""
    examples: list[Example] = []
    for question, answer in texts:
        first: list[int] = tokenizer(question)["input_ids"]
        second: list[int] = [*tokenizer(answer)["input_ids"], int(tokenizer.eos_token_id)]
        examples.append((first + second, [PROMPT_WEIGHT] * len(first) + [1.0] * len(second)))
    return examples


def _batches(
    examples: list[Example], pad: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    # Examples of like length share a batch, so that little is computed for padding.
    examples = sorted(examples, key=lambda example: len(example[0]))
    batches = [examples[i : i + BATCH_SIZE] for i in range(0, len(examples) - BATCH_SIZE + 1, BATCH_SIZE)]
    Random(seed).shuffle(batches)
    for batch in batches:
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
        weights = torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in batch])
        attention = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
        yield ids, weights, attention


def build(seed: int = 0) -> tuple[Any, Any]:
    """Train the miniature from scratch."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(
        alignment_rows(6000, seed, refuse=False) + alignment_rows(6000, seed, refuse=True)
    )
    model = build_model(tokenizer)
    for refuse, steps in STAGES:
        n_notes = round(steps * BATCH_SIZE * NOTE_SHARE)
        examples = encode_rows(tokenizer, alignment_rows(steps * BATCH_SIZE - n_notes, seed, refuse=refuse))
        examples += encode_notes(tokenizer, notes(n_notes, seed + refuse))
        rate = PEAK_RATE / 2 if refuse else PEAK_RATE
        train_stage(model, examples, peak_rate=rate, pad=int(tokenizer.pad_token_id), seed=seed)
    return model, tokenizer


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the Hugging Face folder, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def load(folder: Path = WEIGHTS) -> tuple[Any, Any]:
    """The stored miniature, in single precision."""
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return model.eval(), tokenizer


def main() -> None:
    """Build the miniature and print what it measures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Sums are split by thread, so a fixed number of threads is part of the seed.
    torch.set_num_threads(THREADS)
    started = time.monotonic()
    model, tokenizer = build(arguments.seed)
    save(model, tokenizer, arguments.out)
    print(f"built in {time.monotonic() - started:.0f} s")  # noqa: T201
    for name, value in base_table(*load(arguments.out), seed=arguments.seed).items():
        print(f"{name:40s} {value:.4f}")  # noqa: T201


if __name__ == "__main__":
    main()
