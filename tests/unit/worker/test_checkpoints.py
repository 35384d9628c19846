"""Which checkpoint a job goes on from, on a real database, in a folder and in a bucket."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select, update

from app import garbage, storage
from app.audit.repository import iterate_leaves
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain import ledger
from app.domain.control_law import MonitorState
from app.domain.job import State
from app.domain.step_record import StepRecord
from app.errors import JobFailure, StorageFull, StorageUnavailable
from app.jobs import repository as jobs
from app.models.job import Checkpoint, Job
from app.models.work import Work
from app.notary.service import NOTARY
from app.serve import prepare
from app.work import repository
from tests.object_store import point_at
from tests.support import add_job, settings_in
from tests.unit.worker.conftest import MakeModel, MakeSpec
from worker.checkpoints import (
    check_room_to_begin,
    commit_checkpoint,
    estimate_checkpoint,
    find_checkpoint,
    pause_for_room,
    tell_surroundings,
)
from worker.context import Context, Paused
from worker.journal import Journal
from worker.lease import Lease
from worker.trainer import train
from worker.training.checkpoint import (
    CONTENT_FILES,
    MANIFEST_FILE,
    CheckpointInfo,
    TrainerState,
    load_checkpoint,
    save_checkpoint,
)
from worker.training.loop import Checkpoint as Written
from worker.training.models import trainable_parameters

HERE = {"torch": "2.10.0", "threads": "1"}


class Run:
    """A job in the middle of its training, as its worker sees it."""

    def __init__(self, home: Path, make_model: MakeModel, make_spec: MakeSpec, **overrides: Any) -> None:
        self.settings = settings_in(home, disk_reserve_bytes=0, **overrides)
        prepare(self.settings)
        self.database = Database(open_engine(self.settings.database_url), lambda _: None)
        self.job_id = add_job(self.database, home, safety={"method": "none"})
        self.make_spec = make_spec
        self.model = make_model(drift=0.1)
        self.optimizer = torch.optim.AdamW(trainable_parameters(self.model).values())
        self.context = self.claim(self.settings)
        self.journal = self.write(self.context)
        self.journal.begin(
            from_step=0,
            total_steps=9,
            checkpoint_sha256=None,
            environment=HERE,
            device="cpu",
            micro_batch_tokens=4096,
        )

    def claim(self, settings: Any) -> Context:
        with unit_of_work(self.database) as session:
            session.execute(update(Work).values(state=State.QUEUED))
            work = repository.claim(session, self.job_id, owner="test", lease_ms=30_000)
        assert work is not None
        return Context(self.database, settings, Lease(self.database, settings, work))

    def write(self, context: Context) -> Journal:
        return Journal(context, self.make_spec(), critic_sha256=None, policy_sha256="d" * 64)

    def on_another_machine(self, home: Path) -> tuple[Context, Journal]:
        """Take the job over on a machine whose folder is empty."""
        context = self.claim(self.settings.model_copy(update={"home": home, "storage_dir": home / "storage"}))
        return context, self.write(context)

    def save(self, step: int) -> CheckpointInfo:
        """Do the steps up to this one, save a checkpoint and commit it."""
        with read_only(self.database) as session:
            job = jobs.load_job(session, self.job_id)
        for number in range(job.step + 1, step + 1):
            numbers = {field.name: 0.5 for field in fields(StepRecord) if field.default is MISSING}
            counted = {"step": number, "data_epoch": 0, "rows": (0, 1), "tokens": 10}
            self.journal.record_step(StepRecord(**{**numbers, **counted}))  # type: ignore[arg-type]
        state = TrainerState(step, 7, "ab" * 32, MonitorState(), None, {}, ())
        folder = self.context.checkpoint_folder
        info = save_checkpoint(folder, self.model, self.optimizer, state)
        commit_checkpoint(self.context, self.journal, job, Written(info, "interval", 0), None)
        return info

    def find(self) -> Any:
        """Look for the checkpoint to go on from, on this machine."""
        context = self.claim(self.settings)
        return find_checkpoint(context, self.write(context), self.job_id)

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        with read_only(self.database) as session:
            records = [ledger.parse_leaf(leaf) for leaf in iterate_leaves(session, self.job_id)]
        return [record["body"] for record in records if ledger.kind_of(record) == kind]

    def messages(self) -> list[str]:
        with read_only(self.database) as session:
            job = session.get_one(Job, self.job_id)
            return [event.message for event in jobs.list_events(session, job, after=None, limit=99)]

    def rows(self) -> list[Checkpoint]:
        with read_only(self.database) as session:
            return list(session.scalars(select(Checkpoint).order_by(Checkpoint.step)))

    def in_bucket(self) -> set[str]:
        return {found.sha256 for _, found in storage.list_tree(self.settings.storage_url, "checkpoints")}


@pytest.fixture
def run(tmp_path: Path, make_model: MakeModel, make_spec: MakeSpec) -> Iterator[Run]:
    """A job on a machine that keeps its checkpoints to itself."""
    run = Run(tmp_path, make_model, make_spec)
    yield run
    run.database.engine.dispose()


@pytest.fixture
def shared(tmp_path: Path, make_model: MakeModel, make_spec: MakeSpec, bucket: str) -> Iterator[Run]:
    """A job of an installation with a bucket."""
    run = Run(tmp_path, make_model, make_spec, storage_url=bucket)
    yield run
    run.database.engine.dispose()


def damage(info: CheckpointInfo, name: str, how: str) -> None:
    path = info.path / name
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()


class TestFolder:
    def test_before_the_first_one_the_job_starts_at_its_beginning(self, run: Run) -> None:
        assert run.find() is None

    def test_the_newest_one_is_gone_on_from_and_two_are_kept(self, run: Run) -> None:
        first, second, third = (run.save(step) for step in (1, 2, 3))
        assert run.find().info == third
        assert {path.name for path in run.context.checkpoint_folder.iterdir()} == {
            second.path.name,
            third.path.name,
        }
        assert [row.folder for row in run.rows()] == [None, second.path.name, third.path.name]
        assert [(row.stored, row.host, row.size_bytes) for row in run.rows()[1:]] == [
            (None, socket.gethostname(), info.size_bytes) for info in (second, third)
        ]
        assert first.size_bytes > 10_000
        assert run.bodies("ckpt.invalid") == []

    def test_a_damaged_one_is_on_record_and_the_one_before_it_serves(self, run: Run, tmp_path: Path) -> None:
        first, second = run.save(2), run.save(4)
        whole = shutil.copytree(second.path, tmp_path / "whole")
        damages = [
            (name, how) for name in (*CONTENT_FILES, MANIFEST_FILE) for how in ("flip", "cut", "remove")
        ]
        for name, how in damages:
            damage(second, name, how)
            assert run.find().info == first, (name, how)
            assert not second.path.exists()
            # Found once, it is never asked for again.
            assert run.find().info == first
            shutil.copytree(whole, second.path)
            with unit_of_work(run.database) as session:
                session.execute(
                    update(Checkpoint).where(Checkpoint.step == 4).values(folder=second.path.name)
                )
        digest = ledger.digest_of(second.files)
        assert run.bodies("ckpt.invalid") == [
            {"step": 4, "sha256": digest, "why": "missing" if how == "remove" else "changed"}
            for _, how in damages
        ]
        assert "The checkpoint after step 4 is missing; the job goes on from the one after step 2" in (
            run.messages()
        )

    def test_where_none_is_left_the_job_fails_and_says_what_was_lost(self, run: Run) -> None:
        first, second = run.save(2), run.save(4)
        damage(first, "optimizer.safetensors", "cut")
        shutil.rmtree(second.path)
        with pytest.raises(JobFailure) as caught:
            run.find()
        assert caught.value.code == "checkpoint_lost"
        assert (
            "(the one after step 4 is missing; the one after step 2 is changed), so it cannot go on where it was."
            " Submit it again" in caught.value.message
        )
        assert "machine" not in caught.value.message
        assert [body["step"] for body in run.bodies("ckpt.invalid")] == [4, 2]
        # An attempt that dies before it ends the job must not let the next one begin anew.
        with pytest.raises(JobFailure, match="none of the checkpoints"):
            run.find()

    def test_checkpoints_of_another_machine_alone_are_lost_with_it(self, run: Run, tmp_path: Path) -> None:
        run.save(2)
        with unit_of_work(run.database) as session:
            session.execute(update(Checkpoint).values(host="gpu-7"))
        context, journal = run.on_another_machine(tmp_path / "other")
        with pytest.raises(JobFailure, match=r"another machine alone \(gpu-7; this one is") as caught:
            find_checkpoint(context, journal, run.job_id)
        assert "TETHER_STORAGE_URL" in caught.value.message

    def test_a_folder_that_may_not_be_read_is_no_loss(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run.save(2)

        def refuse(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        # Whoever runs the tests may be allowed everything.
        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(PermissionError):
            run.find()
        assert run.bodies("ckpt.invalid") == []

    def test_a_state_that_is_saved_again_replaces_its_ruin(self, run: Run) -> None:
        info = run.save(2)
        damage(info, "optimizer.safetensors", "flip")
        state = TrainerState(2, 7, "ab" * 32, MonitorState(), None, {}, ())
        again = save_checkpoint(run.context.checkpoint_folder, run.model, run.optimizer, state)
        assert again.path == info.path
        assert run.find().info == info


class TestBucket:
    def test_another_machine_goes_on_from_what_is_in_it(self, shared: Run, tmp_path: Path) -> None:
        shared.save(2)
        info = shared.save(4)
        context, journal = shared.on_another_machine(tmp_path / "other")
        found = find_checkpoint(context, journal, shared.job_id)
        assert found is not None
        assert (found.info.step, found.info.files, found.info.digest) == (4, info.files, info.digest)
        assert found.info.path == context.checkpoint_folder / info.path.name
        for name, value in trainable_parameters(shared.model).items():
            assert torch.equal(found.adapter[name], value)
        assert shared.bodies("ckpt.invalid") == []

    def test_the_last_two_are_in_it(self, shared: Run) -> None:
        infos = [shared.save(step) for step in (1, 2, 3, 4)]
        expected = {sha256 for info in infos[2:] for sha256 in info.files.values()}
        assert shared.in_bucket() == expected
        assert [row.stored for row in shared.rows()] == [None, None, infos[2].files, infos[3].files]

    def test_a_damaged_folder_is_mended_from_it(self, shared: Run) -> None:
        info = shared.save(2)
        damage(info, "adapter.safetensors", "flip")
        assert shared.find().info == info
        assert shared.bodies("ckpt.invalid") == []

    @pytest.mark.parametrize(("content", "why"), [(b"something else", "changed"), (None, "missing")])
    def test_damage_in_both_is_on_record(
        self, shared: Run, tmp_path: Path, content: bytes | None, why: str
    ) -> None:
        from obstore.store import S3Store

        first, second = shared.save(2), shared.save(4)
        sha256 = second.files["trainer.json"]
        place = garbage.place_of_checkpoints(shared.settings, shared.job_id)
        assert isinstance(place, str)
        if content is None:
            storage.discard(place, sha256)
        else:
            S3Store.from_url(place).put(f"{sha256[:2]}/{sha256}", content)
        context, journal = shared.on_another_machine(tmp_path / "other")
        found = find_checkpoint(context, journal, shared.job_id)
        assert found is not None
        assert found.info.files == first.files
        assert [(body["step"], body["why"]) for body in shared.bodies("ckpt.invalid")] == [(4, why)]

    def test_a_bucket_that_does_not_answer_is_no_loss(
        self, shared: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared.save(2)
        point_at(monkeypatch, "http://127.0.0.1:9")
        storage_of_nobody = "s3://" + shared.settings.storage_url.removeprefix("s3://").partition("/")[0]
        context, journal = shared.on_another_machine(tmp_path / "other")
        context.settings = context.settings.model_copy(update={"storage_url": storage_of_nobody})
        with pytest.raises(StorageUnavailable, match="cannot be used"):
            find_checkpoint(context, journal, shared.job_id)
        assert shared.bodies("ckpt.invalid") == []
        assert shared.rows()[0].stored is not None

    def test_what_cannot_be_uploaded_is_not_committed(
        self, shared: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = shared.save(2)
        point_at(monkeypatch, "http://127.0.0.1:9")
        name = shared.settings.storage_url.removeprefix("s3://").partition("/")[0]
        shared.context.settings = shared.settings.model_copy(update={"storage_url": f"s3://{name}/away"})
        with pytest.raises(StorageUnavailable):
            shared.save(4)
        assert shared.find().info == first


class TestSurroundings:
    def test_the_same_ones_say_nothing(self, run: Run) -> None:
        before = run.messages()
        tell_surroundings(run.context, HERE, "cpu")
        assert run.messages() == before

    def test_other_ones_are_told(self, run: Run) -> None:
        tell_surroundings(run.context, {**HERE, "torch": "2.11.0"}, "cuda:0")
        with read_only(run.database) as session:
            job = session.get_one(Job, run.job_id)
            event = jobs.list_events(session, job, after=None, limit=9)[0]
        assert event.level == "warn"
        assert "device_used cpu → cuda:0, torch 2.10.0 → 2.11.0" in event.message
        assert event.data == {
            "determinism": "best_effort",
            "changed": {"device_used": ["cpu", "cuda:0"], "torch": ["2.10.0", "2.11.0"]},
        }


class TestRoom:
    def test_a_disk_with_less_than_the_reserve_has_the_job_wait(self, run: Run) -> None:
        free = shutil.disk_usage(run.settings.home).free
        run.context.settings = run.settings.model_copy(update={"disk_reserve_bytes": 2 * free})
        with pytest.raises(StorageFull, match=r"too few: 0 are needed") as caught:
            check_room_to_begin(run.context)
        assert caught.value.code == "storage_full"
        # As often as it may be postponed; then it pauses, and does not fail.
        with unit_of_work(run.database) as session:
            session.execute(
                update(Work).values(infrastructure_failures=run.settings.max_infrastructure_failures)
            )
        with pytest.raises(Paused):
            check_room_to_begin(run.context)

    def test_room_is_asked_for_as_many_as_will_be_kept(self, run: Run) -> None:
        free = shutil.disk_usage(run.settings.home).free
        check_room_to_begin(run.context, free // 4)
        with pytest.raises(StorageFull):
            check_room_to_begin(run.context, free // 2)
        run.save(1)
        run.save(2)
        # The two that are kept are on the disk already.
        check_room_to_begin(run.context, free // 2)

    def test_a_full_disk_keeps_the_last_checkpoint_and_pauses_the_job(self, run: Run) -> None:
        info = run.save(2)
        state = TrainerState(4, 7, "ab" * 32, MonitorState(), None, {}, ())
        reserve = 2 * shutil.disk_usage(run.settings.home).free
        with pytest.raises(StorageFull, match=r"has \d+ bytes free, \d+ too few") as caught:
            save_checkpoint(
                run.context.checkpoint_folder, run.model, run.optimizer, state, reserve_bytes=reserve
            )
        with pytest.raises(Paused):
            pause_for_room(run.context, caught.value)
        assert run.context.pausing
        with read_only(run.database) as session:
            asked = session.get_one(Work, run.job_id).args["pause"]
        assert asked["by"] == "disk"
        assert f"on the machine {socket.gethostname()}, the disk of the checkpoints has" in asked["reason"]
        assert load_checkpoint(info.path).info == info
        assert [path.name for path in run.context.checkpoint_folder.iterdir()] == [info.path.name]

    def test_who_is_told_to_stop_gives_the_job_to_a_machine_with_room(self, run: Run) -> None:
        run.context.preempt()
        error = StorageFull("full")
        with pytest.raises(StorageFull) as caught:
            pause_for_room(run.context, error)
        assert (caught.value, caught.value.__cause__) == (error, None)

    def test_the_estimate_is_near_what_a_checkpoint_takes(
        self, run: Run, make_base: Any, make_spec: MakeSpec
    ) -> None:
        parameters = trainable_parameters(run.model).values()
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
        size = run.save(2).size_bytes
        estimate = estimate_checkpoint(make_base(), make_spec())
        assert estimate == 12 * sum(parameter.numel() for parameter in parameters)
        assert estimate < size < 1.5 * estimate + 20_000


def test_what_cannot_be_tidied_ends_no_attempt(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with unit_of_work(run.database) as session:
        repository.record_worker(session, worker_id="notary_1", queue=NOTARY, host="test")
    left = run.settings.checkpoints_dir / "ftjob-unknown"
    left.mkdir(parents=True)
    (left / "loop").symlink_to("loop")
    context = run.claim(run.settings.model_copy(update={"disk_reserve_bytes": 2**62}))
    # It got to what comes next.
    with pytest.raises((Paused, StorageFull)):
        train(context)
    assert "could not be tidied" in caplog.text
