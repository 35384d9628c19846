"""Faults 5 and 6: knocks that are doubled, forged, lost; a Redis that forgets everything, restarts, or is gone."""

import base64
import json
import uuid
from pathlib import Path

from redis import Redis as RedisClient

from app.queue import WAKE, build_celery
from tests.faults.checks import end_check
from tests.faults.installation import Installation, Template, desk, installed, join, reference_run
from tests.faults.servers import Redis


def test_of_ten_workers_exactly_one_claims(installation: Installation, reference: bytes) -> None:
    job_id = installation.submit()
    workers = [installation.start_trainer() for _ in range(10)]
    assert {join(worker, installation) for worker in workers} == {0}
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)
    work = installation.work(job_id)
    assert (work.attempt, work.epoch) == (1, 1)
    assert installation.kinds(job_id).count("job.start") == 1


def test_a_redis_that_forgets_restarts_and_is_gone_only_delays(
    postgresql_template: Template, redis_server: Redis, tmp_path: Path
) -> None:
    reference = reference_run(postgresql_template, tmp_path)
    with (
        installed(postgresql_template, tmp_path, broker_url=redis_server.url()) as installation,
        desk(installation),
    ):
        worker = installation.start_part("worker", "--queue", "gpu", failpoints="step.after_commit=sleep:1@5")
        try:
            running = installation.submit()
            installation.wait_for_step(running, 5)
            # While one is worked on, others wait whose knocks are gone.
            forgotten = installation.submit()
            redis_server.flush()
            redis_server.stop()
            submitted_without = installation.submit()
            for job_id in (running, forgotten):
                installation.wait_for_success(job_id)
        finally:
            redis_server.restart()
        installation.wait_for_success(submitted_without)
        assert worker.poll() is None, installation.read_log()
        for job_id in (running, forgotten, submitted_without):
            end_check(installation, job_id, reference=reference)
            assert installation.work(job_id).attempt == 1


def test_forged_and_doubled_knocks_start_nothing_that_the_database_did_not_queue(
    postgresql_template: Template, redis_server: Redis, tmp_path: Path
) -> None:
    redis_server.flush()
    never = tmp_path / "never"
    # A pickle that runs a command when it is loaded.
    pickled = base64.b64encode(f"cos\nsystem\n(S'touch {never}'\ntR.".encode()).decode()
    with (
        installed(postgresql_template, tmp_path, broker_url=redis_server.url()) as installation,
        desk(installation),
    ):
        cancelled, paused = installation.submit(), installation.submit()
        assert installation.command(cancelled, "cancel").status_code == 200
        assert installation.command(paused, "pause").status_code == 200
        celery = build_celery(installation.settings)
        real = installation.submit()
        for work_id in [cancelled, paused, real, "ftjob-of-nobody", "'; DROP TABLE work; --", "x" * 100_000]:
            for _ in range(20):
                celery.send_task(WAKE, args=[work_id], queue="gpu", ignore_result=True)
        celery.send_task(WAKE, args=[{"id": real}, 7], queue="gpu", ignore_result=True)
        celery.send_task("os.system", args=[f"touch {never}"], queue="gpu", ignore_result=True)
        celery.close()
        with RedisClient(port=redis_server.port) as client:
            client.lpush("gpu", json.dumps(_with_body(pickled, "application/x-python-serialize", real)))
        worker = installation.start_part("worker", "--queue", "gpu")
        installation.wait_for_success(real)
        end_check(installation, real)
        assert installation.work(real).attempt == 1
        with RedisClient(port=redis_server.port) as client:
            installation.wait(lambda: client.llen("gpu") == 0, "every knock answered")
        assert worker.poll() is None, installation.read_log()
        end_check(installation, cancelled, states=["cancelled"])
        end_check(installation, paused, states=["paused"])
        assert not never.exists()


def _with_body(body: str, content_type: str, work_id: str) -> dict[str, object]:
    """Return a message as Celery's, whose body is a pickle."""
    tag = str(uuid.uuid4())
    return {
        "body": body,
        "content-encoding": "binary",
        "content-type": content_type,
        "headers": {"lang": "py", "task": WAKE, "id": tag, "argsrepr": repr([work_id])},
        "properties": {
            "correlation_id": tag,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "gpu"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }
