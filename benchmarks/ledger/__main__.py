"""`python -m benchmarks.ledger`: measure the ledger on this machine, write results.json and RESULTS.md."""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.ledger.figures import FULL, QUICK, measure_appends, measure_root, measure_verification
from benchmarks.speed.results import describe_machine, describe_versions, to_line, to_rows, write


def main() -> None:
    """Measure, write, and say which bars do not hold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of less, in half a minute")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database; measure appends there too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="folder of the results")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    say("root")
    figures = [measure_root(plan)]
    say("verification")
    figures += measure_verification(plan)
    databases = {"SQLite": None, **({"PostgreSQL": arguments.postgresql} if arguments.postgresql else {})}
    for name, url in databases.items():
        say(f"append on {name}")
        figures += measure_appends(plan, url, name)
    rows = to_rows(figures, describe_machine(), describe_versions(), "quick" if arguments.quick else "full")
    write(arguments.out, rows)
    for each in (describe_machine(), describe_versions()):
        print(", ".join(f"{name} {value}" for name, value in each.items()))
    for row in rows:
        print(to_line(row))


if __name__ == "__main__":
    main()
