"""What a project has used, and what it may."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.models.tenancy import Project
from app.quotas import repository
from app.quotas.limits import limits_of
from app.quotas.service import month_of, to_ms
from app.settings import Settings


def usage_of(
    session: Session, settings: Settings, project: Project, month: datetime | None
) -> dict[str, Any]:
    """Return the usage of a project, its GPU time by day of a month (default: this one), and its limits."""
    begin = month or month_of(repository.read_clock(session))
    end = (begin + timedelta(days=32)).replace(day=1)
    spans = repository.list_spans(
        session, project.id, queue=repository.GPU, since_ms=to_ms(begin), until_ms=to_ms(end)
    )
    days = split_by_day(spans)
    return {
        "object": "usage",
        "project_id": project.id,
        "project_name": project.name,
        "month": f"{begin:%Y-%m}",
        "storage_bytes": repository.sum_storage(session, project.id),
        "jobs": repository.count_states(session, project.id),
        "trained_tokens": repository.sum_tokens(session, project.id),
        "gpu_seconds": sum(days.values()) / 1000,
        "gpu_seconds_by_day": [
            {"date": day, "gpu_seconds": spent / 1000} for day, spent in sorted(days.items())
        ],
        "limits": asdict(limits_of(project, settings)),
    }


def split_by_day(spans: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Return the milliseconds that spans of time have of each day (UTC)."""
    days: dict[str, int] = defaultdict(int)
    for begin, end in spans:
        at = begin
        while at < end:
            day = datetime.fromtimestamp(at / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            until = min(end, to_ms(day + timedelta(days=1)))
            days[f"{day:%Y-%m-%d}"] += until - at
            at = until
    return dict(days)
