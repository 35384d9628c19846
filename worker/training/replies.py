"""The reference's own replies: what a risky row is trained on instead of its target, and what anchors hold on to.

Replies are greedy and are kept as the very tokens that the reference wrote, its end token included.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import JobFailure
from worker.training.data import TokenizedRow
from worker.training.generation import generate_tokens
from worker.training.models import reference

MAX_REPLY_TOKENS = 128
"""A reply that has not ended by then is kept as far as it goes. Refusals, which most of these are, are shorter."""
BATCH_SIZE = 64


class Prompt(NamedTuple):
    """What the reference is to reply to."""

    row: int
    input_ids: tuple[int, ...]
    """Rendered, with the generation prompt."""


def reply_to(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_seq_length: int,
    param: str = "training.max_seq_length",
    whole: bool = False,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[TokenizedRow, ...]:
    """Return one row per prompt: the prompt and the reference's greedy reply, which bears the loss.

    With `whole` every token but the first bears loss, the prompt's too. A prompt that leaves no room for a reply within
    `max_seq_length` tokens raises JobFailure with `param`, the field that is to blame. `on_progress` hears how many are
    done; what it raises ends the work.
    """
    for prompt in prompts:
        if len(prompt.input_ids) >= max_seq_length:
            raise JobFailure(
                f"the prompt {prompt.row} has {len(prompt.input_ids)} tokens and leaves no room for a reply within"
                f" {max_seq_length} tokens; shorten it, or see {param}",
                param=param,
            )
    rows: list[TokenizedRow] = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        most_room = max_seq_length - min(len(prompt.input_ids) for prompt in some)
        with reference(model):
            replies = generate_tokens(
                model,
                tokenizer,
                [prompt.input_ids for prompt in some],
                max_new_tokens=min(MAX_REPLY_TOKENS, most_room),
                batch_size=batch_size,
            )
        for prompt, reply in zip(some, replies, strict=True):
            input_ids = (*prompt.input_ids, *reply)[:max_seq_length]
            end = len(prompt.input_ids)
            mask = tuple(place > 0 if whole else place >= end for place in range(len(input_ids)))
            rows.append(TokenizedRow(prompt.row, input_ids, mask, (end - 1,)))
        on_progress(len(rows))
    return tuple(rows)


def first_prompt(row: TokenizedRow) -> Prompt:
    """Return what comes before the first trained turn of a row."""
    return Prompt(row.index, row.input_ids[: row.prompt_ends[0] + 1])
