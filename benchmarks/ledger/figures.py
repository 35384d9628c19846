"""The figures: what an append, a root and a verification cost, and the bars."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from app.audit.repository import append_leaf
from app.base_models.service import register_base_model
from app.database import Database, open_engine, unit_of_work
from app.domain.ledger import parse_leaf
from app.domain.merkle import leaf_hash, root
from app.serve import prepare
from app.settings import Settings, load_settings
from benchmarks.ledger.record import make_record, write_signed
from benchmarks.service.installation import MODEL, ROOT, add_running_job
from benchmarks.speed.results import Figure

GROUP = "The ledger"
WARM_UP = 20
"""Appends before those that are measured: a process's first ones compile what the others use."""
VERIFY = """
import sys, time
from app.domain.verify_command import main
code = main()
with open("/proc/self/status") as status:
    kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
print(time.process_time(), kilobytes, file=sys.stderr)
sys.exit(code)
"""


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    appends: int
    """Of each round."""
    steps: int
    """Of the record that is verified; its bars are for 100,000."""
    leaves: int


QUICK = Plan(2, 200, 2_000, 100_000)
FULL = Plan(5, 2_000, 100_000, 100_000)


def measure_appends(plan: Plan, database_url: str | None, group: str) -> Iterator[Figure]:
    """Yield what a record takes that is appended alone, fenced and committed, on a database."""
    with installed(database_url) as (settings, database):
        rounds = [append_times(plan, settings, database) for _ in range(plan.rounds)]
    note = f"Append: {plan.appends:,} records of steps a round, a transaction each, by one process, which nothing else disturbs."
    name, title = f"ledger_{group.lower()}_append", f"fenced append on {group}"
    middle = tuple(1000 * median(times) for times in rounds)
    yield Figure(f"{name}_ms", GROUP, f"{title}, median", middle, 1.0, "ms", note)
    slow = tuple(1000 * sorted(times)[len(times) * 99 // 100] for times in rounds)
    yield Figure(f"{name}_p99", GROUP, f"{title}, 99th percentile", slow, None, "ms", note)


@contextmanager
def installed(database_url: str | None) -> Iterator[tuple[Settings, Database]]:
    """Make an installation without a process. The database must be empty, or one of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="tether-bench-") as home:
        settings = load_settings({}, home=Path(home), database_url=database_url)
        prepare(settings)
        database = Database(open_engine(settings.database_url), lambda knocks: None)
        try:
            with unit_of_work(database) as session:
                register_base_model(session, MODEL, ROOT / "worker/miniature/weights")
            yield settings, database
        finally:
            database.engine.dispose()


def append_times(plan: Plan, settings: Settings, database: Database) -> Sequence[float]:
    """Return the seconds that each append to the ledger of a new job took."""
    job, epoch = add_running_job(database, settings)
    records = map(parse_leaf, make_record(WARM_UP + plan.appends).leaves)
    bodies: list[dict[str, Any]] = [each["body"] for each in records if each["t"] == "tether.step/2"]
    times = []
    for body in bodies:
        began = time.perf_counter()
        with unit_of_work(database) as session:
            append_leaf(session, job, epoch=epoch, kind="step", body=body, ts_worker=1_790_000_000_000)
        times.append(time.perf_counter() - began)
    return times[WARM_UP:]


def measure_root(plan: Plan) -> Figure:
    """Return how long the root over so many leaf hashes takes."""
    hashes = [leaf_hash(number.to_bytes(8, "big")) for number in range(plan.leaves)]
    values = []
    for _ in range(plan.rounds):
        began = time.process_time()
        root(hashes)
        values.append(time.process_time() - began)
    title = f"root of {plan.leaves:,} leaves, CPU time"
    return Figure("ledger_root_s", GROUP, title, tuple(values), 0.2, "s")


def measure_verification(plan: Plan) -> Iterator[Figure]:
    """Yield what it takes to verify a whole, signed record of so many steps."""
    with tempfile.TemporaryDirectory(prefix="tether-bench-") as folder:
        bundle, policy = write_signed(Path(folder), make_record(plan.steps))
        found = [verify(bundle, policy) for _ in range(plan.rounds)]
        megabytes = bundle.stat().st_size / 1e6
    note = (
        f"Verification: `tether verify` with a policy of a bundle of {megabytes:.1f} MB, in a process of its own, with its start;"
        " adaptive KL, rows of 8 a step, anchors, a monitor, every check that a record can be given alone."
    )
    # Start and risk table take a time of their own, so that no share of the bar is one for fewer steps.
    bar = 15.0 if plan.steps == FULL.steps else None
    title = f"verify {plan.steps:,} step records"
    times, memory = zip(*found, strict=True)
    yield Figure("ledger_verify_s", GROUP, f"{title}, CPU time of one core", times, bar, "s", note)
    yield Figure("ledger_verify_mb", GROUP, f"{title}, greatest resident memory", memory, 300.0, "MB", note)


def verify(bundle: Path, policy: Path) -> tuple[float, float]:
    """Verify a bundle; return CPU seconds and MB. Raises RuntimeError where it does not pass."""
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, bundle, "--policy", policy, "--require-ended"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the bundle of the benchmark does not verify:\n{done.stdout}{done.stderr}")
    seconds, kilobytes = done.stderr.split()
    return float(seconds), int(kilobytes) * 1024 / 1e6
