"""What the notary's signature decides over the API: no weights leave before it, and proofs leave after it."""

import base64
import io
import time
from typing import Any

import pytest

from app.audit.service import build_evidence
from app.database import read_only, unit_of_work
from app.domain.installation_log import parse_checkpoint, parse_log_leaf
from app.domain.job import State
from app.domain.merkle import leaf_hash, verify_inclusion
from app.domain.note import open_note, verifier_key
from app.models.base import utc_now
from app.models.job import Job
from app.notary import keyfile
from app.notary.repository import list_signed
from app.work import release
from tests.integration.conftest import Tenant, refused
from tests.integration.released import names, release_job

JOBS = "/v1/fine_tuning/jobs"


def wait_for_signature(tenant: Tenant, job_id: str) -> None:
    """Wait until the notary has signed the whole record of a job."""
    deadline = time.monotonic() + 30
    while True:
        with read_only(tenant.server.database) as session:
            if job_id in list_signed(session):
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_weights_leave_before_the_record_is_signed(
    own_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "POLL_S", 3600)
    tenant = own_server()
    job = release_job(tenant, State.SIGNING)
    with unit_of_work(tenant.server.database) as session:
        session.get_one(Job, job.job_id).estimated_finish_at = utc_now()
    wait_for_signature(tenant, job.job_id)
    paths = [f"{JOBS}/{job.job_id}/adapter", f"{JOBS}/{job.job_id}/checkpoints/{job.checkpoint_id}/adapter"]
    shown = tenant.get(f"{JOBS}/{job.job_id}")
    assert (shown["status"], shown["fine_tuned_model"], shown["result_files"]) == ("running", None, [])
    assert shown["estimated_finish"] is None, "its training is over"
    for path in paths:
        refused(tenant.http.get(path), 409)
    refused(tenant.http.get(f"/v1/files/{job.results[0]}/content"), 404, param="file_id")
    assert job.model not in names(tenant)
    reply = tenant.post_job(model=job.model)
    assert reply.status_code in (400, 404), reply.text
    assert "already" not in reply.text
    for action in ("cancel", "pause", "resume"):
        refused(tenant.http.post(f"{JOBS}/{job.job_id}/{action}"), 409, code="job_ended")

    release.release_signed(tenant.server.database)
    assert tenant.get(f"{JOBS}/{job.job_id}")["status"] == "succeeded"
    assert [tenant.http.get(path).status_code for path in paths] == [200, 200]
    assert tenant.http.get(f"/v1/files/{job.results[0]}/content").content == job.adapter
    assert job.model in names(tenant)
    events = [event["message"] for event in tenant.get(f"{JOBS}/{job.job_id}/events")["data"]]
    assert events[:2] == ["The job has successfully completed", f"New fine-tuned model created: {job.model}"]
    release.release_signed(tenant.server.database)
    assert len(tenant.get(f"{JOBS}/{job.job_id}/events")["data"]) == len(events), "it happens once"


def test_a_receipt_proves_the_record_without_the_service(tenant: Tenant) -> None:
    job = release_job(tenant, State.SIGNING)
    deadline = time.monotonic() + 30
    while tenant.get(f"{JOBS}/{job.job_id}")["status"] != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reply = tenant.http.get(f"{JOBS}/{job.job_id}/receipt")
    assert reply.status_code == 200
    assert f"{job.job_id}.tlog-proof" in reply.headers["content-disposition"]
    proof, _, note = reply.text.partition("\n\n")
    header, extra, index, *hashes = proof.split("\n")
    assert header == "c2sp.org/tlog-proof@v1"
    leaf = base64.b64decode(extra.removeprefix("extra "))
    folder = tenant.server.settings.notary_dir
    last = keyfile.load_last(folder)
    assert last is not None
    key = verifier_key(last.origin, keyfile.load_key(folder))
    checkpoint = parse_checkpoint(open_note(note.encode(), [key])[0])
    path = [base64.b64decode(each) for each in hashes]
    at = int(index.removeprefix("index "))
    assert verify_inclusion(leaf_hash(leaf), at, checkpoint.size, path, checkpoint.root)
    with read_only(tenant.server.database) as session:
        evidence = build_evidence(session, job.job_id)
    assert parse_log_leaf(leaf)["job"] == job.job_id
    assert parse_log_leaf(leaf)["state"] in ("queued", "signing"), "as it was when the notary came by"
    assert b"heads.jsonl" in io.BytesIO(evidence).getvalue()
    newest = tenant.http.get("/v1/log/checkpoint")
    assert newest.headers["content-type"] == "text/plain; charset=utf-8"
    assert parse_checkpoint(open_note(newest.content, [key])[0]).size >= checkpoint.size


def test_what_is_not_signed_has_no_receipt(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.notary import service

    monkeypatch.setattr(service, "POLL_S", 3600)
    tenant = own_server()
    job = tenant.create_job()
    message = refused(tenant.http.get(f"{JOBS}/{job['id']}/receipt"), 404, code="not_signed")
    assert "is under a signed checkpoint yet" in message
    refused(tenant.http.get("/v1/log/checkpoint"), 404, code="not_signed")
