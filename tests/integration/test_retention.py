"""Old records are pruned and still prove what they proved; what a hold keeps stays; an erased dataset is gone."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.base_models.weights import remove_unwanted_weights
from app.database import read_only, unit_of_work
from app.domain.job import State
from app.domain.ledger import chain_hash, kind_of, parse_leaf
from app.domain.merkle import leaf_hash
from app.domain.note import verifier_key
from app.domain.report import EXIT_CODES, Report
from app.domain.retention import format_pruned, parse_pruned
from app.domain.risk_curve import COLUMNS
from app.domain.trust import Trust
from app.domain.verify import verify_bundle
from app.errors import NotFound
from app.files.service import delete_expired, remove_deleted_bytes
from app.models.base import new_id, utc_now
from app.models.evaluation import Evaluation
from app.models.file import File
from app.models.installation_log import LogEvent, LogHead
from app.models.job import Job, LedgerLeaf, RiskRow, Step
from app.models.report import Report as DataReport
from app.models.retention import PrunedJob
from app.models.upload import Upload
from app.models.work import Work
from app.notary import keyfile
from app.notary.repository import get_signed_act
from app.notary.service import fork_log
from app.reports.service import forget_texts
from app.retention import repository, service
from app.storage import path_of
from tests.integration.conftest import MODEL, Tenant, refused
from tests.integration.released import release_job
from tests.integration.test_expiry import expire, is_deleted
from tests.unit.app.domain.synthetic_job import SyntheticJob, make_job, outcomes

JOBS = "/v1/fine_tuning/jobs"
STEPS_OLD, ALL_OLD = timedelta(days=731), timedelta(days=3654)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what the notary does."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def add_ended_job(tenant: Tenant, *, age: timedelta = timedelta(0)) -> tuple[str, SyntheticJob]:
    """Insert a job with the whole record of a run, as it stands when its end was signed; it ended so long ago."""
    made, template = make_job(), tenant.create_job()["id"]
    job_id = new_id("ftjob-")
    for record in made.records:
        record.header = {"job": job_id}
    leaves = made.leaves()
    with unit_of_work(tenant.server.database) as session:
        for table, changes in (
            (
                Work,
                {
                    "state": State.SUCCEEDED,
                    "finished_at": utc_now(),
                    "ledger_size": len(leaves),
                    "ledger_head": chain_hash(leaves[-1]),
                },
            ),
            (Job, {"step": 6, "total_steps": 6, "spec": None}),
        ):
            row = session.get_one(table, template)
            values = {column.key: getattr(row, column.key) for column in table.__table__.columns}
            session.add(table(**values | {"id": job_id} | changes))
            session.flush()
        session.add_all(LedgerLeaf(work_id=job_id, seq=seq, leaf=leaf) for seq, leaf in enumerate(leaves))
        session.add_all(
            RiskRow(job_id=job_id, position=at, entry=entry) for at, entry in enumerate(made.table or [])
        )
        session.add_all(
            Step(
                job_id=job_id,
                step=step,
                project_id=tenant.project_id,
                record=dict.fromkeys(COLUMNS, 0.5) | {"step": step},
                validation=None,
            )
            for step in range(1, 7)
        )
    wait_until(lambda: is_signed(tenant, job_id, len(leaves)))
    make_older(tenant, job_id, age)
    return job_id, made


def is_signed(tenant: Tenant, job_id: str, size: int) -> bool:
    with read_only(tenant.server.database) as session:
        found = select(LogHead.index).where(LogHead.work_id == job_id, LogHead.size == size)
        return session.scalars(found).first() is not None


def make_older(tenant: Tenant, job_id: str, age: timedelta) -> None:
    with unit_of_work(tenant.server.database) as session:
        work = session.get_one(Work, job_id)
        assert work.finished_at is not None
        work.finished_at -= age


def prune(tenant: Tenant) -> tuple[list[PrunedJob], list[PrunedJob]]:
    """Prune as the command does."""
    service.announce(tenant.server.database, tenant.server.settings)
    return service.carry_out(tenant.server.database, wait_s=30)


def fetch(tenant: Tenant, job_id: str, folder: Path) -> Path:
    """Download the evidence, once the newest head is in it."""
    reply = tenant.http.get(f"{JOBS}/{job_id}/evidence")
    assert reply.status_code == 200, reply.text
    path = folder / "evidence.zip"
    path.write_bytes(reply.content)
    return path


def trust_of(tenant: Tenant) -> Trust:
    folder = tenant.server.settings.notary_dir
    last = keyfile.load_last(folder)
    assert last is not None
    return Trust({last.origin: (verifier_key(last.origin, keyfile.load_key(folder)),)})


def verify(tenant: Tenant, job_id: str, folder: Path) -> Report:
    return verify_bundle(fetch(tenant, job_id, folder), trust=trust_of(tenant))


def lines_of(tenant: Tenant, job_id: str) -> list[bytes]:
    with read_only(tenant.server.database) as session:
        return list(
            session.scalars(
                select(LedgerLeaf.leaf).where(LedgerLeaf.work_id == job_id).order_by(LedgerLeaf.seq)
            )
        )


def events_of(tenant: Tenant, subject: str) -> list[str]:
    with read_only(tenant.server.database) as session:
        leaves = session.scalars(select(LogEvent.leaf).order_by(LogEvent.number)).all()
    return [
        leaf.partition(b'"event":"')[2].partition(b'"')[0].decode()
        for leaf in leaves
        if subject.encode() in leaf
    ]


def hold_on(tenant: Tenant, job_id: str | None) -> str:
    """Place a hold on a job, or on the whole project, and return its id."""
    with unit_of_work(tenant.server.database) as session:
        project_id = None if job_id else tenant.project_id
        return service.place_hold(session, job_id=job_id, project_id=project_id, reason="a claim").id


def end_hold(tenant: Tenant, hold_id: str) -> None:
    with unit_of_work(tenant.server.database) as session:
        service.release_hold(session, hold_id)


class TestPruning:
    def test_an_old_job_loses_its_steps_and_still_proves_the_rest(
        self, tenant: Tenant, tmp_path: Path
    ) -> None:
        job_id, made = add_ended_job(tenant, age=STEPS_OLD)
        young, _ = add_ended_job(tenant, age=STEPS_OLD - timedelta(days=2))
        assert verify(tenant, job_id, tmp_path).ok
        due = service.list_due(tenant.server.database, tenant.server.settings)
        assert [(plan.job_id, plan.scope, plan.records) for plan in due] == [(job_id, "steps", 8)]
        assert lines_of(tenant, job_id) == made.leaves(), "looking takes nothing"

        done, left = prune(tenant)
        assert ([each.job_id for each in done], left) == ([job_id], [])
        lines = lines_of(tenant, job_id)
        kept = [line for line in lines if parse_pruned(line) is None]
        assert [kind_of(parse_leaf(line)) for line in kept] == [
            record.kind for record in made.records if record.kind != "step"
        ]
        assert [parse_pruned(line) or leaf_hash(line) for line in lines] == list(
            map(leaf_hash, made.leaves())
        )
        report = verify(tenant, job_id, tmp_path)
        found = outcomes(report)
        assert report.ok, report.lines()
        for name in ("root", "signature", "risk table", "heads", "retention"):
            assert found[name] == "ok", report.lines()
        for name in ("control law", "coverage", "plan", "attempts"):
            assert found[name] == "not checked", report.lines()
        assert events_of(tenant, job_id) == ["job.pruned"]
        assert lines_of(tenant, young)[3][:8] != b'{"pruned', "it is not old enough"
        assert prune(tenant) == ([], []), "it happens once"

    def test_the_api_says_of_a_pruned_job_what_is_gone(self, tenant: Tenant) -> None:
        job_id, _ = add_ended_job(tenant, age=STEPS_OLD)
        assert len(tenant.get(f"{JOBS}/{job_id}/steps")["data"]) == 6
        assert tenant.get(f"{JOBS}/{job_id}/risk")["total_steps"] == 6
        assert tenant.get(f"{JOBS}/{job_id}")["training"]["steps_pruned_at"] is None
        prune(tenant)
        for path in ("steps", "risk", "risk?format=csv", "risk?format=svg"):
            message = refused(tenant.http.get(f"{JOBS}/{job_id}/{path}"), 410, code="steps_pruned")
            assert "were pruned on" in message
        assert tenant.get(f"{JOBS}/{job_id}")["training"]["steps_pruned_at"] > 0
        assert tenant.get(f"{JOBS}/{job_id}/events")["object"] == "list"

    def test_after_ten_years_the_ends_are_left(self, tenant: Tenant, tmp_path: Path) -> None:
        job_id, _ = add_ended_job(tenant, age=STEPS_OLD)
        prune(tenant)
        make_older(tenant, job_id, ALL_OLD - STEPS_OLD)
        done, _ = prune(tenant)
        assert [(each.job_id, each.scope) for each in done] == [(job_id, "records")]
        lines = lines_of(tenant, job_id)
        assert [at for at, line in enumerate(lines) if parse_pruned(line) is None] == [0, len(lines) - 1]
        report = verify(tenant, job_id, tmp_path)
        assert report.ok, report.lines()
        assert outcomes(report)["retention"] == "ok"
        assert report.state == "succeeded"
        with read_only(tenant.server.database) as session:
            rows = select(func.count()).select_from(RiskRow).where(RiskRow.job_id == job_id)
            assert session.scalar(rows) == 0

    def test_one_record_more_missing_than_was_said_is_found(self, tenant: Tenant, tmp_path: Path) -> None:
        job_id, made = add_ended_job(tenant, age=STEPS_OLD)
        prune(tenant)
        seq = made.find("cmd")
        with unit_of_work(tenant.server.database) as session:
            hidden = format_pruned(leaf_hash(made.leaves()[seq]))
            repository.replace_leaves(session, job_id, {seq: hidden})
        report = verify(tenant, job_id, tmp_path)
        assert outcomes(report)["heads"] == "ok", "the tree cannot tell"
        assert report.exit_code == EXIT_CODES["retention"] == 30, report.lines()

    def test_records_that_were_changed_after_the_log_was_told_are_left_alone(self, tenant: Tenant) -> None:
        job_id, made = add_ended_job(tenant, age=STEPS_OLD)
        service.announce(tenant.server.database, tenant.server.settings)
        seq = made.find("step", 2)
        with unit_of_work(tenant.server.database) as session:
            repository.replace_leaves(session, job_id, {seq: made.leaves()[made.find("step", 1)]})
        done, left = service.carry_out(tenant.server.database, wait_s=30)
        assert (done, [each.job_id for each in left]) == ([], [job_id])
        assert b'"pruned"' not in b"".join(lines_of(tenant, job_id))
        with unit_of_work(tenant.server.database) as session:
            repository.replace_leaves(session, job_id, {seq: made.leaves()[seq]})
        assert len(prune(tenant)[0]) == 1

    def test_nothing_goes_before_the_log_is_signed(self, own_server: Any, monkeypatch: Any) -> None:
        tenant = own_server()
        job_id, _ = add_ended_job(tenant, age=STEPS_OLD)
        monkeypatch.setattr(service, "get_signed_act", lambda *_: None)
        service.announce(tenant.server.database, tenant.server.settings)
        done, left = service.carry_out(tenant.server.database, wait_s=0)
        assert (done, [each.job_id for each in left]) == ([], [job_id])
        assert b'"pruned"' not in b"".join(lines_of(tenant, job_id))

    def test_a_forked_log_is_told_again(self, own_server: Any, tmp_path: Path) -> None:
        tenant = own_server()
        job_id, _ = add_ended_job(tenant, age=STEPS_OLD)
        prune(tenant)
        fork_log(tenant.server.database, tenant.server.settings)

        def forked() -> bool:
            status: int = tenant.http.get(f"{JOBS}/{job_id}/receipt").status_code
            return status == 200

        wait_until(forked)
        refused(tenant.http.get(f"{JOBS}/{job_id}/evidence"), 409, code="pruning_not_signed")
        prune(tenant)
        wait_until(lambda: tenant.http.get(f"{JOBS}/{job_id}/evidence").status_code == 200)
        report = verify(tenant, job_id, tmp_path)
        assert report.ok, report.lines()
        assert events_of(tenant, job_id) == ["job.pruned", "job.pruned"]


class TestLegalHold:
    @pytest.mark.parametrize("on", ["job", "project"])
    def test_what_is_held_is_not_pruned(self, tenant: Tenant, on: str) -> None:
        database, settings = tenant.server.database, tenant.server.settings
        job_id, made = add_ended_job(tenant, age=STEPS_OLD)
        with unit_of_work(database) as session:
            hold = service.place_hold(
                session,
                job_id=job_id if on == "job" else None,
                project_id=None if on == "job" else tenant.project_id,
                reason="a claim of 2026",
            )
        assert service.list_due(database, settings) == []
        assert prune(tenant) == ([], [])
        assert lines_of(tenant, job_id) == made.leaves()
        with unit_of_work(database) as session:
            service.release_hold(session, hold.id)
        assert [each.job_id for each in prune(tenant)[0]] == [job_id]
        held = job_id if on == "job" else tenant.project_id
        assert [event for event in events_of(tenant, held) if event.startswith("legal")] == [
            "legal_hold.placed",
            "legal_hold.released",
        ]

    def test_a_hold_that_comes_between_the_halves_keeps_the_records(self, tenant: Tenant) -> None:
        database = tenant.server.database
        job_id, made = add_ended_job(tenant, age=STEPS_OLD)
        service.announce(database, tenant.server.settings)
        with unit_of_work(database) as session:
            hold = service.place_hold(session, job_id=job_id, project_id=None, reason="a claim")
        done, left = service.carry_out(database, wait_s=30)
        assert (done, [each.job_id for each in left]) == ([], [job_id])
        assert lines_of(tenant, job_id) == made.leaves()
        with unit_of_work(database) as session:
            service.release_hold(session, hold.id)
        assert len(prune(tenant)[0]) == 1

    @pytest.mark.parametrize("on", ["job", "project"])
    def test_what_is_held_is_not_deleted(self, tenant: Tenant, on: str) -> None:
        released = release_job(tenant)
        file_id = tenant.get(f"{JOBS}/{released.job_id}")["training_file"]
        hold = hold_on(tenant, released.job_id if on == "job" else None)
        for path in (
            f"/v1/files/{file_id}",
            f"/v1/files/{released.results[0]}",
            f"/v1/models/{released.model}",
            f"/v1/models/{released.checkpoint}",
        ):
            assert hold in refused(tenant.http.delete(path), 409, code="legal_hold")
        expire(tenant, file_id)
        delete_expired(tenant.server.database)
        assert not is_deleted(tenant, file_id)
        end_hold(tenant, hold)
        delete_expired(tenant.server.database)
        assert is_deleted(tenant, file_id)
        for path in (f"/v1/models/{released.model}", f"/v1/models/{released.checkpoint}"):
            assert tenant.http.delete(path).status_code == 200

    @pytest.mark.parametrize("on", ["job", "project"])
    def test_what_was_deleted_before_a_hold_keeps_its_bytes(self, tenant: Tenant, on: str) -> None:
        released = release_job(tenant)
        file_id = tenant.get(f"{JOBS}/{released.job_id}")["training_file"]
        reply = tenant.http.get(f"/v1/files/{file_id}/report", params={"model": MODEL})
        report_id = reply.headers["location"].rpartition("/")[2]
        with unit_of_work(tenant.server.database) as session:
            report = session.get_one(DataReport, report_id)
            report.body = {"rows": 1}
            report.work.state = State.SUCCEEDED
            training = session.get_one(File, file_id).sha256
        for path in (f"files/{file_id}", f"models/{released.model}", f"models/{released.checkpoint}"):
            assert tenant.http.delete(f"/v1/{path}").status_code == 200
        hold = hold_on(tenant, released.job_id if on == "job" else None)

        def left() -> list[bool]:
            settings = tenant.server.settings.model_copy(update={"deletion_grace_s": 0.0})
            remove_deleted_bytes(tenant.server.database, settings)
            remove_unwanted_weights(tenant.server.database, settings)
            forget_texts(tenant.server.database)
            early, final = (
                hashlib.sha256(each).hexdigest() for each in (released.checkpoint_adapter, released.adapter)
            )
            with read_only(tenant.server.database) as session:
                body = session.get_one(DataReport, report_id).body
            return [
                body is not None,
                *(path_of(settings.storage_dir, sha256).exists() for sha256 in (training, early, final)),
            ]

        assert left() == [True] * 4
        end_hold(tenant, hold)
        assert left() == [False] * 4

    def test_whoever_erases_waits_for_a_hold_that_is_being_placed(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        with ThreadPoolExecutor(1) as pool:
            with unit_of_work(tenant.server.database) as session:
                service.place_hold(session, job_id=None, project_id=tenant.project_id, reason="a claim")
                erasing = pool.submit(tenant.http.post, f"/v1/files/{file_id}/erase")
                time.sleep(0.5)
                assert not erasing.done()
            refused(erasing.result(30), 409, code="legal_hold")

    def test_whoever_prunes_waits_for_a_hold_that_is_being_placed(self, tenant: Tenant) -> None:
        database = tenant.server.database
        job_id, made = add_ended_job(tenant, age=STEPS_OLD)
        service.announce(database, tenant.server.settings)
        with read_only(database) as session:
            pending = [each for each in repository.list_pending(session) if each.job_id == job_id]

        def covered() -> bool:
            with read_only(database) as session:
                return get_signed_act(session, pending[0].event) is not None

        wait_until(covered)
        with ThreadPoolExecutor(1) as pool:
            with unit_of_work(database) as session:
                service.place_hold(session, job_id=job_id, project_id=None, reason="a claim")
                pruning = pool.submit(service.carry_out, database, wait_s=30)
                time.sleep(0.5)
                assert not pruning.done()
            assert [each.job_id for each in pruning.result(60)[1]] == [job_id]
        assert lines_of(tenant, job_id) == made.leaves()

    def test_a_hold_needs_something_to_hold(self, tenant: Tenant) -> None:
        with (
            unit_of_work(tenant.server.database) as session,
            pytest.raises(NotFound, match="no job has the id"),
        ):
            service.place_hold(session, job_id="ftjob-x", project_id=None, reason="a claim")


class TestErasure:
    def test_an_erased_dataset_leaves_digests_and_the_event(self, tenant: Tenant, tmp_path: Path) -> None:
        job_id, _ = add_ended_job(tenant)
        file_id = tenant.get(f"{JOBS}/{job_id}")["training_file"]
        derived = tenant.upload()
        with unit_of_work(tenant.server.database) as session:
            file, other = session.get_one(File, file_id), session.get_one(File, derived)
            other.derived_from = {"file": file_id}
            sha256, key = file.sha256, file.commitment_key
        assert len(key) == 32
        cancel_others(tenant, job_id)
        assert tenant.get(f"/v1/files/{file_id}/commitment_key")["key"] == key.hex()
        reply = tenant.http.post(f"/v1/files/{file_id}/erase")
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        assert (answer["erased"], answer["sha256"], answer["derived_files"]) == (True, sha256, [derived])
        assert tenant.http.post(f"/v1/files/{file_id}/erase").json() == answer, "once is enough"
        refused(tenant.http.get(f"/v1/files/{file_id}"), 404, param="file_id")
        refused(tenant.http.get(f"/v1/files/{file_id}/content"), 404, param="file_id")
        with read_only(tenant.server.database) as session:
            file = session.get_one(File, file_id)
            assert (file.commitment_key, file.filename, file.findings) == (b"", "erased", None)
        refused(tenant.http.get(f"/v1/files/{file_id}/commitment_key"), 410, code="erased")
        assert events_of(tenant, file_id) == ["dataset.key_read", "dataset.erased"]
        report = verify(tenant, job_id, tmp_path)
        assert report.ok, report.lines()

    def test_the_reply_names_what_may_have_the_rows(self, tenant: Tenant) -> None:
        released, later = release_job(tenant), release_job(tenant)
        file_id = tenant.get(f"{JOBS}/{released.job_id}")["training_file"]
        replies, other = tenant.upload(), tenant.upload()
        wanted = {"suite": "miniature", "judge": {"type": "rules"}}
        asked = [
            tenant.http.post(
                "/v1/evaluations",
                json={"model": released.model, **wanted, "decoding": {"data_prefixes": prefixes}},
            ).json()["id"]
            for prefixes in (0, 2)
        ]
        path = f"/v1/files/{file_id}/erase"
        assert asked[1] in refused(tenant.http.post(path), 409, code="file_in_use")
        now = utc_now()
        with unit_of_work(tenant.server.database) as session:
            for evaluation_id, made in zip(asked, (other, replies), strict=True):
                evaluation = session.get_one(Evaluation, evaluation_id)
                evaluation.replies_file = made
                evaluation.work.state = State.SUCCEEDED
            job = session.get_one(Job, later.job_id)
            job.parent_sha256 = "a" * 64
            job.lineage = [{"model": released.model, "job": released.job_id, "step": 3}]
            upload = Upload(
                id=new_id("upload_"),
                project_id=tenant.project_id,
                filename="about-ada.jsonl",
                purpose="fine-tune",
                size_bytes=1,
                status="completed",
                received_bytes=1,
                received_parts=1,
                file_id=file_id,
                created_at=now,
                expires_at=now,
            )
            session.add(upload)
        answer = tenant.http.post(path).json()
        assert sorted(answer["models"]) == sorted((released.model, released.checkpoint))
        assert sorted(answer["later_models"]) == sorted((later.model, later.checkpoint))
        assert answer["replies_files"] == [replies]
        with read_only(tenant.server.database) as session:
            assert session.get_one(Upload, upload.id).filename == "erased"

    def test_a_deleted_file_can_be_erased_too(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        tenant.http.delete(f"/v1/files/{file_id}")
        sha256 = tenant.http.post(f"/v1/files/{file_id}/erase").json()["sha256"]
        # A hold that is placed later does not bring it back.
        hold_on(tenant, None)
        settings = tenant.server.settings.model_copy(update={"deletion_grace_s": 0.0})
        remove_deleted_bytes(tenant.server.database, settings)
        assert not path_of(settings.storage_dir, sha256).exists()

    def test_what_a_job_needs_and_what_a_hold_keeps_is_not_erased(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        path = f"/v1/files/{job['training_file']}/erase"
        assert job["id"] in refused(tenant.http.post(path), 409, code="file_in_use")
        tenant.http.post(f"{JOBS}/{job['id']}/cancel")
        with unit_of_work(tenant.server.database) as session:
            hold = service.place_hold(session, job_id=job["id"], project_id=None, reason="a claim")
        assert hold.id in refused(tenant.http.post(path), 409, code="legal_hold")
        with unit_of_work(tenant.server.database) as session:
            service.release_hold(session, hold.id)
        assert tenant.http.post(path).status_code == 200
        refused(tenant.post_job(training_file=job["training_file"]), 404, param="training_file")

    def test_files_of_others_and_results_are_not_erased(self, tenant: Tenant, stranger: Tenant) -> None:
        refused(stranger.http.post(f"/v1/files/{tenant.upload()}/erase"), 404, param="file_id")
        result = tenant.upload()
        with unit_of_work(tenant.server.database) as session:
            session.get_one(File, result).purpose = "fine-tune-results"
        refused(tenant.http.post(f"/v1/files/{result}/erase"), 400, param="file_id")


def cancel_others(tenant: Tenant, job_id: str) -> None:
    """Cancel the jobs of the project that have not ended."""
    for job in tenant.get(JOBS)["data"]:
        if job["id"] != job_id:
            tenant.http.post(f"{JOBS}/{job['id']}/cancel")
