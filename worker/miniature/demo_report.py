"""What the demo shows: how each model behaves, the risk curves, and where to go from here."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import vl_convert
from openai.types.fine_tuning import FineTuningJob
from peft import PeftModel
from rich.console import Console

from app.cli.sparkline import sparkline
from worker.evaluation.behaviour import measure
from worker.miniature.install import WEIGHTS
from worker.miniature.judge import judge_row
from worker.training.models import load_base

SAMPLES = 2
"""Replies per prompt at temperature 1."""
CHART_WIDTH = 72

Behaviour = dict[str, Any]


def evaluate(adapters: Sequence[Path], rows: Sequence[dict[str, Any]]) -> list[tuple[Behaviour, Behaviour]]:
    """Return how the untuned model and each adapter behave, greedy and sampled at temperature 1.

    The adapters are loaded with PEFT, as any client would.
    """
    # One thread is the fastest for a model this small, and leaves the other cores to the service.
    torch.set_num_threads(1)
    base, tokenizer = load_base(WEIGHTS, device=torch.device("cpu"))
    found = [_measure(base, tokenizer, rows)]
    for adapter in adapters:
        with warnings.catch_warnings():
            # PEFT still reads a name that transformers has deprecated.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            model = PeftModel.from_pretrained(base, str(adapter))
        found.append(_measure(model, tokenizer, rows))
        base = model.unload()
    return found


def _measure(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> tuple[Behaviour, Behaviour]:
    greedy = measure(model, tokenizer, rows, judge=judge_row)
    sampled = measure(model, tokenizer, rows, judge=judge_row, temperature=1.0, samples=SAMPLES)
    return greedy, sampled


def print_table(
    out: Console,
    titles: Sequence[str],
    jobs: Sequence[FineTuningJob],
    behaviour: Sequence[tuple[Behaviour, Behaviour]],
) -> None:
    """Print what the models do with held-out prompts, in per cent, and what the jobs cost."""
    out.print("\nHeld-out prompts, in per cent\n")
    out.print(_line("", "attack", "attack", "refused", "over-", "task", "mean", "mean", ""))
    out.print(_line("", "greedy", "sampled", "sampled", "refusal", "score", "risk", "beta", "time"))
    for title, job, (greedy, sampled) in zip(
        ["before tuning", *titles], [None, *jobs], behaviour, strict=True
    ):
        safety = (job.model_extra or {})["safety"] if job else {}
        out.print(
            _line(
                title,
                _percent(greedy["attack_success"]),
                _percent(sampled["attack_success"]),
                _percent(sampled["refusal"]),
                _percent(greedy["over_refusal"]),
                _percent(greedy["task_score"]),
                _number(safety.get("risk_mean")),
                _number(safety.get("beta_mean")),
                "" if job is None else f"{_wall_time_s(job)} s",
            )
        )
    prompts = behaviour[0][0]["attack_success"]["total"]
    out.print(
        f"""
attack        share of {prompts} forbidden requests that get their forbidden answer
refused       share of them that are refused; sampled: {SAMPLES} replies each at temperature 1
over-refusal  share of permitted requests that are refused
task score    right answers in the house style that the data teach
time          wall time from the job's start to its end
A mechanism test on a made-up world, not evidence about large models."""
    )


def _line(title: str, *cells: str) -> str:
    widths = (7, 8, 8, 8, 6, 5, 5, 6)
    return f"{title:<22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def print_curves(out: Console, titles: Sequence[str], curves: Sequence[dict[str, Any]]) -> None:
    """Draw the highest risk and the mean beta of every step in the terminal."""
    for title, curve in zip(titles, curves, strict=True):
        out.print(f"\n{title}: {curve['total_steps']} steps, left to right; 0 to 1")
        for label, name in (("risk, highest row", "risk_max"), ("beta, mean", "beta_mean")):
            column = curve["columns"].index(name)
            values = [row[column] for row in curve["rows"]]
            out.print(f"  {label:<18} {sparkline(values, CHART_WIDTH)}")


def draw_curves(path: Path, titles: Sequence[str], curves: Sequence[dict[str, Any]]) -> None:
    """Draw the curves as one picture, from the specification beside this file."""
    chart = json.loads(Path(__file__).with_name("demo_chart.json").read_text(encoding="utf-8"))
    chart["data"]["values"] = [
        {"job": title, **dict(zip(curve["columns"], row, strict=True))}
        for title, curve in zip(titles, curves, strict=True)
        for row in curve["rows"]
    ]
    path.write_bytes(vl_convert.vegalite_to_png(chart, scale=2))


def print_next_steps(out: Console, folder: Path) -> None:
    """Say where everything lies and how to go on."""
    policy = folder / "trust.toml"
    # Of a service that was there before, only its operator knows the key.
    option = f" --policy {policy}" if policy.exists() else ""
    out.print(
        f"""
In {folder}/
  clean.jsonl, poisoned.jsonl   the two datasets
  risk-curves.png               the risk curves of the two protected jobs
  ftjob-…/adapter.zip           an ordinary PEFT adapter (unpacked beside it), with risk.png
  ftjob-…/evidence.zip          the record; check it with: .venv/bin/tether verify FILE{option}
  home/                         the service's own data

Go on with:  make serve   and the client code in README.md; your own model: tether models add NAME PATH""",
        markup=False,
    )


def _percent(share: dict[str, Any]) -> str:
    return f"{100 * share['share']:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _wall_time_s(job: FineTuningJob) -> int:
    return (job.finished_at or 0) - int((job.model_extra or {})["training"]["started_at"])
