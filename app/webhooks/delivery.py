"""The loop that tells endpoints what happened: at least once, with growing pauses, for up to 72 hours.

Any number may run. A delivery is claimed for the time of an attempt, so that two of them do not send the same, and
what a killed one held is sent by another. Each endpoint has one attempt at a time in a process, and a short turn, so
that a slow receiver holds up itself and not the others.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import SystemRandom
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import Database, read_only, unit_of_work
from app.failpoints import failpoint
from app.models.base import utc_now
from app.models.webhook import DeliveryState, WebhookDelivery, WebhookEndpoint
from app.settings import Settings
from app.webhooks import repository
from app.webhooks.egress import NotSent, Resolve, post, resolve_by_system
from app.webhooks.signing import sign

log = logging.getLogger(__name__)

GIVE_UP_AFTER_MS = 72 * 3600 * 1000
FIRST_PAUSE_MS = 5_000
LONGEST_PAUSE_MS = 6 * 3600 * 1000
LEASE_MARGIN_S = 60.0
"""What a claim lasts beyond an attempt: a name server that hangs can add its own time-out to ours."""
POLL_S = 1.0
PRUNE_INTERVAL_S = 3600.0
SENDERS = 64
"""Endpoints that one process sends to at once."""
TURN_S = 10.0
"""An endpoint for which more waits goes to the end of the queue after this."""
DISABLED = "the endpoint was disabled before this was delivered; enable it, then redeliver"


class Outgoing(NamedTuple):
    """All that an attempt needs, read in one transaction."""

    url: str
    keys: tuple[bytes, ...]
    event_id: str
    body: bytes


class Outcome(NamedTuple):
    """How an attempt went."""

    status_code: int | None
    error: str | None
    """What was wrong, in our words; None where the receiver took it."""


def run_deliveries(
    database: Database, settings: Settings, stop: threading.Event, resolve: Resolve = resolve_by_system
) -> None:
    """Deliver what is due until told to stop, whatever fails; a database that is away is waited for."""
    busy: set[str] = set()
    prune_at = time.monotonic()

    def take_turn(endpoint_id: str) -> None:
        try:
            turn_ends = time.monotonic() + TURN_S
            while deliver_next(database, settings, endpoint_id, resolve):
                if stop.is_set() or time.monotonic() > turn_ends:
                    break
        except SQLAlchemyError as error:
            # The lease ends, and then somebody tries again.
            log.warning(
                "a delivery to %s was interrupted: the database failed (%s)",
                endpoint_id,
                type(error).__name__,
            )
        except Exception:
            log.exception("a delivery to %s was interrupted", endpoint_id)
        finally:
            busy.discard(endpoint_id)

    with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as senders:
        while not stop.wait(POLL_S):
            try:
                if time.monotonic() >= prune_at:
                    prune_at = time.monotonic() + PRUNE_INTERVAL_S
                    prune(database, settings)
                sending = busy.copy()
                with read_only(database) as session:
                    waiting = repository.list_due_endpoints(
                        session, busy=sending, limit=SENDERS - len(sending)
                    )
            except SQLAlchemyError as error:
                log.warning("the database cannot be used (%s); trying again", type(error).__name__)
                continue
            except Exception:
                log.exception("it cannot be seen what is to be delivered; trying again")
                continue
            for endpoint_id in waiting:
                busy.add(endpoint_id)
                senders.submit(take_turn, endpoint_id)


def prune(database: Database, settings: Settings) -> None:
    """Forget the deliveries that are older than the operator keeps them."""
    with unit_of_work(database) as session:
        repository.delete_finished(session, utc_now() - timedelta(days=settings.webhook_log_days))


def deliver_next(
    database: Database, settings: Settings, endpoint_id: str, resolve: Resolve = resolve_by_system
) -> bool:
    """Attempt the delivery that waits longest for an endpoint. False where none is due or the endpoint did not take it."""
    lease_ms = int((settings.webhook_timeout_s + LEASE_MARGIN_S) * 1000)
    with unit_of_work(database) as session:
        endpoint = session.get(WebhookEndpoint, endpoint_id)
        if endpoint is None:
            return False
        if not endpoint.enabled:
            repository.give_up_pending(session, endpoint_id, DISABLED)
            return False
        delivery = repository.claim_due(session, endpoint_id, lease_ms=lease_ms)
        if delivery is None:
            return False
        outgoing = address(session, endpoint, delivery.event_id, delivery.body)
    failpoint("webhook.before_send")
    outcome = asyncio.run(attempt(outgoing, settings, resolve))
    failpoint("webhook.after_send")
    with unit_of_work(database) as session:
        record(session, delivery, outcome)
    return outcome.error is None


def address(session: Session, endpoint: WebhookEndpoint, event_id: str, body: bytes) -> Outgoing:
    """Return what is sent to an endpoint: signed by its secret, and by the former one while that counts too."""
    keys = [endpoint.secret]
    former, until_ms = endpoint.former_secret, endpoint.former_secret_until_ms
    if former is not None and until_ms is not None and repository.read_clock(session) < until_ms:
        keys.append(former)
    return Outgoing(endpoint.url, tuple(keys), event_id, body)


async def attempt(outgoing: Outgoing, settings: Settings, resolve: Resolve = resolve_by_system) -> Outcome:
    """Send once. What goes wrong is in the outcome, in words that may be shown."""
    headers = {
        "Content-Type": "application/json",
        **sign(outgoing.keys, event_id=outgoing.event_id, timestamp=int(time.time()), body=outgoing.body),
    }
    try:
        status = await post(
            outgoing.url,
            outgoing.body,
            headers,
            private_hosts=settings.private_hosts,
            timeout_s=settings.webhook_timeout_s,
            resolve=resolve,
        )
    except NotSent as failed:
        return Outcome(None, str(failed))
    except Exception:
        # Not to know of an error must not mean to try for ever.
        log.exception("%s could not be sent", outgoing.event_id)
        return Outcome(None, "it could not be sent; the log of the service says why")
    return Outcome(status, _judge(status))


def record(session: Session, delivery: WebhookDelivery, outcome: Outcome) -> None:
    """Note how an attempt of a claimed delivery went, and when the next one is."""
    noted = {"status_code": outcome.status_code, "error": outcome.error}
    if outcome.error is None:
        state = DeliveryState.DELIVERED
        repository.finish_attempt(session, delivery, state=state, next_attempt_at_ms=None, **noted)
        repository.note_success(session, delivery.endpoint_id)
        return
    now = repository.read_clock(session)
    since = now if delivery.tried_since_ms is None else delivery.tried_since_ms
    if now < since + GIVE_UP_AFTER_MS:
        next_ms = min(now + pause_after(now - since), since + GIVE_UP_AFTER_MS)
        pending = DeliveryState.PENDING
        repository.finish_attempt(session, delivery, state=pending, next_attempt_at_ms=next_ms, **noted)
        return
    noted["error"] = f"given up after {delivery.attempts} attempts; the last: {outcome.error}"
    state = DeliveryState.FAILED
    if not repository.finish_attempt(session, delivery, state=state, next_attempt_at_ms=None, **noted):
        return
    log.warning("the delivery %s to %s is given up: %s", delivery.id, delivery.endpoint_id, noted["error"])
    began = datetime.fromtimestamp(since / 1000, UTC)
    reason = (
        f"it has taken no delivery since {began:%Y-%m-%d %H:%M} UTC; the last attempt: {outcome.error}. Mend the"
        " receiver, enable the endpoint again, and redeliver what its log shows as failed"
    )
    if repository.disable_silent(session, delivery.endpoint_id, since_ms=since, reason=reason):
        log.warning("the webhook endpoint %s is disabled: %s", delivery.endpoint_id, reason)


def pause_after(tried_for_ms: int) -> int:
    """Return the pause before the next attempt: as long as has been tried, within bounds, so that pauses double.

    Each has jitter, so that what failed together does not come back together.
    """
    pause = min(max(tried_for_ms, FIRST_PAUSE_MS), LONGEST_PAUSE_MS)
    return int(pause * SystemRandom().uniform(0.75, 1.25))


def _judge(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return (
            f"the receiver redirects (status {status}), which is not followed; set the URL to where it leads"
        )
    return f"the receiver answered with status {status}"
