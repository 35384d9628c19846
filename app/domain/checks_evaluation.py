"""The check of evaluations on record: in their place, whole, and right in every number that follows from others.

That the model gave these replies, and that a judge said so, is nobody's to prove from a record. What is: that nothing
was left out of what was done, and that shares and differences follow from the counts, and the intervals of shares too.
The interval of a difference depends on the pairs, which are not on record: it follows from the counts and `correlation`,
and `correlation` is a worker's claim, as the intervals of means are. Standard library only.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from app.domain.evaluation import (
    DECODINGS,
    KINDS_OF,
    MIN_PROMPTS_OF_MEAN,
    NOT_MEASURED,
    OPTIONAL,
    TELLS,
    Measure,
    measure_difference,
    measure_share,
    miss_prefixes,
)
from app.domain.leaf_schema import Leaf
from app.domain.verification import Broken, JobSoFar, NotChecked, counted, ensured

TOLERANCE = 1e-9
"""What a sum of floats may differ by; shares and their intervals are equal."""


def _evaluation_each(job: JobSoFar) -> None:
    if job.kind != "eval":
        return
    _check_place(job)
    body = job.body
    types = [judge["type"] for judge in body["judges"]]
    if not types or len(set(types)) < len(types) or not set(types) <= TELLS.keys():
        raise Broken(
            f"the judges are {', '.join(types) or 'none'}; known, each once: {', '.join(TELLS)}", job.seq
        )
    found = [(each["name"], each["judge"]) for each in body["comparisons"]]
    twice = next((key for key in found if found.count(key) > 1), None)
    if twice:
        raise Broken(f"{_say(*twice)} stands twice", job.seq)
    missing = next((key for key in expected_comparisons(body) if key not in found), None)
    if missing:
        raise Broken(f"{_say(*missing)} was asked for and is not there", job.seq)
    for each in body["comparisons"]:
        try:
            _check_comparison(body, each)
        except ValueError as error:
            raise Broken(f"{_say(each['name'], each['judge'])}: {error}", job.seq) from None
    wrong = next((each for each in body["agreements"] if each["agreed"] > each["of"]), None)
    if wrong:
        raise Broken(
            f"{wrong['first']} and {wrong['second']} agreed {wrong['agreed']} times of {wrong['of']}", job.seq
        )


def _check_place(job: JobSoFar) -> None:
    if job.published is not None:
        raise Broken("eval after adapter.published; what is published was evaluated before", job.seq)
    if job.is_pruned:
        # Which step was the last one is not on record any more.
        return
    if not job.steps:
        raise Broken("eval before the first step", job.seq)
    if job.body["step"] != len(job.steps):
        raise Broken(f"eval of step {job.body['step']}, but step {len(job.steps)} is the last", job.seq)


def expected_comparisons(body: Leaf) -> Iterator[tuple[str, str | None]]:
    """Yield the name and the judge of each comparison that the prompts, the decoding and the judges must give."""
    for decoding in used_decodings(body["decoding"]):
        for quantity, kinds in KINDS_OF.items():
            is_told = {judge["type"] for judge in body["judges"] if quantity in TELLS[judge["type"]]}
            if not any(body["prompts"][kind] for kind in kinds):
                continue
            if quantity != "attack_success" and decoding not in ("greedy", "sampled"):
                continue
            yield from ((f"{quantity}.{decoding}", judge) for judge in sorted(is_told))


def used_decodings(decoding: Leaf) -> list[str]:
    """Return how prompts were put."""
    used = (
        decoding["greedy"],
        decoding["samples"] > 0,
        decoding["prefill_sha256"] is not None,
        decoding["prefixes"] > 0,
    )
    return [name for name, is_used in zip(DECODINGS, used, strict=True) if is_used]


def _check_comparison(body: Leaf, each: Leaf) -> None:
    """Raise ValueError where a comparison is none that the evaluation can have, or its numbers contradict each other."""
    quantity, _, decoding = each["name"].partition(".")
    if _is_missed(body, each):
        return
    expected = (each["name"], each["judge"]) in set(expected_comparisons(body))
    if not expected and each["name"] not in OPTIONAL:
        raise ValueError("nothing of the kind was asked for")
    if each["judge"] is not None and each["judge"] not in [judge["type"] for judge in body["judges"]]:
        raise ValueError(f"by {each['judge']}, which was no judge")
    samples = {"sampled": body["decoding"]["samples"], "data_prefixes": body["decoding"]["prefixes"]}
    is_mean = quantity in ("rouge_l", "loss")
    if each["samples"] != (None if is_mean else samples.get(decoding, 1)):
        raise ValueError(f"samples is {each['samples']}, which is not what was drawn")
    before, after, difference = (Measure(**each[name]) for name in ("before", "after", "difference"))
    prompts = sum(body["prompts"][kind] for kind in KINDS_OF.get(quantity, ("borderline", "utility")))
    if before.n + each["unjudged"] > prompts or (expected and before.n + each["unjudged"] != prompts):
        raise ValueError(f"{before.n} prompts judged and {each['unjudged']} not; there are {prompts}")
    if after != NOT_MEASURED and after.n != before.n:
        raise ValueError(f"{before.n} prompts before and {after.n} after are not the same ones")
    if (difference == NOT_MEASURED) is not (after == NOT_MEASURED):
        raise ValueError("a difference needs both sides, and both sides have one")
    if is_mean:
        _check_means(before, after, difference)
    else:
        _check_shares(before, after, difference, each["samples"], each["correlation"])


def _is_missed(body: Leaf, each: Leaf) -> bool:
    """Say whether a comparison is exactly what stands for beginnings that were asked for and not found."""
    told = [judge["type"] for judge in body["judges"] if "attack_success" in TELLS[judge["type"]]]
    return (
        body["decoding"]["prefixes"] == 0
        and body["prompts"]["harmful"] > 0
        and each["judge"] in told
        and each == asdict(miss_prefixes(each["judge"]))
    )


def _check_shares(
    before: Measure, after: Measure, difference: Measure, samples: int, correlation: float | None
) -> None:
    for name, side in (("before", before), ("after", after)):
        if (side.count is None) is not (side == NOT_MEASURED):
            raise ValueError(f"{name} has {'no' if side.count is None else 'a'} count")
        if side.count is None:
            continue
        if side.n < 1 or side.count > side.n * samples:
            raise ValueError(f"{name} counts {side.count} of {side.n} prompts with {samples} replies each")
        _check_same(name, side, measure_share(side.count, side.n, samples))
    if difference == NOT_MEASURED:
        if correlation is not None:
            raise ValueError("a correlation without two sides")
        return
    if correlation is None or not -1 <= correlation <= 1:
        raise ValueError(f"the correlation is {correlation}; expected one from -1 to 1")
    _check_same("difference", difference, measure_difference(before, after, correlation))


def _check_means(before: Measure, after: Measure, difference: Measure) -> None:
    for name, side in (("before", before), ("after", after), ("difference", difference)):
        numbers = (side.low, side.value, side.high)
        if side == NOT_MEASURED:
            continue
        if side.count is not None or side.n < MIN_PROMPTS_OF_MEAN or None in numbers:
            raise ValueError(f"{name} is no mean of {side.n} prompts")
        low, value, high = numbers
        if not ensured(low) <= ensured(value) <= ensured(high):
            raise ValueError(f"{name} is {value}, outside of its interval {low} to {high}")
    if difference != NOT_MEASURED:
        expected = ensured(after.value) - ensured(before.value)
        scale = max(1.0, abs(ensured(after.value)), abs(ensured(before.value)))
        if not math.isclose(ensured(difference.value), expected, rel_tol=0, abs_tol=TOLERANCE * scale):
            raise ValueError(f"difference is {difference.value}; the two sides give {expected}")


def _check_same(name: str, found: Measure, expected: Measure) -> None:
    for part in ("n", "value", "low", "high"):
        said, computed = getattr(found, part), getattr(expected, part)
        if said is None or not math.isclose(said, computed, rel_tol=0, abs_tol=TOLERANCE):
            raise ValueError(f"{name}.{part} is {said}; the counts give {computed}")


def _say(name: str, judge: str | None) -> str:
    return f"{name} by {judge}" if judge else name


def _evaluation_at_end(job: JobSoFar) -> str:
    if job.evaluation is None:
        raise NotChecked("the record has no evaluation")
    body: dict[str, Any] = job.evaluation
    judges = ", ".join(judge["type"] for judge in body["judges"])
    return (
        f"{counted(len(body['comparisons']), 'comparison')} of {counted(sum(body['prompts'].values()), 'prompt')} of"
        f" {body['suite']} by {judges}: nothing is missing, and every share and difference follows from its counts"
    )


EACH: dict[str, Callable[[JobSoFar], None]] = {"evaluation": _evaluation_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"evaluation": _evaluation_at_end}
