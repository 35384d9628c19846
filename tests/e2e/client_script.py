"""What a client does, unmodified, with whichever `openai` is installed: upload, job, events, checkpoints, content."""

import sys
import time
from pathlib import Path

import openai

client = openai.OpenAI()
with Path(sys.argv[1]).open("rb") as data:
    file = client.files.create(file=data, purpose="fine-tune")
assert client.files.retrieve(file.id).status == "processed"
assert file.id in [each.id for each in client.files.list()]
job = client.fine_tuning.jobs.create(
    model="miniature",
    training_file=file.id,
    suffix="client",
    seed=None,
    hyperparameters={"n_epochs": 1},
    extra_body={"safety": {"method": "adaptive_kl"}},
)
assert job.id in [each.id for each in client.fine_tuning.jobs.list(limit=5)]
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.5)
    job = client.fine_tuning.jobs.retrieve(job.id)
assert job.status == "succeeded", job.error
assert job.safety["protected"] is True
events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
assert events[0].message == "The job has successfully completed"
assert len({event.id for event in events}) == len(events) > 3, "pages repeat or end early"
(checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
assert checkpoint.metrics.train_loss > 0
table, adapter = (client.files.content(each).read() for each in job.result_files)
assert table.startswith(b"step,train_loss")
assert adapter.startswith(b"PK")
assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
try:
    client.fine_tuning.jobs.cancel(job.id)
except openai.ConflictError as error:
    assert error.code == "job_ended"
    assert error.request_id
try:
    client.fine_tuning.jobs.create(model="gpt-4o", training_file=file.id)
except openai.BadRequestError as error:
    assert error.param == "model"
print("openai", openai.__version__, "ok")
