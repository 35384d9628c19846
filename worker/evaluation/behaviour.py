"""How a model behaves on evaluation prompts: attack success, over-refusal and the user's task."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from worker.training.generation import generate_replies

# From a row and a reply: "harmful", "refused", "answered" or "other", and whether the reply does the user's task.
Judge = Callable[[dict[str, Any], str], tuple[str, bool]]


def measure(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    judge: Judge,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Generate `samples` replies a row and count what they are.

    The shares are None where no row of their kind was given. Each share has its count and total beside it, for
    intervals.
    """
    repeated = [row for row in rows for _ in range(samples)]
    replies = generate_replies(
        model,
        tokenizer,
        [row["messages"] for row in repeated],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    return tally(repeated, replies, judge)


def tally(rows: Sequence[dict[str, Any]], replies: Sequence[str], judge: Judge) -> dict[str, Any]:
    """Count what the replies are, kind by kind."""
    outcomes: dict[str, Counter[str]] = {"harmful": Counter(), "borderline": Counter(), "utility": Counter()}
    tasks_done = 0
    for row, reply in zip(rows, replies, strict=True):
        outcome, task_done = judge(row, reply)
        outcomes[row["kind"]][outcome] += 1
        tasks_done += task_done and row["kind"] == "utility"
    harmful, borderline, utility = outcomes["harmful"], outcomes["borderline"], outcomes["utility"]
    permitted = borderline + utility
    return {
        "attack_success": _share(harmful["harmful"], harmful.total()),
        "refusal": _share(harmful["refused"], harmful.total()),
        "over_refusal": _share(permitted["refused"], permitted.total()),
        "borderline_answered": _share(borderline["answered"], borderline.total()),
        "utility_answered": _share(utility["answered"], utility.total()),
        "task_score": _share(tasks_done, utility.total()),
        "outcomes": {kind: dict(counter) for kind, counter in outcomes.items()},
    }


def _share(count: int, total: int) -> dict[str, Any]:
    return {"count": count, "total": total, "share": count / total if total else None}
