"""The kinds of critic. A new one is a file and a line here."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from app.domain import training_spec
from app.errors import CriticUnusable
from worker.training.critics.activation import load_activation
from worker.training.critics.constant import ConstantCritic
from worker.training.critics.protocol import Critic

Loader = Callable[[training_spec.Critic, Path | None, str, str], Critic]


def load_critic(
    config: training_spec.Critic, *, folder: Path | None, base_digest: str, template_digest: str
) -> Critic:
    """Return the critic that a job's `safety.critic` asks for.

    `folder` holds the fitted critic, for the kinds that are fitted. Raises CriticUnusable where it is missing,
    damaged, or was fitted for another base model or chat template.
    """
    return CRITICS[config.type](config, folder, base_digest, template_digest)


def _load_activation(
    config: training_spec.Critic, folder: Path | None, base_digest: str, template_digest: str
) -> Critic:
    if folder is None:
        raise CriticUnusable("no activation critic is fitted for this base model; fit one first")
    return load_activation(folder, base_digest=base_digest, template_digest=template_digest)


def _load_constant(
    config: training_spec.Critic, folder: Path | None, base_digest: str, template_digest: str
) -> Critic:
    return ConstantCritic(cast(training_spec.ConstantCritic, config).s)


CRITICS: dict[str, Loader] = {
    "activation": _load_activation,
    "constant": _load_constant,
}
