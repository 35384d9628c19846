"""Faults 11 and 19: what a job would go on from is damaged, or gone with its machine."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checks import end_check
from tests.faults.installation import EVERY_STEP, Installation, on_sqlite
from worker.training.checkpoint import CONTENT_FILES, MANIFEST_FILE

Damage = Callable[[Path, random.Random], None]

pytestmark = on_sqlite


def flip_a_bit(path: Path, rng: random.Random) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    """Cut a file off somewhere."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, _: random.Random) -> None:
    """Take a file away."""
    path.unlink()


DAMAGES: tuple[Damage, ...] = (flip_a_bit, truncate, remove)


def step_of(checkpoint: Path) -> int:
    """Return after which step a checkpoint was written."""
    return int(checkpoint.name.split("-")[1])


@pytest.mark.short
def test_each_file_of_the_newest_checkpoint_is_damaged_in_turn_and_the_one_before_serves(
    installation: Installation, reference: bytes, rng: random.Random
) -> None:
    job_id = installation.submit(**EVERY_STEP)
    names = [*CONTENT_FILES, MANIFEST_FILE]
    # Every kind of damage comes twice; which file it meets is the seed's choice.
    damages = rng.sample(DAMAGES * 2, k=len(names))
    expected = []
    for name, damage in zip(names, damages, strict=True):
        assert installation.run_trainer("step.before_commit=kill@5") == -9
        before, newest = installation.checkpoints(job_id)
        damage(newest / name, rng)
        expected.append((step_of(newest), "missing" if damage is remove else "changed", step_of(before)))
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)
    leaves = installation.leaves(job_id)
    invalid = [leaf["body"] for leaf in leaves if leaf["t"].startswith("tether.ckpt.invalid/")]
    resumed = [leaf["body"]["from_step"] for leaf in leaves if leaf["t"].startswith("tether.job.resume/")]
    found = [(body["step"], body["why"], step) for body, step in zip(invalid, resumed, strict=True)]
    assert found == expected


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_a_job_that_has_no_checkpoint_left_says_so_and_does_not_begin_anew(
    installation: Installation, rng: random.Random, loss: str
) -> None:
    job_id, other = installation.submit(**EVERY_STEP), installation.submit(**EVERY_STEP, seed=12)
    assert installation.run_trainer("step.before_commit=kill@5") == -9
    checkpoints = installation.checkpoints(job_id)
    if loss == "gone":
        # The machine with its disk is lost; the new one has the files of the storage and no more.
        shutil.rmtree(checkpoints[0].parent)
    else:
        for checkpoint in checkpoints:
            rng.choice(DAMAGES)(rng.choice(sorted(checkpoint.iterdir())), rng)
    assert installation.finish(job_id) == "failed"
    job = installation.job(job_id)
    assert job["error"]["code"] == "checkpoint_lost"
    assert f"the one after step {step_of(checkpoints[-1])} is" in job["error"]["message"]
    assert job["training"]["steps_completed"] == step_of(checkpoints[-1])
    end_check(installation, job_id, states=["failed"])
    kinds = installation.kinds(job_id)
    assert kinds.count("ckpt.invalid") == len(checkpoints)
    assert "job.resume" not in kinds
    # It costs nobody else anything.
    assert installation.finish(other) == "succeeded"
