"""The published loop of arXiv 2602.17546, written anew from its description, on our shapes.

A second whole copy of the model is the reference. Each row is a micro-step of its own, four of them an optimiser
step: the reference runs on the prompt alone, for the probe, and again on the whole row, both with the states of every
layer; where its response begins is searched for position by position; model and reference each give a log-softmax over the whole vocabulary at every position; the KL weight comes from
the probe on the mean of the prompt's states and is clipped to [0.1, 0.9]; numbers are fetched in every micro-step.
What the description leaves open is chosen in its favour: no dropout, PyTorch's own AdamW, and checkpointing, which
it uses, only where asked for.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.ours import Gradients, Timing
from benchmarks.speed.shapes import LEARNING_RATE, Shape, build_model, build_peft_model, trainable
from worker.training.data import TokenizedRow

ACCUMULATION = 4
WEIGHT_BOUNDS = (0.1, 0.9)
PROBE_UNITS = 512
OPENING_TOKENS = 4
IGNORED = -100


class PaperRun:
    """The published loop, over and over on the same model."""

    def __init__(
        self,
        shape: Shape,
        rows: Sequence[TokenizedRow],
        *,
        checkpointing: bool,
        betas: dict[int, float] | None = None,
        max_grad_norm: float = 1.0,
    ) -> None:
        """Take KL weights from `betas` by row where they are given: to compare losses, not times."""
        self._rows = rows
        self._betas = betas
        self._model: Any = build_peft_model(shape)
        self._reference: Any = build_model(shape)
        if checkpointing:
            self._model.enable_input_require_grads()
            self._model.activation_checkpointing_enable()
            # Transformers checkpoints only a model in training mode; nothing here has dropout.
            self._model.train()
        self._probe = nn.Sequential(
            nn.Linear(shape.hidden, PROBE_UNITS), nn.ReLU(), nn.Linear(PROBE_UNITS, 2)
        ).requires_grad_(False)
        self._max_grad_norm = max_grad_norm
        self._optimizer = torch.optim.AdamW(
            trainable(self._model).values(), lr=LEARNING_RATE, weight_decay=0.01
        )

    def train(self, max_steps: int | None = None) -> Timing:
        """Train once over all rows, or as far as `max_steps` optimiser steps."""
        seconds: list[float] = []
        for start in range(0, len(self._rows), ACCUMULATION)[:max_steps]:
            began = time.perf_counter()
            self._accumulate(self._rows[start : start + ACCUMULATION])
            torch.nn.utils.clip_grad_norm_(trainable(self._model).values(), self._max_grad_norm)
            self._optimizer.step()
            seconds.append(time.perf_counter() - began)
        return Timing(0.0, tuple(seconds))

    def first_gradients(self) -> Gradients:
        """Return loss and gradients of the first optimiser step, without taking it."""
        loss = self._accumulate(self._rows[:ACCUMULATION])
        found = trainable(self._model).items()
        return Gradients(loss, {name: each.grad for name, each in found if each.grad is not None})

    def _opening(self, row: TokenizedRow) -> tuple[int, ...]:
        """Return the tokens that end the prompt: what a chat template writes before a response."""
        end = row.prompt_ends[0] + 1
        return row.input_ids[max(0, end - OPENING_TOKENS) : end]

    def _accumulate(self, rows: Sequence[TokenizedRow]) -> float:
        self._optimizer.zero_grad()
        total = 0.0
        for row in rows:
            loss = self._micro_step(row) / ACCUMULATION
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here.
            total += loss.item()
        return total

    def _micro_step(self, row: TokenizedRow) -> Tensor:
        input_ids = torch.tensor([row.input_ids])
        attention_mask = torch.ones_like(input_ids)
        labels = input_ids.masked_fill(~torch.tensor([row.loss_mask]), IGNORED)
        prompt = slice(0, find_start(input_ids[0], torch.tensor(self._opening(row))))
        with torch.no_grad():
            seen = self._reference(
                input_ids=input_ids[:, prompt],
                attention_mask=attention_mask[:, prompt],
                output_hidden_states=True,
                use_cache=False,
            )
            pooled = torch.stack(seen.hidden_states).mean(dim=(0, 2))
            score = 5.0 if self._probe(pooled).argmax().item() else 1.0
            reference = self._reference(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False
            )
        output = self._model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False
        )
        log_p = torch.log_softmax(output.logits[:, :-1].float(), dim=-1)
        log_q = torch.log_softmax(reference.logits[:, :-1].float(), dim=-1)
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        mask = (labels[:, 1:] != IGNORED).float()
        mean_kl = (kl * mask).sum() / mask.sum()
        low, high = WEIGHT_BOUNDS
        weight = min(max((score - 2) / 3, low), high)
        if self._betas is not None:
            weight = self._betas[row.index]
        nll: Tensor = output.loss
        return (1 - weight) * nll + weight * mean_kl


def find_start(input_ids: Tensor, opening: Tensor) -> int:
    """Return the position after the first occurrence of `opening`, compared at each position in turn."""
    width = len(opening)
    for start in range(len(input_ids) - width + 1):
        if torch.equal(input_ids[start : start + width], opening):
            return start + width
    raise ValueError("the row does not have the tokens that end its prompt")
