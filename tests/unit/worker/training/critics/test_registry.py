"""Every kind of critic that a request can name has a loader."""

from typing import get_args

import numpy as np
import pytest

from app.domain import safety_spec
from app.domain.rubric import judge_digest
from app.errors import CriticUnusable
from worker.training.critics.activation import Points, Probe, Probes, save_critic
from worker.training.critics.registry import CRITICS, load_critic

DIGESTS = {"base_digest": "b", "template_digest": "t"}


def test_every_kind_of_the_wire_is_here():
    kinds = get_args(get_args(safety_spec.Critic)[0])
    assert {kind.model_fields["type"].annotation.__args__[0] for kind in kinds} == set(CRITICS)


def test_constant():
    critic = load_critic(safety_spec.ConstantCritic(s=0.3), folders={}, **DIGESTS)
    assert critic.assess(0, None) == ({}, 0.3, "constant", ())
    assert not critic.needs_features
    other = load_critic(safety_spec.ConstantCritic(s=0.4), folders={}, **DIGESTS)
    assert critic.digest != other.digest


def test_activation_needs_a_fitted_critic(tmp_path):
    with pytest.raises(CriticUnusable, match="no activation critic is fitted"):
        load_critic(safety_spec.ActivationCritic(), folders={}, **DIGESTS)
    with pytest.raises(CriticUnusable, match="cannot be read"):
        load_critic(safety_spec.ActivationCritic(), folders={None: tmp_path}, **DIGESTS)


@pytest.mark.parametrize("s_scale", ["points", "probability"])
def test_the_scale_of_s_is_passed_on(tmp_path, s_scale):
    fitted(tmp_path)
    critic = load_critic(safety_spec.ActivationCritic(), folders={None: tmp_path}, s_scale=s_scale, **DIGESTS)
    assert critic.s_scale == s_scale


class Asked:
    """A judge of this name; nobody asks it anything here."""

    model = "m"
    concurrency = 1

    def ask(self, text):
        raise AssertionError


def fitted(folder, report=None):
    probe = Probe(np.zeros((1, 2)), np.zeros(1), np.array([1.0, 0.0]))
    return save_critic(folder, Probes(probe, None), Points(-1, 0, 1), report=report or {}, **DIGESTS)


def test_a_judge_has_the_activation_critic_to_fall_back_on_where_there_is_one(tmp_path):
    config = safety_spec.JudgeCritic(votes=3)
    digest = fitted(tmp_path)
    alone = load_critic(config, folders={}, judge=Asked(), **DIGESTS)
    backed = load_critic(config, folders={None: tmp_path}, judge=Asked(), s_scale="probability", **DIGESTS)
    assert (alone.fallback, backed.fallback.s_scale) == (None, "probability")
    # The API names them so when the job is created, from its own settings.
    assert alone.digest == judge_digest(config.digest(None), "m")
    assert backed.digest == judge_digest(config.digest(digest), "m")


def test_a_judge_that_nobody_set_up_is_refused():
    with pytest.raises(CriticUnusable) as found:
        load_critic(safety_spec.JudgeCritic(), folders={}, **DIGESTS)
    assert found.value.code == "judge_not_configured"


def test_a_combination_loads_its_parts(tmp_path):
    digest = fitted(tmp_path)
    config = safety_spec.CombinedCritic(
        critics=(
            safety_spec.JudgeCritic(),
            safety_spec.ActivationCritic(),
            safety_spec.ConstantCritic(s=0.1),
        )
    )
    critic = load_critic(config, folders={None: tmp_path}, judge=Asked(), **DIGESTS)
    judge, activation, constant = critic.parts
    assert judge.fallback.digest == activation.digest == digest
    assert critic.digest == config.digest([judge.digest, digest, constant.digest])
    assert critic.needs_features
    with pytest.raises(CriticUnusable):
        load_critic(config, folders={}, judge=Asked(), **DIGESTS)


def test_each_part_is_the_critic_that_it_names(tmp_path):
    digests = [fitted(tmp_path / name, {"of": name}) for name in ("harm", "bias", "spare")]
    folders = {name: tmp_path / name for name in ("harm", "bias", "spare")}
    parts = [{"type": "activation", "id": name} for name in ("bias", "harm")]
    config = safety_spec.CombinedCritic(critics=[*parts, {"type": "judge", "fallback": "spare"}])
    critic = load_critic(config, folders=folders, judge=Asked(), **DIGESTS)
    bias, harm, judge = critic.parts
    assert [harm.digest, bias.digest, judge.fallback.digest] == digests
    assert critic.digest == config.digest([bias.digest, harm.digest, judge.digest])


@pytest.mark.parametrize("lost", ["harm", "bias", "spare"])
def test_a_named_critic_that_is_not_there_is_never_done_without(tmp_path, lost):
    folders = {name: tmp_path / name for name in ("harm", "bias", "spare") if name != lost}
    for folder in folders.values():
        fitted(folder)
    parts = [{"type": "activation", "id": name} for name in ("bias", "harm")]
    config = safety_spec.CombinedCritic(critics=[*parts, {"type": "judge", "fallback": "spare"}])
    with pytest.raises(CriticUnusable, match=f"no activation critic {lost} is fitted"):
        load_critic(config, folders=folders, judge=Asked(), **DIGESTS)


@pytest.mark.parametrize(
    ("other", "words"), [("base_digest", "base model"), ("template_digest", "chat template")]
)
def test_a_part_that_was_fitted_for_something_else_is_named(tmp_path, other, words):
    folders = {name: tmp_path / name for name in ("harm", "bias")}
    fitted(folders["harm"])
    probe = Probe(np.zeros((1, 2)), np.zeros(1), np.array([1.0, 0.0]))
    digests = {**DIGESTS, other: "x"}
    save_critic(folders["bias"], Probes(probe, None), Points(-1, 0, 1), report={}, **digests)
    config = safety_spec.CombinedCritic(critics=[{"type": "activation", "id": name} for name in folders])
    with pytest.raises(CriticUnusable, match=f"the critic in bias was fitted for another {words}"):
        load_critic(config, folders=folders, **DIGESTS)
