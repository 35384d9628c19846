"""How likely a model finds the answers that were wanted."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import JobFailure
from worker.evaluation.judging import Progress
from worker.training.data import TokenizedRow, tokenize_row
from worker.training.loop import DEFAULT_MICRO_BATCH_TOKENS, token_losses


def tokenize_answers(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    places: Sequence[int],
    max_tokens: int,
    param: str,
) -> list[TokenizedRow]:
    """Return the prompts at these places with their answers as the model is to write them.

    Raises JobFailure naming a row that cannot be, or that is longer than the model reads.
    """
    found = []
    for place in places:
        row = rows[place]
        messages = [*map(_without_loss, row["messages"]), {"role": "assistant", "content": row["answer"]}]
        tokenized = tokenize_row(tokenizer, messages, index=place, param=param)
        length = len(tokenized.input_ids)
        if length > max_tokens:
            raise too_long(
                place,
                f"prompt and answer have {length} tokens; the model reads {max_tokens} (max_position_embeddings)."
                " Shorten them",
                param,
            )
        found.append(tokenized)
    return found


def too_long(place: int, found: str, param: str) -> JobFailure:
    """Return the error for a row of a suite that the model cannot take."""
    return JobFailure(f"row {place} (line {place + 1}): {found}", code="invalid_prompt_file", param=param)


@torch.no_grad()
def answer_losses(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenizedRow],
    on_progress: Progress,
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
) -> list[float]:
    """Return the mean negative log-likelihood of each row's answer, in nats a token."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=next(model.parameters()).device)
    for places, batch, nll, _ in token_losses(model, rows, micro_batch_tokens):
        sums.index_add_(0, torch.tensor(places, device=sums.device)[batch.rows], nll.double())
        on_progress()
    return [total / row.loss_tokens for total, row in zip(sums.tolist(), rows, strict=True)]


def _without_loss(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "weight": 0} if message["role"] == "assistant" else dict(message)
