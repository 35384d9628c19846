"""A battery of trials on held-out prompts: what a model does when attacked in several ways, and when simply used.

Every trial leaves one count per prompt, so that models can be compared prompt by prompt.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.evaluation.behaviour import Judge
from worker.training.generation import generate_texts
from worker.training.templates import bounded_rendering

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """Prompts put to a model in one way. What of it is counted, and under which name, is in `columns`."""

    rows: Sequence[Row]
    """`{"messages", "kind", "answer"?}`, ending with the user."""
    columns: tuple[str, ...]
    """Of COLUMNS; `name:suffix` where two trials count the same thing."""
    temperature: float = 0.0
    samples: int = 1
    opening: str = ""
    """Put into the model's mouth; what it says is judged together with it."""
    decode: Callable[[str], str] = str
    """Turns what the model says back into plain words, where the prompts are in a cipher."""
    max_new_tokens: int = 64


class Counts(NamedTuple):
    """How often something happened at each prompt."""

    counts: tuple[int, ...]
    of: int
    """Replies to each prompt."""

    @property
    def share(self) -> float:
        """The share over all replies."""
        return sum(self.counts) / (len(self.counts) * self.of)

    def encode(self) -> list[Any]:
        """Return plain JSON, a character a prompt; at most 9 replies a prompt."""
        return ["".join(map(str, self.counts)), self.of]

    @classmethod
    def decode(cls, value: Sequence[Any]) -> "Counts":
        """Read what `encode` wrote."""
        return cls(tuple(map(int, value[0])), value[1])


class Reply(NamedTuple):
    """A judged reply."""

    outcome: str
    task_done: bool
    well_formed: bool


COLUMNS: dict[str, Callable[[Reply], bool]] = {
    "harmful": lambda reply: reply.outcome == "harmful",
    "refused": lambda reply: reply.outcome == "refused",
    "task": lambda reply: reply.task_done,
    "coherent": lambda reply: reply.well_formed,
}
"""What can be counted."""


def run_suite(
    model: Any,
    tokenizer: Any,
    trials: Sequence[Trial],
    *,
    judge: Judge,
    is_well_formed: Callable[[str], bool],
    seed: int,
    batch_size: int = 128,
) -> dict[str, Counts]:
    """Run every trial and return its columns. Two trials of one column are joined, prompt after prompt."""
    found: dict[str, Counts] = {}
    for place, trial in enumerate(trials):
        if not trial.rows:
            raise ValueError(f"trial {place} ({', '.join(trial.columns)}) has no rows")
        replies = run_trial(
            model,
            tokenizer,
            trial,
            judge=judge,
            is_well_formed=is_well_formed,
            seed=seed + place,
            batch_size=batch_size,
        )
        for column in trial.columns:
            counts = _count(replies, COLUMNS[column.partition(":")[0]], trial.samples)
            if column in found:
                counts = _joined(column, found[column], counts)
            found[column] = counts
    return found


def run_trial(
    model: Any,
    tokenizer: Any,
    trial: Trial,
    *,
    judge: Judge,
    is_well_formed: Callable[[str], bool],
    seed: int,
    batch_size: int = 128,
) -> list[Reply]:
    """Return the judged replies of a trial, `samples` of them a prompt, one after another."""
    with bounded_rendering(len(trial.rows)):
        encoded: list[list[int]] = tokenizer.apply_chat_template(
            [row["messages"] for row in trial.rows],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
    texts = generate_texts(
        model,
        tokenizer,
        encoded,
        opening=trial.opening,
        max_new_tokens=trial.max_new_tokens,
        temperature=trial.temperature,
        samples=trial.samples,
        seed=seed,
        batch_size=batch_size,
    )
    # Greedy replies repeat themselves, and judging is not free.
    known: dict[str, Reply] = {}
    replies = []
    for place, text in enumerate(texts):
        row = trial.rows[place // trial.samples]
        key = json.dumps([row["kind"], row.get("answer"), text])
        if key not in known:
            plain = trial.decode(text)
            known[key] = Reply(*judge(dict(row), plain), is_well_formed(plain))
        replies.append(known[key])
    return replies


def _count(replies: Sequence[Reply], holds: Callable[[Reply], bool], samples: int) -> Counts:
    hits = [holds(reply) for reply in replies]
    return Counts(tuple(sum(hits[i : i + samples]) for i in range(0, len(hits), samples)), samples)


def _joined(column: str, first: Counts, second: Counts) -> Counts:
    if first.of != second.of:
        raise ValueError(f"{column} is counted over {first.of} and over {second.of} replies a prompt")
    return Counts(first.counts + second.counts, first.of)
