"""Liveness and readiness."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import storage
from app.base_models.repository import list_base_models
from app.critics.repository import get_newest_critic
from app.database import Database, read_only
from app.dependencies import DatabaseDep, SettingsDep
from app.errors import BrokerUnavailable, StorageUnavailable
from app.migration import current_revision, how_to_mend, newest_revision
from app.models.base_model import BaseModel
from app.notary.service import NOTARY
from app.queue import check_broker
from app.safety_sets.repository import get_newest_set
from app.safety_sets.service import how_to_register_anchors
from app.settings import Settings
from app.work.repository import list_live_queues

router = APIRouter(tags=["health"])

WORKER_SILENCE_MS = 30_000


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(database: DatabaseDep, settings: SettingsDep) -> JSONResponse:
    """Say whether jobs can run, what is missing where they cannot, and which base models lack something."""
    missing, advice = examine(database, settings)
    body: dict[str, Any] = {"status": "ready"} if not missing else {"status": "not ready", "missing": missing}
    if advice:
        body["advice"] = advice
    return JSONResponse(body, status_code=503 if missing else 200)


def examine(database: Database, settings: Settings) -> tuple[list[str], list[str]]:
    """Return what has to be mended before jobs can run, and what single base models lack for the default preset."""
    missing: list[str] = []
    advice: list[str] = []
    try:
        check_broker(settings)
    except BrokerUnavailable as error:
        missing.append(error.message)
    try:
        storage.check(settings.storage)
    except StorageUnavailable as error:
        missing.append(error.message)
    try:
        with read_only(database) as session:
            session.execute(text("SELECT 1"))
            revision = current_revision(session.connection())
            if revision != newest_revision():
                return [*missing, f"the database schema is not current; {how_to_mend(revision)}"], []
            queues = list_live_queues(session, WORKER_SILENCE_MS)
            missing += [
                f"no worker is alive for the queue {name}" for name in ("gpu", "cpu") if name not in queues
            ]
            if NOTARY not in queues:
                missing.append(
                    "no notary is alive, so that no job can succeed; its log says why. Run: tether notary"
                )
            bases = list_base_models(session)
            if not bases:
                missing.append("no base model is registered; run: tether models add NAME PATH")
            elif all(get_newest_critic(session, base) is None for base in bases):
                missing.append("no base model has a critic yet; see the advice, or: tether doctor")
            for base in bases:
                lacks = (mend_critic(session, base), mend_anchors(session, base))
                advice += [f"the base model {base.name} {each}" for each in lacks if each is not None]
    except SQLAlchemyError as error:
        missing.append(f"the database cannot be reached ({type(error).__name__})")
    return missing, advice


def mend_critic(session: Session, base: BaseModel) -> str | None:
    """Return why a base model has no usable critic and what to do; None where it has one."""
    critic = get_newest_critic(session, base)
    if critic is not None and critic.threshold is not None:
        return None
    lacks = "has no critic" if critic is None else f"has the critic {critic.id} of an earlier version"
    return f"{lacks}; run: tether critics fit --base {base.name} --data FILE (or --cold-start)"


def mend_anchors(session: Session, base: BaseModel) -> str | None:
    """Return that a base model has no anchors and what to do; None where it has some."""
    if get_newest_set(session, base, "anchors") is not None:
        return None
    return f"has no anchors; {how_to_register_anchors(base)}"
