"""The kinds of critic. A new one is a file and a line here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from app.domain import safety_spec
from app.errors import CriticUnusable
from worker.training.critics.activation import SScale, load_activation
from worker.training.critics.combined import CombinedCritic
from worker.training.critics.constant import ConstantCritic
from worker.training.critics.judge import Judge, JudgeCritic
from worker.training.critics.protocol import Critic


class Setting(NamedTuple):
    """What a critic is loaded with, besides its configuration."""

    folder: Path | None
    """Of the fitted critic, where the job has one."""
    base_digest: str
    template_digest: str
    s_scale: SScale
    judge: Judge | None
    """What asks a judge model, for the kinds that ask one."""


Loader = Callable[[Any, Setting], Critic]


def load_critic(
    config: safety_spec.Critic,
    *,
    folder: Path | None,
    base_digest: str,
    template_digest: str,
    s_scale: SScale = "points",
    judge: Judge | None = None,
) -> Critic:
    """Return the critic that a job's `safety.critic` asks for. A judge in it must read the rows first (`read_texts`).

    `folder` holds the fitted critic: the one asked for, or what fills in for a judge. Raises CriticUnusable where it
    is missing, damaged, or was fitted for another base model or chat template, and where a judge is asked for and
    there is none.
    """
    return _load(config, Setting(folder, base_digest, template_digest, s_scale, judge))


def _load(config: safety_spec.Critic, setting: Setting) -> Critic:
    return CRITICS[config.type](config, setting)


def _load_activation(config: safety_spec.ActivationCritic, setting: Setting) -> Critic:
    if setting.folder is None:
        raise CriticUnusable("no activation critic is fitted for this base model; fit one first")
    return load_activation(
        setting.folder,
        base_digest=setting.base_digest,
        template_digest=setting.template_digest,
        s_scale=setting.s_scale,
    )


def _load_constant(config: safety_spec.ConstantCritic, setting: Setting) -> Critic:
    return ConstantCritic(config.s)


def _load_judge(config: safety_spec.JudgeCritic, setting: Setting) -> Critic:
    if setting.judge is None:
        raise CriticUnusable(
            "a judge is asked for, and none was given", code="judge_not_configured", param="safety.critic"
        )
    fallback = _load_activation(safety_spec.ActivationCritic(), setting) if setting.folder else None
    return JudgeCritic(config, setting.judge, fallback)


def _load_combined(config: safety_spec.CombinedCritic, setting: Setting) -> Critic:
    return CombinedCritic(config, [_load(part, setting) for part in config.critics])


CRITICS: dict[str, Loader] = {
    "activation": _load_activation,
    "constant": _load_constant,
    "judge": _load_judge,
    "combined": _load_combined,
}
