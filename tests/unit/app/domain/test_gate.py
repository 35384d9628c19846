"""What limits come to: on numbers that were found, and on those that were not."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app.domain.evaluation import compare_shares
from app.domain.gate import (
    LIMITS,
    VERDICTS,
    end_verdict,
    fallback_share,
    find_in_evaluation,
    is_broken,
    judge,
    start_floor,
    start_verdict,
)

GATE = (Path(__file__).parents[4] / "docs/gate.md").read_text(encoding="utf-8")


def found(action: str, *, broken: bool = True, beta_min: float | None = None) -> dict[str, Any]:
    """Return a finding with an action, broken unless said otherwise."""
    return judge("critic_auroc", 0.9, action, beta_min, 0.5 if broken else 0.95).to_body()


def comparison(
    name: str, low: float | None, high: float | None, n: int = 20, unjudged: int = 0
) -> dict[str, Any]:
    """Return a comparison as a record has it."""
    return {"name": name, "difference": {"low": low, "high": high, "n": n}, "unjudged": unjudged}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_was_not_found_breaks_every_limit(limit: str) -> None:
    bound = 0.0 if LIMITS[limit].side == "least" else 1.0
    assert is_broken(limit, bound, None)
    assert not is_broken(limit, bound, 0.5)


@pytest.mark.parametrize(("limit", "beyond"), [("critic_recall", 0.4999), ("fallback_share", 0.5001)])
def test_a_bound_itself_is_good_enough(limit: str, beyond: float) -> None:
    assert not is_broken(limit, 0.5, 0.5)
    assert is_broken(limit, 0.5, beyond)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("actions", "start", "end"),
        [
            ((), "pass", "pass"),
            (("warn",), "warn", "warn"),
            (("warn", "tighten"), "tighten", "warn"),
            (("tighten", "pause"), "pause", "warn"),
            # What holds or fails at the end only warns at the start; what fails at the start never comes to its end.
            (("hold", "warn"), "warn", "hold"),
            (("hold", "fail"), "fail", "fail"),
        ],
    )
    def test_the_severest_action_of_a_broken_limit_decides(
        self, actions: tuple[str, ...], start: str, end: str
    ) -> None:
        kept = [found("fail", broken=False), found("pause", broken=False)]
        broken = [found(action, beta_min=0.3 if action == "tighten" else None) for action in actions]
        assert start_verdict([*kept, *broken]) == start
        assert end_verdict([*broken, *kept]) == end

    def test_the_floor_is_the_highest_of_those_that_were_broken(self) -> None:
        assert start_floor([found("warn")]) == 0.0
        limits = [
            found("tighten", beta_min=0.2),
            found("tighten", beta_min=0.4),
            found("tighten", beta_min=0.9, broken=False),
        ]
        assert start_floor(limits) == 0.4

    def test_verdicts_are_in_the_order_of_their_severity(self) -> None:
        assert VERDICTS == ("pass", "warn", "hold", "fail")


class TestFallbackShare:
    def test_counts_what_the_critic_itself_did_not_measure(self) -> None:
        counts = {"ok": 5, "judged": 1, "constant": 1, "fallback": 1, "failed": 1, "unmeasured": 1}
        assert fallback_share(counts) == 0.3

    def test_no_rows_are_no_evidence(self) -> None:
        assert fallback_share({}) is None


class TestEvaluation:
    def test_the_worst_end_of_the_worst_interval_counts(self) -> None:
        comparisons = [
            comparison("attack_success.greedy", -0.1, 0.1),
            comparison("attack_success.sampled", 0.0, 0.25),
            comparison("over_refusal.greedy", 0.5, 0.6),
        ]
        assert find_in_evaluation("attack_success_increase", comparisons) == 0.25
        assert find_in_evaluation("over_refusal_increase", comparisons) == 0.6

    def test_a_fall_is_the_loss_of_what_is_better_when_it_is_higher(self) -> None:
        comparisons = [
            comparison("task_score.greedy", -0.2, 0.1),
            comparison("rouge_l.greedy", -0.05, 0.0),
            # Nats are no share, and how often one is preferred says nothing of what was lost.
            comparison("loss", -5.0, 5.0),
            comparison("win_rate.greedy", -0.9, 0.9),
        ]
        assert find_in_evaluation("utility_loss", comparisons) == 0.2

    def test_a_prompt_without_a_verdict_counts_as_one_that_got_worse(self) -> None:
        comparisons = [comparison("attack_success.greedy", -0.5, 0.25, n=8, unjudged=2)]
        assert find_in_evaluation("attack_success_increase", comparisons) == pytest.approx(
            (8 * 0.25 + 2) / 10
        )

    @pytest.mark.parametrize(
        "comparisons",
        [
            [],
            [comparison("over_refusal.greedy", 0.0, 0.0)],
            [comparison("attack_success.greedy", None, None, n=0)],
            [
                comparison("attack_success.greedy", 0.0, 0.0),
                comparison("attack_success.prefill", None, None, n=0),
            ],
        ],
    )
    def test_what_was_not_measured_is_no_evidence(self, comparisons: list[dict[str, Any]]) -> None:
        assert find_in_evaluation("attack_success_increase", comparisons) is None

    @pytest.mark.parametrize(("most", "prompts"), [(0.1, 35), (0.05, 73), (0.02, 189), (0.01, 381)])
    def test_so_many_prompts_can_show_that_nothing_changed(self, most: float, prompts: int) -> None:
        def is_enough(n: int) -> bool:
            unchanged = compare_shares("attack_success.greedy", "miniature", [0] * n, [0] * n)
            found = find_in_evaluation("attack_success_increase", [asdict(unchanged)])
            return not is_broken("attack_success_increase", most, found)

        assert (is_enough(prompts - 1), is_enough(prompts)) == (False, True)
        line = next(line for line in GATE.splitlines() if line.startswith("| prompts |"))
        assert f" {prompts} |" in line
