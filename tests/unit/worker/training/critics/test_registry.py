"""Every kind of critic that a request can name has a loader."""

from typing import get_args

import numpy as np
import pytest

from app.domain import training_spec
from app.errors import CriticUnusable
from worker.training.critics.registry import CRITICS, load_critic

DIGESTS = {"base_digest": "b", "template_digest": "t"}


def test_every_kind_of_the_wire_is_here():
    kinds = get_args(get_args(training_spec.Critic)[0])
    assert {kind.model_fields["type"].annotation.__args__[0] for kind in kinds} == set(CRITICS)


def test_constant():
    critic = load_critic(training_spec.ConstantCritic(type="constant", s=0.3), folder=None, **DIGESTS)
    assert critic.assess(np.zeros((1, 1, 1), np.float32)) == (None, 0.3, "constant")
    assert not critic.needs_features
    other = load_critic(training_spec.ConstantCritic(type="constant", s=0.4), folder=None, **DIGESTS)
    assert critic.digest != other.digest


def test_activation_needs_a_fitted_critic(tmp_path):
    with pytest.raises(CriticUnusable, match="no activation critic is fitted"):
        load_critic(training_spec.ActivationCritic(), folder=None, **DIGESTS)
    with pytest.raises(CriticUnusable, match="cannot be read"):
        load_critic(training_spec.ActivationCritic(), folder=tmp_path, **DIGESTS)
