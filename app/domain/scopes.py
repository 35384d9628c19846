"""What a key may do: scopes, and roles as named bundles of them.

A key has the scopes of its role, or fewer. Every route names the one that it needs.
"""

from enum import StrEnum


class Scope(StrEnum):
    """One thing that a key may be allowed."""

    FILES_READ = "files:read"
    """See files, their content and their reports."""
    FILES_WRITE = "files:write"
    """Upload and delete files."""
    JOBS_READ = "jobs:read"
    """See jobs: events, checkpoints, steps, risk."""
    JOBS_WRITE = "jobs:write"
    """Create, estimate, pause, resume and cancel jobs."""
    JOBS_RELEASE = "jobs:release"
    """Release or reject a held job, and let one go on that the policy's gate paused."""
    ARTIFACTS_READ = "artifacts:read"
    """Download weights, and the replies of evaluations."""
    AUDIT_READ = "audit:read"
    """Download evidence and proofs."""
    LOG_READ = "log:read"
    """Read the whole log of the installation, which tells of all projects how many jobs and records they have."""
    MODELS_READ = "models:read"
    """See base models and fine-tuned models."""
    MODELS_WRITE = "models:write"
    """Delete fine-tuned models."""
    EVALUATIONS_READ = "evaluations:read"
    """See evaluations of models, without the replies."""
    EVALUATIONS_WRITE = "evaluations:write"
    """Ask for evaluations, and cancel them."""
    CRITICS_READ = "critics:read"
    """See critics and safety sets."""
    CRITICS_WRITE = "critics:write"
    """Register critics and safety sets, on which the safety of every project rests."""
    WEBHOOKS_READ = "webhooks:read"
    """See webhook endpoints and their deliveries."""
    WEBHOOKS_WRITE = "webhooks:write"
    """Add, change and delete webhook endpoints."""
    PERMISSIONS_READ = "permissions:read"
    """See which projects may use a checkpoint."""
    PERMISSIONS_WRITE = "permissions:write"
    """Share a checkpoint with another project."""
    USAGE_READ = "usage:read"
    """See what the project has used, and its limits."""
    KEYS_READ = "keys:read"
    """See the project's keys, without what opens."""
    KEYS_WRITE = "keys:write"
    """Make, rotate and revoke keys that may do no more than the one that asks."""
    METRICS_READ = "metrics:read"
    """Collect the numbers of the whole installation."""
    ADMIN = "admin"
    """Manage projects, their limits, and the keys of every project."""


class Role(StrEnum):
    """A named bundle of scopes."""

    MEMBER = "member"
    """Works with files and jobs."""
    OWNER = "owner"
    """A member who also manages the project's keys and shares its checkpoints."""
    OPERATOR = "operator"
    """Runs the installation: everything, in every project."""


_OPERATORS = frozenset(
    {Scope.JOBS_RELEASE, Scope.LOG_READ, Scope.CRITICS_WRITE, Scope.METRICS_READ, Scope.ADMIN}
)
_OWNERS = frozenset({Scope.KEYS_READ, Scope.KEYS_WRITE, Scope.PERMISSIONS_WRITE})

SCOPES_OF: dict[Role, frozenset[Scope]] = {
    Role.MEMBER: frozenset(Scope) - _OPERATORS - _OWNERS,
    Role.OWNER: frozenset(Scope) - _OPERATORS,
    Role.OPERATOR: frozenset(Scope),
}
