"""What a request may say of its safety: methods, critics, bounds, null, presets, and what is refused."""

import math
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.domain.safety_spec import (
    ALIGNMENT_KINDS,
    PRESETS,
    ActivationCritic,
    AdaptiveKL,
    Anchors,
    AnySafety,
    CombinedCritic,
    ConstantCritic,
    ConstrainedSFT,
    Filter,
    FixedKL,
    JudgeCritic,
    Lisa,
    Monitor,
    NoPenalty,
    Safety,
    SafetyMix,
    Vaccine,
    beta_range,
    safety_from_preset,
    without_judge,
)

SAFETY: TypeAdapter[Any] = TypeAdapter(Safety)
BIAS = {"type": "activation", "category": "bias"}
TWO = [{"type": "judge"}, {"type": "activation"}]
METHODS: tuple[type[BaseModel], ...] = get_args(AnySafety)


class TestBounds:
    @pytest.mark.parametrize(
        ("model", "field", "accepted", "refused"),
        [
            (AdaptiveKL, "beta_min", [0, 0.99], [-0.1, 1.1]),
            (AdaptiveKL, "beta_max", [0.1, 1], [-0.1, 1.1, math.nan]),
            (AdaptiveKL, "schedule", ["linear", "threshold"], ["cosine"]),
            (AdaptiveKL, "threshold", [0, 1, "auto"], [-0.1, 1.1, "high"]),
            (AdaptiveKL, "penalty", ["forward_kl", "reverse_kl", "l2"], ["l1"]),
            (AdaptiveKL, "s_scale", ["points", "probability"], ["logit"]),
            (Anchors, "weight", [0.001, 100], [0, 101, math.inf]),
            (Anchors, "per_step", [1, 64], [0, 65, 1.5]),
            (Monitor, "every", [1], [0]),
            (Monitor, "limit", [1e-9], [0, -1, math.nan]),
            (Monitor, "action", ["warn", "anchors", "floor", "pause"], ["stop"]),
            (Monitor, "floor", [0, 1], [-0.1, 1.1]),
            (JudgeCritic, "mode", ["dataset", "live"], ["both"]),
            (JudgeCritic, "every", [1], [0]),
            (JudgeCritic, "samples", [1, 64], [0, 65]),
            (JudgeCritic, "votes", [1, 9], [0, 10]),
            (JudgeCritic, "max_failed_share", [0, 1], [-0.1, 1.1]),
            (ConstrainedSFT, "beta", [0.1], [0]),
            (ConstrainedSFT, "early_tokens", [1], [0]),
            (Vaccine, "rho", [0.1], [0]),
            (Vaccine, "alignment_epochs", [1, 50], [0, 51]),
            (Lisa, "rho", [0], [-1]),
            (Lisa, "proximal_start", [0, 1], [-0.1, 1.1]),
            (SafetyMix, "share", [0.001, 10], [0, 11]),
        ],
    )
    def test_only_what_is_in_bounds(
        self, model: type[BaseModel], field: str, accepted: list[Any], refused: list[Any]
    ) -> None:
        for value in accepted:
            assert getattr(model.model_validate({field: value}), field) == value
        for value in refused:
            with pytest.raises(ValidationError, match=field):
                model.model_validate({field: value})

    @pytest.mark.parametrize("model", [*METHODS, Anchors, Monitor, JudgeCritic, ActivationCritic])
    def test_unknown_key_is_refused(self, model: type[BaseModel]) -> None:
        for value in (1, None):
            with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
                model.model_validate({"beta_mim": value})


class TestNull:
    """The openai client sends null for every optional argument that was given as None."""

    @pytest.mark.parametrize("model", METHODS)
    def test_null_is_the_default_of_all_but_anchors_and_monitor(self, model: type[BaseModel]) -> None:
        needed = {"beta": 0.5} if model is FixedKL else {}
        nulls = {**dict.fromkeys(model.model_fields), **needed}
        without = {key: value for key, value in nulls.items() if key not in ("anchors", "monitor")}
        assert model.model_validate(without) == model(**needed)
        assert model.model_validate(nulls) == model(**needed, anchors=None, monitor=None)

    @pytest.mark.parametrize("model", [AdaptiveKL, Filter])
    def test_null_switches_off_what_is_on_by_default(self, model: type[AdaptiveKL | Filter]) -> None:
        assert (model().anchors, model().monitor) == (Anchors(), Monitor())
        assert model.model_validate({"anchors": None}) == model(anchors=None)
        assert model.model_validate({"monitor": None, "anchors": {}}) == model(monitor=None)

    def test_stored_form_reads_back(self) -> None:
        for safety in (AdaptiveKL(), AdaptiveKL(anchors=None), NoPenalty(anchors=Anchors(id="set_1"))):
            assert SAFETY.validate_python(safety.model_dump()) == safety
            assert SAFETY.validate_json(safety.model_dump_json()) == safety


class TestPresets:
    def test_default_is_the_method_with_nothing_else_said(self) -> None:
        assert safety_from_preset(None) == safety_from_preset("default") == AdaptiveKL()
        assert SAFETY.validate_python({"method": "adaptive_kl"}) == AdaptiveKL()
        assert beta_range(AdaptiveKL())[1] >= 0.9
        assert AdaptiveKL().replay

    def test_paper_is_the_papers_form(self) -> None:
        paper = PRESETS["paper"]
        assert isinstance(paper, AdaptiveKL)
        assert beta_range(paper) == (0.1, 0.9)
        assert (paper.scope, paper.penalty, paper.s_scale) == ("batch", "forward_kl", "probability")
        assert (paper.replay, paper.anchors, paper.monitor) == (False, None, None)

    def test_strict_is_the_default_with_more_penalty(self) -> None:
        assert PRESETS["strict"] == AdaptiveKL(beta_min=0.1, beta_max=1.0)

    def test_off_is_plain(self) -> None:
        assert PRESETS["off"] == NoPenalty()
        assert beta_range(PRESETS["off"]) == (0.0, 0.0)

    def test_unknown_preset_names_the_known_ones(self) -> None:
        known = "presets: default, paper, strict, off"
        with pytest.raises(ValueError, match=rf"no preset is called 'lax'; {known}"):
            safety_from_preset("lax")


class TestMethods:
    def test_method_decides_the_fields(self) -> None:
        fixed = SAFETY.validate_python({"method": "fixed_kl", "beta": 0.3})
        assert fixed == FixedKL(beta=0.3)
        assert beta_range(fixed) == (0.3, 0.3)
        for refused in (
            {"method": "fixed_kl"},
            {"method": "fixed_kl", "beta": 1.5},
            {"method": "fixed_kl", "beta": 0.5, "beta_min": 0.1},
            {"method": "none", "beta": 0.5},
            {"method": "magic"},
            {"beta_min": 0.1},
        ):
            with pytest.raises(ValidationError):
                SAFETY.validate_python(refused)

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_is_chosen_by_its_name(self, method: type[BaseModel]) -> None:
        name = method.model_fields["method"].default
        fields = {"beta": 0.1} if method is FixedKL else {}
        found = SAFETY.validate_python({"method": name, **fields})
        assert type(found) is method
        assert hasattr(found, "alignment_file") is (name in ALIGNMENT_KINDS)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"beta_min": 0.6, "beta_max": 0.5}, r"beta_min \(0.6\) is above beta_max \(0.5\)"),
            ({"scope": "batch"}, "replay is for the scope 'example'"),
            ({"ema_decay": 0.9}, "ema_decay is 0.9; above 0 it needs the scope 'batch'"),
            ({"anchors": None, "monitor": {"action": "anchors"}}, "monitor.action is 'anchors'"),
            ({"anchors": {"id": "set_1"}, "monitor": {"id": "set_2"}}, "monitor.id is 'set_2'"),
        ],
    )
    def test_fields_that_do_not_fit_together_are_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            AdaptiveKL.model_validate(fields)

    def test_fields_that_do_fit_together_are_not(self) -> None:
        AdaptiveKL(beta_min=0.5, beta_max=0.5)
        AdaptiveKL(scope="batch", replay=False, ema_decay=0.9)
        AdaptiveKL(anchors=None, monitor=Monitor(action="floor"))
        AdaptiveKL(anchors=Anchors(id="set_1"), monitor=Monitor(action="anchors"))


class TestCritics:
    def test_critic_is_discriminated_by_type(self) -> None:
        chosen = AdaptiveKL.model_validate({"critic": {"type": "constant", "s": 0.5}})
        assert chosen.critic == ConstantCritic(s=0.5)
        assert AdaptiveKL.model_validate({"critic": {"type": "judge"}}).critic == JudgeCritic()
        for refused in ({"type": "constant"}, {"type": "constant", "s": 2}, {"type": "oracle"}, {"id": "x"}):
            with pytest.raises(ValidationError):
                AdaptiveKL.model_validate({"critic": refused})

    def test_endpoint_and_key_of_a_judge_are_not_a_clients(self) -> None:
        for field in ("url", "model", "api_key", "endpoint"):
            with pytest.raises(ValidationError, match="Extra inputs"):
                JudgeCritic.model_validate({field: "http://example.org"})

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"critics": [{"type": "judge"}]}, "at least 2"),
            ({"critics": [{"type": "constant", "s": 0}] * 9}, "at most 8"),
            ({"critics": [{"type": "judge"}, {"type": "combined", "critics": []}]}, "combined"),
            (
                {"critics": [{"type": "activation"}] * 2},
                "same activation critic twice: the newest of the category harm",
            ),
            (
                {"critics": [{"type": "activation"}, {"type": "activation", "category": "harm"}]},
                "same activation critic twice: the newest of the category harm",
            ),
            (
                {"critics": [{"type": "activation", "id": "critic_a"}] * 2},
                "critic twice: critic_a; name each once",
            ),
            ({"critics": [{"type": "activation", "category": "Hate Speech"}, BIAS]}, "category"),
            ({"critics": [{"type": "activation", "weight": 1}, BIAS]}, "Extra inputs"),
            ({"critics": [{"type": "judge"}] * 2}, "more than one judge"),
            ({"critics": TWO, "weights": [0.5, 0.5]}, "weights are for the rule"),
            ({"critics": TWO, "rule": "weighted"}, "weights needs 2 numbers"),
            ({"critics": TWO, "rule": "weighted", "weights": [1.0]}, "weights needs 2 numbers"),
            ({"critics": TWO, "rule": "weighted", "weights": [0.5, 0.25, 0.25]}, "weights needs 2 numbers"),
            ({"critics": TWO, "rule": "weighted", "weights": [math.nan, 0.5]}, r"weights\.0"),
            ({"critics": TWO, "rule": "weighted", "weights": [0.5, math.inf]}, r"weights\.1"),
            ({"critics": TWO, "rule": "weighted", "weights": [0.5, 0.4]}, "weights sum to 0.9"),
            ({"critics": TWO, "rule": "weighted", "weights": [1.5, -0.5]}, "weights"),
            ({"critics": TWO, "rule": "weighted", "weights": [1.0, 0.0]}, "weights"),
            ({"critics": TWO, "rule": "least"}, "rule"),
        ],
    )
    def test_combination_that_cannot_be_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            CombinedCritic.model_validate(fields)

    def test_categories_stand_side_by_side(self) -> None:
        parts = [{"type": "activation", "category": name} for name in ("harm", "bias", "untruth")]
        chosen = CombinedCritic.model_validate(
            {"critics": [*parts, {"type": "judge"}], "rule": "weighted", "weights": [0.4, 0.3, 0.2, 0.1]}
        )
        assert [getattr(part, "category", None) for part in chosen.critics] == [
            "harm",
            "bias",
            "untruth",
            None,
        ]

    def test_what_is_left_without_a_judge(self) -> None:
        harm, bias = ActivationCritic(id="critic_a"), ActivationCritic(id="critic_b")
        judge = JudgeCritic(fallback="critic_a")
        assert without_judge(None) is None
        assert without_judge(bias) == bias
        assert without_judge(judge) == harm
        assert without_judge(JudgeCritic()) is None
        assert without_judge(CombinedCritic(critics=(judge, bias))) == bias
        both = CombinedCritic(critics=(harm, bias), rule="weighted", weights=(0.75, 0.25))
        assert without_judge(both) == both
        with_judge = CombinedCritic(critics=(harm, judge, bias), rule="weighted", weights=(0.375, 0.5, 0.125))
        assert without_judge(with_judge) == both
        assert without_judge(CombinedCritic(critics=(judge, harm, bias))) == CombinedCritic(
            critics=(harm, bias)
        )

    def test_weights_may_be_off_by_rounding(self) -> None:
        weights = (0.1,) * 3 + (0.7000000001,)
        CombinedCritic(critics=(ConstantCritic(s=0.5),) * 4, rule="weighted", weights=weights)

    def test_digests_tell_critics_apart(self) -> None:
        parts = (JudgeCritic(), ConstantCritic(s=0.3))
        even, uneven = (
            CombinedCritic(critics=parts, rule="weighted", weights=weights)
            for weights in ((0.5, 0.5), (0.25, 0.75))
        )
        digests = {
            *(ConstantCritic(s=s).digest() for s in (0.0, 0.5, 0.1 + 0.2, 0.3)),
            *(JudgeCritic(votes=votes).digest(None) for votes in (1, 2)),
            JudgeCritic(mode="live").digest(None),
            JudgeCritic().digest("a" * 64),
            JudgeCritic().digest("b" * 64),
            CombinedCritic(critics=parts).digest(["a" * 64, "b" * 64]),
            CombinedCritic(critics=parts).digest(["b" * 64, "a" * 64]),
            even.digest(["a" * 64, "b" * 64]),
            uneven.digest(["a" * 64, "b" * 64]),
        }
        assert len(digests) == 13
        assert all(len(digest) == 64 for digest in digests)
