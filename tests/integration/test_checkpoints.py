"""Jobs that go on elsewhere: on another machine from the bucket, on a disk that has room again, from an older checkpoint."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

from app.base_models.service import register_base_model
from app.database import read_only, unit_of_work
from app.domain.bundle import LEAVES
from app.domain.dataset import format_rows
from app.domain.verify import verify_bundle
from app.models.job import Checkpoint
from app.reconciler import reconcile
from app.safety_sets.service import add_set, store_rows
from app.settings import Settings
from app.work.repository import get_work
from tests import warm_worker
from tests.conftest import BACKENDS, POSTGRESQL
from tests.integration.conftest import Tenant, serving
from tests.integration.test_jobs import PATH, set_work
from tests.object_store import make_bucket, point_at
from tests.support import database_on, settings_in
from worker.miniature.corpus import anchor_rows, training_rows
from worker.miniature.install import NAME, WEIGHTS

on_sqlite = pytest.mark.parametrize("tenant", ["sqlite"], indirect=True, scope="module")
"""For what does not depend on the database, and would only take its time twice."""
STEPS = 8
TIMEOUT_S = 240.0


class Machine(NamedTuple):
    """Where trainers run: a home of its own, and the database and bucket of all."""

    settings: Settings

    @property
    def checkpoints(self) -> Path:
        return self.settings.storage_dir / "checkpoints"

    def start(self, job_id: str, failpoints: str = "") -> Any:
        """Start the process that a knock would start here."""
        environment = {**self.settings.child_environment(), "TETHER_TEST_FAILPOINTS": failpoints}
        self.settings.home.mkdir(parents=True, exist_ok=True)
        return warm_worker.start([job_id], environment, self.settings.home / "worker.log")

    def work(self, job_id: str, failpoints: str = "") -> int:
        """Run it to its end and return its exit code; a negative one is the signal that killed it."""
        process = self.start(job_id, failpoints)
        process.join(TIMEOUT_S)
        assert process.exitcode is not None
        return int(process.exitcode)


@pytest.fixture(scope="module", params=BACKENDS)
def tenant(
    request: pytest.FixtureRequest, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tenant]:
    """A project on a server with a bucket and the miniature with its anchors."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch, database_on(request.param, folder, POSTGRESQL) as url:
        point_at(patch, s3_endpoint)
        settings = settings_in(
            folder / "home",
            database_url=url,
            storage_url=f"s3://{make_bucket(s3_endpoint)}/tether",
            threads=1,
            disk_reserve_bytes=0,
        )
        with serving(settings) as server:
            rows = store_rows(settings, "anchors", io.BytesIO(format_rows(anchor_rows(seed=0))))
            with unit_of_work(server.database) as session:
                base = register_base_model(session, NAME, WEIGHTS)
                session.flush()
                add_set(session, base, "anchors", rows)
            tenant = Tenant(server)
            yield tenant
            tenant.close()


@pytest.fixture
def machine(tenant: Tenant, tmp_path: Path) -> Any:
    """A function that gives a machine with an empty home."""

    def make(name: str, **changes: Any) -> Machine:
        home = tmp_path / name
        changes = {"home": home, "storage_dir": home / "storage", **changes}
        return Machine(tenant.server.settings.model_copy(update=changes))

    return make


def submit(tenant: Tenant, **training: Any) -> str:
    """Create a job with a checkpoint after each step, whose monitor acts at once and for good."""
    monitor = {"every": 2, "limit": 1e-9, "action": "anchors"}
    job_id: str = tenant.create_job(
        model=NAME,
        training_file=tenant.upload(*training_rows("clean", n=16)),
        seed=5,
        safety={"method": "none", "anchors": {"per_step": 2}, "monitor": monitor},
        training={"checkpoint_interval_s": 0, **training},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}},
        },
    )["id"]
    return job_id


def take_over(tenant: Tenant, job_id: str) -> None:
    """Let the reconciler find the job of a killed worker, and nothing wait."""
    set_work(tenant, job_id, lease_until_ms=1)
    reconcile(tenant.server.database, tenant.server.settings)
    set_work(tenant, job_id, not_before_ms=None)


def wait_until_signed(tenant: Tenant, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        job: dict[str, Any] = tenant.get(f"{PATH}/{job_id}")
        if job["safety"]["state"] != "signing":
            return job
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_leaves(tenant: Tenant, job_id: str, folder: Path) -> list[dict[str, Any]]:
    """Verify the evidence and return the records."""
    bundle = folder / "evidence.zip"
    bundle.write_bytes(tenant.http.get(f"{PATH}/{job_id}/evidence").content)
    report = verify_bundle(bundle)
    assert report.ok, report.lines()
    with zipfile.ZipFile(bundle) as archive:
        return [json.loads(line) for line in archive.read(LEAVES).splitlines()]


def course_of(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what counts of a run: its steps and the measurements of its monitor, without what a resume threw away."""
    found: list[dict[str, Any]] = []
    for leaf in leaves:
        body = leaf["body"]
        if ".job.resume/" in leaf["t"]:
            found = [each for each in found if each["step"] <= body["from_step"]]
        elif leaf["t"].split("/")[0] in ("tether.step", "tether.monitor"):
            found.append(body)
    return found


def adapter_of(tenant: Tenant, job_id: str) -> bytes:
    return tenant.http.get(f"{PATH}/{job_id}/adapter").content


class Undisturbed(NamedTuple):
    """A run that nothing happened to."""

    adapter: bytes
    course: list[dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tenant: Tenant, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = tmp_path_factory.mktemp("undisturbed")
    job_id = submit(tenant)
    settings = tenant.server.settings.model_copy(update={"home": home, "storage_dir": home / "storage"})
    assert Machine(settings).work(job_id) == 0
    assert wait_until_signed(tenant, job_id)["status"] == "succeeded"
    course = course_of(read_leaves(tenant, job_id, home))
    assert len(course) == STEPS + STEPS // 2
    return Undisturbed(adapter_of(tenant, job_id), course)


def test_another_machine_goes_on_bit_for_bit(
    tenant: Tenant, machine: Any, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """The first machine is killed after a checkpoint and never comes back; the second has an empty home."""
    first, second = machine("first"), machine("second")
    job_id = submit(tenant)
    assert first.work(job_id, "checkpoint.after_commit=kill@5") == -9
    shutil.rmtree(first.settings.home)
    take_over(tenant, job_id)
    assert second.work(job_id) == 0
    assert wait_until_signed(tenant, job_id)["status"] == "succeeded"
    assert adapter_of(tenant, job_id) == undisturbed.adapter
    leaves = read_leaves(tenant, job_id, tmp_path)
    # The weights, and what the controller and the monitor did and saw at every step.
    assert course_of(leaves) == undisturbed.course
    resumes = [leaf["body"]["from_step"] for leaf in leaves if ".job.resume/" in leaf["t"]]
    assert resumes == [5]
    assert not (second.checkpoints / job_id).exists()


@on_sqlite
def test_damage_is_on_record_and_costs_steps_and_nothing_else(
    tenant: Tenant, machine: Any, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    alone = machine("alone", storage_url="")
    job_id = submit(tenant)
    _bring_files(tenant, alone)
    assert alone.work(job_id, "checkpoint.after_commit=kill@5") == -9
    newest = max((alone.checkpoints / job_id).glob("step-*"))
    (newest / "optimizer.safetensors").write_bytes(b"")
    take_over(tenant, job_id)
    assert alone.work(job_id) == 0
    _bring_back(tenant, alone)
    assert wait_until_signed(tenant, job_id)["status"] == "succeeded"
    assert adapter_of(tenant, job_id) == undisturbed.adapter
    leaves = read_leaves(tenant, job_id, tmp_path)
    assert course_of(leaves) == undisturbed.course
    kinds = [(leaf["t"], leaf["body"].get("from_step", leaf["body"].get("step"))) for leaf in leaves]
    at = next(place for place, (kind, _) in enumerate(kinds) if ".ckpt.invalid/" in kind)
    assert (kinds[at], kinds[at + 1][1]) == (("tether.ckpt.invalid/1", 5), 4)


@on_sqlite
def test_where_nothing_is_left_the_job_fails_and_its_record_says_so(
    tenant: Tenant, machine: Any, tmp_path: Path
) -> None:
    alone, other = (machine(name, storage_url="") for name in ("alone", "other"))
    job_id = submit(tenant)
    for each in (alone, other):
        _bring_files(tenant, each)
    assert alone.work(job_id, "checkpoint.after_commit=kill@3") == -9
    take_over(tenant, job_id)
    assert other.work(job_id) == 0
    job = tenant.get(f"{PATH}/{job_id}")
    assert (job["status"], job["error"]["code"]) == ("failed", "checkpoint_lost")
    assert "the one after step 3 is missing" in job["error"]["message"]
    leaves = read_leaves(tenant, job_id, tmp_path)
    assert [leaf["t"] for leaf in leaves[-3:]] == [
        "tether.ckpt.invalid/1",
        "tether.ckpt.invalid/1",
        "tether.job.end/1",
    ]
    assert not any(".job.resume/" in leaf["t"] for leaf in leaves), "it never began anew"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes. Skips where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield folder
    finally:
        unmount = ["umount", "--lazy", str(folder)]
        subprocess.run(unmount, check=True)


@on_sqlite
def test_a_disk_that_fills_up_pauses_the_job_at_its_last_checkpoint(
    tenant: Tenant, machine: Any, undisturbed: Undisturbed, small_disk: Path, tmp_path: Path
) -> None:
    cramped = machine("cramped", storage_dir=small_disk)
    job_id = submit(tenant)
    # Something else fills the disk while the job is between two checkpoints.
    process = cramped.start(job_id, "checkpoint.after_commit=sleep:6@2")
    deadline = time.monotonic() + TIMEOUT_S
    while len(_checkpoints(tenant, job_id)) < 2:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    process.join(TIMEOUT_S)
    job = tenant.get(f"{PATH}/{job_id}")
    assert (process.exitcode, job["status"]) == (0, "paused")
    assert "the disk of the checkpoints has" in job["safety"]["pause_reason"]
    assert "too few" in job["safety"]["pause_reason"]
    assert [each.step for each in _checkpoints(tenant, job_id)] == [1, 2]
    read_leaves(tenant, job_id, tmp_path)

    filler.unlink()
    assert tenant.http.post(f"{PATH}/{job_id}/resume").status_code == 200
    assert cramped.work(job_id) == 0
    assert wait_until_signed(tenant, job_id)["status"] == "succeeded"
    assert adapter_of(tenant, job_id) == undisturbed.adapter
    assert course_of(read_leaves(tenant, job_id, tmp_path)) == undisturbed.course


def _checkpoints(tenant: Tenant, job_id: str) -> list[Checkpoint]:
    with read_only(tenant.server.database) as session:
        assert get_work(session, job_id) is not None
        return list(
            session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step))
        )


def _bring_files(tenant: Tenant, machine: Machine) -> None:
    """Give a machine without a bucket what is in the bucket."""
    from obstore.store import S3Store

    store = S3Store.from_url(tenant.server.settings.storage_url)
    for page in store.list():
        for found in page:
            if not found["path"].startswith("checkpoints/"):
                path = machine.settings.storage_dir / found["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(store.get(found["path"]).bytes()))


def _bring_back(tenant: Tenant, machine: Machine) -> None:
    """Give the bucket what such a machine has stored, as an operator who moves does."""
    from obstore.store import S3Store

    store = S3Store.from_url(tenant.server.settings.storage_url)
    for path in machine.settings.storage_dir.glob("??/*"):
        store.put(os.path.relpath(path, machine.settings.storage_dir), path.read_bytes())
