"""The examples of docs/mlops.md against a running service, with the tools that they are for."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.keys.service import DEFAULT_PROJECT
from benchmarks.service.mlflow_server import tracking_server
from tests.e2e.conftest import KEY, Service, on_embedded_default

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
PYTHON = os.environ.get("TETHER_TEST_MLOPS", "")
pytestmark = [
    pytest.mark.skipif(
        not PYTHON, reason="TETHER_TEST_MLOPS names no Python that has openai, mlflow and wandb"
    ),
    pytest.mark.timeout(900),  # MLflow and its server take a while to start.
]


@pytest.fixture
def mlflow_url(tmp_path: Path) -> Iterator[str]:
    """A tracking server with a model registry."""
    with tracking_server(PYTHON, tmp_path) as url:
        yield url


def run_example(service: Service, folder: Path, name: str, *arguments: str, **more: str) -> tuple[int, str]:
    """Run an example as its reader would, and return its exit code and what it printed."""
    environment = {**os.environ, "OPENAI_BASE_URL": f"{service.url}/v1", "OPENAI_API_KEY": KEY, **more}
    done = subprocess.run(
        [PYTHON, str(EXAMPLES / name), *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=400,
    )
    return done.returncode, done.stdout + done.stderr


@on_embedded_default
def test_pipeline_registers_adapter_and_evidence(
    service: Service, datasets: dict[str, Path], mlflow_url: str, tmp_path: Path
) -> None:
    gate = ("--data", str(datasets["clean"]), "--base", "miniature", "--register", "bot")
    place = {"MLFLOW_TRACKING_URI": mlflow_url}
    code, output = run_example(service, tmp_path, "ci_mlflow.py", *gate, **place)
    assert code == 0, output
    assert re.search(r"ftjob-\w+ is version 1 of bot", output)
    api = f"{mlflow_url}/api/2.0/mlflow"
    asked = {"name": "bot", "version": "1"}
    version = httpx.get(f"{api}/model-versions/get", params=asked).json()["model_version"]
    files = httpx.get(f"{api}/artifacts/list", params={"run_id": version["run_id"]}).json()["files"]
    assert sorted(each["path"] for each in files) == ["adapter", "evidence.zip"]

    refused = ("--data", str(datasets["poisoned"]), *gate[2:], "--max-risk", "0.01")
    code, output = run_example(service, tmp_path, "ci_mlflow.py", *refused, **place)
    assert code == 1, output
    assert "is above 0.01" in output


@on_embedded_default
def test_pipeline_says_what_waits_for_a_person(
    service: Service, datasets: dict[str, Path], mlflow_url: str, tmp_path: Path
) -> None:
    # No suite is large enough to show that nothing at all was lost.
    gate = """
    name = "holds"
    [gate]
    utility_loss = { most = 0.0, action = "hold" }
    [gate.evaluation]
    suite = "miniature"
    judge = { type = "miniature" }
    """
    with httpx.Client(
        base_url=service.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60
    ) as operator:
        policy = operator.post("/v1/policies", json={"toml": gate}).json()["id"]
        project = f"/v1/projects/{DEFAULT_PROJECT}"
        assert operator.patch(project, json={"policy": policy}).status_code == 200
        try:
            asked = ("--data", str(datasets["clean"]), "--base", "miniature", "--register", "bot")
            place = {"MLFLOW_TRACKING_URI": mlflow_url}
            code, output = run_example(service, tmp_path, "ci_mlflow.py", *asked, **place)
        finally:
            operator.patch(project, json={"policy": None})
    assert code == 1, output
    assert "it is held until a person decides: the gate of its policy" in output


@on_embedded_default
def test_run_for_wandb_is_written_without_a_network(
    service: Service, datasets: dict[str, Path], tmp_path: Path
) -> None:
    job_id = service.submit(service.upload(datasets["clean"]), hyperparameters={"n_epochs": 1})
    assert service.wait(job_id).status == "succeeded"
    runs = tmp_path / "runs"
    runs.mkdir()
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    code, output = run_example(service, tmp_path, "wandb_offline.py", job_id, str(runs), **nowhere)
    assert code == 0, output
    (log,) = runs.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"train_loss" in content
    assert job_id.encode() in content
