"""The `openai` client in its newest and an old major version, unmodified, in an environment of its own each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import KEY, Service, on_embedded_default

SCRIPT = Path(__file__).parents[1] / "conformance/client.py"
CHECKS = ("files", "uploads", "a_whole_job", "jobs_after", "slashes_in_names", "errors")
"""What is quick of what `make conformance` does with more clients."""
OLD_CLIENT = os.environ.get("TETHER_TEST_OPENAI_1")


@on_embedded_default
@pytest.mark.parametrize(
    ("python", "major"),
    [
        (sys.executable, "3"),
        pytest.param(
            OLD_CLIENT,
            "1",
            marks=pytest.mark.skipif(
                OLD_CLIENT is None, reason="TETHER_TEST_OPENAI_1 names no Python that has openai 1.x"
            ),
        ),
    ],
    ids=["newest", "1.x"],
)
def test_client_runs_unmodified(service: Service, datasets: dict[str, Path], python: str, major: str) -> None:
    environment = {**os.environ, "OPENAI_BASE_URL": f"{service.url}/v1", "OPENAI_API_KEY": KEY}
    done = subprocess.run(
        [python, str(SCRIPT), str(datasets["clean"]), *CHECKS],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr + service.log()[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(CHECKS)
    assert all(line.startswith(f"ok    openai {major}.") for line in lines)
