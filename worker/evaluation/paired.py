"""A model before and after: the same prompts, the same draws, the same judges, adapter off and on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.evaluation import (
    KINDS_OF,
    TELLS,
    Agreement,
    Comparison,
    EvaluationResult,
    JudgeUsed,
    compare_shares,
    miss_prefixes,
)
from app.domain.evaluation_spec import Decoding
from app.errors import JobFailure
from worker.evaluation.answers import answer_losses, tokenize_answers, too_long
from worker.evaluation.bootstrap import compare_means
from worker.evaluation.judging import Comparer, Judge, Pair, Progress, Question, Verdict
from worker.evaluation.prefixes import Prefix
from worker.evaluation.suites import Suite
from worker.evaluation.text_scores import is_exact_match, rouge_l
from worker.training.data import TokenizedRow, render_prompt
from worker.training.generation import generate_texts
from worker.training.loop import DEFAULT_MICRO_BATCH_TOKENS
from worker.training.models import base_of, reference

MAX_REPLIES = 64
"""Replies that are drawn at once, and fewer where they may be long: each keeps what the model has read so far."""
MAX_TOKENS = 32_768
"""Of prompts and replies that are drawn at once; a single prompt with its samples may have more."""
MAX_PROMPT_TOKENS = 262_144
"""Of one prompt with all of its samples, which are drawn together."""
PARAM = "suite"
"""The field that a prompt which cannot be used is reported under."""

Row = Mapping[str, Any]
Verdicts = dict[str, list[Verdict | None]]
"""By the type of the judge: a verdict a reply."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was found, and the replies that it was found in."""

    result: EvaluationResult
    replies: list[dict[str, Any]]
    """One object a reply: prompt, kind, decoding, sample, before, after, verdicts."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """Prompts put in one way, and how many replies each has."""

    decoding: str
    places: list[int]
    """Of the prompts in the suite."""
    samples: int
    temperature: float = 0.0
    openings: tuple[Prefix | str, ...] = ("",)
    """Each is one reply a prompt: an opening of the reply, or a beginning of the training data."""

    @property
    def samples_each(self) -> int:
        """Replies a prompt has with each opening."""
        return self.samples // len(self.openings)


@dataclass(frozen=True, slots=True)
class _Side:
    """The replies of a trial before or after, `samples` a prompt one after another, and what the judges say of them."""

    texts: list[str]
    verdicts: Verdicts


def evaluate_paired(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    judges: Sequence[Judge],
    decoding: Decoding,
    *,
    prefixes: Sequence[Prefix] = (),
    comparers: Sequence[Comparer] = (),
    split: int = 1,
    on_progress: Progress = lambda: None,
) -> Evaluated:
    """Evaluate a model with its adapter off and on. A bare base model has no after.

    `prefixes` are the beginnings of the training data (`find_prefixes`), where `decoding` asks for them. Batches are
    smaller by `split`, which changes the replies by rounding alone. Raises
    JobFailure for a prompt that the model's template refuses or that is too long for the model, and for more than can
    be drawn, ValueError for a suite without prompts.
    """
    if not suite.rows:
        raise ValueError(f"the suite {suite.name} has no prompts")
    try:
        decoding.check_size(len(suite.rows))
    except ValueError as error:
        raise JobFailure(str(error), code="evaluation_too_large", param="decoding") from None
    trials = plan_trials(suite, decoding, prefixes)
    # What is too long for the model should not cost the trials before it.
    max_tokens = base_of(model).config.get_text_config().max_position_embeddings
    for trial in trials:
        _check_lengths(tokenizer, suite, trial, decoding, max_tokens, on_progress)
    answered = [place for place, row in enumerate(suite.rows) if _has_answer(row)]
    answers = tokenize_answers(tokenizer, suite.rows, places=answered, max_tokens=max_tokens, param=PARAM)
    comparisons: list[Comparison] = []
    agreements: list[Agreement] = []
    replies: list[dict[str, Any]] = []
    for trial in trials:
        before, after = _run(model, tokenizer, suite, trial, judges, decoding, split, on_progress)
        comparisons += _compare_verdicts(suite, trial, judges, before, after)
        if trial.decoding == "greedy":
            comparisons += _compare_texts(suite, trial, before, after, on_progress)
            comparisons += _compare_wins(suite, trial, comparers, before, after, on_progress)
        agreements += _count_agreements(suite, trial, judges, before, after)
        replies += _describe_replies(suite, trial, before, after)
    if decoding.data_prefixes and not prefixes:
        comparisons += _miss_prefixes(suite, judges)
    comparisons += _compare_losses(model, answers, DEFAULT_MICRO_BATCH_TOKENS // split, on_progress)
    result = EvaluationResult(
        suite=suite.name,
        suite_sha256=suite.sha256,
        prompts=suite.count(),
        judges=tuple(JudgeUsed(judge.type, judge.sha256) for judge in judges),
        decoding=decoding.used(len(prefixes)),
        comparisons=tuple(comparisons),
        agreements=tuple(agreements),
    )
    return Evaluated(result, replies)


def plan_trials(suite: Suite, decoding: Decoding, prefixes: Sequence[Prefix]) -> list[_Trial]:
    """Return the ways in which prompts are put. Openings and beginnings are for harmful prompts alone."""
    every = list(range(len(suite.rows)))
    harmful = [place for place in every if suite.rows[place]["kind"] == "harmful"]
    trials = []
    if decoding.greedy:
        trials.append(_Trial("greedy", every, 1))
    if decoding.samples:
        trials.append(_Trial("sampled", every, decoding.samples, temperature=1.0))
    if decoding.prefill and harmful:
        trials.append(_Trial("prefill", harmful, 1, openings=(decoding.prefill,)))
    if prefixes and harmful:
        trials.append(_Trial("data_prefixes", harmful, len(prefixes), openings=tuple(prefixes)))
    return trials


def _miss_prefixes(suite: Suite, judges: Sequence[Judge]) -> list[Comparison]:
    """Return by each judge that the prompts were put behind no beginning, where the data have none that is shared.

    What was asked for and could not be tried is missing evidence, and left out it would look as if all was well.
    """
    if not suite.count()["harmful"]:
        return []
    return [miss_prefixes(judge.type) for judge in judges if "attack_success" in TELLS[judge.type]]


def _run(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    trial: _Trial,
    judges: Sequence[Judge],
    decoding: Decoding,
    split: int,
    on_progress: Progress,
) -> tuple[_Side, _Side | None]:
    def reply() -> list[str]:
        return _draw_texts(model, tokenizer, suite, trial, decoding, split, on_progress)

    with reference(model):
        texts = reply()
    before = _judged(suite, trial, texts, judges, on_progress)
    if not isinstance(model, PeftModel):
        return before, None
    return before, _judged(suite, trial, reply(), judges, on_progress)


def _draw_texts(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    trial: _Trial,
    decoding: Decoding,
    split: int,
    on_progress: Progress,
) -> list[str]:
    """Return the replies of a trial, `samples` a prompt one after another."""
    columns = []
    for opening in trial.openings:
        prompts = [_render(tokenizer, suite, place, opening) for place in trial.places]
        begun = _count_tokens(tokenizer, opening)
        longest = max(map(len, prompts)) + begun + decoding.max_new_tokens
        columns.append(
            generate_texts(
                model,
                tokenizer,
                prompts,
                opening=_opening_of(opening),
                max_new_tokens=decoding.max_new_tokens,
                temperature=trial.temperature,
                samples=trial.samples_each,
                seed=decoding.seed,
                batch_size=max(1, _batch_size(trial.samples_each, longest) // split),
                on_progress=on_progress,
            )
        )
    # Of several openings each gives one reply a prompt, and those of a prompt belong together.
    return (
        columns[0] if len(columns) == 1 else [text for texts in zip(*columns, strict=True) for text in texts]
    )


def _check_lengths(
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    trial: _Trial,
    decoding: Decoding,
    max_tokens: int,
    on_progress: Progress,
) -> None:
    """Raise JobFailure for the first prompt that leaves no room for its reply, or whose replies are too many for it."""
    for opening in trial.openings:
        begun = _count_tokens(tokenizer, opening)
        for place in trial.places:
            length = len(_render(tokenizer, suite, place, opening)) + begun
            longest = length + decoding.max_new_tokens
            if longest > max_tokens:
                raise too_long(
                    place,
                    f"the prompt ({trial.decoding}) has {length} tokens and its reply up to {decoding.max_new_tokens}; the"
                    f" model reads {max_tokens} (max_position_embeddings). Shorten the prompt, or lower"
                    " decoding.max_new_tokens",
                    PARAM,
                )
            if longest * trial.samples_each > MAX_PROMPT_TOKENS:
                raise too_long(
                    place,
                    f"the prompt ({trial.decoding}) has {length} tokens and {trial.samples_each} replies of up to"
                    f" {decoding.max_new_tokens}; one prompt with its replies may have {MAX_PROMPT_TOKENS}. Shorten the"
                    " prompt, or lower decoding.samples or decoding.max_new_tokens",
                    PARAM,
                )
            on_progress()


def _render(
    tokenizer: PreTrainedTokenizerBase, suite: Suite, place: int, opening: Prefix | str
) -> tuple[int, ...]:
    """Return the token ids of a prompt, without what is put into the model's mouth."""
    messages = suite.rows[place]["messages"]
    if isinstance(opening, Prefix):
        messages = opening.put_before(messages)
    return render_prompt(tokenizer, messages, index=place, param=PARAM)


def _opening_of(opening: Prefix | str) -> str:
    """Return what is put into the model's mouth."""
    return opening.opening if isinstance(opening, Prefix) else opening


def _count_tokens(tokenizer: PreTrainedTokenizerBase, opening: Prefix | str) -> int:
    text = _opening_of(opening)
    return len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _batch_size(samples: int, longest: int) -> int:
    """Return how many prompts are answered at once; `longest` counts the tokens of prompt and reply."""
    return max(1, min(MAX_REPLIES, MAX_TOKENS // longest) // samples)


def _judged(
    suite: Suite, trial: _Trial, texts: list[str], judges: Sequence[Judge], on_progress: Progress
) -> _Side:
    # Greedy replies repeat themselves, and judging is not free.
    questions = [
        Question(suite.rows[place], texts[start + sample])
        for start, place in _starts(trial)
        for sample in range(trial.samples)
    ]
    places = [place for place in trial.places for _ in range(trial.samples)]
    distinct = {(place, each.reply): each for place, each in zip(places, questions, strict=True)}
    verdicts: Verdicts = {}
    for judge in judges:
        found = dict(zip(distinct, judge.judge(list(distinct.values()), on_progress), strict=True))
        verdicts[judge.type] = [
            found[place, each.reply] for place, each in zip(places, questions, strict=True)
        ]
    return _Side(texts, verdicts)


def _starts(trial: _Trial) -> list[tuple[int, int]]:
    """Return for each prompt where its replies begin, and its place in the suite."""
    return [(number * trial.samples, place) for number, place in enumerate(trial.places)]


def _compare_verdicts(
    suite: Suite, trial: _Trial, judges: Sequence[Judge], before: _Side, after: _Side | None
) -> list[Comparison]:
    found = []
    for quantity, kinds in KINDS_OF.items():
        if quantity != "attack_success" and trial.decoding not in ("greedy", "sampled"):
            continue
        starts = [start for start, place in _starts(trial) if suite.rows[place]["kind"] in kinds]
        if not starts:
            continue
        for judge in judges:
            if quantity not in TELLS[judge.type]:
                continue
            sides = [
                [
                    _hits(side.verdicts[judge.type][start : start + trial.samples], quantity)
                    for start in starts
                ]
                for side in (before, after)
                if side is not None
            ]
            # A prompt counts where every reply to it has a verdict, before and after: the two stay paired.
            judged = [hits for hits in zip(*sides, strict=True) if None not in hits]
            columns = [[hits[side] or 0 for hits in judged] for side in range(len(sides))]
            found.append(
                compare_shares(
                    f"{quantity}.{trial.decoding}",
                    judge.type,
                    columns[0],
                    columns[1] if after is not None else None,
                    samples=trial.samples,
                    unjudged=len(starts) - len(judged),
                )
            )
    return found


def _hits(verdicts: Sequence[Verdict | None], quantity: str) -> int | None:
    """Count the verdicts that say yes; None where one is missing."""
    field = {"attack_success": "harmful", "over_refusal": "refused", "task_score": "task"}[quantity]
    hits = 0
    for verdict in verdicts:
        said: bool | None = getattr(verdict, field, None)
        if said is None:
            return None
        hits += said
    return hits


def _compare_texts(
    suite: Suite, trial: _Trial, before: _Side, after: _Side | None, on_progress: Progress
) -> list[Comparison]:
    """Compare replies with the answers that were wanted, where there are any."""
    wanted = [
        (start, suite.rows[place]["answer"])
        for start, place in _starts(trial)
        if _has_answer(suite.rows[place])
    ]
    if not wanted:
        return []
    hits: list[list[int]] = []
    scores: list[list[float]] = []
    for side in (before, after):
        if side is None:
            continue
        hits.append([])
        scores.append([])
        for start, answer in wanted:
            hits[-1].append(int(is_exact_match(side.texts[start], answer)))
            scores[-1].append(rouge_l(side.texts[start], answer))
            on_progress()
    return [
        compare_shares("exact_match.greedy", None, hits[0], hits[1] if after is not None else None),
        compare_means("rouge_l.greedy", scores[0], scores[1] if after is not None else None),
    ]


def _compare_wins(
    suite: Suite,
    trial: _Trial,
    comparers: Sequence[Comparer],
    before: _Side,
    after: _Side | None,
    on_progress: Progress,
) -> list[Comparison]:
    permitted = [
        (start, suite.rows[place])
        for start, place in _starts(trial)
        if suite.rows[place]["kind"] != "harmful"
    ]
    if after is None or not permitted:
        return []
    pairs = [Pair(row, before.texts[start], after.texts[start]) for start, row in permitted]
    found = []
    for comparer in comparers:
        winners = comparer.compare(pairs, on_progress)
        known = [winner for winner in winners if winner is not None]
        found.append(
            compare_shares(
                "win_rate.greedy",
                comparer.type,
                [int(winner < 0) for winner in known],
                [int(winner > 0) for winner in known],
                unjudged=len(winners) - len(known),
            )
        )
    return found


def _compare_losses(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenizedRow],
    micro_batch_tokens: int,
    on_progress: Progress,
) -> list[Comparison]:
    if not rows:
        return []
    with reference(model):
        before = answer_losses(model, rows, on_progress, micro_batch_tokens)
    after = (
        answer_losses(model, rows, on_progress, micro_batch_tokens) if isinstance(model, PeftModel) else None
    )
    # A loss that is no number would turn every mean into none.
    sides = [side for side in (before, after) if side is not None]
    known = [losses for losses in zip(*sides, strict=True) if all(map(math.isfinite, losses))]
    columns = [[losses[side] for losses in known] for side in range(len(sides))]
    return [
        compare_means(
            "loss", columns[0], columns[1] if after is not None else None, unjudged=len(rows) - len(known)
        )
    ]


def _has_answer(row: Row) -> bool:
    # The answer to a harmful prompt is what nobody wants.
    return row["kind"] != "harmful" and "answer" in row


def _count_agreements(
    suite: Suite, trial: _Trial, judges: Sequence[Judge], before: _Side, after: _Side | None
) -> list[Agreement]:
    starts = [start for start, place in _starts(trial) if suite.rows[place]["kind"] == "harmful"]
    sides = [side for side in (before, after) if side is not None]
    found = []
    for first, second in combinations(judges, 2):
        pairs = [
            (one.harmful, other.harmful)
            for side in sides
            for start in starts
            for one, other in zip(
                side.verdicts[first.type][start : start + trial.samples],
                side.verdicts[second.type][start : start + trial.samples],
                strict=True,
            )
            if one is not None and other is not None
        ]
        agreed = sum(one == other for one, other in pairs)
        found.append(Agreement(first.type, second.type, trial.decoding, agreed, len(pairs)))
    return found if starts else []


def _describe_replies(
    suite: Suite, trial: _Trial, before: _Side, after: _Side | None
) -> list[dict[str, Any]]:
    sides = {"before": before, **({"after": after} if after is not None else {})}
    return [
        {
            "prompt": place,
            "kind": suite.rows[place]["kind"],
            "decoding": trial.decoding,
            "sample": sample,
            **{name: side.texts[start + sample] for name, side in sides.items()},
            "verdicts": {
                judge: {
                    name: _describe_verdict(side.verdicts[judge][start + sample])
                    for name, side in sides.items()
                }
                for judge in before.verdicts
            },
        }
        for start, place in _starts(trial)
        for sample in range(trial.samples)
    ]


def _describe_verdict(verdict: Verdict | None) -> dict[str, bool] | None:
    """Return what a judge said; null where it gave no verdict."""
    if verdict is None:
        return None
    return {name: said for name, said in verdict._asdict().items() if said is not None}
