"""Server-sent events of a job. One that many streams send is made once."""

import json
from typing import Any

from fastapi.sse import format_sse_event


def message(name: str, data: dict[str, Any], *, id: str | None = None) -> bytes:
    """Return one message as it is sent."""
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=name, id=id)
