"""JSON with one spelling per value, so that its digest means something."""

import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys, no spaces, and no number that JSON does not have.

    Floats have Python's shortest spelling, which reads back as the same float.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def parse_json(data: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError on anything else."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value
