"""Keyset pages in the wire's form."""

from collections.abc import Sequence
from typing import Any

from app.errors import InvalidRequest


def build_page(items: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a list object from up to limit + 1 items; the one beyond the limit only tells that there is more."""
    data = list(items[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > limit,
    }


def unknown_cursor(after: str) -> InvalidRequest:
    """Return the error for an `after` that names nothing in this list."""
    return InvalidRequest(f"after: {after!r} is not an id of this list", param="after", code="invalid_cursor")
