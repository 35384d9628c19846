"""curl as OpenAI's documentation shows it, against a running server: nothing but the address differs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

URL = os.environ["OPENAI_BASE_URL"]
AUTHORIZATION = f"Authorization: Bearer {os.environ['OPENAI_API_KEY']}"


def curl(path: str, *arguments: str) -> Any:
    """Call curl and return the JSON that it prints."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", f"{URL}{path}"]
    # The key goes in by a pipe; what stands in a command line, every user of the machine can read.
    command += ["--header", "@-", *arguments]
    done = subprocess.run(command, input=AUTHORIZATION, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{path}: {done.stdout} {done.stderr}"
    return json.loads(done.stdout)


def main(data: Path) -> None:
    """Upload, start, look, cancel."""
    file = curl("/files", "-F", "purpose=fine-tune", "-F", f"file=@{data}")
    assert curl(f"/files/{file['id']}")["status"] == "processed"
    assert file["id"] in [each["id"] for each in curl("/files")["data"]]
    body = {
        "training_file": file["id"],
        "model": "miniature",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 10}}},
    }
    json_header = ("-H", "Content-Type: application/json")
    job = curl("/fine_tuning/jobs", *json_header, "-d", json.dumps(body))
    path = f"/fine_tuning/jobs/{job['id']}"
    assert curl("/fine_tuning/jobs?limit=2&metadata[key]=value", "--globoff")["object"] == "list"
    assert curl(f"{path}/events")["data"][-1]["message"] == f"Created fine-tuning job: {job['id']}"
    assert curl(f"{path}/checkpoints")["object"] == "list"
    # No body and no length: some servers answer 411 to this.
    assert curl(f"{path}/pause", "-X", "POST")["id"] == job["id"]
    assert curl(f"{path}/resume", "-X", "POST")["id"] == job["id"]
    assert curl(f"{path}/cancel", "-X", "POST")["id"] == job["id"]
    deadline = time.monotonic() + 60
    while curl(path)["status"] != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "miniature" in [each["id"] for each in curl("/models")["data"]]
    assert curl(f"/files/{file['id']}", "-X", "DELETE")["deleted"] is True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print("ok    curl")
