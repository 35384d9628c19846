"""How work with a model says that it gets somewhere, and in what portions the model is given its rows."""

from typing import Any

from transformers import PreTrainedModel

from worker.context import Context
from worker.training.loop import DEFAULT_MICRO_BATCH_TOKENS
from worker.training.models import decoder_of


def mark_forwards(context: Context, model: PreTrainedModel) -> None:
    """Let every pass through the model mark progress: of a micro-batch, whatever it is for, or of one more token."""

    def mark(*_: Any) -> None:
        context.lease.mark_progress()

    decoder_of(model).register_forward_pre_hook(mark)


def micro_batch_tokens(context: Context) -> int:
    """Return how many tokens go through the model at once, padding included; fewer after memory has run out."""
    return max(1, DEFAULT_MICRO_BATCH_TOKENS // context.split)
