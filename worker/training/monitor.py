"""The run-level monitor: how far the model has drifted from its reference on prompts that nobody trains on."""

import numpy as np
import torch
from peft import PeftModel

from worker.training.packing import collate, micro_batches
from worker.training.step import Conditions, Item, MicroBatch, micro_losses


@torch.no_grad()
def measure_drift(model: PeftModel, conditions: Conditions) -> float:
    """Return the mean KL(reference‖model), in nats a token, over the reference's replies in `conditions.data.monitored`."""
    device = next(model.parameters()).device
    rows = conditions.data.monitored
    total = torch.zeros((), dtype=torch.float64, device=device)
    lengths = [len(row.input_ids) for row in rows]
    for places in micro_batches(lengths, conditions.micro_batch_tokens, packed=conditions.packed):
        some = [rows[place] for place in places]
        batch = collate(some, device, packed=conditions.packed)
        nothing = [np.zeros(row.loss_tokens) for row in some]
        items = tuple(Item("monitor", row, none, none, None) for row, none in zip(some, nothing, strict=True))
        losses = micro_losses(model, MicroBatch(0, "forward_kl", items, batch), conditions)
        total += losses.penalty.double().sum()
    return float(total) / sum(row.loss_tokens for row in rows)
