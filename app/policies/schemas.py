"""Safety policies on the wire."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from app.domain.control_law import is_protected
from app.domain.frozen import Frozen
from app.domain.safety_policy import SafetyPolicy
from app.domain.safety_spec import PRESETS, AnySafety
from app.errors import PolicyViolation
from app.models.policy import Policy

MAX_POLICY = 65_536


class PolicyCreate(Frozen):
    """The body of `POST /v1/policies`: the text of a TOML file, or the same as an object."""

    toml: Annotated[str, Field(min_length=1, max_length=MAX_POLICY)] | None = None
    policy: Annotated[dict[str, Any], Field(max_length=100)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "PolicyCreate":
        if (self.toml is None) is (self.policy is None):
            raise ValueError("give `toml`, the text of a policy file, or `policy`, the same as an object")
        return self


def policy_to_wire(stored: Policy, policy: SafetyPolicy, *, whole: bool) -> dict[str, Any]:
    """Return a stored policy; `whole` with its text as it was written."""
    return {
        "id": stored.id,
        "object": "policy",
        "created_at": int(stored.created_at.timestamp()),
        "name": stored.name,
        "version": stored.version,
        "sha256": stored.sha256,
        "written_in": stored.written_in,
        "created_by": stored.key_id,
        "policy": policy.model_dump(mode="json", exclude_none=True),
        **({"content": stored.content.decode("utf-8")} if whole else {}),
    }


def in_force_to_wire(policy: SafetyPolicy, sha256: str, policy_id: str | None) -> dict[str, Any]:
    """Return the policy that holds for a project, with what it says of each preset; the installation's has no id."""
    return {
        "id": policy_id,
        "object": "policy_in_force",
        "name": policy.name,
        "version": policy.version,
        "sha256": sha256,
        "policy": policy.model_dump(mode="json", exclude_none=True),
        "presets": {name: _preset_to_wire(policy, safety) for name, safety in PRESETS.items()},
    }


def _preset_to_wire(policy: SafetyPolicy, safety: AnySafety) -> dict[str, Any]:
    spec = safety.model_dump(mode="json")
    refused = None
    try:
        policy.check(safety)
    except PolicyViolation as error:
        refused = error.to_wire()
    return {"safety": spec, "protected": is_protected(spec), "refused": refused}
