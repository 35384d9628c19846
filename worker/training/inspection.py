"""What training on a data file would see: which rows are left, how long they are, which tokens are trained.

Everything here looks at rows through `worker.training.data`, as training does; nothing is rendered a second way.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from app.errors import JobFailure
from worker.training.data import TokenizedRow, apply_overlength, control_ids, tokenize_row

MAX_LISTED = 1000
"""So many rows are named of each kind; the counts are of all."""
HISTOGRAM_BINS = 20
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
PREVIEW_ROWS = 5
PREVIEW_TOKENS = 2000
"""A longer row is cut in its preview, which says so."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that training would not take, or not take whole."""

    index: int
    reason: str
    tokens: int | None = None
    """Before it was cut; None where the row could not be rendered."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The rows of a data file under a policy on overlong ones."""

    rows: tuple[TokenizedRow, ...]
    """Those that are left to train on, cut where they are cut."""
    dropped: tuple[Unusable, ...]
    truncated: tuple[Unusable, ...]
    refused: tuple[Unusable, ...]
    """A job on this file would fail because of them."""


def inspect_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_seq_length: int,
    overlength: Literal["error", "truncate", "drop"],
    on_progress: Callable[[], None] = lambda: None,
) -> Inspection:
    """Tokenize every chat row and apply the policy, without stopping at the first row that cannot be used."""
    kept: list[TokenizedRow] = []
    dropped, truncated, refused = [], [], []
    for index, source in enumerate(rows):
        on_progress()
        length = None
        try:
            row = tokenize_row(tokenizer, source["messages"], index=index, tools=source.get("tools"))
            length = len(row.input_ids)
            left = apply_overlength(row, max_seq_length=max_seq_length, overlength=overlength)
        except JobFailure as error:
            refused.append(Unusable(index, error.message, length))
            continue
        reason = f"{length} tokens, more than max_seq_length ({max_seq_length})"
        if left is None:
            dropped.append(Unusable(index, reason, length))
            continue
        if left is not row:
            truncated.append(Unusable(index, reason, length))
        kept.append(left)
    return Inspection(tuple(kept), tuple(dropped), tuple(truncated), tuple(refused))


def list_unusable(rows: Sequence[Unusable]) -> dict[str, Any]:
    """Return how many rows these are, and the first of them."""
    return {
        "count": len(rows),
        "rows": [
            {"row": each.index, "tokens": each.tokens, "reason": each.reason} for each in rows[:MAX_LISTED]
        ],
    }


def describe_lengths(lengths: Sequence[int]) -> dict[str, Any] | None:
    """Return sum, extremes, mean, quantiles and a histogram of whole numbers; None where there are none."""
    if not lengths:
        return None
    values = np.asarray(lengths)
    bins = min(HISTOGRAM_BINS, int(values.max() - values.min()) + 1)
    counts, edges = np.histogram(values, bins=bins, range=(values.min(), values.max() + 1))
    return {
        "total": int(values.sum()),
        "min": int(values.min()),
        "max": int(values.max()),
        "mean": float(values.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
        "histogram": [
            {"from": float(low), "to": float(high), "rows": int(count)}
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
    }


def describe_ends(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenizedRow]) -> dict[str, Any]:
    """Return whether every trained turn ends with a control token that is trained too: else the model never stops."""
    controls = control_ids(tokenizer)
    ends: Counter[int] = Counter()
    turns, without = 0, []
    for row in rows:
        last = [end for _, end in _trained_spans(row)]
        found = [row.input_ids[end - 1] for end in last if row.input_ids[end - 1] in controls]
        turns += len(last)
        ends.update(found)
        if len(found) < len(last):
            without.append(row.index)
    return {
        "trained": turns > 0 and not without,
        "turns": turns,
        "turns_with": ends.total(),
        "tokens": [
            {"id": token, "text": tokenizer.convert_ids_to_tokens(token), "turns": count}
            for token, count in ends.most_common()
        ],
        "rows_without": {"count": len(without), "rows": without[:MAX_LISTED]},
    }


def preview_row(tokenizer: PreTrainedTokenizerBase, row: TokenizedRow) -> dict[str, Any]:
    """Return the text of a row as the model sees it, in segments that are trained and that are not."""
    shown = list(zip(row.input_ids, row.loss_mask, strict=True))[:PREVIEW_TOKENS]
    segments = [
        {"text": str(tokenizer.decode([token for token, _ in tokens])), "trained": trained}
        for trained, tokens in groupby(shown, key=lambda pair: bool(pair[1]))
    ]
    return {
        "row": row.index,
        "tokens": len(row.input_ids),
        "trained_tokens": row.loss_tokens,
        "cut": len(row.input_ids) > PREVIEW_TOKENS,
        "segments": segments,
    }


def _trained_spans(row: TokenizedRow) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(row.loss_mask, dtype=np.int8), [0]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
