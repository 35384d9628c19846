"""Knocking on the workers' door. The database decides what is done; a message only says «look».

A message carries the id of a row of work and no authority: losing, doubling or forging it is harmless, because
the reconciler announces unclaimed work again and a claim is a compare-and-set.
"""

import logging
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy.orm import Session

from app.database import Publish
from app.errors import BrokerUnavailable, ConfigurationError
from app.settings import Settings

WAKE = "tether.wake"
QUEUES = ("gpu", "cpu")
SCHEME = "safefs"

log = logging.getLogger(__name__)


def enqueue(session: Session, queue: str, work_id: str) -> None:
    """Remember to knock for this work; the unit of work knocks after its commit and forgets on rollback."""
    session.info["knocks"].append((queue, work_id))


def build_celery(settings: Settings) -> Celery:
    """Return the Celery application, configured for either broker."""
    TRANSPORT_ALIASES[SCHEME] = "app.filesystem_broker:Transport"
    celery = Celery("tether", set_as_current=False)
    celery.conf.update(
        # The folder of a file queue travels in the transport's options; its URL needs a host all the same.
        broker_url=f"{SCHEME}://localhost" if _is_file_queue(settings) else settings.broker_url,
        broker_connection_retry_on_startup=True,
        # By default a worker gives up after a hundred tries; a broker may be away for longer.
        broker_connection_max_retries=None,
        # A producer that cannot reach the broker gives up at once; the reconciler will knock again.
        broker_connection_timeout=2,
        task_publish_retry=False,
        broker_transport_options=_transport_options(settings),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="gpu",
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )
    return celery


def build_publisher(settings: Settings) -> Publish:
    """Return the function that announces committed work."""
    celery = build_celery(settings)

    def publish(knocks: list[tuple[str, str]]) -> None:
        for queue, work_id in knocks:
            try:
                celery.send_task(WAKE, args=[work_id], queue=queue, ignore_result=True)
            except (OSError, KombuError) as error:
                log.warning(
                    "the broker cannot be reached (%s); %s waits until the reconciler announces it again",
                    type(error).__name__,
                    work_id,
                )

    return publish


def check_broker(settings: Settings) -> None:
    """Raise BrokerUnavailable where the broker cannot be reached."""
    try:
        with build_celery(settings).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except (OSError, KombuError) as error:
        raise BrokerUnavailable(
            f"the broker cannot be reached ({type(error).__name__}); start it, or mend TETHER_BROKER_URL"
        ) from error


def _is_file_queue(settings: Settings) -> bool:
    return settings.broker_url.startswith(f"{SCHEME}://")


def _transport_options(settings: Settings) -> dict[str, Any]:
    if not _is_file_queue(settings):
        # Messages are acknowledged on receipt, so nothing should ever wait this long.
        return {"visibility_timeout": 24 * 3600, "socket_connect_timeout": 2}
    folder = Path(settings.broker_url.removeprefix(f"{SCHEME}://"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"the folder of the queue {folder} cannot be made ({error.strerror}); mend that, or TETHER_BROKER_URL"
        ) from error
    return {"data_folder": str(folder), "polling_interval": 0.2}
