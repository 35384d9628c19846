"""`python -m benchmarks.service`: measure the service on this machine, write results.json and RESULTS.md."""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.service.figures import FULL, QUICK, measure, measure_validation
from benchmarks.service.installation import running
from benchmarks.service.mlflow_history import measure_mlflow
from benchmarks.speed.results import describe_machine, describe_versions, to_line, to_rows, write


def main() -> None:
    """Measure, write, and say which bars do not hold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of less, in about a minute")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database; measure there too")
    parser.add_argument(
        "--mlflow",
        metavar="PYTHON",
        default=os.environ.get("TETHER_TEST_MLOPS"),
        help="a Python that has mlflow, to compare with; default: TETHER_TEST_MLOPS",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="folder of the results")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    say("validation")
    figures = [measure_validation(plan)]
    databases = {"SQLite": None, **({"PostgreSQL": arguments.postgresql} if arguments.postgresql else {})}
    for name, url in databases.items():
        say(name)
        with running(url, max_file_bytes=2 * plan.upload_bytes) as server:
            figures += measure(plan, server, name, say)
            if url is None:
                figures += measure_mlflow(plan, server, arguments.mlflow, say)
    rows = to_rows(figures, describe_machine(), describe_versions(), "quick" if arguments.quick else "full")
    write(arguments.out, rows)
    for each in (describe_machine(), describe_versions()):
        print(", ".join(f"{name} {value}" for name, value in each.items()))
    for row in rows:
        print(to_line(row))


if __name__ == "__main__":
    main()
