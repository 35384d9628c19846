"""Runs pytest again and again, each time in a fork of a process that has the libraries in memory and nothing of the tree.

Each line of its input is a list of tests, as JSON; each line of its output is the exit code of that run. What the runs print
goes to the file that its first argument names, and what came of each test to the second.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

LIBRARIES = (
    "celery",
    "fastapi",
    "hypothesis.stateful",
    "peft",
    "sqlalchemy.orm",
    "torch",
    "transformers.modeling_utils",
)
"""Those whose import takes longer than most of the tests that are run."""
ARGUMENTS = ("-q", "-p", "no:cacheprovider", "-p", "pytest_timeout")


def main(printed: Path, report: Path) -> None:
    """Do what the lines say."""
    # A plugin that nobody asked for would complain that its library is there already.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in LIBRARIES:
        import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for descriptor in (1, 2):
                os.dup2(file, descriptor)
            code = int(pytest.main([*ARGUMENTS, f"--junitxml={report}", *json.loads(line)]))
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
