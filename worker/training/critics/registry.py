"""The kinds of critic. A new one is a file and a line here."""

from collections.abc import Callable, Mapping
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

    folders: Mapping[str | None, Path]
    """Of each fitted critic, by the id that the configuration has for it."""
    base_digest: str
    template_digest: str
    s_scale: SScale
    judge: Judge | None
    """What asks a judge model, for the kinds that ask one."""


Loader = Callable[[Any, Setting], Critic]


def load_critic(
    config: safety_spec.Critic,
    *,
    folders: Mapping[str | None, Path],
    base_digest: str,
    template_digest: str,
    s_scale: SScale = "points",
    judge: Judge | None = None,
) -> Critic:
    """Return the critic that a job's `safety.critic` asks for. A judge in it must read the rows first (`read_texts`).

    `folders` has the fitted critics, those asked for and what fills in for a judge, by their ids; that of a critic
    without an id is under None. Raises CriticUnusable where one is missing, damaged, or was fitted for another base
    model or chat template, and where a judge is asked for and there is none.
    """
    return _load(config, Setting(folders, base_digest, template_digest, s_scale, judge))


def _load(config: safety_spec.Critic, setting: Setting) -> Critic:
    return CRITICS[config.type](config, setting)


def _load_activation(config: safety_spec.ActivationCritic, setting: Setting) -> Critic:
    return _load_fitted(config.id, setting)


def _load_fitted(critic_id: str | None, setting: Setting) -> Critic:
    if critic_id not in setting.folders:
        what = f"activation critic {critic_id}" if critic_id else "activation critic"
        raise CriticUnusable(f"no {what} is fitted for this base model; fit one first")
    return load_activation(
        setting.folders[critic_id],
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
    has_fallback = config.fallback is not None or None in setting.folders
    fallback = _load_fitted(config.fallback, setting) if has_fallback else None
    return JudgeCritic(config, setting.judge, fallback)


def _load_combined(config: safety_spec.CombinedCritic, setting: Setting) -> Critic:
    return CombinedCritic(config, [_load(part, setting) for part in config.critics])


CRITICS: dict[str, Loader] = {
    "activation": _load_activation,
    "constant": _load_constant,
    "judge": _load_judge,
    "combined": _load_combined,
}
