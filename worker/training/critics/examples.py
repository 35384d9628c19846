"""The rows of a critic's data: requests alone, and replies.

A row that ends with the user is labelled by the request, one that ends with the assistant by that reply, whatever was
asked: a refusal of a harmful request is a harmless reply, and a harmful answer is harmful behind an innocent request.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import JobFailure
from worker.training.critics.features import BatchStates
from worker.training.data import TokenizedRow, render_prompt, tokenize_row
from worker.training.models import base_of, layer_states, reference, traits_of
from worker.training.packing import collate, micro_batches


class Example(NamedTuple):
    """A row of a critic's data."""

    tokens: TokenizedRow
    """With one trained turn: the last reply, or, in a request alone, the empty one that would follow."""
    label: int
    """1 where the request, or in a row with a reply the reply, is harmful."""
    group: str
    has_reply: bool
    borderline: bool
    """It looks harmful and is not, or is the harmful twin of such a row."""
    risky: int
    """1 where the row as a whole is: its label, or a request that is known to be harmful."""


class Columns(NamedTuple):
    """The examples column by column, each (n,)."""

    label: NDArray[np.int64]
    risky: NDArray[np.int64]
    group: NDArray[np.str_]
    has_reply: NDArray[np.bool_]
    borderline: NDArray[np.bool_]

    def only(self, kept: NDArray[np.bool_]) -> "Columns":
        """Return the columns of the kept rows."""
        return Columns(
            self.label[kept], self.risky[kept], self.group[kept], self.has_reply[kept], self.borderline[kept]
        )


def columns_of(examples: Sequence[Example]) -> Columns:
    """Return the columns of examples."""
    return Columns(
        np.array([example.label for example in examples], dtype=np.int64),
        np.array([example.risky for example in examples], dtype=np.int64),
        np.array([example.group for example in examples], dtype=np.str_),
        np.array([example.has_reply for example in examples], dtype=np.bool_),
        np.array([example.borderline for example in examples], dtype=np.bool_),
    )


def tokenize_examples(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Tokenize the rows of a critic's data, in order."""
    harmful_requests = {_key(row["messages"]) for row in rows if not _has_reply(row) and row["label"] == 1}
    examples = []
    for index, row in enumerate(rows):
        messages, label = row["messages"], int(row["label"])
        known_harmful = False
        if _has_reply(row):
            # Only the last reply is labelled.
            earlier = [
                {**message, "weight": 0} if message["role"] == "assistant" else message
                for message in messages[:-1]
            ]
            tokens = tokenize_row(
                tokenizer, [*earlier, {**messages[-1], "weight": 1}], index=index, param="data"
            )
            known_harmful = _key(messages[:-1]) in harmful_requests
        else:
            prompt = render_prompt(tokenizer, messages, index=index, param="data")
            tokens = TokenizedRow(index, prompt, (False,) * len(prompt), (len(prompt) - 1,))
        risky = int(label or known_harmful)
        examples.append(
            Example(tokens, label, row["group"], _has_reply(row), bool(row.get("borderline")), risky)
        )
    return examples


def check_lengths(examples: Sequence[Example], longest: int) -> None:
    """Raise JobFailure where a row is longer than the model can read: beyond its context its states mean nothing."""
    for example in examples:
        length = len(example.tokens.input_ids)
        if length > longest:
            index = example.tokens.index
            raise JobFailure(
                f"row {index} (line {index + 1}): the row has {length} tokens, more than the base model's context of"
                f" {longest} (max_position_embeddings); shorten it or leave it out",
                code="invalid_training_file",
                param="data",
            )


def read_states(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], micro_batch_tokens: int
) -> Iterator[tuple[list[int], BatchStates]]:
    """Run the reference over the examples: the places of each micro-batch's rows, and their states."""
    packed = traits_of(model).packed
    lengths = [len(example.tokens.input_ids) for example in examples]
    for places in micro_batches(lengths, micro_batch_tokens, packed=packed):
        rows = [examples[place].tokens for place in places]
        batch = collate(rows, base_of(model).device, packed=packed)
        with reference(model):
            _, layers = layer_states(model, batch)
        yield places, BatchStates(layers, rows, batch.starts)


def _has_reply(row: Mapping[str, Any]) -> bool:
    return bool(row["messages"][-1]["role"] == "assistant")


def _key(messages: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([(message["role"], message["content"]) for message in messages])
