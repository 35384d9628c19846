"""The benchmark of the service at a size of next to nothing: that it runs from end to end, not what it finds."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.service import mlflow_history
from benchmarks.service.figures import QUICK, measure, measure_validation
from benchmarks.service.installation import Installation, running
from benchmarks.speed import results
from benchmarks.speed.results import Figure

MLFLOW = os.environ.get("TETHER_TEST_MLOPS")
TINY = QUICK._replace(
    rounds=1,
    seconds=0.1,
    connections=2,
    steps=1200,
    streams=2,
    upload_bytes=100_000,
    rows_bytes=10_000,
    ledgered_jobs=2,
    ledgered_steps=3,
)


def say(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[Installation]:
    """The server that is measured, on SQLite."""
    with running(None, max_file_bytes=1_000_000) as found:
        yield found


@pytest.fixture(scope="module")
def figures(server: Installation) -> list[Figure]:
    """Every figure of one installation."""
    return [measure_validation(TINY), *measure(TINY, server, "SQLite", say)]


def test_every_figure_is_measured(figures: list[Figure]) -> None:
    assert len({figure.name for figure in figures}) == len(figures) > 5
    for figure in figures:
        # So small an upload may need no more memory than was there.
        least = 0 if figure.name.endswith("_memory") else 1e-9
        assert figure.values, figure.name
        assert min(figure.values) >= least, figure.name


def test_table_has_every_figure_with_its_machine(figures: list[Figure], tmp_path: Path) -> None:
    rows = results.to_rows(figures, results.describe_machine(), results.describe_versions(), "quick")
    results.write(tmp_path, rows)
    assert json.loads((tmp_path / results.JSON_FILE).read_text(encoding="utf-8")) == rows
    table = (tmp_path / results.MARKDOWN_FILE).read_text(encoding="utf-8")
    assert all(figure.title in table for figure in figures)


def test_without_an_mlflow_the_comparison_says_so(server: Installation) -> None:
    (figure,) = mlflow_history.measure_mlflow(TINY, server, None, say)
    assert figure.values == ()
    assert "--mlflow" in figure.note


@pytest.mark.skipif(MLFLOW is None, reason="TETHER_TEST_MLOPS names no Python that has mlflow")
@pytest.mark.timeout(900)  # MLflow takes a while to start.
def test_comparison_with_mlflow(server: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than a page and than a batch, so that the loops are seen to end.
    monkeypatch.setattr(mlflow_history, "PAGE", 700)
    found = list(mlflow_history.measure_mlflow(TINY, server, MLFLOW, say))
    assert [len(figure.values) for figure in found] == [1] * 4
    assert all(figure.values[0] > 0 for figure in found)
