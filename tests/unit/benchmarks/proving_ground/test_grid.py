"""The grid has what the bars need, fits the time, and fills in what depends on other runs."""

from dataclasses import replace

import pytest

from benchmarks.proving_ground.arms import ARMS, MAIN, UNTUNED_ARM
from benchmarks.proving_ground.grid import SWEPT_RATES, fill_betas, plan, untuned_regime
from benchmarks.proving_ground.regimes import CORE, MIXED, REGIMES
from benchmarks.proving_ground.runner import Cell, Result

BUDGET_S = 42 * 60


def test_the_default_grid_runs_the_leading_arms_everywhere_with_five_seeds() -> None:
    cells = plan("default", 8.0, BUDGET_S).cells
    at_default = {(cell.regime, cell.arm.name, cell.seed) for cell in cells if cell.learning_rate is None}
    for seed in range(1, 6):
        for regime in REGIMES:
            assert {(regime, arm.name, seed) for arm in MAIN} <= at_default
            assert (untuned_regime(regime), "untuned", seed) in at_default
        for regime in (*CORE, *MIXED):
            assert (regime, "filter + anchors", seed) in at_default
    assert {arm.name for arm in ARMS.values()} - {name for _, name, _ in at_default} <= {
        cell.arm.name for cell in plan("full", 8.0, 0).cells
    }
    swept = {(cell.arm.name, cell.learning_rate) for cell in cells if cell.learning_rate is not None}
    assert {(name, rate) for name in ("none", "default", "fixed_kl") for rate in SWEPT_RATES} <= swept


def test_no_cell_is_run_twice() -> None:
    for mode in ("quick", "default", "full"):
        cells = plan(mode, 8.0, BUDGET_S).cells
        assert len({cell.key for cell in cells}) == len(cells)


def test_the_grid_is_sized_to_the_time_and_says_what_it_gave_up() -> None:
    fast, slow = plan("default", 4.0, BUDGET_S), plan("default", 9.0, BUDGET_S)
    assert not fast.notes
    assert fast.estimate_s <= BUDGET_S
    assert len(slow.cells) < len(fast.cells)
    assert slow.estimate_s <= BUDGET_S
    assert "seeds" in slow.notes[0]
    assert plan("quick", 8.0, BUDGET_S).estimate_s <= 180


def test_a_cell_is_known_by_everything_that_decides_it() -> None:
    cell = Cell("mixed-10", ARMS["default"], 1)
    others = [
        Cell("mixed-30", ARMS["default"], 1),
        Cell("mixed-10", ARMS["default"], 2),
        Cell("mixed-10", ARMS["strict"], 1),
        Cell("mixed-10", ARMS["default, weak critic"], 1),
        Cell("mixed-10", ARMS["default"], 1, split="development"),
        Cell("mixed-10", ARMS["default"], 1, n_prompts=8),
        Cell("mixed-10", ARMS["default"], 1, learning_rate=1e-4),
        Cell("mixed-10", ARMS["default"], 1, short=True),
        Cell("mixed-10", ARMS["fixed_kl"].at_beta(0.1), 1),
        Cell("mixed-10", ARMS["fixed_kl"].at_beta(0.2), 1),
        Cell("mixed-10", UNTUNED_ARM, 1),
    ]
    assert len({cell.key, *(other.key for other in others)}) == len(others) + 1
    assert cell.key == Cell("mixed-10", ARMS["default"], 1).key


def test_the_controls_take_the_mean_beta_of_the_default_on_the_same_data() -> None:
    def result(seed: int, rate: float | None, beta: float) -> Result:
        return Result(str(beta), "mixed-10", "default", seed, rate, {}, beta_mean=beta)

    results = {each.key: each for each in (result(1, None, 0.1), result(2, None, 0.2), result(1, 1e-4, 0.3))}
    control = Cell("mixed-10", ARMS["fixed_kl"], 1)
    cells = [
        control,
        replace(control, seed=2),
        replace(control, learning_rate=1e-4),
        replace(control, seed=3),
        Cell("mixed-10", ARMS["none"], 3),
    ]
    filled = fill_betas(cells, results)
    betas = [cell.arm.safety.model_dump().get("beta") for cell in filled if cell.arm.safety]
    assert betas == [0.1, 0.2, 0.3, None]
    with pytest.raises(ValueError, match="no fixed beta"):
        ARMS["none"].at_beta(0.1)


def test_the_untuned_model_answers_regimes_with_the_same_trials_once() -> None:
    assert untuned_regime("mixed-30") == untuned_regime("benign") == "benign"
    assert untuned_regime("cipher") == "cipher"
    assert untuned_regime("pure") == "pure"
