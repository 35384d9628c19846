"""The restricted process that checks the rows of a file: `python -m worker.row_check < FILE`.

Rows are hostile input. Whatever they do to the parser, it has a bounded memory and time, writes no file, and was
given no environment; what it found goes to its standard output as JSON.
"""

import argparse
import json
import resource
import sys

from app.domain.dataset import check_training_lines, read_lines
from worker.orphan import die_with

MEMORY_BYTES = 512 * 2**20
CPU_S = 3600


def main() -> None:
    """Check what comes in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, help="die with this process")
    parent = parser.parse_args().parent
    if parent is not None:
        die_with(parent)
    for name, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        resource.setrlimit(name, (limit, limit))
    json.dump(check_training_lines(read_lines(sys.stdin.buffer)).to_record(), sys.stdout)


if __name__ == "__main__":
    main()
