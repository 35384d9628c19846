"""One cell of the grid: train on a regime with an arm and a seed, put the result through its trials, keep the counts.

A finished cell is a line in a file of the cache folder, under a key made of everything that decides it, so an
interrupted run goes on where it was.
"""

import copy
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from app.domain.safety_spec import ALIGNMENT_KINDS
from app.domain.training_spec import Hyperparameters, TrainingOptions, TrainingSpec, resolve
from app.errors import JobFailure
from benchmarks.proving_ground.arms import Arm
from benchmarks.proving_ground.regimes import DEVELOPMENT, REGIMES, REPORTED, Split, build_trials
from worker.evaluation.suite import Counts, run_suite

CODE_VERSION = 1
"""Raised by hand when training, evaluation or data change: cells of another version are not used again."""
WEIGHTS = Path("worker/miniature/weights")
PROCESSES = 2
SPLITS = {"reported": REPORTED, "development": DEVELOPMENT}
HARMFUL_SET_SEED = 1_000_003
"""Of the harmful rows that an operator has for pruning; no run trains on this seed."""
CURVE_POINTS = 60


@dataclass(frozen=True)
class Cell:
    """Everything that decides a result."""

    regime: str
    arm: Arm
    seed: int
    split: str = "reported"
    n_prompts: int = 512
    learning_rate: float | None = None
    """None: what a job takes by default."""
    short: bool = False
    """Only the trials that bars are about."""

    @property
    def key(self) -> str:
        """What the result is kept under."""
        safety = None if self.arm.safety is None else self.arm.safety.model_dump(mode="json")
        spec = {**asdict(self), "arm": None, "safety": safety, "critic": self.arm.critic}
        text = json.dumps([CODE_VERSION, spec], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """What came out of a cell."""

    key: str
    regime: str
    arm: str
    seed: int
    learning_rate: float | None
    columns: dict[str, Counts]
    """Empty where the training failed."""
    failed: str | None = None
    risk_mean: float | None = None
    beta_mean: float | None = None
    replayed: float = 0.0
    """Share of the rows at or above the threshold."""
    train_s: float = 0.0
    """Time of the one core that a cell has: its wall time on a core of its own, whatever else the machine does."""
    evaluation_s: float = 0.0
    curve: tuple[tuple[float, ...], ...] = ()
    """(step, mean risk, mean beta, nll) of some steps."""
    drift: tuple[tuple[float, float], ...] = ()
    """(step, KL to the reference on the monitor's prompts)."""

    def to_json(self) -> str:
        """Return the result as a line."""
        columns = {name: counts.encode() for name, counts in self.columns.items()}
        return json.dumps({**asdict(self), "columns": columns})

    @classmethod
    def from_json(cls, line: str) -> "Result":
        """Read what `to_json` wrote."""
        values = json.loads(line)
        values["columns"] = {name: Counts.decode(value) for name, value in values["columns"].items()}
        for name in ("curve", "drift"):
            values[name] = tuple(tuple(point) for point in values[name])
        return cls(**values)


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    processes: int = PROCESSES,
    on_result: Callable[[Result], None] = lambda result: None,
) -> dict[str, Result]:
    """Return the results of cells by key: those of the cache, and the others run now, the longest kinds not last."""
    folder.mkdir(parents=True, exist_ok=True)
    known = read_results(folder)
    missing = list({cell.key: cell for cell in cells if cell.key not in known}.values())
    if missing:
        # A thread that spins while it waits would take the other process's core.
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
        prepare_critics(folder, {cell.split for cell in missing})
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            futures: list[Future[Result]] = [pool.submit(run_and_keep, cell, folder) for cell in missing]
            for future in as_completed(futures):
                result = future.result()
                known[result.key] = result
                on_result(result)
    return {cell.key: known[cell.key] for cell in cells}


def read_results(folder: Path) -> dict[str, Result]:
    """Return every result of the cache by key. A line that an interruption cut short is left out."""
    return {result.key: result for path in sorted(folder.glob("cells-*.jsonl")) for result in _read(path)}


def _read(path: Path) -> Iterator[Result]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield Result.from_json(line)
        except json.JSONDecodeError:
            continue


def run_and_keep(cell: Cell, folder: Path) -> Result:
    """Run a cell and append it to this process's file."""
    result = run_cell(cell, folder)
    with (folder / f"cells-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        # The line before may have been cut short by a process that had this number.
        file.write(("\n" if file.tell() else "") + result.to_json() + "\n")
    return result


def run_cell(cell: Cell, folder: Path) -> Result:
    """Train and evaluate; a training that fails is a result too."""
    from worker.miniature.grammar import is_well_formed
    from worker.miniature.judge import judge_row

    base, tokenizer = load_pristine()
    regime, split = REGIMES[cell.regime], SPLITS[cell.split]
    about: dict[str, Any] = {
        "key": cell.key,
        "regime": cell.regime,
        "arm": cell.arm.name,
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
    }
    started = time.process_time()
    model: Any = base
    if cell.arm.safety is not None:
        try:
            model, trained = _train(cell, split, folder)
        except JobFailure as failure:
            return Result(**about, columns={}, failed=str(failure), train_s=time.process_time() - started)
        about |= trained
        about["train_s"] = time.process_time() - started
    started = time.process_time()
    columns = run_suite(
        model,
        tokenizer,
        build_trials(regime, split, cell.seed, cell.n_prompts, short=cell.short),
        judge=judge_row,
        is_well_formed=is_well_formed,
        seed=cell.seed,
    )
    return Result(**about, columns=columns, evaluation_s=time.process_time() - started)


def prepare_critics(folder: Path, splits: Iterable[str]) -> None:
    """Fit the critics that the cells will need, before there are two processes that would both do it."""
    for split in sorted(splits):
        _load_good(split, folder)


def _train(cell: Cell, split: Split, folder: Path) -> tuple[Any, dict[str, Any]]:
    from benchmarks.proving_ground.critics import build_critic, threshold_of
    from worker.miniature.corpus import anchor_rows, forbidden_rows, safe_rows
    from worker.training.models import set_determinism
    from worker.training.run import train_adapter

    pristine, tokenizer = load_pristine()
    base = copy.deepcopy(pristine)
    rows = REGIMES[cell.regime].rows(cell.seed, split.training)
    arm = cell.arm
    critic = build_critic(
        arm, _load_good(cell.split, folder), lambda: _load_weak(cell.split, cell.seed, folder), cell.seed
    )
    spec = resolve_spec(cell, len(rows), base.config, threshold_of(critic))
    alignment: list[dict[str, Any]] = []
    if arm.method in ALIGNMENT_KINDS:
        is_safe = ALIGNMENT_KINDS[arm.method] == "alignment"
        alignment = (
            safe_rows(part=split.training)
            if is_safe
            else forbidden_rows(200, HARMFUL_SET_SEED, split.training)
        )
    set_determinism(cell.seed)
    anchors = anchor_rows(part=split.training)
    if arm.critic == "oracle":
        result = _train_with_oracle(base, tokenizer, rows, spec, anchors)
    else:
        result = train_adapter(
            base, tokenizer, rows, spec, critic=critic, anchors=anchors, alignment=alignment
        )
    records = [record for record in result.records if record.rows]
    stride = max(1, len(records) // CURVE_POINTS)
    threshold = getattr(spec.safety, "threshold", None)
    found = {
        "risk_mean": fmean(risk.s or 0.0 for risk in result.risks),
        "beta_mean": fmean(record.beta_mean for record in records),
        "replayed": 0.0
        if threshold is None
        else fmean((risk.s or 0.0) >= threshold for risk in result.risks),
        "curve": tuple(
            (record.step, record.risk_mean or 0.0, record.beta_mean, record.nll)
            for record in records[::stride]
        ),
        "drift": tuple((drift.step, drift.kl) for drift in result.drifts),
    }
    # One product a layer in place of two: the trials read the model some hundred thousand times.
    return result.model.merge_and_unload(), found


def _train_with_oracle(
    base: Any, tokenizer: Any, rows: list[Any], spec: TrainingSpec, anchors: list[Any]
) -> Any:
    """Do what `train_adapter` does, with risks that no critic gave: an oracle has no features to be asked with."""
    from benchmarks.proving_ground.critics import oracle_risks
    from worker.training.data import tokenize_rows
    from worker.training.loop import fit
    from worker.training.models import add_adapter
    from worker.training.run import RunResult, prepare

    data = tokenize_rows(tokenizer, rows, max_seq_length=spec.max_seq_length, overlength=spec.overlength)
    prepared = prepare(base, tokenizer, data.rows, spec, None, anchors=anchors, known=oracle_risks(rows))
    result = RunResult(add_adapter(base, spec, spec.seed), risks=prepared.risks)
    fit(
        result.model,
        prepared.data,
        spec,
        on_step=result.records.append,
        on_drift=result.drifts.append,
    )
    return result


def resolve_spec(cell: Cell, n_rows: int, config: Any, threshold: float) -> TrainingSpec:
    """Return the specification that a job with this cell's settings would get."""
    if cell.arm.safety is None:
        raise ValueError("the untuned model is not trained")
    epochs = REGIMES[cell.regime].n_epochs
    return resolve(
        hyperparameters=Hyperparameters(n_epochs=epochs or "auto"),
        options=TrainingOptions(learning_rate=cell.learning_rate or "auto"),
        safety=cell.arm.safety,
        seed=cell.seed,
        rows=n_rows,
        hidden_size=config.hidden_size,
        max_position_embeddings=config.max_position_embeddings,
        critic_threshold=threshold,
    )


def critic_folder(split: str, folder: Path) -> Path:
    """Return where the fitted critic of a split is kept."""
    return folder / f"critic-{CODE_VERSION}-{split}"


@cache
def load_pristine() -> tuple[Any, Any]:
    """Return the untuned model, which nobody may change, and its tokenizer."""
    import torch

    from worker.training.models import load_base

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
    return load_base(WEIGHTS, device=torch.device("cpu"))


@cache
def _load_good(split: str, folder: Path) -> Any:
    from benchmarks.proving_ground.critics import load_or_fit

    base, tokenizer = load_pristine()
    return load_or_fit(base, tokenizer, SPLITS[split], critic_folder(split, folder))


@cache
def _load_weak(split: str, seed: int, folder: Path) -> Any:
    from benchmarks.proving_ground.critics import weaken

    base, tokenizer = load_pristine()
    return weaken(base, tokenizer, _load_good(split, folder), SPLITS[split], seed)
