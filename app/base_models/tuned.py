"""What a job releases: its model, and its checkpoints with a name."""

from datetime import datetime
from typing import NamedTuple

from app.models.job import Checkpoint, Job


class TunedModel(NamedTuple):
    """A model that a job released, or one of its checkpoints."""

    job: Job
    checkpoint: Checkpoint | None

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return str(self.checkpoint.name if self.checkpoint else self.job.fine_tuned_model)

    @property
    def created_at(self) -> datetime:
        """When its weights were made, as far as the wire tells."""
        return self.checkpoint.created_at if self.checkpoint else self.job.created_at

    @property
    def adapter_sha256(self) -> str | None:
        """Where its weights are; None where they are not kept."""
        return self.checkpoint.adapter_sha256 if self.checkpoint else self.job.adapter_sha256

    @property
    def model_deleted_at(self) -> datetime | None:
        """When the client deleted it."""
        return self.checkpoint.model_deleted_at if self.checkpoint else self.job.model_deleted_at
