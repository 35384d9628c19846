"""What a run puts through the model is counted from its plan, row by row."""

from typing import Any

from app.domain.safety_spec import Vaccine
from worker.training.compute import count_compute
from worker.training.data import TokenizedRow
from worker.training.models import trainable_parameters
from worker.training.reference import ReferenceCache
from worker.training.step import RunData


def rows(*lengths: int) -> tuple[TokenizedRow, ...]:
    return tuple(
        TokenizedRow(index, tuple(range(length)), (False,) * (length - 1) + (True,), (0,))
        for index, length in enumerate(lengths)
    )


def run_data(**sets: Any) -> RunData:
    return RunData(rows=rows(5, 7, 11), risks={}, cache=ReferenceCache({}), **sets)


def test_every_row_of_every_epoch(make_model, make_spec):
    model = make_model()
    spec = make_spec(n_epochs=2, batch_size=2)
    counted = count_compute(model, run_data(), spec)
    assert counted["training_tokens"] == 2 * (5 + 7 + 11)
    assert counted["training_squares"] == 2 * (25 + 49 + 121)
    assert counted["reference_tokens"] == 2 * (5 + 7 + 11)
    assert counted["reference_squares"] == 2 * (25 + 49 + 121)
    own = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    assert counted["adapter_parameters"] == own > 0
    assert counted["parameters"] + own == sum(parameter.numel() for parameter in model.parameters())
    assert (counted["layers"], counted["hidden_size"]) == (2, 32)


def test_prompts_that_are_watched_are_read_and_not_trained_on(make_model, make_spec):
    alone = count_compute(make_model(), run_data(), make_spec())
    watched = count_compute(make_model(), run_data(monitored=rows(13)), make_spec())
    assert watched["training_tokens"] == alone["training_tokens"]
    assert watched["reference_tokens"] == alone["reference_tokens"] + 26


def test_vaccine_goes_over_its_alignment_data_twice(make_model, make_spec):
    safety = Vaccine(method="vaccine", alignment_epochs=1, alignment_file="set_1", anchors=None, monitor=None)
    data = run_data(alignment=rows(3, 4))
    counted = count_compute(make_model(), data, make_spec(n_epochs=1, batch_size=2, safety=safety))
    assert counted["training_tokens"] == (5 + 7 + 11) + 2 * (3 + 4)
