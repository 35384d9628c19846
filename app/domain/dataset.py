"""The structure of training files: chat rows as JSON lines. What a tokenizer must judge is the worker's.

Every problem is reported with its line and JSON path, what was found and what was expected.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LINE_BYTES = 1024 * 1024
MAX_PROBLEMS = 20
"""A report stops here; a file with more problems is one whose shape is wrong."""

MIN_ANCHORS = 8
MAX_ANCHORS = 256
"""An anchor set is used in every step and named row by row in a job's record."""

Row = dict[str, Any]
RowCheck = Callable[[int, Row], Iterator["Problem"]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a line."""

    line: int
    """Counted from 1."""
    path: str
    """JSON path in the line, `$` for the whole line."""
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.path}: {self.message}"


def check_training_lines(lines: Iterable[bytes]) -> tuple[int, list[Problem]]:
    """Return the number of rows and up to MAX_PROBLEMS problems of a training file."""
    return _check_lines(lines, _check_training_row)


def check_critic_lines(lines: Iterable[bytes]) -> tuple[int, list[Problem]]:
    """Return the number of rows and up to MAX_PROBLEMS problems of a critic's file: labelled requests and replies."""
    return _check_lines(lines, _check_critic_row)


def check_anchor_lines(lines: Iterable[bytes]) -> tuple[int, list[Problem]]:
    """Return the number of rows and up to MAX_PROBLEMS problems of a set of anchors: prompts without a reply."""
    rows, problems = _check_lines(islice(lines, MAX_ANCHORS + 1), _check_anchor_row)
    expected = f"expected {MIN_ANCHORS} to {MAX_ANCHORS}"
    if not problems and rows > MAX_ANCHORS:
        problems.append(Problem(rows, "$", f"a set of anchors has too many rows; {expected}"))
    elif not problems and rows < MIN_ANCHORS:
        problems.append(Problem(rows, "$", f"a set of anchors ends after {rows} rows; {expected}"))
    return rows, problems


def _check_lines(lines: Iterable[bytes], check_row: RowCheck) -> tuple[int, list[Problem]]:
    rows = 0
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            found = [Problem(number, "$", "the line is empty; expected one JSON object per line")]
        else:
            row, found = _parse(number, line)
            if row is not None:
                found = list(check_row(number, row))
        problems += found
        rows += not found
        if len(problems) >= MAX_PROBLEMS:
            break
    if rows == 0 and not problems:
        problems.append(Problem(1, "$", "the file is empty; expected at least one row"))
    return rows, problems[:MAX_PROBLEMS]


def format_rows(rows: Iterable[Row]) -> bytes:
    """Return rows as the lines of a file."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def parse_rows(lines: Iterable[bytes]) -> list[Row]:
    """Parse the lines of a file that passed its check."""
    return [json.loads(line) for line in lines]


def _parse(number: int, line: bytes) -> tuple[Row | None, list[Problem]]:
    def problem(message: str) -> tuple[None, list[Problem]]:
        return None, [Problem(number, "$", message)]

    if len(line) > MAX_LINE_BYTES:
        return problem(f"the line has {len(line)} bytes; the longest allowed has {MAX_LINE_BYTES}")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return problem(f"not UTF-8: byte {error.start + 1} cannot be read; save the file as UTF-8")
    if number == 1:
        text = text.removeprefix("\ufeff")
    try:
        row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        return problem(f"not JSON: {error.msg} at column {error.colno}")
    except UnicodeEncodeError:
        return problem("not valid Unicode: a \\u escape is half of a surrogate pair")
    except RecursionError:
        return problem("not JSON that can be read: nested too deeply")
    except ValueError as error:
        return problem(f"not strict JSON: {error}")
    if not isinstance(row, dict):
        return problem(f'found {_kind(row)}; expected an object such as {{"messages": [...]}}')
    return row, []


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    result = dict(pairs)
    if len(result) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = next(name for name, count in times.items() if count > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return result


def _check_training_row(number: int, row: Row) -> Iterator[Problem]:
    messages, found = _check_messages(number, row, keys=("messages",))
    yield from found
    if found or messages is None:
        return
    if not any(each["role"] == "assistant" and each.get("weight", 1) == 1 for each in messages):
        yield Problem(
            number, "$.messages", "no assistant message to learn from; expected at least one with weight 1"
        )
    elif messages[0]["role"] == "assistant":
        yield Problem(
            number, "$.messages[0].role", "found 'assistant'; the first message must come before it"
        )


def _check_anchor_row(number: int, row: Row) -> Iterator[Problem]:
    messages, found = _check_messages(number, row, keys=("messages",))
    yield from found
    if messages and not found and messages[-1]["role"] != "user":
        yield Problem(
            number,
            "$.messages",
            "the last message must be the user's: the reply to an anchor is the base model's own",
        )


def _check_critic_row(number: int, row: Row) -> Iterator[Problem]:
    messages, found = _check_messages(number, row, keys=("messages", "label", "group", "borderline"))
    yield from found
    label = row.get("label")
    if isinstance(label, bool) or label not in (0, 1):
        yield Problem(
            number, "$.label", f"found {_show(label)}; expected 1 where the last message is harmful, else 0"
        )
    if not isinstance(row.get("borderline", False), bool):
        yield Problem(
            number,
            "$.borderline",
            f"found {_show(row['borderline'])}; expected true where it only looks harmful",
        )
    if not isinstance(row.get("group"), str) or not row["group"]:
        yield Problem(
            number,
            "$.group",
            f"found {_show(row.get('group'))}; expected the topic, as a text: topics are held out",
        )
    if (
        messages
        and not found
        and (messages[-1]["role"] not in ("user", "assistant") or not _has_request(messages))
    ):
        yield Problem(
            number,
            "$.messages",
            "the last message must be the user's, or an assistant's after one: a critic reads requests, and replies"
            " to them",
        )


def _has_request(messages: list[dict[str, Any]]) -> bool:
    return any(each["role"] == "user" for each in messages)


def _check_messages(
    number: int, row: Row, keys: tuple[str, ...]
) -> tuple[list[dict[str, Any]] | None, list[Problem]]:
    known = ", ".join(f"`{key}`" for key in keys)
    problems = [
        Problem(number, _below("$", key), f"unknown key; a row here has {known} and nothing else")
        for key in row
        if key not in keys
    ]
    messages = row.get("messages")
    if "messages" not in row:
        problems.append(Problem(number, "$.messages", "missing; expected a list of messages"))
    elif not isinstance(messages, list) or not messages:
        problems.append(
            Problem(number, "$.messages", f"found {_kind(messages)}; expected a list of at least one message")
        )
    else:
        for index, message in enumerate(messages):
            problems += _check_message(number, f"$.messages[{index}]", message)
        return messages, problems
    return None, problems


def _check_message(number: int, path: str, message: Any) -> Iterator[Problem]:
    if not isinstance(message, dict):
        yield Problem(number, path, f"found {_kind(message)}; expected an object with role and content")
        return
    for key in message:
        if key not in ("role", "content", "name", "weight"):
            yield Problem(
                number, _below(path, key), "unknown key; a message has role, content, name and weight"
            )
    role = message.get("role")
    if role not in ROLES:
        yield Problem(number, f"{path}.role", f"found {_show(role)}; expected one of {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str) or not content:
        yield Problem(number, f"{path}.content", f"found {_show(content)}; expected a text that is not empty")
    if "weight" in message:
        weight = message["weight"]
        if role != "assistant":
            yield Problem(number, f"{path}.weight", "only assistant messages have a weight")
        elif isinstance(weight, bool) or weight not in (0, 1):
            yield Problem(number, f"{path}.weight", f"found {_show(weight)}; expected 0 or 1")


def _below(path: str, key: str) -> str:
    return f"{path}.{key if len(key) <= 40 else key[:39] + '…'}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    if value == [] and isinstance(value, list):
        return "an empty list"
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) <= 40 else _kind(value)
