"""`tether serve` from its start to its end."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import KEY, TIMEOUT_S, needs_processes, processes, start_service

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


def test_stop_while_a_job_is_streamed_ends_the_stream_and_leaves_with_code_0(
    tmp_path: Path, datasets: dict[str, Path]
) -> None:
    service = start_service(tmp_path / "home", {"TETHER_THREADS": "1"})
    job_id = service.submit(service.upload(datasets["clean"]), training={"checkpoint_interval_s": 3600})
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{service.url}/v1/fine_tuning/jobs/{job_id}/stream"
    names: list[str] = []
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as reply:
        for line in reply.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
                if names.count("step") == 1 and names[-1] == "step":
                    service.process.send_signal(signal.SIGTERM)
            elif line.startswith("data: ") and names[-1] == "end":
                end = json.loads(line.removeprefix("data: "))
    # Reading on to the end of the reply raised nothing, so that it was brought to its end.
    assert "step" in names
    assert names[-1] == "end"
    assert end["reason"] == "shutdown"
    service.client.close()
    assert service.process.wait(60) == 0, service.log()


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
