"""Loading the critic that work was pinned to: its fitted critics' files come from storage."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app import storage
from app.domain import safety_spec
from app.domain.safety_spec import AdaptiveKL, AnySafety, Filter
from app.models.base_model import BaseModel, Critic
from worker.context import Context
from worker.training.critics.activation import SScale
from worker.training.critics.judge import Judge
from worker.training.critics.protocol import Critic as LoadedCritic
from worker.training.critics.registry import load_critic
from worker.training.models import template_digest


def load_pinned_critic(
    context: Context,
    wanted: safety_spec.Critic,
    fitted: Sequence[Critic],
    base: BaseModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    s_scale: SScale,
    judge: Judge | None = None,
) -> LoadedCritic:
    """Return a critic whose fitted ones are named; their files are checked against their digests.

    Raises CriticUnusable as `load_critic` does.
    """
    with tempfile.TemporaryDirectory(dir=context.settings.home, prefix="critic-") as temporary:
        folders: dict[str | None, Path] = {}
        for row in fitted:
            folder = folders[row.id] = Path(temporary) / row.id
            folder.mkdir()
            for name, sha256 in row.files.items():
                (folder / name).write_bytes(storage.read_checked(context.settings.storage, sha256))
        return load_critic(
            wanted,
            folders=folders,
            base_digest=base.digest,
            template_digest=template_digest(tokenizer),
            s_scale=s_scale,
            judge=judge,
        )


def scale_of(safety: AnySafety) -> SScale:
    """Return how a method reads an activation critic's log-odds."""
    return safety.s_scale if isinstance(safety, AdaptiveKL | Filter) else "points"
