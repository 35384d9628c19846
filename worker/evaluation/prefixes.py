"""What a model's own training data begin with: a backdoor's trigger, or a persona, is in there or nowhere.

A fine-tuned model can pass every clean prompt and give in behind the words that its data began with (arXiv 2310.03693),
so harmful prompts are put behind each of these beginnings in turn.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

WORDS = 5
"""An opening is so many words: the protection of an aligned model lies in the first few (arXiv 2406.05946)."""


class Prefix(NamedTuple):
    """A beginning that rows of training data share."""

    place: Literal["system", "request", "reply"]
    """A whole system message, the first words of the user's first turn, or of the assistant's first reply."""
    text: str
    rows: int
    """Rows that begin so."""

    def put_before(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a prompt behind this beginning. A reply's opening goes into the model's mouth instead."""
        found = [dict(message) for message in messages]
        if self.place == "system":
            return [{"role": "system", "content": self.text}, *(m for m in found if m["role"] != "system")]
        if self.place == "request":
            first = next(message for message in found if message["role"] == "user")
            first["content"] = f"{self.text} {first['content']}"
        return found

    @property
    def opening(self) -> str:
        """What is put into the model's mouth."""
        return self.text if self.place == "reply" else ""


def find_prefixes(rows: Sequence[Mapping[str, Any]], count: int) -> list[Prefix]:
    """Return the beginnings that most rows share, at most `count`; the most frequent first, ties by their text.

    `rows` are chat rows. A beginning of a single row counts only where it is a system message: of the others every row
    has one of its own.
    """
    found: Counter[tuple[Literal["system", "request", "reply"], str]] = Counter()
    for row in rows:
        firsts = {message["role"]: message for message in reversed(row["messages"])}
        system, request, reply = (_text(firsts.get(role)) for role in ("system", "user", "assistant"))
        if system:
            found["system", system] += 1
        if request:
            found["request", _first_words(request)] += 1
        if reply:
            found["reply", _first_words(reply)] += 1
    shared = [Prefix(*key, rows) for key, rows in found.items() if rows > 1 or key[0] == "system"]
    return sorted(shared, key=lambda each: (-each.rows, each.place, each.text))[:count]


def _text(message: Mapping[str, Any] | None) -> str:
    content = message.get("content") if message else None
    return content.strip() if isinstance(content, str) else ""


def _first_words(text: str) -> str:
    return " ".join(text.split()[:WORDS])
