"""The gate of a policy as a file: what it may say, and which field is named where it may not."""

import pytest

from app.domain.gate import LIMITS
from app.domain.gate_policy import Gate
from app.domain.safety_policy import digest_policy, load_policy, parse_policy

EVALUATION = '[gate.evaluation]\nsuite = "miniature"\njudge = {type = "miniature"}\n'
POLICY = f"""
name = "support-bots"
version = 3
beta_min_floor = 0.1

[gate]
second_person = true
critic_auroc = {{ least = 0.9, action = "tighten", beta_min = 0.2 }}
fallback_share = {{ most = 0.1, action = "pause" }}
attack_success_increase = {{ most = 0.02, action = "hold" }}

{EVALUATION}"""


def test_a_policy_has_a_name_a_version_and_a_gate() -> None:
    policy = parse_policy(POLICY.encode())
    assert (policy.name, policy.version, policy.gate and policy.gate.second_person) == (
        "support-bots",
        3,
        True,
    )
    assert policy.gate is not None
    assert policy.gate.list_limits() == [
        {"limit": "critic_auroc", "bound": 0.9, "action": "tighten", "beta_min": 0.2},
        {"limit": "fallback_share", "bound": 0.1, "action": "pause", "beta_min": None},
        {"limit": "attack_success_increase", "bound": 0.02, "action": "hold", "beta_min": None},
    ]
    assert policy.gate.evaluation is not None
    assert policy.gate.evaluation.suite == "miniature"


def test_the_shipped_policy_has_no_gate() -> None:
    policy, sha256 = load_policy(None)
    assert (policy.name, policy.version, policy.gate) == ("default", 1, None)
    assert len(sha256) == 64
    assert digest_policy(b"x") != sha256


def test_every_limit_can_be_set() -> None:
    assert set(LIMITS) <= set(Gate.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gate]\n", "gate: it names no limit; known: critic_auroc"),
        ('[gate]\nattack_succes = {most = 0.1, action = "hold"}', "gate.attack_succes: Extra inputs"),
        ("[gate]\nfallback_share = {most = 0.1}", "gate.fallback_share.action: Field required"),
        (
            '[gate]\nfallback_share = {most = 0.1, action = "stop"}',
            "gate.fallback_share.action: Input should be",
        ),
        (
            '[gate]\nfallback_share = {least = 0.1, action = "hold"}',
            "gate.fallback_share.most: Field required",
        ),
        (
            '[gate]\nfallback_share = {most = 10, action = "hold"}',
            "gate.fallback_share.most: Input should be",
        ),
        (
            '[gate]\nfallback_share = {most = nan, action = "hold"}',
            "gate.fallback_share.most: Input should be",
        ),
        (
            '[gate]\ncritic_auroc = {least = 0.9, action = "tighten"}',
            "gate.critic_auroc: .*tighten needs beta_min",
        ),
        (
            '[gate]\ncritic_auroc = {least = 0.9, action = "warn", beta_min = 0.2}',
            "gate.critic_auroc: beta_min is for the action tighten; the action here is warn",
        ),
        (
            'beta_min_floor = 0.2\n[gate]\ncritic_auroc = {least = 0.9, action = "tighten", beta_min = 0.2}',
            "gate.critic_auroc.beta_min is 0.2, which beta_min_floor = 0.2 demands of every job anyway",
        ),
        (
            f'[gate]\nutility_loss = {{most = 0.1, action = "tighten"}}\n{EVALUATION}',
            "gate.utility_loss.action: 'tighten' is too late here",
        ),
        (
            f'[gate]\nover_refusal_increase = {{most = 0.1, action = "pause"}}\n{EVALUATION}',
            "gate.over_refusal_increase.action: 'pause' is too late here",
        ),
        (
            '[gate]\nutility_loss = {most = 0.1, action = "hold"}',
            r"gate: utility_loss needs the table \[gate.evaluation\]",
        ),
        (
            '[gate]\nsecond_person = true\ncritic_auroc = {least = 0.9, action = "fail"}',
            "gate: second_person: no limit has the action hold or pause",
        ),
        ("version = 0", "version: Input should be"),
        ('version = "2"', "version: Input should be"),
        ('name = "a b"', "name: String should match"),
        ("[gate", "cannot be read"),
    ],
)
def test_what_a_policy_may_not_say_is_refused_with_its_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_policy(text.encode())


def test_the_same_can_be_written_as_json() -> None:
    text = '{"name": "x", "gate": {"critic_auroc": {"least": 0.9, "action": "warn"}}}'
    policy = parse_policy(text.encode(), "json")
    assert policy == parse_policy(b'name = "x"\n[gate]\ncritic_auroc = {least = 0.9, action = "warn"}')
    with pytest.raises(ValueError, match="Input should be a valid dictionary"):
        parse_policy(b"[1]", "json")
    with pytest.raises(ValueError, match="cannot be read"):
        parse_policy(b"[" * 100_000, "json")
