"""Which cells are run: by the mode, and by what one cell costs on this machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.proving_ground.arms import ARMS, FULL_ONLY, MAIN, OTHERS, SWEPT, UNTUNED_ARM, Arm
from benchmarks.proving_ground.regimes import CORE, MIXED, REGIMES
from benchmarks.proving_ground.runner import PROCESSES, Cell, Result

Mode = Literal["quick", "default", "full"]

SWEPT_REGIME = "mixed-10"
SWEPT_RATES = (2e-6, 2e-4, 7e-4, 4e-3, 2e-2)
"""Four decades around the miniature's default, 2e-3, which the other cells are at."""
QUICK_REGIMES = ("pure", "mixed-10", "benign")
QUICK_ARMS = ("none", "default", "fixed_kl", "filter + anchors")
MIN_SEEDS = 2


@dataclass(frozen=True)
class Plan:
    """A grid. Arms with an open beta are left to `fill_betas`."""

    cells: tuple[Cell, ...]
    estimate_s: float
    notes: tuple[str, ...] = ()


def plan(mode: Mode, cell_s: float, budget_s: float) -> Plan:
    """Return the grid of a mode. `cell_s` is what one cell of 300 rows takes on one core, training and trials.

    The default grid has five seeds wherever a bar is judged. The other arms have as many as the budget allows, and the
    notes say so.
    """
    if mode == "quick":
        cells = [
            Cell(regime, arm, seed, n_prompts=128)
            for seed in (1, 2)
            for regime in QUICK_REGIMES
            for arm in (UNTUNED_ARM, *(ARMS[name] for name in QUICK_ARMS))
        ]
        note = "A quick look: two seeds, 128 prompts of each kind, five arms. No bar is established by it."
        return _planned(cells, cell_s / 2, (note,))
    if mode == "full":
        return _planned(_cells(range(1, 11), range(1, 11), full=True), cell_s, ())
    for n_seeds in range(5, MIN_SEEDS - 1, -1):
        found = _planned(_cells(range(1, 6), range(1, n_seeds + 1), full=False), cell_s, ())
        if found.estimate_s <= budget_s:
            break
    if n_seeds < 5:
        note = f"Arms that no bar is about were run with {n_seeds} seeds, all others with 5, to keep to the time."
        found = replace(found, notes=(note,))
    return found


def fill_betas(cells: Sequence[Cell], results: Mapping[str, Result]) -> list[Cell]:
    """Return the cells with every open beta set to the mean beta of the default preset's run on the same data."""
    defaults = {
        (result.regime, result.seed, result.learning_rate): result.beta_mean
        for result in results.values()
        if result.arm == "default"
    }
    filled = []
    for cell in cells:
        beta = defaults.get((cell.regime, cell.seed, cell.learning_rate))
        if not cell.arm.at_mean_beta:
            filled.append(cell)
        elif beta is not None:
            filled.append(replace(cell, arm=cell.arm.at_beta(beta)))
        # Where the adaptive run failed there is nothing to be compared with.
    return filled


def untuned_regime(name: str) -> str:
    """Return the first regime whose trials are the same: the untuned model answers both alike."""
    wanted = _prefixes(name)
    return next(other for other in REGIMES if _prefixes(other) == wanted)


def _prefixes(name: str) -> tuple[object, ...]:
    regime = REGIMES[name]
    return regime.opening, regime.disguise, regime.decode, regime.max_new_tokens


def _cells(seeds: Sequence[int], other_seeds: Sequence[int], *, full: bool) -> list[Cell]:
    """Seed after seed, so that an interrupted run has whole seeds."""
    cells: list[Cell] = []
    others = (*OTHERS, *FULL_ONLY) if full else OTHERS
    for seed in seeds:
        for regime in REGIMES:
            arms: list[Arm] = [*MAIN]
            if full or regime in CORE:
                arms += [arm for arm in others if arm.leading or seed in other_seeds]
            elif regime in MIXED:
                arms += [arm for arm in others if arm.leading]
            cells += [Cell(regime, arm, seed) for arm in arms]
            if untuned_regime(regime) == regime:
                cells.append(Cell(regime, UNTUNED_ARM, seed))
        cells += [
            Cell(SWEPT_REGIME, ARMS[name], seed, learning_rate=rate, short=True)
            for rate in SWEPT_RATES
            for name in SWEPT
            if full or name in ("none", "default", "fixed_kl") or seed in other_seeds
        ]
    return cells


def _planned(cells: Sequence[Cell], cell_s: float, notes: tuple[str, ...]) -> Plan:
    return Plan(tuple(cells), math.ceil(sum(map(_cost, cells)) * cell_s / PROCESSES), notes)


def _cost(cell: Cell) -> float:
    """What a cell costs in cells of 300 rows with all trials; as measured, and rough."""
    if cell.arm.safety is None:
        return 0.45
    training = {"pure": 0.9, "cipher": 2.4}.get(cell.regime, 0.6)
    return training + (0.25 if cell.short else 0.4)
