"""The operator's policy: what it refuses, which field it names, and which files it does not read."""

import hashlib
from pathlib import Path
from typing import Any, get_args

import pytest

from app.domain.gate_policy import Gate
from app.domain.safety_policy import SafetyPolicy, load_policy
from app.domain.safety_spec import (
    ActivationCritic,
    AdaptiveKL,
    Anchors,
    AnySafety,
    CombinedCritic,
    ConstantCritic,
    Filter,
    FixedKL,
    JudgeCritic,
    NoPenalty,
    Vaccine,
)
from app.errors import ConfigurationError, PolicyViolation

STRICT = SafetyPolicy(
    methods=("adaptive_kl", "fixed_kl"),
    beta_min_floor=0.2,
    beta_max_floor=0.9,
    critic_types=("activation",),
)


HARM = ActivationCritic(id="critic_a", category="harm")
BIAS = ActivationCritic(id="critic_b", category="bias")


def weigh(harm: float, bias: float) -> CombinedCritic:
    """Return two critics, weighed."""
    return CombinedCritic(critics=(HARM, BIAS), rule="weighted", weights=(harm, bias))


class TestCheck:
    @pytest.mark.parametrize(
        "safety",
        [
            AdaptiveKL(beta_min=0.2, beta_max=0.9),
            AdaptiveKL(beta_min=0.5, beta_max=1.0),
            FixedKL(method="fixed_kl", beta=0.9),
        ],
    )
    def test_enough_protection_passes(self, safety: AdaptiveKL | FixedKL) -> None:
        STRICT.check(safety)

    @pytest.mark.parametrize(
        ("safety", "param", "message"),
        [
            (AdaptiveKL(beta_min=0.1), "safety.beta_min", "beta_min is 0.1; .* at least 0.2"),
            (AdaptiveKL(beta_min=0.2, beta_max=0.89), "safety.beta_max", "beta_max is 0.89; .* at least 0.9"),
            (FixedKL(method="fixed_kl", beta=0.5), "safety.beta", "beta is 0.5; .* at least 0.9"),
            (
                NoPenalty(method="none"),
                "safety.method",
                "does not allow the method 'none'; allowed: adaptive_kl",
            ),
            (
                AdaptiveKL(beta_min=0.5, critic=ConstantCritic(type="constant", s=0)),
                "safety.critic.type",
                "does not allow the critic 'constant'; allowed: activation",
            ),
            (
                Filter(critic=JudgeCritic()),
                "safety.method",
                "does not allow the method 'filter'",
            ),
            (
                AdaptiveKL(
                    beta_min=0.5, critic=CombinedCritic(critics=(ConstantCritic(s=0), ConstantCritic(s=0)))
                ),
                "safety.critic.type",
                "does not allow the critic 'combined'",
            ),
        ],
    )
    def test_less_is_refused_by_the_name_of_the_field(
        self, safety: AnySafety, param: str, message: str
    ) -> None:
        with pytest.raises(PolicyViolation, match=message) as caught:
            STRICT.check(safety)
        assert caught.value.param == param
        assert caught.value.status == 400

    def test_floor_rules_out_a_method_without_penalty(self) -> None:
        floors = SafetyPolicy(beta_min_floor=0.05)
        with pytest.raises(PolicyViolation, match="the method 'none' has no KL penalty") as caught:
            floors.check(NoPenalty(method="none"))
        assert caught.value.param == "safety.method"
        with pytest.raises(PolicyViolation, match="the method 'vaccine' has no KL penalty"):
            floors.check(Vaccine())

    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            (
                {"threshold": 1.0, "schedule": "threshold"},
                "safety.threshold",
                "threshold is 1; .* only 'auto'",
            ),
            ({"threshold": 0.0}, "safety.threshold", "threshold is 0; "),
            ({"s_scale": "probability"}, "safety.s_scale", "s_scale is 'probability'; .* only 'points'"),
            ({"scope": "batch", "replay": False}, "safety.scope", "scope is 'batch'; .* only 'example'"),
            (
                {"scope": "batch", "replay": False, "ema_decay": 0.9999999},
                "safety.ema_decay",
                "ema_decay is 0.9999999; .* only 0",
            ),
            ({"penalty": "l2"}, "safety.penalty", "penalty is 'l2'; .* demands a KL penalty"),
        ],
    )
    @pytest.mark.parametrize("floor", ["beta_min_floor", "beta_max_floor"])
    def test_floor_cannot_be_walked_around(
        self, floor: str, fields: dict[str, Any], param: str, message: str
    ) -> None:
        safety = AdaptiveKL(beta_min=0.5, beta_max=0.99, **fields)
        SafetyPolicy(anchors_required=True).check(safety)
        with pytest.raises(PolicyViolation, match=message) as caught:
            SafetyPolicy(**{floor: 0.01}).check(safety)
        assert caught.value.param == param

    def test_parts_of_a_combined_critic_must_be_allowed_too(self) -> None:
        policy = SafetyPolicy(critic_types=("activation", "judge", "combined"))
        policy.check(AdaptiveKL(critic=CombinedCritic(critics=(JudgeCritic(), ActivationCritic()))))
        policy.check(NoPenalty(critic=ConstantCritic(s=0)))
        for safety in (AdaptiveKL, Filter):
            combined = CombinedCritic(critics=(JudgeCritic(), ConstantCritic(s=0)))
            with pytest.raises(PolicyViolation, match="does not allow the critic 'constant'") as caught:
                policy.check(safety(critic=combined))
            assert caught.value.param == "safety.critic.critics"

    @pytest.mark.parametrize(
        ("critic", "param", "message"),
        [
            (BIAS, "safety.critic", "no activation critic of the category 'harm' steers"),
            (JudgeCritic(), "safety.critic", "no activation critic of the category 'harm' steers"),
            (HARM, "safety.critic", "no activation critic of the category 'bias' steers"),
            (
                weigh(0.49, 0.51),
                "safety.critic.weights",
                "weight of the category 'harm' is 0.49; .* at least 0.5",
            ),
            (
                weigh(0.95, 0.05),
                "safety.critic.weights",
                "weight of the category 'bias' is 0.05; .* at least 0.1",
            ),
            # The part that would switch the others off.
            (
                CombinedCritic(
                    critics=(HARM, BIAS, ConstantCritic(s=0)), rule="weighted", weights=(0.01, 0.01, 0.98)
                ),
                "safety.critic.weights",
                "weight of the category 'harm' is 0.01",
            ),
        ],
        ids=["bias", "judge", "harm", "harm-light", "bias-light", "constant"],
    )
    @pytest.mark.parametrize("method", [AdaptiveKL, Filter])
    def test_weights_cannot_switch_off_a_category_that_is_demanded(
        self, method: type[AdaptiveKL], critic: Any, param: str, message: str
    ) -> None:
        policy = SafetyPolicy(category_weights={"harm": 0.5, "bias": 0.1})
        for enough in (CombinedCritic(critics=(HARM, BIAS)), weigh(0.5, 0.5), weigh(0.9, 0.1)):
            policy.check_categories(method(critic=enough))
        SafetyPolicy().check_categories(method(critic=critic))
        with pytest.raises(PolicyViolation, match=message) as caught:
            policy.check_categories(method(critic=critic))
        assert caught.value.param == param

    def test_a_demanded_category_need_not_measure_what_does_not_steer(self) -> None:
        SafetyPolicy(category_weights={"harm": 1.0}).check_categories(FixedKL(beta=0.5, critic=None))
        SafetyPolicy(category_weights={"harm": 1.0}).check_categories(AdaptiveKL(critic=HARM))

    @pytest.mark.parametrize("floor", ["beta_min_floor", "beta_max_floor"])
    def test_a_floor_under_beta_needs_floors_under_weights(self, floor: str) -> None:
        # The row that only one part calls risky would never get its beta.
        constant = CombinedCritic(critics=(HARM, ConstantCritic(s=0)), rule="weighted", weights=(0.01, 0.99))
        safety = AdaptiveKL(beta_min=0.5, beta_max=0.99, critic=constant)
        SafetyPolicy().check(safety)
        with pytest.raises(PolicyViolation, match=r"rule is 'weighted'; .* allows only 'max'") as caught:
            SafetyPolicy(**{floor: 0.01}).check(safety)
        assert caught.value.param == "safety.critic.rule"
        bounded = SafetyPolicy(**{floor: 0.01}, category_weights={"harm": 0.5})
        bounded.check(safety)
        with pytest.raises(PolicyViolation, match=r"is 0\.01"):
            bounded.check_categories(safety)
        highest = CombinedCritic(critics=(HARM, ConstantCritic(s=0)))
        SafetyPolicy(**{floor: 0.01}).check(safety.model_copy(update={"critic": highest}))

    @pytest.mark.parametrize(
        "limit",
        [
            {"critic_auroc": {"least": 0.9, "action": "hold"}},
            {"fallback_share": {"most": 0.1, "action": "tighten", "beta_min": 0.5}},
        ],
        ids=["critic", "tighten"],
    )
    def test_a_gate_that_rests_on_the_critic_needs_one_that_steers(self, limit: dict[str, Any]) -> None:
        constant = CombinedCritic(critics=(HARM, ConstantCritic(s=0)), rule="weighted", weights=(0.01, 0.99))
        weighed = AdaptiveKL(critic=constant)
        gate = Gate.model_validate(limit)
        with pytest.raises(PolicyViolation, match="rule is 'weighted'"):
            SafetyPolicy(gate=gate).check(weighed)
        SafetyPolicy(gate=gate, category_weights={"harm": 0.5}).check(weighed)
        for safety in (AdaptiveKL(critic=HARM, penalty="l2"), FixedKL(beta=0.5, penalty="l2")):
            with pytest.raises(PolicyViolation, match="penalty is 'l2'"):
                SafetyPolicy(gate=gate).check(safety)
        # What bounds no row's KL weight may be chosen freely.
        SafetyPolicy(gate=gate).check(AdaptiveKL(critic=HARM, ema_decay=0.5, scope="batch", replay=False))
        warned = Gate.model_validate({"fallback_share": {"most": 0.1, "action": "warn"}})
        SafetyPolicy(gate=warned).check(weighed)

    def test_anchors_can_be_demanded(self) -> None:
        policy = SafetyPolicy(anchors_required=True)
        policy.check(AdaptiveKL())
        for safety in (AdaptiveKL(anchors=None), FixedKL(beta=1)):
            with pytest.raises(PolicyViolation, match="demands anchors") as caught:
                policy.check(safety)
            assert caught.value.param == "safety.anchors"

    @pytest.mark.parametrize(
        ("anchors", "param", "message"),
        [
            (Anchors(weight=1e-300), "safety.anchors.weight", "weight is 1e-300; .* at least 2"),
            (Anchors(per_step=3), "safety.anchors.per_step", "per_step is 3; .* at least 4"),
        ],
    )
    def test_anchors_that_hold_nothing_are_none(self, anchors: Anchors, param: str, message: str) -> None:
        demanding = SafetyPolicy(anchors_required=True)
        demanding.check(NoPenalty(anchors=Anchors(weight=2.5, per_step=5)))
        SafetyPolicy().check(NoPenalty(anchors=anchors))
        with pytest.raises(PolicyViolation, match=message) as caught:
            demanding.check(NoPenalty(anchors=anchors))
        assert caught.value.param == param


class TestLoadPolicy:
    def test_shipped_policy_allows_every_method(self) -> None:
        policy, _ = load_policy(None)
        for method in get_args(AnySafety):
            policy.check(method(beta=0.0) if method is FixedKL else method())
        # The file says in full what holds without it.
        assert policy == SafetyPolicy()
        assert set(policy.methods) == {
            method.model_fields["method"].default for method in get_args(AnySafety)
        }

    def test_digest_is_of_the_bytes(self, tmp_path: Path) -> None:
        file = tmp_path / "policy.toml"
        file.write_bytes(b"beta_min_floor = 0.25 # why\n")
        policy, digest = load_policy(file)
        assert policy.beta_min_floor == 0.25
        assert digest == hashlib.sha256(b"beta_min_floor = 0.25 # why\n").hexdigest()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"beta_min_floor = ", "cannot be read"),
            (b"\xff\xfe", "cannot be read"),
            (b"beta_min_flor = 0.1", "beta_min_flor: Extra inputs"),
            (b"beta_max_floor = 1.5", "beta_max_floor: Input should be less than or equal to 1"),
            (b"beta_max_floor = nan", "beta_max_floor"),
            (b"[category_weights]\nharm = 0", "category_weights.harm: Input should be greater than 0"),
            (b"[category_weights]\nharm = nan", "category_weights.harm"),
            (b"[category_weights]\nharm = 1.5", "category_weights.harm: Input should be less than"),
            (b'[category_weights]\n"All harm" = 0.5', "category_weights.All harm"),
            (b'methods = "adaptive_kl"', "methods"),
            (
                b'methods = ["adaptive_kl", "magic"]',
                "methods.1: Input should be 'adaptive_kl', 'fixed_kl', 'none'",
            ),
            (
                b'critic_types = ["activtion"]',
                "critic_types.0: Input should be 'activation', 'judge', 'constant' or",
            ),
        ],
    )
    def test_bad_file_is_refused_with_its_path_and_field(
        self, tmp_path: Path, content: bytes, message: str
    ) -> None:
        file = tmp_path / "policy.toml"
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"{file}.*{message}"):
            load_policy(file)

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot be read: .*No such file"):
            load_policy(tmp_path / "policy.toml")
