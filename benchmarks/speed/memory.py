"""Peak memory of one run, in a process of its own: a peak never goes down again.

`python -m benchmarks.speed.memory CONTENDER SIZES…` runs one contender and prints one JSON object.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from app.domain.safety_spec import AnySafety
from benchmarks.speed.ours import PENALTY, PLAIN, OurRun
from benchmarks.speed.shapes import Shape, fixed_rows

ROOT = Path(__file__).parents[2]
N_EPOCHS = 3
"""Passes over the data that a run is told, which decides what is kept of the reference; it stops after two steps."""
STEPS = 2
SAFETY: dict[str, AnySafety] = {"plain": PLAIN, "adaptive": PENALTY}


class Peak(NamedTuple):
    """What a process held at its largest, in bytes."""

    before: int
    """With libraries loaded, before there was a model."""
    peak: int


def measure_peak(
    contender: str, shape: Shape, *, prompt: int, response: int, rows: int, threads: int
) -> Peak:
    """Run a contender in a fresh process and return its memory."""
    sizes = (*shape, prompt, response, rows, threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.memory", contender, *map(str, sizes)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        # Freed blocks go back to the system at once, so that the peak is of what was in use.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def peak_rss() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux hands getrusage's peak of the parent on to its children; this one begins anew with each program.
        (line,) = (
            line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")
        )
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Run one contender and print its memory."""
    contender, *sizes = sys.argv[1:]
    *of_shape, prompt, response, count, threads = map(int, sizes)
    shape = Shape(*of_shape)
    torch.set_num_threads(threads)
    before = peak_rss()
    rows = fixed_rows(count, shape.vocabulary, prompt=prompt, response=response)
    OurRun(shape, rows, SAFETY[contender], n_epochs=N_EPOCHS).train(STEPS)
    print(json.dumps(Peak(before, peak_rss())._asdict()))


if __name__ == "__main__":
    main()
