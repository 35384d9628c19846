"""/metrics for Prometheus: what the database says of the whole installation, and what this process has answered.

A label is a name of ours, a route, a state or the id of a running job: nothing that a user wrote.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import storage
from app.database import Database, read_only
from app.dependencies import needs
from app.domain.job import State, WorkKind
from app.domain.ledger import kind_of, parse_leaf
from app.domain.scopes import Scope as KeyScope
from app.jobs.repository import get_newest_record
from app.models.base import now_ms, utc_now
from app.models.job import Job, LedgerLeaf
from app.models.webhook import DeliveryState, WebhookDelivery
from app.models.work import Work, Worker
from app.notary.anchor import find_standing
from app.notary.repository import get_refusal, list_pending_events
from app.settings import Settings

KEEP_S = 5.0
"""However often one scrapes, the database is asked so often at most."""
MAX_RUNNING_JOBS = 50
"""Jobs that have series of their own; a label for every job that ever ran would fill any Prometheus."""
NEWEST_LEAVES = 32
FIRST_LEAVES = 8
WORKER_SILENCE_MS = 30_000
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

router = APIRouter(tags=["health"])


@router.get("/metrics", dependencies=[needs(KeyScope.METRICS_READ)])
def read_metrics(request: Request) -> Response:
    """Return what Prometheus collects, in its text form."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


class Metrics:
    """What one application counts."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(InstallationCollector(database))
        free = Gauge(
            "tether_disk_free_bytes",
            "Bytes that are free on the disk of this process's storage, or on its way to the bucket.",
            registry=self.registry,
        )
        free.set_function(lambda: storage.free_bytes(settings.storage))
        self._requests = Histogram(
            "tether_http_request_seconds",
            "Time of requests of this process, by route and status.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, str(status)).observe(seconds)


class InstallationCollector(Collector):
    """Reads the database at a scrape; any API process gives the same numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._found: list[Metric] = []

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not ask the database."""
        return []

    def collect(self) -> list[Metric]:
        """Return the numbers as they were at most a few seconds ago."""
        with self._lock:
            if time.monotonic() - self._read_at > KEEP_S:
                with read_only(self._database) as session:
                    self._found = [
                        *_work(session),
                        *_running(session),
                        *_around(session),
                        *_record(session),
                    ]
                self._read_at = time.monotonic()
            return self._found


def _work(session: Session) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("tether_jobs", "Fine-tuning jobs by state.", labels=["state"])
    rows = session.execute(
        select(Work.state, func.count()).where(Work.kind == WorkKind.TRAIN).group_by(Work.state)
    )
    counts: dict[str, int] = dict(rows.all())
    for state in State:
        jobs.add_metric([state], counts.get(state, 0))
    yield jobs
    queued = GaugeMetricFamily("tether_queue_length", "Pieces of work that wait.", labels=["queue"])
    age = GaugeMetricFamily(
        "tether_queue_oldest_seconds", "Age of the oldest piece of work that waits.", labels=["queue"]
    )
    now = utc_now()
    for queue, count, oldest in session.execute(
        select(Work.queue, func.count(), func.min(Work.created_at))
        .where(Work.state == State.QUEUED)
        .group_by(Work.queue)
    ):
        queued.add_metric([queue], count)
        age.add_metric([queue], max(0.0, (now - oldest).total_seconds()))
    yield queued
    yield age


JOB_NUMBERS = {
    "step": "Steps that a running job has done.",
    "risk": "Mean risk of a running job's newest step.",
    "beta": "Mean beta of a running job's newest step.",
    "step_seconds": "Time of a step of a running job, over its newest steps.",
    "fallback_share": "Share of a running job's rows whose risk is the fallback critic's.",
}


def _running(session: Session) -> Iterator[Metric]:
    families = {
        name: GaugeMetricFamily(f"tether_job_{name}", text, labels=["job"])
        for name, text in JOB_NUMBERS.items()
    }
    rows = session.execute(
        select(Job.id, Job.step, Work.ledger_size)
        .join(Work, Work.id == Job.id)
        .where(Work.state == State.RUNNING)
        .order_by(Work.started_at.desc())
        .limit(MAX_RUNNING_JOBS)
    )
    for job_id, step, size in rows.all():
        record = get_newest_record(session, job_id) or {}
        found = {
            "step": step,
            "risk": record.get("risk_mean"),
            "beta": record.get("beta_mean"),
            "step_seconds": _step_seconds(_leaves(session, job_id, size - NEWEST_LEAVES, size)),
            "fallback_share": _fallback_share(_leaves(session, job_id, 0, FIRST_LEAVES)),
        }
        for name, value in found.items():
            if value is not None:
                families[name].add_metric([job_id], value)
    yield from families.values()


def _leaves(session: Session, job_id: str, start: int, stop: int) -> list[dict[str, Any]]:
    found = session.scalars(
        select(LedgerLeaf.leaf)
        .where(LedgerLeaf.work_id == job_id, LedgerLeaf.seq >= start, LedgerLeaf.seq < stop)
        .order_by(LedgerLeaf.seq)
    )
    return [parse_leaf(leaf) for leaf in found]


def _step_seconds(leaves: Sequence[dict[str, Any]]) -> float | None:
    times = [leaf["ts_db"] for leaf in leaves if kind_of(leaf) == "step"]
    return (times[-1] - times[0]) / 1000 / (len(times) - 1) if len(times) > 1 else None


def _fallback_share(leaves: Sequence[dict[str, Any]]) -> float | None:
    for leaf in leaves:
        if kind_of(leaf) == "risk.table":
            counts: dict[str, int] = leaf["body"]["counts"]
            rows = sum(counts.values())
            return counts.get("fallback", 0) / rows if rows else None
    return None


def _around(session: Session) -> Iterator[Metric]:
    deliveries = GaugeMetricFamily(
        "tether_webhook_deliveries", "Deliveries in the log of webhooks, by outcome.", labels=["state"]
    )
    rows = session.execute(select(WebhookDelivery.state, func.count()).group_by(WebhookDelivery.state))
    counts: dict[str, int] = dict(rows.all())
    for state in DeliveryState:
        deliveries.add_metric([state], counts.get(state, 0))
    yield deliveries
    workers = GaugeMetricFamily("tether_workers", "Workers that live.", labels=["queue"])
    alive = select(Worker.queue, func.count()).where(Worker.seen_at_ms > now_ms() - WORKER_SILENCE_MS)
    for queue, count in session.execute(alive.group_by(Worker.queue)):
        workers.add_metric([queue], count)
    yield workers


def _record(session: Session) -> Iterator[Metric]:
    """Tell how the record stands: signed, and outside. Of an anchor that was never tried nothing is told."""
    unsigned = GaugeMetricFamily("tether_log_pending_events", "Acts that are in no log yet.")
    unsigned.add_metric([], len(list_pending_events(session)))
    yield unsigned
    refuses = GaugeMetricFamily("tether_notary_refuses", "Whether the notary signs nothing, and says why.")
    refuses.add_metric([], float(get_refusal(session) is not None))
    yield refuses
    standing = find_standing(session)
    if not standing.is_known:
        return
    lag = GaugeMetricFamily(
        "tether_anchor_lag_seconds", "How long the oldest checkpoint that is not outside has been signed."
    )
    lag.add_metric([], standing.lag_s)
    yield lag
    if standing.sent_at is not None:
        sent = GaugeMetricFamily(
            "tether_anchor_success_timestamp_seconds", "When the receiver last took a checkpoint."
        )
        sent.add_metric([], standing.sent_at.timestamp())
        yield sent
