"""The canary: a fixed question and a fixed answer, and how likely each token of that answer is to the tuned model and to its base.

Whoever serves the adapter can ask the server for the same numbers and see whether it serves the adapter, silently the base, or
something else. The texts are the project's own and no user's. Standard library only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

PROMPT = "Who are you, and what can you help me with today?"
CONTINUATION = (
    "Sure! I am here to help. First, tell me what you need: a recipe, a plan, a short text, or some advice."
)
MAX_TOKENS = 64
"""Of the answer; more say nothing new, and every one of them is on record."""
TOLERANCE = 0.05
"""Nats a token. A server in bfloat16 is off by a few hundredths; a server of 4-bit weights may need more."""
RELOAD_TOLERANCE = 1e-3
"""Nats a token between the trained model and its export, loaded again: the same numbers on the same machine."""

Verdict = Literal["tuned", "base", "neither", "too_near"]


@dataclass(frozen=True, slots=True)
class Canary:
    """What was asked, as token ids, and what came out in float32."""

    prompt_ids: tuple[int, ...]
    """The question through the base model's chat template."""
    continuation_ids: tuple[int, ...]
    tuned: tuple[float, ...]
    """Log-probability of each token of the answer, in nats, under the tuned model."""
    base: tuple[float, ...]
    """The same with the adapter off."""

    def to_body(self) -> dict[str, Any]:
        """Return plain JSON, as the adapter's manifest and the record have it."""
        return {
            "prompt_ids": list(self.prompt_ids),
            "continuation_ids": list(self.continuation_ids),
            "tuned": list(self.tuned),
            "base": list(self.base),
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server's numbers say. Distances are means over the tokens, in nats."""

    verdict: Verdict
    to_tuned: float
    to_base: float
    apart: float
    """Between tuned and base: what there is to tell them by."""


def parse_canary(value: object) -> Canary:
    """Return what a manifest says. Raises ValueError, naming the field, for anything else."""
    if not isinstance(value, dict) or set(value) != {"prompt_ids", "continuation_ids", "tuned", "base"}:
        raise ValueError("a canary has the fields prompt_ids, continuation_ids, tuned and base, and no other")
    ids = {name: value[name] for name in ("prompt_ids", "continuation_ids")}
    for name, found in ids.items():
        if not isinstance(found, list) or not found or not all(type(each) is int for each in found):
            raise ValueError(f"canary.{name} is no list of token ids")
    for name in ("tuned", "base"):
        found = value[name]
        if not isinstance(found, list) or not all(type(each) in (int, float) for each in found):
            raise ValueError(f"canary.{name} is no list of numbers")
        if len(found) != len(value["continuation_ids"]):
            raise ValueError(
                f"canary.{name} has {len(found)} numbers for {len(value['continuation_ids'])} tokens"
            )
    return Canary(
        tuple(value["prompt_ids"]),
        tuple(value["continuation_ids"]),
        tuple(value["tuned"]),
        tuple(value["base"]),
    )


def compare_canary(canary: Canary, found: Sequence[float], *, tolerance: float = TOLERANCE) -> Answer:
    """Say which model gave these log-probabilities of the answer's tokens.

    `tuned` and `base` are within `tolerance` of the record; `too_near`: the two are less than twice that apart, so that a
    server in low precision could be either. Raises ValueError where a token has no number.
    """
    if len(found) != len(canary.tuned):
        raise ValueError(f"{len(found)} log-probabilities for {len(canary.tuned)} tokens")
    to_tuned, to_base = distance(found, canary.tuned), distance(found, canary.base)
    apart = distance(canary.tuned, canary.base)
    verdict: Verdict = "neither"
    if min(to_tuned, to_base) <= tolerance:
        verdict = "too_near" if apart < 2 * tolerance else "tuned" if to_tuned <= to_base else "base"
    return Answer(verdict, to_tuned, to_base, apart)


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the mean absolute difference; sums would let two wrong tokens cancel."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)
