"""How many requests a key may send in a minute, in the words of OpenAI's headers.

The count is in the broker's Redis where the broker is one, and then holds for all API processes together; else each
process counts for itself. A Redis that is away refuses nobody: quotas are in the database and do not rest on it.
"""

import logging
import math
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import FixedWindowRateLimiter

from app.settings import Settings

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 1.0
REDIS_REST_S = 10.0
"""Redis that could not be reached is left alone for this long, so that its absence does not slow requests down."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left to a key."""

    granted: bool
    limit: int
    remaining: int
    reset_s: float
    """Until the whole limit is there again."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return OpenAI's headers, and when to come again where the request was refused."""
        found = [
            (b"x-ratelimit-limit-requests", str(self.limit).encode()),
            (b"x-ratelimit-remaining-requests", str(self.remaining).encode()),
            (b"x-ratelimit-reset-requests", format_duration(self.reset_s).encode()),
        ]
        if not self.granted:
            found.append((b"retry-after", str(max(1, math.ceil(self.reset_s))).encode()))
        return found


class RateLimiter:
    """Counts the requests of each key."""

    def __init__(self, settings: Settings) -> None:
        self._item = RateLimitItemPerMinute(settings.requests_per_minute, namespace="tether")
        self._limiter = FixedWindowRateLimiter(_open_storage(settings))
        self._rest_until = 0.0

    def count(self, key_id: str) -> Allowance | None:
        """Count a request of a key, and say what is left. None where nobody can tell."""
        if time.monotonic() < self._rest_until:
            return None
        try:
            granted = self._limiter.hit(self._item, key_id)
            window = self._limiter.get_window_stats(self._item, key_id)
        except StorageError as error:
            self._rest_until = time.monotonic() + REDIS_REST_S
            log.warning(
                "requests are not counted: Redis cannot be used (%s)", type(error.storage_error).__name__
            )
            return None
        reset_s = max(0.0, window.reset_time - time.time())
        return Allowance(granted, self._item.amount, max(0, window.remaining), reset_s)


def build_rate_limiter(settings: Settings) -> RateLimiter | None:
    """Return the limiter that the settings ask for, if any."""
    return RateLimiter(settings) if settings.requests_per_minute else None


def format_duration(seconds: float) -> str:
    """Return a time as OpenAI writes it, such as 6m0s, 17s or 120ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _open_storage(settings: Settings) -> Storage:
    if not settings.broker_url.startswith(("redis://", "rediss://")):
        return MemoryStorage()
    return RedisStorage(
        settings.broker_url,
        wrap_exceptions=True,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        socket_timeout=REDIS_TIMEOUT_S,
    )
