"""Start a service with the miniature and let clients loose on it: `python -m tests.conformance`.

Each client is in an environment of its own below `.tether/conformance`, made at the first run. A line for each check; the
exit code says whether all of them passed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conformance import NOT_ASKED
from tests.e2e.conftest import KEY, start_service, stop_service
from worker.miniature.corpus import training_rows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".tether/conformance"
CLIENTS = ("openai==1.109.1", "openai==2.8.1", "openai>=3,<4")
"""The oldest that has every call, one of the second generation, and the newest."""
GENERATED_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
PHASES = {"coverage": 1, "fuzzing": 20, "stateful": 30}
"""What schemathesis does, with how many examples: an operation's in the second, chains of operations in the third."""
PHASE_TIMEOUT_S = 900


def install(requirement: str) -> Path:
    """Return a Python that has this client."""
    folder = ENVIRONMENTS / requirement.replace("=", "").replace(">", "").replace("<", "").replace(",", "-")
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
        subprocess.run(command, check=True)
        (folder / "complete").touch()
    return python


def main() -> int:
    """Run everything and return the exit code."""
    pythons = [install(each) for each in CLIENTS]
    with tempfile.TemporaryDirectory(prefix="tether-conformance-") as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in training_rows("clean", n=40)), "utf-8")
        service = start_service(
            folder / "home",
            {"TETHER_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1", "TETHER_RECONCILE_INTERVAL_S": "0.5"},
        )
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": f"{service.url}/v1",
            "OPENAI_API_KEY": KEY,
            "TETHER_HOOK_HOST": "127.0.0.1",
        }
        commands = [[str(python), str(HERE / "client.py"), str(data)] for python in pythons]
        commands.append([sys.executable, str(HERE / "curl.py"), str(data)])
        try:
            codes = [
                subprocess.run(command, env=environment, check=False, cwd=folder).returncode
                for command in commands
            ]
            codes += [int(not try_phase(service.url, phase, folder)) for phase in PHASES]
        finally:
            stop_service(service)
    print("all passed" if not any(codes) else "something failed; see above")
    return int(any(codes))


def try_phase(url: str, phase: str, folder: Path) -> bool:
    """Run a phase of schemathesis: requests, and chains of them, made from our own description.

    Of a phase that fails, everything is printed: each failure with its operation, a curl command that is its request, and
    the reply.
    """
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(HERE / "schemathesis.toml"),
    ]
    command += ["run", f"{url}/openapi.json", "--url", url, "--header", f"Authorization: Bearer {KEY}"]
    command += [
        "--phases",
        phase,
        "--max-examples",
        str(PHASES[phase]),
        "--checks",
        ",".join(GENERATED_CHECKS),
    ]
    command += ["--seed", "1", "--no-color", "--warnings", "off", "--output-truncate", "false"]
    command += [part for name in NOT_ASKED for part in ("--exclude-operation-id", name)]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, check=False, cwd=folder, capture_output=True, text=True, timeout=PHASE_TIMEOUT_S
        )
        failed, output = done.returncode != 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        failed, output = True, f"{(error.stdout or b'').decode()}\nit had not ended after {PHASE_TIMEOUT_S} s"
    took = f"{time.monotonic() - began:.0f} s"
    if failed:
        print(f"FAIL  schemathesis {phase} ({took})\n{output}", flush=True)
    else:
        print(f"ok    schemathesis {phase} ({took}): {summary(output)}", flush=True)
    return not failed


def summary(output: str) -> str:
    """Return what schemathesis says of the requests that it made."""
    return "; ".join(re.findall(r"\d+ generated.*", output))


if __name__ == "__main__":
    sys.exit(main())
