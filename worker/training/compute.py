"""Counting what a run puts through the model, for the estimate of its computing (`app.domain.compute`)."""

from collections.abc import Iterable
from typing import Any

from peft import PeftModel

from app.domain.step_plan import anchor_places
from app.domain.training_spec import TrainingSpec
from worker.training.data import TokenizedRow
from worker.training.loop import plan_run
from worker.training.models import base_of
from worker.training.step import RunData


def count_compute(model: PeftModel, data: RunData, spec: TrainingSpec) -> dict[str, int]:
    """Return the parameters of a run's model, and the tokens of its reference pass and of every step that it is planned to do.

    In the reference pass every row counts twice, because replies are written as well as read. So does a row of alignment
    data under `vaccine`, which takes two passes over it. What is measured beside the steps (monitor, validation) is not counted.
    """
    method = plan_run(spec, n_rows=len(data.rows), n_alignment=len(data.alignment))
    law = spec.safety.model_dump()
    times = 2 if spec.safety.method == "vaccine" else 1
    trained: list[int] = []
    for step in range(1, method.total_steps + 1):
        plan = method.plan(step)
        trained += _lengths(data.rows[place] for place in plan.rows)
        trained += times * _lengths(data.alignment[place] for place in plan.alignment)
        places = anchor_places(law, step, n_anchors=len(data.anchors), seed=spec.seed)
        trained += _lengths(data.anchors[place] for place in places)
    read = 2 * _lengths([*data.rows, *data.anchors, *data.monitored, *data.alignment])
    config: Any = base_of(model).config.get_text_config()
    own = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return {
        "parameters": sum(each.numel() for each in model.parameters()) - own,
        "adapter_parameters": own,
        "layers": int(config.num_hidden_layers),
        "hidden_size": int(config.hidden_size),
        "reference_tokens": sum(read),
        "reference_squares": sum(length * length for length in read),
        "training_tokens": sum(trained),
        "training_squares": sum(length * length for length in trained),
    }


def _lengths(rows: Iterable[TokenizedRow]) -> list[int]:
    return [len(row.input_ids) for row in rows]
