"""Start a service with the miniature and let clients loose on it: `python -m tests.conformance`.

Each client is in an environment of its own below `.tether/conformance`, made at the first run. A line for each check; the
exit code says whether all of them passed.
"""

import json
import os
import subprocess
import sys
import tempfile
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
        commands.append(generated(service.url))
        try:
            codes = [
                subprocess.run(command, env=environment, check=False, cwd=folder).returncode
                for command in commands
            ]
        finally:
            stop_service(service)
    print("all passed" if not any(codes) else "something failed; see above")
    return int(any(codes))


def generated(url: str) -> list[str]:
    """Return the command of schemathesis: requests and chains of them, made from our own description."""
    return [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{url}/openapi.json",
        "--url",
        url,
        "--header",
        f"Authorization: Bearer {KEY}",
        "--checks",
        ",".join(GENERATED_CHECKS),
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--max-examples",
        "30",
        "--seed",
        "1",
        *(part for name in NOT_ASKED for part in ("--exclude-operation-id", name)),
    ]


if __name__ == "__main__":
    sys.exit(main())
