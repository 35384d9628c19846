"""What must hold after every fault, whatever it was."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.database import read_only
from app.domain.installation_log import parse_log_leaf
from app.domain.ledger import kind_of
from app.domain.trust import format_trust, parse_trust
from app.domain.verify import verify_bundle
from app.notary import repository
from app.notary.service import list_keys
from tests.faults.installation import ENDED, JOBS, Installation, adapter_of

RESUMABLE = frozenset({"queued", "paused"})
WRITING = (".writing-*", ".incoming-*", "export-*", "reload-*")
"""What a process makes aside before it has a name. One that is killed leaves it."""


def end_check(
    installation: Installation,
    job_id: str,
    *,
    reference: bytes | None = None,
    states: Iterable[str] = ("succeeded",),
) -> None:
    """Check what is left of a job after a fault: its state, its record, its adapter, its processes.

    The API and the notary must run. `reference` is the adapter of the undisturbed run, for a job that has succeeded.
    """
    state = str(installation.work(job_id).state)
    assert state in states, f"{job_id} is {state}; log:\n{installation.read_log()}"
    assert state in ENDED | RESUMABLE | {"held"}, f"{job_id} is neither at an end nor resumable: {state}"
    leaves = installation.leaves(job_id)
    check_record(leaves, ended=state in ENDED)
    check_steps(installation, job_id, leaves)
    if state == "succeeded":
        adapter = adapter_of(installation, job_id)
        assert reference is None or adapter == reference, (
            "the adapter is another one than that of an undisturbed run"
        )
    if state != "queued":
        # Nobody adds to the record, and the notary comes by twice a second.
        installation.wait(lambda: is_signed(installation, job_id), f"a signature over the record of {job_id}")
    check_bundle(installation, job_id, with_adapter=state == "succeeded")
    check_processes(installation)


def is_signed(installation: Installation, job_id: str) -> bool:
    """Say whether the whole record of a job is under a signed checkpoint."""
    with read_only(installation.database) as session:
        log = repository.get_log(session)
        head = repository.get_signed_head(session, log.number, job_id) if log else None
    return head is not None and parse_log_leaf(head)["size"] == installation.work(job_id).ledger_size


def check_bundle(installation: Installation, job_id: str, *, with_adapter: bool = False) -> None:
    """Verify the exported bundle as an auditor does, with the trust policy of this installation."""
    with read_only(installation.database) as session:
        trusted, _ = list_keys(installation.settings, repository.list_signers(session))
    trust = parse_trust("\n".join(format_trust(origin, keys) for origin, keys in trusted.items()))
    reply = installation.request("GET", f"{JOBS}/{job_id}/evidence")
    assert reply.status_code == 200, reply.text
    with tempfile.TemporaryDirectory() as folder:
        bundle, adapter = Path(folder) / "evidence.zip", Path(folder) / "adapter.zip"
        bundle.write_bytes(reply.content)
        if with_adapter:
            adapter.write_bytes(adapter_of(installation, job_id))
        report = verify_bundle(bundle, adapter=adapter if with_adapter else None, trust=trust)
    assert report.ok, report.lines()


def check_record(leaves: list[Mapping[str, Any]], *, ended: bool) -> None:
    """Check the record by a second reading of its own: one owner an epoch, no hole, nothing twice, one end."""
    begun: list[int] = []
    steps: list[int] = []
    last_epoch = 0
    for seq, leaf in enumerate(leaves):
        kind, epoch = kind_of(leaf), leaf["epoch"]
        assert leaf["seq"] == seq, f"record {seq} calls itself {leaf['seq']}"
        assert epoch >= last_epoch, f"record {seq} is of epoch {epoch}, after one of {last_epoch}"
        last_epoch = epoch
        if kind in ("job.start", "job.resume"):
            assert epoch not in begun, f"epoch {epoch} was begun twice"
            assert (kind == "job.start") is (not begun), (
                f"record {seq} is {kind}, number {len(begun)} of its kind"
            )
            begun.append(epoch)
            from_step = leaf["body"]["from_step"]
            assert from_step <= len(steps), f"an attempt went on from step {from_step}, after {len(steps)}"
            # What a later attempt did again is superseded.
            del steps[from_step:]
        elif kind == "step":
            assert epoch == begun[-1], f"a step of epoch {epoch} stands under the start of epoch {begun[-1]}"
            steps.append(leaf["body"]["step"])
        elif kind == "job.end":
            assert seq == len(leaves) - 1, f"record {seq} is the end, and {len(leaves)} are there"
            assert leaf["body"]["steps"] == len(steps)
    assert steps == list(range(1, len(steps) + 1)), f"the steps have a hole or come twice: {steps}"
    assert (kind_of(leaves[-1]) == "job.end") is ended, "an ended job has an end on record, and no other has"


def check_steps(installation: Installation, job_id: str, leaves: list[Mapping[str, Any]]) -> None:
    """Check that the rows that clients see are the steps that are on record, each once."""
    recorded = 0
    for leaf in leaves:
        if kind_of(leaf) in ("job.start", "job.resume"):
            recorded = leaf["body"]["from_step"]
        elif kind_of(leaf) == "step":
            recorded = leaf["body"]["step"]
    reply = installation.request("GET", f"{JOBS}/{job_id}/steps", params={"limit": "1000"})
    assert reply.status_code == 200, reply.text
    assert [step["step"] for step in reply.json()["data"]] == list(range(1, recorded + 1))


def check_processes(installation: Installation) -> None:
    """Check that no process works on anything any more, where nothing is being worked on. One may be about to end."""
    installation.wait(
        lambda: (
            not installation.processes("worker.process")
            and not any(each.is_alive() for each in installation.trainers)
        ),
        "no process that works left behind",
    )


def list_leftovers(installation: Installation) -> list[Path]:
    """Return what killed processes left half-written, for a test to hold against what is collected."""
    return sorted(path for pattern in WRITING for path in installation.home.rglob(pattern))
