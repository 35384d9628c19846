"""`tether serve` from its start to its end."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import needs_processes, processes, start_service

PLAIN = {"TETHER_API_KEY": ""}


@needs_processes
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_key_is_shown_once_and_the_end_leaves_no_process(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    home = tmp_path / "home"
    service = start_service(home, PLAIN)
    service.client.close()
    (key,) = re.findall(r"shown only now: (\S+)", service.log())
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{service.url}/v1/models", headers=headers).json()["data"][0]["id"] == "miniature"
    workers = processes("worker.celery_app", str(service.process.pid))
    assert len(workers) == 2
    service.process.send_signal(signal_number)
    assert service.process.wait(60) == 0, service.log()
    assert not set(workers) & set(processes("worker.celery_app"))

    again = start_service(home, PLAIN)
    again.client.close()
    assert "shown only now" not in again.log()
    assert httpx.get(f"{again.url}/v1/models", headers=headers).status_code == 200
    again.process.send_signal(signal_number)
    assert again.process.wait(60) == 0


def test_a_port_in_use_is_one_line_that_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "app", "serve", "--home", str(tmp_path / "home"), "--port", port],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: cannot listen on 127.0.0.1:{port}:")
    assert "Traceback" not in done.stderr
