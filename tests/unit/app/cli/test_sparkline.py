"""A curve in one line."""

import pytest

from app.cli.sparkline import sparkline


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 10, ""),
        ([0.0, 0.125, 0.5, 0.99, 1.0], 10, "▁▂▅██"),
        ([0.0, 1.0, 0.0, 0.0], 2, "█▁"),
        ([0.0, None, None, 1.0], 2, "▁█"),
        ([None, 0.0], 2, " ▁"),
        ([float("nan"), 1.5, -0.1, 0.0], 4, "!!!▁"),
        ([0.0] * 7, 3, "▁▁▁"),
    ],
)
def test_each_block_shows_the_highest_value_that_it_covers(
    values: list[float | None], width: int, drawn: str
) -> None:
    assert sparkline(values, width) == drawn


def test_a_spike_of_one_step_in_thousands_is_seen() -> None:
    values = [0.0] * 5000
    values[3333] = 1.0
    assert sparkline(values, 60).count("█") == 1
