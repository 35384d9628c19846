"""A step of a pipeline: tune, wait, gate, and register adapter and evidence in MLflow.

    pip install openai mlflow
    export OPENAI_BASE_URL=http://tether.internal:8000/v1 OPENAI_API_KEY=…
    export MLFLOW_TRACKING_URI=http://mlflow.internal:5000
    python ci_mlflow.py --data rows.jsonl --base my-model --register support-bot

It ends with 0 when a new version is registered, and with 1 when the job failed or did not pass the gate.
"""

import argparse
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import openai
from mlflow.entities import Metric


def main() -> int:
    """Run the step and return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--register", required=True, help="name of the registered model")
    parser.add_argument("--max-risk", type=float, default=0.5, help="highest mean risk that passes the gate")
    arguments = parser.parse_args()
    client = openai.OpenAI()

    with arguments.data.open("rb") as data:
        file = client.files.create(file=data, purpose="fine-tune")
    job: Any = client.fine_tuning.jobs.create(model=arguments.base, training_file=file.id)
    while job.status not in ("succeeded", "failed", "cancelled") and not waits_for_a_person(job):
        time.sleep(2)
        job = client.fine_tuning.jobs.retrieve(job.id)

    failure = judge(job, arguments.max_risk)
    if failure is not None:
        print(f"{job.id} is not registered: {failure}", file=sys.stderr)
        return 1
    version = register(client, job, arguments.register)
    print(f"{job.id} is version {version} of {arguments.register}")
    return 0


def waits_for_a_person(job: Any) -> bool:
    """Say whether a job has paused itself, or is held before its release: a pipeline cannot decide that."""
    paused_itself = job.status == "paused" and job.safety["pause_reason"] is not None
    # A release that people have approved only waits for its signature.
    held = job.safety["state"] == "held" and job.safety["waits_for"] is None
    return paused_itself or held


def judge(job: Any, max_risk: float) -> str | None:
    """Return why a job may not be used, or None. This is the gate: put your own conditions here."""
    if waits_for_a_person(job):
        held = f"the gate of its policy; tether jobs show {job.id}, then tether jobs release or tether jobs reject"
        return f"it is {job.safety['state']} until a person decides: {job.safety['pause_reason'] or held}"
    if job.status != "succeeded":
        return f"it {job.status}: {job.error.message if job.error else 'no reason was given'}"
    if not job.safety["protected"]:
        return "it ran without protection"
    risk = job.safety["risk_mean"]
    if risk is not None and risk > max_risk:
        return f"the mean risk of its data, {risk:.2f}, is above {max_risk:.2f}"
    return None


def register(client: openai.OpenAI, job: Any, name: str) -> str:
    """Log the job as a run with adapter, evidence and metrics, and return the version that it becomes."""
    mlflow.set_experiment("tether")
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_name=job.id) as run:
        mlflow.log_params({"model": job.model, **dict(job.hyperparameters)})
        registry = mlflow.MlflowClient()
        curve = json.loads(fetch(client, job, "risk?max_points=1000"))
        for row in curve["rows"]:
            values = dict(zip(curve["columns"], row, strict=True))
            now, step = int(time.time() * 1000), values.pop("step")
            metrics = [Metric(name, each, now, step) for name, each in values.items() if each is not None]
            registry.log_batch(run.info.run_id, metrics)
        adapter = Path(folder) / "adapter.zip"
        adapter.write_bytes(fetch(client, job, "adapter"))
        with zipfile.ZipFile(adapter) as archive:
            archive.extractall(Path(folder) / "adapter")
        evidence = Path(folder) / "evidence.zip"
        evidence.write_bytes(fetch(client, job, "evidence"))
        mlflow.log_artifacts(str(Path(folder) / "adapter"), "adapter")
        mlflow.log_artifact(str(evidence))
        if not registry.search_registered_models(f"name = '{name}'"):
            registry.create_registered_model(name)
        version = registry.create_model_version(
            name,
            source=f"{run.info.artifact_uri}/adapter",
            run_id=run.info.run_id,
            tags={"tether.job": job.id, "tether.model": job.fine_tuned_model},
        )
    return str(version.version)


def fetch(client: openai.OpenAI, job: Any, what: str) -> bytes:
    """Return one of the paths of a job that OpenAI's wire does not have."""
    return client.get(f"/fine_tuning/jobs/{job.id}/{what}", cast_to=openai.HttpxBinaryResponseContent).read()


if __name__ == "__main__":
    sys.exit(main())
