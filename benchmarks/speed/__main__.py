"""`python -m benchmarks.speed`: measure what this machine can, write results.json and RESULTS.md."""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

from benchmarks.speed.figures import LARGE, SMALL, Plan, measure
from benchmarks.speed.results import describe_machine, describe_versions, to_line, to_rows, write
from benchmarks.speed.shapes import PROMPT_TOKENS, RESPONSE_TOKENS, bench_shape


def main() -> None:
    """Measure, write, and say which bars do not hold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two rounds of less, at the small vocabulary, in about three minutes",
    )
    parser.add_argument("--whole", action="store_true", help="also run three epochs of a whole job, once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing")
    small, large = bench_shape(SMALL), bench_shape(LARGE)
    quick = arguments.quick
    plan = Plan(
        shapes=(small,) if quick else (small, large),
        rounds=2 if quick else 5,
        fixed_batches=1 if quick else 2,
        mixed_batches=2,
        prompt=PROMPT_TOKENS,
        response=RESPONSE_TOKENS,
        mixed_shapes=(small,) if quick else (small, large),
        replies=not quick,
        memory=not quick,
        whole=arguments.whole,
        threads=arguments.threads,
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    figures = list(measure(plan, say))
    rows = to_rows(figures, describe_machine(), describe_versions(), "quick" if quick else "full")
    write(arguments.out, rows)
    for row in rows:
        print(to_line(row))


if __name__ == "__main__":
    main()
