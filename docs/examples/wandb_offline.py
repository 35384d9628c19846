"""Make a W&B run of a job, without a network: `python wandb_offline.py JOB_ID FOLDER`.

    pip install openai wandb
    export OPENAI_BASE_URL=http://tether.internal:8000/v1 OPENAI_API_KEY=…

`wandb sync FOLDER/wandb/offline-run-…` uploads it later, from a machine that may.
"""

import csv
import io
import sys
from typing import Any

import openai
import wandb


def main(job_id: str, folder: str) -> None:
    """Read a finished job's table of metrics and write an offline run."""
    client = openai.OpenAI()
    job: Any = client.fine_tuning.jobs.retrieve(job_id)
    table = client.files.content(job.result_files[0]).read().decode()
    config = {"model": job.model, **dict(job.hyperparameters), "safety": job.safety["method"]}
    run = wandb.init(mode="offline", project="tether", name=job.id, dir=folder, config=config)
    for row in csv.DictReader(io.StringIO(table)):
        numbers = {name: float(value) for name, value in row.items() if value}
        run.log(numbers, step=int(numbers["step"]))
    run.summary["fine_tuned_model"] = job.fine_tuned_model
    run.finish()
    print(f"{job.id} is in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
