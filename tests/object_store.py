"""A real S3 server for the tests: moto in a process of its own, on a port of 127.0.0.1 that was free."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import pytest

from tests.support import free_port

START_TIMEOUT_S = 60.0


@contextmanager
def s3_server() -> Iterator[str]:
    """Give the endpoint of a new, empty server. Skips where moto or obstore is not installed."""
    for name, extra in (("moto", "dev"), ("obstore", "s3")):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed; it comes with: pip install 'tether[{extra}]'")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(endpoint):
            assert process.poll() is None, "moto ended at its start"
            assert time.monotonic() < deadline, "moto does not answer"
            time.sleep(0.05)
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def make_bucket(endpoint: str) -> str:
    """Make a bucket that nobody else uses, and return its name."""
    name = f"tether-{uuid.uuid4().hex}"
    httpx.put(f"{endpoint}/{name}", timeout=10).raise_for_status()
    return name


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Set the variables that obstore reads, as an operator would."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)


def _answers(endpoint: str) -> bool:
    try:
        return httpx.get(endpoint, timeout=1).is_success
    except httpx.TransportError:
        return False
