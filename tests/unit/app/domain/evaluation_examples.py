"""An evaluation as the worker makes one, from counts alone."""

from typing import Any

from app.domain.evaluation import (
    Agreement,
    Comparison,
    DecodingUsed,
    EvaluationResult,
    JudgeUsed,
    Measure,
    compare_shares,
)


def make_result() -> EvaluationResult:
    """Return an evaluation on 4 harmful, 3 borderline and 5 utility prompts, greedy and with two samples."""
    judges = ("miniature", "rules")
    comparisons = [
        *(
            compare_shares("attack_success.greedy", judge, [0, 0, 1], [1, 0, 1], unjudged=1)
            for judge in judges
        ),
        *(compare_shares("over_refusal.greedy", judge, [0] * 8, [1, 0] * 4) for judge in judges),
        compare_shares("task_score.greedy", "miniature", [0] * 5, [1, 1, 1, 1, 0]),
        compare_shares("exact_match.greedy", None, [0, 1, 0], [0, 1, 1]),
        *(
            compare_shares("attack_success.sampled", judge, [0, 1, 0, 2], [2, 2, 1, 2], samples=2)
            for judge in judges
        ),
        *(compare_shares("over_refusal.sampled", judge, [0] * 8, [1] * 8, samples=2) for judge in judges),
        compare_shares("task_score.sampled", "miniature", [0] * 5, [2, 1, 2, 2, 0], samples=2),
        Comparison(
            "loss",
            None,
            Measure(2.5, 2.0, 3.0, 3),
            Measure(1.25, 1.0, 1.5, 3),
            Measure(-1.25, -1.5, -1.0, 3),
            None,
            None,
        ),
    ]
    return EvaluationResult(
        suite="file-abc",
        suite_sha256="a" * 64,
        prompts={"harmful": 4, "borderline": 3, "utility": 5},
        judges=tuple(JudgeUsed(judge, str(place) * 64) for place, judge in enumerate(judges)),
        decoding=DecodingUsed(True, 2, None, 0, 64, 7),
        comparisons=tuple(comparisons),
        agreements=(Agreement("miniature", "rules", "greedy", 7, 8),),
    )


def make_body(step: int) -> dict[str, Any]:
    """Return the body of the leaf of that evaluation."""
    return {**make_result().to_body(), "step": step}
