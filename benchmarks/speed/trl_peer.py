"""TRL's SFTTrainer doing plain SFT on the same rows, as fast as it can be made on a CPU.

No checkpointing, no evaluation, logging or saving, float32, rows of like length together, loss on the response only.
Of the ways that its settings leave for the loss and the padding, the one that measures fastest is the peer of the
bars:

- `nll`: what `loss_type` nll, and its old name chunked_nll, does. Without Triton, the head runs on the prompt too.
- `padding_free`: the same with the whole batch in one row. It saves padding and pays for a mask over the batch.

Two more are not settings, but changes that somebody could make to it. They are shown beside the bars, because what
they find is waiting there for TRL too:

- `compact`: `nll` with the head on the response's positions only, as TRL itself does on a GPU.
- `logits`: the loss of transformers' own Trainer, from the model's whole logits and without TRL's metrics.
"""

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from logging import ERROR
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging

from benchmarks.speed.ours import Gradients, Timing
from benchmarks.speed.shapes import (
    BATCH_SIZE,
    LEARNING_RATE,
    Shape,
    build_peft_model,
    build_tokenizer,
    trainable,
)
from worker.training.data import TokenizedRow

Loss = Literal["nll", "padding_free", "compact", "logits"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
SETTINGS: tuple[Loss, ...] = ("nll", "padding_free")
CHANGES: tuple[Loss, ...] = ("compact", "logits")
IGNORED = -100


def why_missing() -> str | None:
    """Return why TRL cannot be measured here, or None where it can."""
    if find_spec("trl") is None:
        return "TRL is not installed; pip install --editable '.[bench]'"
    return None


class TRLRun:
    """One SFTTrainer, over and over on the same model. It takes the rows in the order given, batch by batch."""

    def __init__(
        self,
        shape: Shape,
        rows: Sequence[TokenizedRow],
        loss: Loss,
        *,
        n_epochs: int,
        max_grad_norm: float = 1.0,
    ) -> None:
        # TRL and its data sets are optional and have no types.
        trl: Any = import_module("trl")
        datasets: Any = import_module("datasets")

        class LogitsTrainer(trl.SFTTrainer):  # type: ignore[misc]
            """SFTTrainer with the loss that it had from transformers before it had its own."""

            def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
                return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, *args, **kwargs)

        self._loss = loss
        self._folder = tempfile.TemporaryDirectory()
        data = datasets.Dataset.from_dict(
            {
                "input_ids": [list(row.input_ids) for row in rows],
                "labels": [
                    [
                        token if bears else IGNORED
                        for token, bears in zip(row.input_ids, row.loss_mask, strict=True)
                    ]
                    for row in rows
                ],
            }
        )
        settings: dict[str, Any] = {
            "output_dir": self._folder.name,
            "num_train_epochs": n_epochs,
            "per_device_train_batch_size": BATCH_SIZE,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.03,
            "weight_decay": 0.0,
            "max_grad_norm": max_grad_norm,
            "optim": "adamw_torch_fused",
            "bf16": False,
            "fp16": False,
            "use_cpu": True,
            "max_length": None,
            "packing": False,
            "padding_free": loss == "padding_free",
            "loss_type": "nll",
            "completion_only_loss": False,  # The labels say it already.
            # The rows come grouped by length (`shapes.mixed_rows`); the sampler's own grouping needs more of them.
            "train_sampling_strategy": "sequential",
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "logging_strategy": "no",
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
        }
        trainer_class = LogitsTrainer if loss == "logits" else trl.SFTTrainer
        with quiet():
            config = trl.SFTConfig(**settings)
            self._trainer = trainer_class(
                model=build_peft_model(shape),
                args=config,
                train_dataset=data,
                processing_class=build_tokenizer(shape.vocabulary),
            )
        self._trainer.remove_callback(PrinterCallback)
        self._watch = _Watcher()
        self._trainer.add_callback(self._watch)

    def train(self, max_steps: int | None = None) -> Timing:
        """Train once over all epochs, or as far as `max_steps`, and time it."""
        self._trainer.args.max_steps = max_steps or -1
        self._watch.begin()
        with quiet(), compact_head(self._loss == "compact"):
            began = time.perf_counter()
            self._trainer.train()
            whole = time.perf_counter() - began
        return Timing(whole - sum(self._watch.seconds), tuple(self._watch.seconds))

    def first_gradients(self) -> Gradients:
        """Take one step and return its loss and gradients."""
        self._trainer.args.max_steps = 1
        self._watch.begin()
        with quiet(), compact_head(self._loss == "compact"):
            loss = self._trainer.train().training_loss
        return Gradients(loss, self._watch.gradients)


@contextmanager
def compact_head(is_compact: bool) -> Iterator[None]:
    """Let the trainer apply its head to the response's positions only, which it does where Triton is."""
    utils: Any = import_module("trl.trainer.utils")
    before = utils._use_triton
    if is_compact:
        utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = before


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what the trainer says about settings that were chosen here on purpose."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


class _Watcher(TrainerCallback):
    """Times each step from the end of the one before, and keeps the gradients of the last."""

    def begin(self) -> None:
        self.seconds: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        self._since = time.perf_counter()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not copied: the trainer lets go of them itself after the step.
        found = trainable(kwargs["model"]).items()
        self.gradients = {name: each.grad for name, each in found if each.grad is not None}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        self._since = now
