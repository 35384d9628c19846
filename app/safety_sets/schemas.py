"""Safety sets on the wire."""

from typing import Any

from pydantic import Field

from app.domain.frozen import Frozen
from app.models.safety_set import SafetySet, SetKind


class SafetySetCreate(Frozen):
    """The body of `POST /v1/safety_sets`."""

    file: str = Field(description="Id of an uploaded file of rows.")
    model: str = Field(description="Base model that the set is for.")
    kind: SetKind = Field(
        description="anchors: requests without a reply, to which the model stays as it was; alignment: training rows"
        " that decline or answer as they should; harmful: training rows that answer what should be declined."
    )


def set_to_wire(each: SafetySet) -> dict[str, Any]:
    """Return a set as an object of the wire. Its rows stay with the operator."""
    return {
        "id": each.id,
        "object": "safety_set",
        "created_at": int(each.created_at.timestamp()),
        "model": each.base_model,
        "kind": each.kind,
        "rows": each.rows,
        "sha256": each.sha256,
    }
