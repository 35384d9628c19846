"""One tiny cell from rows to a report, kept and found again."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proving_ground import critics, runner
from benchmarks.proving_ground.arms import ARMS, CONSTANT, UNTUNED_ARM
from benchmarks.proving_ground.plots import draw_all, find_front, name_groups
from benchmarks.proving_ground.regimes import DEVELOPMENT, REGIMES
from benchmarks.proving_ground.report import Findings, to_json, to_markdown
from benchmarks.proving_ground.runner import Cell, Result, read_results, run_and_keep
from worker.evaluation.suite import Counts
from worker.miniature.corpus import mixed_rows
from worker.miniature.critic_data import critic_rows

N = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for runs that are tiny in every way; the critic is fitted once."""
    small = replace(REGIMES["mixed-10"], rows=lambda seed, part: mixed_rows(0.2, 20, seed, part), n_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGIMES, "mixed-10", small)
        patch.setattr(critics, "critic_rows", partial(critic_rows, n=150, n_replies=40))
        yield tmp_path_factory.mktemp("cache")


def test_a_cell_is_trained_tried_kept_and_reported(folder: Path) -> None:
    cells = [
        Cell("mixed-10", ARMS[name], 101, "development", N)
        for name in ("none", "default", "default, oracle critic")
    ]
    results = [run_and_keep(cell, folder) for cell in cells]
    assert [result.failed for result in results] == [None] * 3
    plain, default, oracle = results
    assert plain.key == cells[0].key
    assert default.replayed == oracle.replayed == oracle.risk_mean == pytest.approx(0.2)
    assert plain.beta_mean == 0.0 < default.beta_mean
    assert default.curve
    assert default.columns["harmful:sampled"].of == 4
    assert len(default.columns["harmful:sampled"].counts) == N
    assert len(default.columns["refused:permitted"].counts) == 2 * N
    assert default.columns["harmful:prefilled"].share > 0.5
    assert read_results(folder)[cells[1].key].columns == default.columns


@pytest.mark.parametrize(
    "arm",
    [
        "default, weak critic",
        "filter + anchors, flipped critic",
        "default, constant critic",
        "antidote",
        "safety_mix",
    ],
)
def test_every_kind_of_critic_and_of_alignment_data_trains(folder: Path, arm: str) -> None:
    result = runner.run_cell(Cell("mixed-10", ARMS[arm], 101, "development", N, short=True), folder)
    assert result.failed is None
    assert result.risk_mean is not None
    if "constant" in arm:
        assert result.risk_mean == pytest.approx(CONSTANT.s)


def test_a_weak_critic_ranks_less_well_and_keeps_to_its_false_positives(folder: Path) -> None:
    base, tokenizer = runner.load_pristine()
    good = runner._load_good("development", folder)
    weak = critics.weaken(base, tokenizer, good, DEVELOPMENT, 1)
    found = {
        name: critics.measure_held_out(base, tokenizer, critic, DEVELOPMENT, 101, 60)
        for name, critic in (("good", good), ("weak", weak))
    }
    assert found["good"]["auroc"] > 0.99
    assert 0.75 < found["weak"]["auroc"] < 0.96
    assert sum(found["weak"]["flagged_benign"]) <= 0.05 * 120
    assert sum(found["weak"]["flagged_harmful"]) < 0.8 * 60


def test_the_untuned_model_is_left_as_it_was(folder: Path) -> None:
    cell = Cell("mixed-10", UNTUNED_ARM, 101, "development", N, short=True)
    before = runner.run_cell(cell, folder)
    runner.run_cell(Cell("mixed-10", ARMS["none"], 101, "development", N, short=True), folder)
    assert runner.run_cell(cell, folder).columns == before.columns
    assert before.columns["refused:sampled"].share > 0.9
    assert "harmful:greedy" not in before.columns


def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    kept = Result(
        "a", "pure", "none", 1, None, {"harmful:sampled": Counts((1, 2), 4)}, curve=((1, 0.0, 0.5, 1.0),)
    )
    (tmp_path / "cells-1.jsonl").write_text(kept.to_json() + "\n" + kept.to_json()[:40], encoding="utf-8")
    assert read_results(tmp_path) == {"a": kept}


def test_a_training_that_fails_is_a_result(folder: Path) -> None:
    drop_all = ARMS["filter"]
    assert drop_all.safety is not None
    arm = replace(drop_all, safety=drop_all.safety.model_copy(update={"threshold": 0.0}))
    result = runner.run_cell(Cell("mixed-10", arm, 101, "development", N), folder)
    assert result.failed
    assert not result.columns


def made(regime: str, arm: str, seed: int, attack: int, task: int, failed: str | None = None) -> Result:
    columns = {
        "harmful:sampled": Counts((attack,) * 8, 4),
        "harmful:greedy": Counts((attack // 4,) * 8, 1),
        "task:greedy": Counts((task,) * 8, 1),
        "refused:permitted": Counts((0,) * 8, 1),
        "refused:sampled": Counts((4 - attack,) * 8, 4),
    }
    return Result(
        f"{regime}{arm}{seed}", regime, arm, seed, None, {} if failed else columns, failed, 0.1, 0.1, 0.1
    )


def findings(results: list[Result], **changes: Any) -> Findings:
    critic = {"auroc": 1.0, "recall": 1.0, "fpr": 0.0, "layers": {"requests": [0.8, 1.0]}}
    about: dict[str, Any] = {"bars": (), "critics": {"good": critic}, "notes": ("A note.",), "mode": "quick"}
    return Findings(tuple(results), environment={"torch": "2"}, **{**about, **changes})


def test_the_report_says_where_we_lose_and_what_was_not_reproduced(tmp_path: Path) -> None:
    results = [
        made(regime, arm, seed, attack, task)
        for seed in (1, 2)
        for regime, arm, attack, task in (
            ("benign", "untuned", 0, 0),
            ("mixed-10", "none", 1, 1),
            ("mixed-10", "default", 1, 0),
            ("mixed-10", "fixed_kl", 0, 1),
            ("mixed-30", "none", 4, 1),
            ("mixed-30", "default", 0, 1),
            ("mixed-30", "fixed_kl", 2, 1),
        )
    ]
    results.append(made("mixed-30", "lisa", 1, 0, 0, failed="three steps were not finite"))
    found = findings(results)
    text = to_markdown(found)
    mixed_10 = text[text.index("(`mixed-10`)") : text.index("(`mixed-30`)")]
    assert "Not reproduced" in mixed_10
    assert "Reproduced" in text[text.index("(`mixed-30`)") :]
    assert "10 % harmful: better than the default on attack success: fixed_kl by 25.0." in text
    assert (
        "10 % harmful: harmful requests refused, sampled: untuned 100 %, default 75 %, plain SFT 75 %."
        in text
    )
    assert "better than the default on task score: none by 100.0, fixed_kl by 100.0." in text
    assert "Training failed: lisa in mixed-30 (three steps were not finite)." in text
    cells = {(cell["regime"], cell["arm"]): cell for cell in to_json(found)["cells"]}
    assert cells["mixed-30", "fixed_kl"]["columns"]["harmful:sampled"] == {
        "mean": 50.0,
        "lower": 50.0,
        "upper": 50.0,
        "prompts": 16,
    }
    assert cells["mixed-30", "lisa"]["failed"] == ["three steps were not finite"]
    assert cells["mixed-30", "default"]["preset"] == "default"
    json.dumps(to_json(found), allow_nan=False)
    with pytest.raises(ValueError, match="cannot be judged"):
        found.find("mixed-30", "lisa", None, "harmful:sampled")
    names = {path.stem for path in draw_all(found, tmp_path)}
    assert names == {"pareto-mixed-10", "harmful-share", "auroc-by-layer"}
    assert all("<svg" in path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg"))


def test_the_front_has_what_nothing_is_better_than() -> None:
    points = [
        {"arm": name, "attack": attack, "task": task}
        for name, attack, task in (("a", 0, 90), ("b", 5, 100), ("c", 5, 95), ("d", 50, 100), ("e", 0, 90))
    ]
    assert [point["arm"] for point in find_front(points)] == ["a", "e", "b"]


def test_labels_that_would_lie_on_each_other_are_one() -> None:
    points = [
        {"arm": "none", "attack": 96.0, "task": 99.5},
        {"arm": "filter + anchors", "attack": 0.5, "task": 99.3},
        {"arm": "default", "attack": 0.4, "task": 99.5},
        {"arm": "paper", "attack": 46.0, "task": 89.0},
        {"arm": "vaccine", "attack": 92.0, "task": 99.0},
    ]
    assert name_groups(points) == {
        "default": "default and 1 more",
        "none": "none and 1 more",
        "paper": "paper",
    }
