"""The formats of training data, and how each is read: every consumer of a row sees it as a chat row.

A conversion is visible: files and reports say which format was found and by which rule it was read. Standard
library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

SHOWN_CHARS = 300
"""Of a row's text where many rows are listed."""

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
"""The roles of ShareGPT's speakers, by the words that its files use for them."""


@dataclass(frozen=True, slots=True)
class Format:
    """A shape that rows may have."""

    name: str
    keys: tuple[str, ...]
    """What a row may have; nothing else."""
    read_as: str
    """The rule of the conversion, in words for people."""
    example: str
    """A short row."""


CHAT = Format(
    "chat",
    ("messages", "tools", "parallel_tool_calls"),
    "as it stands",
    '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}',
)
PROMPT_COMPLETION = Format(
    "prompt_completion",
    ("prompt", "completion"),
    "`prompt` becomes the user's message, `completion` the assistant's; the base model's chat template is put around"
    " both, so separators that older files have at their ends are trained on as text",
    '{"prompt": "Hello", "completion": "Good day."}',
)
ALPACA = Format(
    "alpaca",
    ("system", "instruction", "input", "output", "text"),
    "`instruction`, and `input` after an empty line where it is not empty, become the user's message, `output` the"
    " assistant's, `system` the system message; `text`, the same again as one text, is not read",
    '{"instruction": "Translate into French.", "input": "Good day.", "output": "Bonjour."}',
)
SHAREGPT = Format(
    "sharegpt",
    ("id", "system", "conversations"),
    "each of `conversations` becomes a message: `human` and `user` the user's, `gpt` and `assistant` the assistant's,"
    " `system` the system message; `id` is not read",
    '{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]}',
)
FORMATS = {each.name: each for each in (CHAT, PROMPT_COMPLETION, ALPACA, SHAREGPT)}


def find_format(row: Mapping[str, Any]) -> Format | None:
    """Return the format of a row by its keys; None where it is none that can be trained on."""
    if "messages" in row:
        return CHAT
    if "conversations" in row:
        return SHAREGPT
    if "instruction" in row or "output" in row:
        return ALPACA
    if find_unsupported(row) is None and ("prompt" in row or "completion" in row):
        return PROMPT_COMPLETION
    return None


def find_unsupported(row: Mapping[str, Any]) -> str | None:
    """Return the name of a known format that needs another way of training than this service has, if it is one."""
    if row.keys() & {"preferred_output", "non_preferred_output", "chosen", "rejected"}:
        return "preference (DPO)"
    messages = row.get("messages")
    if (
        isinstance(messages, list)
        and messages
        and row.keys() - set(CHAT.keys)
        and all(isinstance(each, dict) and each.get("role") != "assistant" for each in messages)
    ):
        return "reinforcement (RFT)"
    return None


def to_chat(row: Mapping[str, Any]) -> Row:
    """Return a row that passed its check as `{"messages": [...], "tools"?: [...]}`; a chat row comes back as it is.

    Raises ValueError for a row of no known format.
    """
    found = find_format(row)
    if found is CHAT:
        return dict(row)
    if found is PROMPT_COMPLETION:
        return _chat(None, ("user", row["prompt"]), ("assistant", row["completion"]))
    if found is ALPACA:
        request = row["instruction"]
        if row.get("input"):
            request = f"{request}\n\n{row['input']}"
        return _chat(row.get("system"), ("user", request), ("assistant", row["output"]))
    if found is SHAREGPT:
        turns = [(SHAREGPT_ROLES[each["from"]], each["value"]) for each in row["conversations"]]
        return _chat(row.get("system"), *turns)
    raise ValueError("a row of no known format reached its conversion")


def conversation_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a judge reads of a chat row: its messages, behind the tools where it offers any.

    A model learns from the descriptions of tools as it does from messages, so that nothing may hide there.
    """
    tools = row.get("tools")
    offered = [{"role": "tools", "tools": tools}] if tools else []
    return [*offered, *row["messages"]]


def _chat(system: str | None, *turns: tuple[str, str]) -> Row:
    first = [("system", system)] if system else []
    return {"messages": [{"role": role, "content": content} for role, content in (*first, *turns)]}


def begin_text(row: Row) -> str:
    """Return the beginning of what is said in a chat row, a line for each of its messages."""
    said = (
        f"{message['role']}: {message['content']}"
        for message in row["messages"]
        if isinstance(message.get("content"), str)
    )
    text = "\n".join(said)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
