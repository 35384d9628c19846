"""Rows that say the same: exactly, or but for case, spacing and Unicode form. Standard library only."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.domain.conversion import Row

Sameness = Literal["exact", "normalised"]
SAMENESSES: tuple[Sameness, ...] = ("exact", "normalised")
MAX_GROUPS = 100
MAX_INDICES = 20
"""So many groups are listed, each with so many rows; the counts are of all."""


def digest_rows(rows: Sequence[Row], sameness: Sameness) -> list[bytes]:
    """Return of each chat row what it has in common with the rows that say the same."""
    return [_digest(_normalise(row) if sameness == "normalised" else row) for row in rows]


def find_duplicates(digests: Sequence[bytes]) -> dict[str, Any]:
    """Return how many rows repeat an earlier one, and the groups of rows that say the same."""
    places = _places(digests)
    groups = [found for found in places.values() if len(found) > 1]
    return {
        "rows": sum(len(found) - 1 for found in groups),
        "groups": [{"count": len(found), "rows": found[:MAX_INDICES]} for found in groups[:MAX_GROUPS]],
        "group_count": len(groups),
    }


def find_leaks(training: Sequence[bytes], validation: Sequence[bytes]) -> dict[str, Any]:
    """Return how many rows of the validation file are in the training file too, and which."""
    places = _places(training)
    found = [(row, places[digest]) for row, digest in enumerate(validation) if digest in places]
    return {
        "rows": len(found),
        "pairs": [
            {"validation_row": row, "training_rows": rows[:MAX_INDICES]} for row, rows in found[:MAX_GROUPS]
        ],
    }


def _places(digests: Sequence[bytes]) -> dict[bytes, list[int]]:
    places: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        places.setdefault(digest, []).append(row)
    return places


def _digest(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _normalise(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, Mapping):
        return {key: _normalise(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_normalise(inner) for inner in value]
    return value
