"""Who is behind a key, kept for a moment.

Whoever polls or pages asks with the same key many times a second. Reading it each time took as long as reading what was
asked for. Only a key that opens is kept, and never beyond its own end: a new key opens at once, and one that is revoked
opens nothing more after `KEPT_S`, whichever process revoked it.
"""

import time
from functools import partial

from app.auth import Found, Known, find_callers
from app.database import Database
from app.gathered import Gathered
from app.models.base import utc_now

KEPT_S = 0.25
"""Streams and long polls notice a revoked key within a second, too."""
MAX_KEPT = 10_000


class KnownCallers:
    """Finds callers by the digests of their keys, for the requests of one event loop."""

    def __init__(self, database: Database) -> None:
        self._read = Gathered(partial(find_callers, database))
        self._kept: dict[str, tuple[float, Known]] = {}

    async def get(self, digest: str) -> Found | None:
        """Return what became of a key, as the database said at most `KEPT_S` ago; None where it is not known."""
        asked_at = time.monotonic()
        kept = self._kept.get(digest)
        if kept is not None and asked_at < kept[0] and not _has_expired(kept[1]):
            return kept[1]
        found = await self._read.get(digest)
        # One whose use is to be written down is read again, so that this is done once.
        if isinstance(found, Known) and not found.use_is_due:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            # The database was asked after `asked_at`, so that nothing older is given than was promised.
            self._kept[digest] = (asked_at + KEPT_S, found)
        return found


def _has_expired(known: Known) -> bool:
    expires_at = known.caller.expires_at
    return expires_at is not None and expires_at <= utc_now()
