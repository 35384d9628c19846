"""The speed benchmark on a model of a few thousand weights: that it runs from end to end, not what it finds."""

import json

import pytest
import torch

from benchmarks.speed import figures, ours, results, trl_peer
from benchmarks.speed.equality import Unequal, compare
from benchmarks.speed.memory import measure_peak
from benchmarks.speed.ours import Gradients
from benchmarks.speed.shapes import BATCH_SIZE, RESPONSE_TOKENS, Shape, fixed_rows, mixed_rows

TINY = Shape(hidden=32, layers=2, ffn=64, heads=2, vocabulary=97)
PLAN = figures.Plan(
    shapes=(TINY,),
    rounds=1,
    fixed_batches=2,
    mixed_batches=1,
    prompt=12,
    response=10,
    mixed_shapes=(TINY,),
    replies=True,
    memory=False,
    whole=False,
    threads=1,
)


@pytest.fixture(scope="module")
def found():
    """Every figure of the tiny plan, without TRL, which the development environment does not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_peer, "find_spec", lambda name: None)
        # Replies are written token by token, and few of them show as much as many.
        patch.setattr(ours, "ANCHORS", 16)
        return list(figures.measure(PLAN, lambda text: None))


def test_every_figure_is_measured_or_says_why_not(found):
    assert len({figure.name for figure in found}) == len(found)
    for figure in found:
        measured_against_trl = "_trl_" in figure.name
        assert bool(figure.values) is not measured_against_trl, figure.name
        assert all(value > 0 for value in figure.values), figure.name
        if measured_against_trl:
            assert "TRL is not installed" in figure.note


def test_rows_on_disk_have_the_fields_and_the_table_has_the_rows(found, tmp_path):
    rows = results.to_rows(found, results.describe_machine(), results.describe_versions(), "quick")
    results.write(tmp_path, rows)
    read = json.loads((tmp_path / results.JSON_FILE).read_text())
    assert read == rows
    assert all({"name", "value", "unit", "bar", "machine", "versions"} <= row.keys() for row in read)
    table = (tmp_path / results.MARKDOWN_FILE).read_text()
    assert all(figure.title in table for figure in found)


def test_rows_of_a_gpu_outlive_a_run_without_one(tmp_path):
    figure = results.Figure("speed", "GPU", "tokens a second", (3.0, 1.0, 2.0), bar=1.5)
    cpu = results.describe_machine() | {"device": "cpu"}
    gpu = cpu | {"device": "a GPU"}
    results.write(tmp_path, results.to_rows([figure], gpu, {}, "full"))
    results.write(tmp_path, results.to_rows([figure], cpu, {}, "full"))
    results.write(tmp_path, results.to_rows([figure], cpu, {}, "full"))
    read = json.loads((tmp_path / results.JSON_FILE).read_text())
    assert [row["machine"]["device"] for row in read] == ["cpu", "a GPU"]
    assert [(row["value"], row["low"], row["high"], results.holds(row)) for row in read] == [
        (2.0, 1.0, 3.0, False)
    ] * 2


def test_rows_of_one_length_and_of_mixed_ones(found):
    fixed = fixed_rows(3, 97, prompt=4, response=5)
    assert [(len(row.input_ids), row.loss_tokens, row.prompt_ends) for row in fixed] == [(9, 5, (3,))] * 3
    mixed = mixed_rows(4 * BATCH_SIZE, 4096)
    assert mixed == mixed_rows(4 * BATCH_SIZE, 4096)
    lengths = [len(row.input_ids) for row in mixed]
    padded = sum(
        BATCH_SIZE * max(lengths[start : start + BATCH_SIZE]) for start in range(0, len(lengths), BATCH_SIZE)
    )
    assert padded < 1.02 * sum(lengths), "a peer that groups by length has almost nothing to pad"
    assert max(lengths) > 3 * min(lengths)
    tokens = [token for row in mixed for token in row.input_ids]
    assert min(tokens) == 2 and max(tokens) < 4096
    assert 0.05 < tokens.count(2) / len(tokens) < 0.2, "the first word has about a tenth under Zipf's law"


@pytest.mark.parametrize(
    ("loss", "gradient"), [(1.0, 1.01), (1.01, 1.0), (1.0, float("nan"))], ids=["gradient", "loss", "nan"]
)
def test_unequal_contenders_are_not_timed(loss, gradient, monkeypatch):
    expected = Gradients(1.0, {"a": torch.ones(3)})
    other = Gradients(loss, {"a": torch.full((3,), gradient)})
    assert not compare(other, expected) <= 1e-3
    monkeypatch.setattr(figures, "check_all", lambda *_: _raise(Unequal("they differ")))
    with pytest.raises(Unequal):
        next(figures.measure(PLAN, lambda text: None))


def test_a_peak_is_that_of_the_run():
    wide = TINY._replace(hidden=256, ffn=1024, vocabulary=4096)
    found = measure_peak("adaptive", wide, prompt=64, response=RESPONSE_TOKENS, rows=BATCH_SIZE, threads=1)
    weights = 4 * 2 * wide.vocabulary * wide.hidden
    assert found.peak - found.before > weights


def _raise(error):
    raise error


def test_what_another_machine_measured_stands_under_its_own_name(tmp_path):
    figure = results.Figure("speed", "CPU", "time", (1.0,))
    other = results.Figure("speed_again", "CPU", "time", (2.0,))
    here = results.describe_machine() | {"device": "cpu", "cpu": "one"}
    results.write(tmp_path, results.to_rows([figure], here, {}, "full"))
    results.write(tmp_path, results.to_rows([other], here | {"cpu": "two"}, {}, "full"))
    headings = [
        line.split(",")[0]
        for line in (tmp_path / results.MARKDOWN_FILE).read_text().splitlines()
        if line.startswith("## ")
    ]
    assert headings == ["## two", "## one"]
