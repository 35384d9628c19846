"""Many small jobs while everything around them fails again and again: `make soak`, or MINUTES=480 for a night.

A PostgreSQL and a Redis of its own, two APIs, two reconcilers, a notary, two workers that train and one that does the rest, all
of them processes; clients that ask for jobs on the miniature, pause, resume and cancel them; and a schedule of faults from a
seed. At the end nothing fails any more, every job ends, every record is verified, and a report says what was found. The exit
code is 0 where every bar holds: nothing lost, nothing doubled, no hole, equal jobs have equal adapters, memory and descriptors
are flat (`watch.py` has the rule).
"""

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select

from app.database import read_only
from app.models.job import Job
from app.models.reply import Reply
from app.models.work import Work
from tests.faults.checks import check_bundle, check_record, check_steps
from tests.faults.installation import ENDED, Installation, installed, load_template, move_template
from tests.faults.servers import postgresql, redis
from tests.soak.fleet import LEASE_S, Fleet
from tests.soak.load import Clients
from tests.soak.progress import Progress
from tests.soak.report import Findings, find_unequal, format_report, write_report
from tests.soak.schedule import plan_faults
from tests.soak.watch import judge

SETTINGS = {
    # Faults come faster than in any life; no job is to be given up for their number.
    "max_attempts_without_progress": 100,
    "max_infrastructure_failures": 1000,
    "lease_s": LEASE_S,
    "heartbeat_s": LEASE_S / 8,
    # A trainer that is stopped for ever before it has claimed anything keeps its worker for so long.
    "stall_s": 120,
}


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--pause", type=float, default=10, help="mean seconds from one fault to the next")
    parser.add_argument("--out", type=Path, help="folder for soak.md and soak.json; default: printed alone")
    arguments = parser.parse_args()
    print(f"soak: seed {arguments.seed}; to repeat: --seed {arguments.seed}", flush=True)
    try:
        found = soak(arguments.minutes, arguments.seed, mean_pause_s=arguments.pause)
    except pytest.skip.Exception as missing:
        print(f"this machine cannot run the soak: {missing}")
        return 2
    print(format_report(found))
    if arguments.out is not None:
        write_report(found, arguments.out)
    return int(bool(found.broken()))


def soak(minutes: float, seed: int, *, mean_pause_s: float) -> Findings:
    """Let everything fail for so many minutes, let everything end, and return what was found."""
    found = Findings(seed, minutes)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tether-soak-")))
        database = stack.enter_context(postgresql())
        broker = stack.enter_context(redis(folder))
        template = move_template(load_template(folder / "template"), database)
        installation = stack.enter_context(installed(template, folder, broker_url=broker.url(), **SETTINGS))
        fleet = Fleet(installation, database, broker)
        progress = Progress(installation.settings.database_url)
        clients = Clients(installation, list(fleet.ports.values()), seed)
        fleet.start()
        progress.start()
        try:
            installation.url = f"http://127.0.0.1:{fleet.ports['api-1']}"
            clients.prepare()
            _disturb(found, fleet, progress, clients, mean_pause_s)
            print("soak: no more faults; everything is to end", flush=True)
            clients.wait_for_all(600 + 10 * minutes)
            # A disk that was filled may have struck somebody after the last other fault.
            found.faults.update(fleet.take_strikes())
            _wait_for_others(installation)
            _examine(found, installation, clients)
        finally:
            progress.stop()
            found.left_behind = fleet.stop()
        found.recoveries_s, found.commands = progress.recoveries_s, clients.commands
        verdicts = (judge(part, samples) for part, samples in sorted(fleet.samples.items()))
        found.processes = [verdict for verdict in verdicts if verdict is not None]
    return found


def _disturb(
    found: Findings, fleet: Fleet, progress: Progress, clients: Clients, mean_pause_s: float
) -> None:
    """Have clients act and faults strike, each at their own pace, until the time is over."""
    began_at = time.monotonic()
    seconds = 60 * found.minutes

    def note(kind: str) -> None:
        print(f"soak: {time.monotonic() - began_at:6.1f} s: {kind}", flush=True)
        found.faults[kind] += 1
        progress.expect(kind)

    def strike() -> None:
        for fault in plan_faults(found.seed, seconds, mean_pause_s=mean_pause_s):
            while (left_s := began_at + fault.at_s - time.monotonic()) > 0:
                for kind in fleet.take_strikes():
                    note(kind)
                time.sleep(min(left_s, 0.25))
            if fleet.inject(fault):
                note(fault.kind)

    with ThreadPoolExecutor(1) as pool:
        struck = pool.submit(strike)
        while time.monotonic() - began_at < seconds:
            clients.act()
            time.sleep(0.5)
        struck.result()


def _wait_for_others(installation: Installation) -> None:
    """Wait until reports, evaluations and the like have ended, too; whatever has not is found later."""
    for _ in range(240):
        with read_only(installation.database) as session:
            states = session.scalars(select(Work.state).where(Work.kind != "train")).all()
        if ENDED.issuperset(states):
            return
        time.sleep(1)


def _examine(found: Findings, installation: Installation, clients: Clients) -> None:
    """Hold every job against what its client was told."""
    with read_only(installation.database) as session:
        states = dict(session.execute(select(Work.id, Work.state).where(Work.kind == "train")).all())
        others = session.execute(select(Work.kind, Work.state).where(Work.kind != "train")).all()
        adapters = dict(session.execute(select(Job.id, Job.adapter_sha256)).all())
        replies = session.execute(select(Reply.idempotency_key, Reply.id)).all()
        found.attempts = sum(session.scalars(select(Work.attempt).where(Work.kind == "train")))
    found.states.update(states.values())
    found.other_work.update(f"{kind} {state}" for kind, state in others)
    found.lost += [f"{kind} is {state}" for kind, state in others if state != "succeeded"]
    asked = {job.id: job for job in clients.asked}
    found.doubled += [f"{job_id} was asked for by nobody" for job_id in states if job_id not in asked]
    keys = [key for key, _ in replies if key is not None]
    found.doubled += [f"the request {key} has two replies" for key in set(keys) if keys.count(key) > 1]
    digests: dict[str, list[str]] = defaultdict(list)
    for job_id, job in asked.items():
        state = states.get(job_id, "gone")
        expected = {"cancelled"} if job_id in clients.cancelled else {"succeeded"}
        if state not in expected:
            found.lost.append(f"{job_id} is {state}, expected {' or '.join(expected)}")
        if state == "succeeded":
            digests[job.group].append(str(adapters[job_id]))
        if state in ENDED:
            _examine_record(found, installation, job_id, with_adapter=state == "succeeded")
    found.unequal = find_unequal(digests)
    found.compared = sum(len(each) for each in digests.values() if len(each) > 1)


def _examine_record(found: Findings, installation: Installation, job_id: str, *, with_adapter: bool) -> None:
    leaves = installation.leaves(job_id)
    try:
        check_record(leaves, ended=True)
        check_steps(installation, job_id, leaves)
        check_bundle(installation, job_id, with_adapter=with_adapter)
    except AssertionError as error:
        message = f"{job_id}: {error}"
        (found.doubled if "twice" in message else found.holes).append(message)


if __name__ == "__main__":
    sys.exit(main())
