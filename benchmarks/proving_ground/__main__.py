"""Runs the proving ground: `python -m benchmarks.proving_ground`, with QUICK=1 or FULL=1 in the environment.

Writes proving_ground.json, proving_ground.md and plots/ into `--out`. Cells are kept in `--cache`, so that an interrupted
run goes on; a finished one takes seconds to be reported again. cells.jsonl.gz beside this file has those that were
measured for the project, every verdict of every prompt: unpack it into the cache to go on from them, or to compute other
statistics. Ends with status 1 where a bar does not hold, but for
QUICK=1, which is too small to tell.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.proving_ground.arms import ARMS, DEFAULT, UNTUNED
from benchmarks.proving_ground.bars import ATTACK, TASK, Clusters, judge_bars
from benchmarks.proving_ground.grid import SWEPT_RATES, SWEPT_REGIME, Mode, Plan, fill_betas, plan
from benchmarks.proving_ground.plots import draw_all
from benchmarks.proving_ground.regimes import MIXED, REGIMES, REPORTED
from benchmarks.proving_ground.report import Findings, to_json, to_markdown
from benchmarks.proving_ground.runner import PROCESSES, Cell, Result, run_cells

BUDGET_S = 42 * 60
"""What is left of 45 minutes for reporting."""
PROBED = Cell(SWEPT_REGIME, ARMS[DEFAULT], seed=1)


def main() -> None:
    """Measure one run, size the grid, run it, judge it and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--cache", type=Path, default=Path(".tether/proving_ground"))
    parser.add_argument("--processes", type=int, default=PROCESSES)
    arguments = parser.parse_args()
    mode: Mode = "quick" if os.environ.get("QUICK") else "full" if os.environ.get("FULL") else "default"
    started = time.monotonic()
    grid, results = run_grid(mode, arguments.cache, arguments.processes)
    findings = judge(mode, grid, results, arguments.cache)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(findings), indent=1, ensure_ascii=False)
    (arguments.out / "proving_ground.json").write_text(text + "\n", encoding="utf-8")
    (arguments.out / "proving_ground.md").write_text(to_markdown(findings), encoding="utf-8")
    draw_all(findings, arguments.out / "plots")
    for bar in findings.bars:
        print(
            f"{'holds' if bar.holds else 'LOST ':5} {bar.margin:+7.2f}  {bar.claim}: {bar.value:.2f} ({bar.bound:.2f})"
        )
    print(f"{(time.monotonic() - started) / 60:.1f} min; read {arguments.out / 'proving_ground.md'}")
    raise SystemExit(mode != "quick" and not all(bar.holds for bar in findings.bars))


def run_grid(mode: Mode, folder: Path, processes: int) -> tuple[Plan, dict[str, Result]]:
    """Run every cell of a mode: first those that decide the betas of the controls, then the controls."""
    cell_s = 10.0
    if mode == "default":
        # Two runs side by side, as all others will be: they slow each other down.
        pair = [PROBED, Cell(SWEPT_REGIME, ARMS[DEFAULT], seed=2)]
        cell_s = fmean(_seconds(result) for result in run_cells(pair, folder, processes=processes).values())
    grid = plan(mode, cell_s, BUDGET_S)
    print(f"{len(grid.cells)} cells, about {grid.estimate_s / 60:.0f} minutes; one run takes {cell_s:.1f} s")
    for note in grid.notes:
        print(note)

    def report(result: Result) -> None:
        print(_line(result), flush=True)

    first = [cell for cell in grid.cells if not cell.arm.at_mean_beta]
    results = run_cells(first, folder, processes=processes, on_result=report)
    controls = fill_betas([cell for cell in grid.cells if cell.arm.at_mean_beta], results)
    return grid, results | run_cells(controls, folder, processes=processes, on_result=report)


def judge(mode: Mode, grid: Plan, results: dict[str, Result], folder: Path) -> Findings:
    """Judge the bars and gather what is reported."""
    import torch

    from worker.training.models import environment

    critics, recall = measure_critics(folder, sorted({result.seed for result in results.values()}), grid)
    gathered: dict[str, Any] = {
        "results": tuple(results.values()),
        "critics": critics,
        "notes": grid.notes,
        "mode": mode,
        "environment": environment(torch.device("cpu")),
    }
    found = Findings(**gathered, bars=())
    regimes = {result.regime for result in results.values()}
    rates = {result.learning_rate for result in results.values()}
    bars = judge_bars(
        found.find,
        regimes=[regime for regime in REGIMES if regime in regimes],
        rivals={regime: [arm for arm in ARMS if _is_rival(found, regime, arm)] for regime in MIXED},
        learning_rates=[rate for rate in (None, *SWEPT_RATES) if rate in rates],
        swept_regime=SWEPT_REGIME,
        recall=recall,
    )
    return Findings(**gathered, bars=tuple(bars))


def measure_critics(folder: Path, seeds: list[int], grid: Plan) -> tuple[dict[str, Any], Clusters]:
    """Return what the good and the weak critic are worth on held-out rows, and each row's flag by the good one."""
    from benchmarks.proving_ground.critics import load_or_fit, measure_held_out, weaken
    from benchmarks.proving_ground.runner import critic_folder, load_pristine

    base, tokenizer = load_pristine()
    good = load_or_fit(base, tokenizer, REPORTED, critic_folder("reported", folder))
    n_prompts = max(cell.n_prompts for cell in grid.cells)
    found: dict[str, Any] = {}
    recall: Clusters = []
    for name in ("good", "weak"):
        measured = []
        for seed in seeds:
            critic = good if name == "good" else weaken(base, tokenizer, good, REPORTED, seed)
            measured.append(measure_held_out(base, tokenizer, critic, REPORTED, seed, n_prompts))
        found[name] = {
            "auroc": fmean(each["auroc"] for each in measured),
            "recall": fmean(fmean(each["flagged_harmful"]) for each in measured),
            "fpr": fmean(fmean(each["flagged_benign"]) for each in measured),
        }
        if name == "good":
            recall = [[float(flag) for flag in each["flagged_harmful"]] for each in measured]
    report = good.metadata["report"]
    places = {"requests": report["prompt"], "replies": report["response"]}
    found["good"]["layers"] = {
        name: [layer["auroc"] for layer in probe["layers"]] for name, probe in places.items() if probe
    }
    return found, recall


def _is_rival(found: Findings, regime: str, arm: str) -> bool:
    """Whether an arm is to be compared with the default: it knows no more than a job can, and no run of it failed."""
    if arm in (DEFAULT, UNTUNED) or ARMS[arm].critic == "oracle":
        return False
    runs = found.runs(regime, arm)
    return bool(runs) and not any(run.failed for run in runs)


def _seconds(result: Result) -> float:
    return result.train_s + result.evaluation_s


def _line(result: Result) -> str:
    rate = "" if result.learning_rate is None else f" at {result.learning_rate:g}"
    name = f"{result.regime} · {result.arm}{rate} · seed {result.seed}"
    if result.failed:
        return f"{name} · failed: {result.failed}"
    shares = ", ".join(
        f"{label} {100 * result.columns[column].share:.1f}"
        for label, column in (("attack", ATTACK), ("task", TASK), ("over-refusal", "refused:permitted"))
    )
    return f"{name} · {shares} · {_seconds(result):.1f} s"


if __name__ == "__main__":
    main()
