"""The limits of a project: the installation's, unless the project has its own. 0 means that there is none."""

from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field

from app.domain.frozen import Frozen
from app.models.tenancy import Project
from app.settings import Settings

Limit = Annotated[int, Field(ge=0, lt=2**63)]


class LimitsUpdate(Frozen):
    """Limits in a request. Absent: as it was. Null: the installation's. 0: none."""

    NULL_IS_NONE = frozenset({"storage_bytes", "running_jobs", "queued_jobs", "gpu_seconds"})

    storage_bytes: Limit | None = None
    running_jobs: Limit | None = None
    queued_jobs: Limit | None = None
    gpu_seconds: Limit | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a project may use."""

    storage_bytes: int
    """Of its files, uploads under way and weights."""
    running_jobs: int
    """At the same time; more of them wait in the queue."""
    queued_jobs: int
    """That wait at the same time."""
    gpu_seconds: int
    """In a calendar month (UTC)."""


def limits_of(project: Project, settings: Settings) -> Limits:
    """Return the limits that hold for a project."""
    own = project.limits or {}
    return Limits(
        **{
            field.name: own.get(field.name, getattr(settings, f"project_{field.name}"))
            for field in fields(Limits)
        }
    )


def change_limits(project: Project, update: LimitsUpdate) -> None:
    """Set the limits that a request names, and give up those that it sets to null."""
    merged = {**(project.limits or {}), **update.model_dump(exclude_unset=True)}
    project.limits = {name: value for name, value in merged.items() if value is not None} or None
