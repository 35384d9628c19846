"""What a client does, unmodified, with whichever `openai` is installed: `python client.py DATA [CHECK …]`.

It needs nothing of Tether, only a server that has the miniature (`OPENAI_BASE_URL`, `OPENAI_API_KEY`), and prints a line
for each check. All of them run with the synchronous and with the asynchronous client; those that are named, with the
synchronous one. `TETHER_HOOK_HOST`, where it is set, is
this machine as the server may reach it with webhooks.
"""

import asyncio
import hashlib
import inspect
import json
import os
import queue
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai

DATA = Path(sys.argv[1])
HOOK_HOST = os.environ.get("TETHER_HOOK_HOST")
ENDED = ("succeeded", "failed", "cancelled")
LOOP = asyncio.new_event_loop()


def wait(value: Any) -> Any:
    """Return the result of a call of either client."""
    return LOOP.run_until_complete(_await(value)) if inspect.isawaitable(value) else value


async def _await(value: Any) -> Any:
    return await value


def collect(pages: Any, limit: int = 1000) -> list[Any]:
    """Return the items of a list, over all of its pages."""

    async def gather() -> list[Any]:
        found = []
        async for item in pages:
            found.append(item)
            if len(found) == limit:
                break
        return found

    if hasattr(pages, "__aiter__"):
        return LOOP.run_until_complete(gather())
    return [item for item, _ in zip(pages, range(limit), strict=False)]


def refused(error: type[openai.APIStatusError], call: Callable[[], Any]) -> Any:
    """Return the error that a call must end with."""
    try:
        wait(call())
    except error as found:
        assert found.request_id, "no request id"
        assert found.body, "the body is not in OpenAI's form"
        return found
    raise AssertionError(f"no {error.__name__}")


def wait_for(client: Any, job_id: str, *statuses: str) -> Any:
    """Poll a job until it has one of these statuses."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        job = wait(client.fine_tuning.jobs.retrieve(job_id))
        if job.status in statuses:
            return job
        time.sleep(0.2)
    raise AssertionError(f"{job_id} is {job.status}")


def make_file(client: Any) -> str:
    """Upload the data."""
    return str(wait(client.files.create(file=DATA, purpose="fine-tune")).id)


def make_job(client: Any, **fields: Any) -> Any:
    """Ask for a job of one pass."""
    fields = {"training_file": make_file(client), "hyperparameters": {"n_epochs": 1}, **fields}
    return wait(client.fine_tuning.jobs.create(model="miniature", **fields))


# --- the checks -------------------------------------------------------------------------------------------


def files(client: Any) -> None:
    file = wait(client.files.create(file=DATA, purpose="fine-tune"))
    assert wait(client.files.wait_for_processing(file.id, poll_interval=0.1)).status == "processed"
    assert wait(client.files.content(file.id)).read() == DATA.read_bytes()
    more = [make_file(client) for _ in range(2)]
    listed = [each.id for each in collect(client.files.list(limit=2, purpose="fine-tune"), 5)]
    assert listed[:3] == [*reversed(more), file.id], "newest first, over pages"
    after = wait(client.files.list(after=more[0], limit=1)).data
    assert [each.id for each in after] == [file.id]
    for each in more:
        assert wait(client.files.delete(each)).deleted is True
    assert refused(openai.NotFoundError, lambda: client.files.retrieve(more[0])).param


def uploads(client: Any) -> None:
    content = DATA.read_bytes()
    half = len(content) // 2
    upload = wait(
        client.uploads.create(
            bytes=len(content), filename="data.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
    )
    assert upload.status == "pending"
    second = wait(client.uploads.parts.create(upload.id, data=content[half:]))
    first = wait(client.uploads.parts.create(upload.id, data=content[:half]))
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    done = wait(client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=digest))
    assert done.status == "completed"
    assert wait(client.files.content(done.file.id)).read() == content


def upload_in_chunks(client: Any) -> None:
    done = wait(
        client.uploads.upload_file_chunked(
            file=DATA, mime_type="application/jsonl", purpose="fine-tune", part_size=4096
        )
    )
    assert wait(client.files.content(done.file.id)).read() == DATA.read_bytes()


def cancelled_upload(client: Any) -> None:
    upload = wait(
        client.uploads.create(bytes=9, filename="x.jsonl", mime_type="text/plain", purpose="fine-tune")
    )
    assert wait(client.uploads.cancel(upload.id)).status == "cancelled"


def null_fields_and_cancel(client: Any) -> None:
    job = make_job(
        client,
        validation_file=None,
        suffix=None,
        seed=None,
        metadata=None,
        integrations=None,
        hyperparameters={"n_epochs": 10},
    )
    assert job.object == "fine_tuning.job"
    assert wait(client.fine_tuning.jobs.cancel(job.id)).id == job.id
    assert wait_for(client, job.id, *ENDED).status == "cancelled"
    error = refused(openai.ConflictError, lambda: client.fine_tuning.jobs.cancel(job.id))
    assert error.code == "job_ended"
    assert error.response.headers["x-should-retry"] == "false"


def pause_and_resume(client: Any) -> None:
    job = make_job(client, hyperparameters={"n_epochs": 10})
    wait(client.fine_tuning.jobs.pause(job.id))
    assert wait_for(client, job.id, "paused").status == "paused"
    assert wait(client.fine_tuning.jobs.resume(job.id)).status in ("queued", "running")
    wait(client.fine_tuning.jobs.cancel(job.id))
    wait_for(client, job.id, *ENDED)


def a_whole_job(client: Any) -> None:
    team = uuid.uuid4().hex
    job = make_job(
        client,
        suffix="client",
        seed=7,
        metadata={"team": team},
        hyperparameters=openai.NOT_GIVEN,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        extra_body={"safety": {"method": "adaptive_kl"}},
    )
    found = collect(client.fine_tuning.jobs.list(metadata={"team": team}, limit=1))
    assert [each.id for each in found] == [job.id]
    job = wait_for(client, job.id, *ENDED)
    assert job.status == "succeeded", job.error
    assert job.hyperparameters.n_epochs == 1
    assert isinstance(job.hyperparameters.batch_size, int), "auto comes back resolved"
    assert job.safety["protected"] is True, "what we add survives as attributes"
    events = collect(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert events[0].message == "The job has successfully completed", "newest first"
    assert len({event.id for event in events}) == len(events) > 3, "pages repeat or end early"
    after = wait(client.fine_tuning.jobs.list_events(job.id, after=events[1].id, limit=1)).data
    assert [each.id for each in after] == [events[2].id]
    (checkpoint,) = collect(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoint.metrics.train_loss > 0
    assert collect(client.fine_tuning.jobs.checkpoints.list(job.id, after=checkpoint.id)) == []
    table, adapter = (wait(client.files.content(each)).read() for each in job.result_files)
    assert table.startswith(b"step,train_loss")
    assert adapter.startswith(b"PK")
    assert wait(client.models.retrieve(job.fine_tuned_model)).id == job.fine_tuned_model
    assert job.fine_tuned_model in [each.id for each in collect(client.models.list())]
    permissions(client, checkpoint.fine_tuned_model_checkpoint)
    assert wait(client.models.delete(job.fine_tuned_model)).deleted is True
    refused(openai.NotFoundError, lambda: client.models.retrieve(job.fine_tuned_model))


def permissions(client: Any, checkpoint: str) -> None:
    """Give the checkpoint to a project and take it back; older clients call the list `retrieve`."""
    resource = client.fine_tuning.checkpoints.permissions
    project = wait(client.get("/projects", cast_to=object))["data"][0]["id"]
    (given,) = collect(resource.create(checkpoint, project_ids=[project]))
    assert given.project_id == project
    if hasattr(resource, "list"):
        assert [each.id for each in collect(resource.list(checkpoint))] == [given.id]
    else:
        assert [each.id for each in wait(resource.retrieve(checkpoint)).data] == [given.id]
    gone = wait(resource.delete(given.id, fine_tuned_model_checkpoint=checkpoint))
    assert gone.deleted is True


def jobs_after(client: Any) -> None:
    newest = [each.id for each in collect(client.fine_tuning.jobs.list(limit=2), 3)]
    after = wait(client.fine_tuning.jobs.list(after=newest[0], limit=2)).data
    assert [each.id for each in after] == newest[1:3]
    error = refused(openai.BadRequestError, lambda: client.fine_tuning.jobs.list(after="ftjob-no"))
    assert error.param == "after"


def slashes_in_names(client: Any) -> None:
    error = refused(openai.NotFoundError, lambda: client.models.retrieve("org/none:a/b"))
    assert "org/none:a/b" in error.message
    # Newer clients send `/` in a name as %2F, older ones as it is.
    error = refused(openai.NotFoundError, lambda: client.get("/models/org%2Fnone:a%2Fb", cast_to=object))
    assert "org/none:a/b" in error.message
    resource = client.fine_tuning.checkpoints.permissions
    error = refused(openai.NotFoundError, lambda: resource.create("ft:org/none:x", project_ids=["proj_x"]))
    assert "ft:org/none:x" in error.message


def errors(client: Any) -> None:
    file_id = make_file(client)
    create = partial(client.fine_tuning.jobs.create, training_file=file_id)
    assert refused(openai.BadRequestError, lambda: create(model="gpt-4o")).param == "model"
    error = refused(openai.InternalServerError, lambda: create(model="miniature", method={"type": "dpo"}))
    assert (error.status_code, error.param) == (501, "method.type")
    assert error.response.headers["x-should-retry"] == "false"
    error = refused(openai.BadRequestError, lambda: create(model="miniature", extra_body={"sefety": "off"}))
    assert error.param == "sefety"
    stranger = client.with_options(api_key="junk")
    refused(openai.AuthenticationError, lambda: stranger.models.retrieve("miniature"))


def the_same_request_twice(client: Any) -> None:
    file_id = make_file(client)
    header = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"training_file": file_id, "hyperparameters": {"n_epochs": 10}}
    first = make_job(client, **body, extra_headers=header)
    assert make_job(client, **body, extra_headers=header).id == first.id
    refused(
        openai.ConflictError,
        lambda: client.fine_tuning.jobs.create(
            model="miniature", training_file=file_id, extra_headers=header
        ),
    )
    # A retry of the client itself has no key; it only counts. One that counts none is a new wish.
    second, third = make_job(client, **body), make_job(client, **body)
    assert len({first.id, second.id, third.id}) == 3
    again = make_job(client, **body, extra_headers={"x-stainless-retry-count": "1"})
    assert again.id in (second.id, third.id)
    for each in (first, second, third):
        wait(client.fine_tuning.jobs.cancel(each.id))
        wait_for(client, each.id, *ENDED)


def webhooks(client: Any) -> None:
    if HOOK_HOST is None:
        return
    received: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOOK_HOST, 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    body = {
        "name": "conformance",
        "url": f"http://{HOOK_HOST}:{server.server_port}/hook",
        "event_types": ["fine_tuning.job.cancelled"],
    }
    made = wait(client.post("/webhook_endpoints", body=body, cast_to=object))
    try:
        job = make_job(client, hyperparameters={"n_epochs": 10})
        wait(client.fine_tuning.jobs.cancel(job.id))
        headers, payload = received.get(timeout=60)
        event = client.webhooks.unwrap(payload, headers, secret=made["signing_secret"])
        assert event.type == "fine_tuning.job.cancelled"
        assert event.data.id == job.id
        assert json.loads(payload)["id"] == event.id
        changed = payload.replace(job.id.encode(), b"ftjob-other")
        try:
            client.webhooks.unwrap(changed, headers, secret=made["signing_secret"])
        except openai.InvalidWebhookSignatureError:
            pass
        else:
            raise AssertionError("a changed body was accepted")
    finally:
        wait(client.delete(f"/webhook_endpoints/{made['id']}", cast_to=object))
        server.shutdown()


CHECKS: tuple[Callable[[Any], None], ...] = (
    files,
    uploads,
    upload_in_chunks,
    cancelled_upload,
    null_fields_and_cancel,
    pause_and_resume,
    a_whole_job,
    jobs_after,
    slashes_in_names,
    errors,
    the_same_request_twice,
    webhooks,
)
LENIENT = {"pause_and_resume"}
"""OpenAI's own list of statuses lacks the `paused` of its own example, so a strict client refuses it."""


def main() -> int:
    """Run every check with both clients; return the number of those that failed."""
    failed = 0
    named = sys.argv[2:]
    kinds: list[type[Any]] = [openai.OpenAI] if named else [openai.OpenAI, openai.AsyncOpenAI]
    for kind in kinds:
        for check in CHECKS:
            if named and check.__name__ not in named:
                continue
            client = kind(_strict_response_validation=check.__name__ not in LENIENT)
            name = f"openai {openai.__version__} {kind.__name__} {check.__name__}"
            try:
                check(client)
            except Exception as error:
                failed += 1
                print(f"FAIL  {name}: {type(error).__name__}: {error}")
                traceback.print_exc()
            else:
                print(f"ok    {name}", flush=True)
            wait(client.close())
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
