"""Upload, train, watch, download, verify: with the openai client, unmodified, against the whole service."""

import base64
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel

from app.domain.trust import parse_trust
from app.domain.verify import verify_bundle
from tests.e2e.conftest import KEY, Service
from worker.miniature.install import WEIGHTS
from worker.training.models import load_base


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_client_trains_watches_downloads_and_verifies(
    service: Service, datasets: dict[str, Path], tmp_path: Path
) -> None:
    client = service.client
    training_file, validation_file = service.upload(datasets["poisoned"]), service.upload(datasets["clean"])
    job_id = service.submit(
        training_file,
        validation_file=validation_file,
        seed=3,
        suffix="house-style",
        safety={"method": "adaptive_kl"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    job = service.wait(job_id)
    assert job.status == "succeeded", service.log()
    assert job.error is None
    assert job.trained_tokens
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:miniature:tether:house-style:")
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    safety = (job.model_extra or {})["safety"]
    assert safety["protected"] is True
    assert safety["critic"]["quality"]["auroc"] > 0.95
    # A tenth of the rows is harmful, and the critic sees it.
    assert safety["risk_mean"] == pytest.approx(0.1, abs=0.03)
    assert safety["beta_mean"] > (job.model_extra or {})["safety"]["beta_min"]

    events = list(client.fine_tuning.jobs.list_events(job_id))
    assert events[0].message == "The job has successfully completed"
    metrics = [event.data for event in events if event.type == "metrics"]
    assert {"step", "train_loss", "safety_risk", "beta", "kl"} <= set(metrics[0])  # type: ignore[arg-type]
    assert any("valid_loss" in data for data in metrics)  # type: ignore[operator]

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job_id))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [20, 10]
    assert checkpoints[0].metrics.full_valid_loss is not None
    assert client.models.retrieve(checkpoints[0].fine_tuned_model_checkpoint).object == "model"

    table = client.files.content(job.result_files[0]).read().decode()
    assert table.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,")
    assert len(table.splitlines()) == 21
    adapter = client.files.content(job.result_files[1]).read()
    assert adapter == service.fetch(f"{job_id}/adapter").content
    last, early = (
        service.fetch(f"{job_id}/checkpoints/{checkpoint.id}/adapter").content for checkpoint in checkpoints
    )
    assert last == adapter
    assert early != adapter

    packed, evidence = tmp_path / "adapter.zip", tmp_path / "evidence.zip"
    packed.write_bytes(adapter)
    evidence.write_bytes(service.fetch(f"{job_id}/evidence").content)
    trust = parse_trust(service.tether("log", "trust"))
    rows, key = fetch_rows(service, evidence, datasets["poisoned"], training_file)
    report = verify_bundle(
        evidence, adapter=packed, data=datasets["poisoned"], trust=trust, rows=rows, dataset_key=key
    )
    assert report.ok, report.lines()
    assert report.state == "succeeded"
    shown = next(check.detail for check in report.checks if check.name == "rows")
    assert shown.startswith("80 of 80 rows on record")
    # Neither the policy nor the test gives these anything to check.
    unchecked = [check.name for check in report.checks if check.outcome == "not checked"]
    assert unchecked == ["evaluation", "gate", "held"]

    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "adapter")
    base, tokenizer = load_base(WEIGHTS, device=torch.device("cpu"))
    prompt = tokenizer("hello", return_tensors="pt")
    with torch.no_grad():
        before = base(**prompt).logits
        tuned = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        assert not torch.equal(tuned(**prompt).logits, before)

    curve = service.fetch(f"{job_id}/risk", max_points="8").json()
    assert len(curve["rows"]) <= 8
    assert curve["total_steps"] == 20
    assert service.fetch(f"{job_id}/risk", format="csv").text.startswith("step,risk_mean,risk_max")
    assert service.fetch(f"{job_id}/risk", format="png").content.startswith(base64.b64decode("iVBORw0KGgo="))
    assert "<svg" in service.fetch(f"{job_id}/risk", format="svg").text[:200]
    steps = service.fetch(f"{job_id}/steps", after="5", limit="3").json()
    assert [step["step"] for step in steps["data"]] == [6, 7, 8]
    assert steps["has_more"] is True


def fetch_rows(service: Service, evidence: Path, data: Path, file_id: str) -> tuple[Path, bytes]:
    """Tokenize a training file as its owner would, and fetch the key of its rows' commitments."""
    rows = evidence.with_name("rows.jsonl")
    command = [
        sys.executable,
        "-m",
        "worker.rows",
        str(evidence),
        "--data",
        str(data),
        "--model",
        str(WEIGHTS),
    ]
    with rows.open("wb") as file:
        subprocess.run(command, check=True, stdout=file, timeout=120)
    reply = httpx.get(
        f"{service.url}/v1/files/{file_id}/commitment_key", headers={"authorization": f"Bearer {KEY}"}
    )
    return rows, bytes.fromhex(reply.json()["key"])


def test_data_that_only_a_tokenizer_can_judge_fails_the_job_with_its_row(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    row = '{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "%s"}]}\n'
    path.write_text(row % "good" + row % ("very " * 2000))
    job = service.wait(service.submit(service.upload(path)))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "invalid_training_file"
    assert job.error.param == "training_file"
    assert "row 1" in job.error.message
    assert "line 2" in job.error.message
    assert "overlength" in job.error.message
    evidence = tmp_path / "evidence.zip"
    evidence.write_bytes(service.fetch(f"{job.id}/evidence").content)
    report = verify_bundle(evidence)
    assert report.ok, report.lines()
    assert report.state == "failed"
    assert service.fetch(f"{job.id}/adapter").status_code == 409
