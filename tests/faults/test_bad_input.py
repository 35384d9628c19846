"""Fault 13: jobs that can only fail, or nearly so. Each ends in a clear state within its budget, and no other suffers."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checks import end_check
from tests.faults.installation import ENDED, Installation, on_sqlite
from worker.device import list_devices
from worker.miniature.corpus import training_rows

MIB = 1024 * 1024

pytestmark = on_sqlite


def hyperparameters(**values: Any) -> dict[str, Any]:
    """Return the wire's `method`."""
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": values}}}


def run_all(installation: Installation, jobs: dict[str, str], failpoints: str = "", **settings: Any) -> None:
    """Start one trainer after the other, as a worker does, until every job has ended."""

    def states() -> set[str]:
        return {str(installation.work(job_id).state) for job_id in jobs.values()}

    while not states() <= ENDED:
        if "queued" in states():
            installation.run_trainer(failpoints, **settings)


def test_bad_jobs_end_clearly_and_a_good_one_among_them_is_what_it_would_have_been(
    installation: Installation, reference: bytes
) -> None:
    rows = installation.upload(training_rows("clean", n=12))
    diverging = {
        "learning_rate": 0.1,
        "lora_alpha": 1024,
        "lora_r": 1,
        "max_grad_norm": 1000,
        "warmup_ratio": 0,
    }
    jobs = {
        # One pass of 40 steps, so that it dies each time before its first checkpoint. The good one has 20.
        "segfault": installation.submit(
            **hyperparameters(n_epochs=1, batch_size=1), training={"checkpoint_interval_s": 3600}
        ),
        "not a number": installation.submit(
            **hyperparameters(n_epochs=50, batch_size=1),
            training_file=rows,
            training={**diverging, "lr_scheduler": "constant"},
            safety={"method": "none"},
        ),
        "good": installation.submit(),
        "one row": installation.submit(training_file=installation.upload(training_rows("clean", n=1))),
    }
    run_all(installation, jobs, "step.before_commit=segfault@25")
    found = {name: installation.job(job_id) for name, job_id in jobs.items()}
    errors = {name: job["error"] and job["error"]["code"] for name, job in found.items()}
    assert errors == {
        "segfault": "crash_loop",
        "not a number": "nonfinite_loss",
        "good": None,
        "one row": None,
    }
    assert found["segfault"]["safety"]["attempts"] == installation.settings.max_attempts_without_progress
    assert found["not a number"]["safety"]["attempts"] == 1
    assert "lower learning_rate" in found["not a number"]["error"]["message"]
    for name, job_id in jobs.items():
        end_check(installation, job_id, reference=reference if name == "good" else None, states=ENDED)


def test_memory_that_runs_out_ends_its_job_and_no_other(installation: Installation, reference: bytes) -> None:
    if list_devices():
        pytest.skip("nothing limits the memory of a process beside a GPU but a control group")
    most = measure_data_bytes(installation, installation.submit())
    limit = most + 16 * MIB
    jobs = {
        # Its adapter and the moments of its optimiser take 45 MB more, however small the micro-batches are.
        "large": installation.submit(training={"lora_r": 256, "lora_alpha": 256}),
        "good": installation.submit(),
    }
    run_all(installation, jobs, trainer_memory_bytes=limit)
    if "the limit is on the data of this process" not in installation.read_log():
        pytest.skip("a control group limits memory here, which counts in another way")
    found = {name: installation.job(job_id) for name, job_id in jobs.items()}
    assert found["large"]["error"]["code"] == "out_of_memory"
    assert "max_seq_length" in found["large"]["error"]["message"]
    # Once as it was, once with smaller micro-batches.
    assert found["large"]["safety"]["attempts"] == 2
    end_check(installation, jobs["large"], states=["failed"])
    end_check(installation, jobs["good"], reference=reference)


def measure_data_bytes(installation: Installation, job_id: str) -> int:
    """Train a job to its end, and return the most memory of its own that its process had."""
    trainer = installation.start_trainer()
    status, most = Path(f"/proc/{trainer.pid}/status"), 0
    while trainer.is_alive():
        found = re.search(r"^VmData:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        most = max(most, int(found[1]) * 1024) if found else most
        time.sleep(0.01)
    assert installation.finish(job_id) == "succeeded"
    return most
