"""The structure of data files: one JSON object a line. What a tokenizer must judge is the worker's.

Every problem is reported with its line and JSON path, what was found, what was expected, and an example of the mend.
Files are read once, in bounded memory. Standard library only.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO

from app.domain.conversion import (
    ALPACA,
    CHAT,
    FORMATS,
    PROMPT_COMPLETION,
    SHAREGPT_ROLES,
    Format,
    Row,
    find_format,
    find_unsupported,
    to_chat,
)
from app.domain.evaluation import KINDS

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LINE_BYTES = 1024 * 1024
MAX_DEPTH = 16
"""Objects and lists inside of each other in a line."""
MAX_PROBLEMS = 100
"""So many are kept in full; of the others only their number is, by kind."""
MAX_COUNTED = 100_000
"""Reading stops here, in the middle of a line, too: a file with more problems is one whose shape is wrong."""
SHOWN_PROBLEMS = 20
"""So many stand in the text of an error."""

MIN_ANCHORS = 8
MAX_ANCHORS = 256
"""An anchor set is used in every step and named row by row in a job's record."""

MAX_PROMPTS = 10_000
"""Of an evaluation: each costs at least two replies."""
MAX_ANSWER = 8_000
"""Characters: every reply is compared with the answer word by word."""

_CALL = '{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}}'
_TOOL = '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}'
MENDS = {
    "empty_file": CHAT.example,
    "empty_line": "remove the line",
    "json_array": "jq -c '.[]' rows.json > rows.jsonl",
    "line_too_long": "cut the conversation into several rows",
    "not_utf8": "iconv -f WINDOWS-1252 -t UTF-8 old.jsonl > new.jsonl",
    "not_json": CHAT.example,
    "bad_number": '{"weight": 1}',
    "duplicate_key": '{"role": "user", "content": "Hello"}',
    "bad_unicode": '"\\ud83d\\ude00" or the character itself, "😀"',
    "too_deep": CHAT.example,
    "not_an_object": CHAT.example,
    "unknown_format": CHAT.example,
    "mixed_formats": "put the rows of each format into a file of its own",
    "unsupported_format": CHAT.example,
    "unknown_key": "remove the key",
    "missing": CHAT.example,
    "wrong_type": CHAT.example,
    "wrong_role": '{"role": "user", "content": "Hello"}',
    "empty_text": '{"role": "assistant", "content": "Good day."}',
    "wrong_weight": '{"role": "assistant", "content": "Good day.", "weight": 0}',
    "wrong_tool": _TOOL,
    "wrong_tool_call": f'{{"role": "assistant", "tool_calls": [{_CALL}]}}',
    "nothing_to_learn": CHAT.example,
    "no_prompt": CHAT.example,
    "wrong_label": '{"messages": [{"role": "user", "content": "Hello"}], "label": 0, "group": "greetings"}',
    "wrong_anchor": '{"messages": [{"role": "user", "content": "Hello"}]}',
    "wrong_size": "add or remove rows",
    "wrong_prompt": '{"messages": [{"role": "user", "content": "Hello"}], "kind": "utility", "answer": "Good day."}',
}
"""The kinds of problems, each with an example of the mend."""

RowCheck = Callable[[int, Row], Iterator["Problem"]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a line."""

    line: int
    """Counted from 1."""
    path: str
    """JSON path in the line, `$` for the whole line."""
    kind: str
    """One of MENDS."""
    found: str
    expected: str

    @property
    def message(self) -> str:
        """What was found and what was expected."""
        return f"{self.found}; expected {self.expected}"

    def __str__(self) -> str:
        return f"line {self.line}, {self.path}: {self.message}"

    def to_wire(self) -> dict[str, Any]:
        """Return the problem as replies and reports have it."""
        return {
            "line": self.line,
            "path": self.path,
            "kind": self.kind,
            "found": self.found.removeprefix("found "),
            "expected": self.expected,
            "example": MENDS[self.kind],
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """What reading a file found."""

    rows: int
    """Rows without a problem."""
    problems: tuple[Problem, ...] = ()
    """The first MAX_PROBLEMS."""
    kinds: tuple[tuple[str, int], ...] = ()
    """How many problems of each kind there are in all, the most frequent first."""
    complete: bool = True
    """False where reading stopped before the end: after MAX_COUNTED problems, or a line that was too long."""
    format_name: str | None = None
    """The format of the first row that has one; of training files only."""

    @property
    def n_problems(self) -> int:
        """Count the problems, those that were not kept included."""
        return sum(count for _, count in self.kinds)

    def describe(self, what: str) -> tuple[str, tuple[str, ...]]:
        """Return a headline, and the first problems as texts."""
        n, shown = self.n_problems, self.problems[:SHOWN_PROBLEMS]
        headline = f"{n}{'' if self.complete else ' or more'} problem{'s' * (n != 1)} in the {what}"
        if n > len(shown):
            counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds)
            headline += f" ({counts}), the first {len(shown)} are"
        return headline, tuple(map(str, shown))

    def to_record(self) -> dict[str, Any]:
        """Return what is kept of the check of a training file."""
        headline, shown = self.describe("training file")
        message = f"{headline}: {'; '.join(shown)}" if self.problems else None
        return {"rows": self.rows, "format": self.format_name, "message": message, **self.to_wire()}

    def to_wire(self) -> dict[str, Any]:
        """Return what clients are told beside the text."""
        return {
            "problems": [each.to_wire() for each in self.problems],
            "problem_count": self.n_problems,
            "problem_kinds": dict(self.kinds),
            "complete": self.complete,
        }


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines without their ends; a line beyond the limit is cut there and ends the file."""
    while line := file.readline(MAX_LINE_BYTES + 2):
        line = line.rstrip(b"\r\n")
        yield line
        if len(line) > MAX_LINE_BYTES:
            return


def check_training_lines(lines: Iterable[bytes]) -> Findings:
    """Check a training file in any of the known formats."""
    return _check_lines(lines, _TrainingCheck())


def check_critic_lines(lines: Iterable[bytes]) -> Findings:
    """Check a critic's file: labelled requests and replies."""
    return _check_lines(lines, _check_critic_row)


def check_anchor_lines(lines: Iterable[bytes]) -> Findings:
    """Check a set of anchors: prompts without a reply."""
    found = _check_lines(islice(lines, MAX_ANCHORS + 1), _check_anchors())
    if found.problems or MIN_ANCHORS <= found.rows <= MAX_ANCHORS:
        return found
    size = "has too many rows" if found.rows > MAX_ANCHORS else f"ends after {found.rows} rows"
    problem = Problem(
        found.rows, "$", "wrong_size", f"a set of anchors {size}", f"{MIN_ANCHORS} to {MAX_ANCHORS}"
    )
    return Findings(found.rows, (problem,), ((problem.kind, 1),))


def check_prompt_lines(lines: Iterable[bytes]) -> Findings:
    """Check a file of evaluation prompts."""
    found = _check_lines(islice(lines, MAX_PROMPTS + 1), _check_prompt_row)
    if found.problems or found.rows <= MAX_PROMPTS:
        return found
    problem = Problem(
        found.rows, "$", "wrong_size", "a file of prompts has too many rows", f"at most {MAX_PROMPTS}"
    )
    return Findings(found.rows, (problem,), ((problem.kind, 1),))


def _check_lines(lines: Iterable[bytes], check_row: RowCheck) -> Findings:
    rows = counted = 0
    problems: list[Problem] = []
    kinds: Counter[str] = Counter()
    complete = True
    lines = iter(lines)
    beginning = tuple(islice(lines, 2))
    if _is_array(*beginning):
        # One thing is wrong, not each of its lines.
        expected = f"one JSON object per line, as it becomes with: {MENDS['json_array']}"
        problem = Problem(1, "$", "json_array", "the file is one JSON array", expected)
        return Findings(0, (problem,), ((problem.kind, 1),))
    for number, line in enumerate(chain(beginning, lines), start=1):
        row, unread = _parse(number, line)
        before = counted
        # One line may have a problem for every other byte of it, so that they are not collected first.
        for problem in islice(unread if row is None else check_row(number, row), MAX_COUNTED - counted):
            if len(problems) < MAX_PROBLEMS:
                problems.append(problem)
            kinds[problem.kind] += 1
            counted += 1
        if counted == before:
            rows += 1
            continue
        # A line that is too long was cut, and with it the file.
        complete = counted < MAX_COUNTED and len(line) <= MAX_LINE_BYTES
        if not complete:
            break
    if rows == 0 and not kinds:
        problems.append(Problem(1, "$", "empty_file", "the file is empty", "at least one row"))
        kinds["empty_file"] = 1
    found_format = check_row.format if isinstance(check_row, _TrainingCheck) else None
    return Findings(
        rows,
        tuple(problems),
        tuple(kinds.most_common()),
        complete,
        found_format.name if found_format else None,
    )


def _is_array(first: bytes = b"", second: bytes = b"") -> bool:
    """Say whether a file that begins with these lines is one JSON array, on one line or on many."""
    start = first.removeprefix(b"\xef\xbb\xbf").strip()
    if not start.startswith(b"[") or start == b"[]":
        return False
    # An array on a line of its own is a row of the wrong kind where another line follows it.
    return not second.strip() or not start.endswith(b"]")


def format_rows(rows: Iterable[Row]) -> bytes:
    """Return rows as the lines of a file."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def parse_rows(lines: Iterable[bytes]) -> list[Row]:
    """Parse the lines of a file that passed its check."""
    return [json.loads(line) for line in lines]


def read_chat_rows(lines: Iterable[bytes]) -> list[Row]:
    """Parse the lines of a training file that passed its check, each row as a chat row."""
    return [to_chat(row) for row in parse_rows(lines)]


# --- a line -----------------------------------------------------------------------------------------------

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class _NotStrict(ValueError):
    """JSON that Python's parser would take and that means different things to different readers."""

    def __init__(self, kind: str, found: str, expected: str) -> None:
        super().__init__(found)
        self.kind = kind
        self.expected = expected


def _refuse_constant(name: str) -> None:
    raise _NotStrict("bad_number", f"not strict JSON: {name} is not a JSON number", "a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotStrict(
            "bad_number",
            f"not strict JSON: {text[:40]} is larger than any number that can be kept",
            "a finite number",
        )
    return number


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    result = dict(pairs)
    if len(result) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = next(name for name, count in times.items() if count > 1)
        raise _NotStrict(
            "duplicate_key",
            f"not strict JSON: the key {twice[:40]!r} stands twice in one object",
            "each key once",
        )
    return result


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_refuse_duplicates
)


def _parse(number: int, line: bytes) -> tuple[Row | None, list[Problem]]:
    def problem(kind: str, found: str, expected: str) -> tuple[None, list[Problem]]:
        return None, [Problem(number, "$", kind, found, expected)]

    if len(line) > MAX_LINE_BYTES:
        return problem("line_too_long", f"the line has {len(line)} bytes", f"at most {MAX_LINE_BYTES}")
    try:
        text = line.decode("utf-8")
        if number == 1:
            text = text.removeprefix("\ufeff")
        row = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        return problem(
            "not_utf8", f"not UTF-8: byte {error.start + 1} cannot be read", "a file that is saved as UTF-8"
        )
    except json.JSONDecodeError as error:
        if not text.strip():
            return problem("empty_line", "the line is empty", "one JSON object per line")
        return problem(
            "not_json", f"not JSON: {error.msg} at column {error.colno}", "one JSON object per line"
        )
    except _NotStrict as error:
        return problem(error.kind, str(error), error.expected)
    except RecursionError:
        return problem("too_deep", "the line is nested too deeply to be read", f"at most {MAX_DEPTH} levels")
    except ValueError:
        # Python itself refuses integers of more than 4,300 digits.
        return problem("bad_number", "not strict JSON: an integer has too many digits", "at most 4300")
    # Every level costs a bracket, so that few brackets need no look.
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _depth(row) > MAX_DEPTH:
        return problem("too_deep", "the line is nested too deeply", f"at most {MAX_DEPTH} levels")
    if _SURROGATE.search(line) and not _is_unicode(row):
        return problem(
            "bad_unicode", "not valid Unicode: a \\u escape is half of a surrogate pair", "both halves"
        )
    if not isinstance(row, dict):
        return problem("not_an_object", f"found {_kind(row)}", 'an object such as {"messages": [...]}')
    return row, []


def _depth(value: Any) -> int:
    """Return how many objects and lists are inside of each other, without recursion."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _is_unicode(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- rows of training files -------------------------------------------------------------------------------


class _TrainingCheck:
    """A check of rows that remembers the format of a file."""

    def __init__(self) -> None:
        self.format: Format | None = None

    def __call__(self, number: int, row: Row) -> Iterator[Problem]:
        # Most rows are of this shape, and what is right needs no words.
        if self.format is CHAT and _is_plain_chat(row):
            return
        unsupported = find_unsupported(row)
        if unsupported is not None:
            yield Problem(
                number,
                "$",
                "unsupported_format",
                f"a row of {unsupported} data; this service trains by supervised fine-tuning only",
                "rows of requests with the replies to learn",
            )
            return
        found = find_format(row)
        if found is None:
            keys = ", ".join(f"`{_shorten(key)}`" for key in islice(row, 5)) or "no key at all"
            yield Problem(
                number, "$", "unknown_format", f"found {keys}", f"the keys of one of {', '.join(FORMATS)}"
            )
            return
        if self.format is None:
            self.format = found
        if found is not self.format:
            yield Problem(
                number,
                "$",
                "mixed_formats",
                f"a row of the format {found.name} in a file that began with {self.format.name}",
                "one format in a file",
            )
            return
        yield from _CHECKS[found.name](number, row)


def _is_plain_chat(row: Row) -> bool:
    """Say whether a row is beyond doubt a good one: messages of role and content alone."""
    messages = row.get("messages")
    if len(row) != 1 or type(messages) is not list or not messages:
        return False
    learns = False
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return False
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or role not in ROLES or type(content) is not str or not content:
            return False
        learns = learns or role == "assistant"
    return learns and messages[0]["role"] != "assistant"


def _check_chat_row(number: int, row: Row) -> Iterator[Problem]:
    messages = yield from _check_messages(number, row, CHAT.keys, CHAT_MESSAGE)
    yield from _check_tools(number, row)
    if not isinstance(row.get("parallel_tool_calls", False), bool):
        yield _wrong_type(number, "$.parallel_tool_calls", row["parallel_tool_calls"], "true or false")
    if messages is not None:
        yield from _check_learnable(number, "$.messages", "role", messages)


def _check_prompt_completion_row(number: int, row: Row) -> Iterator[Problem]:
    yield from _unknown_keys(number, "$", row, PROMPT_COMPLETION.keys, "a row of this format")
    for key in PROMPT_COMPLETION.keys:
        yield from _check_text(number, row, key)


def _check_alpaca_row(number: int, row: Row) -> Iterator[Problem]:
    yield from _unknown_keys(number, "$", row, ALPACA.keys, "a row of this format")
    for key in ("instruction", "output"):
        yield from _check_text(number, row, key)
    for key in ("system", "input", "text"):
        if not isinstance(row.get(key, ""), str):
            yield _wrong_type(number, f"$.{key}", row[key], "a text")


def _check_sharegpt_row(number: int, row: Row) -> Iterator[Problem]:
    yield from _unknown_keys(number, "$", row, FORMATS["sharegpt"].keys, "a row of this format")
    if not isinstance(row.get("system", ""), str):
        yield _wrong_type(number, "$.system", row["system"], "a text")
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        yield _wrong_type(number, "$.conversations", turns, "a list of at least one turn")
        return
    good = True
    for index, turn in enumerate(turns):
        wrong = yield from _count(_check_turn(number, f"$.conversations[{index}]", turn))
        good = good and not wrong
    if good:
        messages = [{"role": SHAREGPT_ROLES[turn["from"]]} for turn in turns]
        yield from _check_learnable(number, "$.conversations", "from", messages)


def _check_turn(number: int, path: str, turn: Any) -> Iterator[Problem]:
    if not isinstance(turn, dict):
        yield _wrong_type(number, path, turn, "an object with from and value")
        return
    yield from _unknown_keys(number, path, turn, ("from", "value"), "a turn")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        expected = f"one of {', '.join(SHAREGPT_ROLES)}"
        yield Problem(number, f"{path}.from", "wrong_role", f"found {_show(speaker)}", expected)
    yield from _check_text(number, turn, "value", path)


_CHECKS: dict[str, RowCheck] = {
    "chat": _check_chat_row,
    "prompt_completion": _check_prompt_completion_row,
    "alpaca": _check_alpaca_row,
    "sharegpt": _check_sharegpt_row,
}


def _check_learnable(
    number: int, path: str, role_key: str, messages: Sequence[dict[str, Any]]
) -> Iterator[Problem]:
    if not any(each["role"] == "assistant" and each.get("weight", 1) == 1 for each in messages):
        yield Problem(
            number,
            path,
            "nothing_to_learn",
            "no assistant message to learn from",
            "at least one with weight 1",
        )
    elif messages[0]["role"] == "assistant":
        yield Problem(
            number,
            f"{path}[0].{role_key}",
            "no_prompt",
            "the first message is the assistant's",
            "a message before it, which it answers",
        )


def _check_tools(number: int, row: Row) -> Iterator[Problem]:
    tools = row.get("tools")
    if "tools" not in row:
        return
    if not isinstance(tools, list) or not tools:
        yield Problem(
            number,
            "$.tools",
            "wrong_tool",
            f"found {_kind(tools)}",
            "a list of at least one tool, or no `tools`",
        )
        return
    for index, tool in enumerate(tools):
        path = f"$.tools[{index}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            yield Problem(number, path, "wrong_tool", f"found {_kind(tool)}", "a tool of the type `function`")
            continue
        yield from _unknown_keys(number, path, tool, ("type", "function"), "a tool")
        inner = f"{path}.function"
        keys = ("name", "description", "parameters", "strict")
        yield from _unknown_keys(number, inner, function, keys, "a function")
        if not isinstance(function.get("name"), str) or not function["name"]:
            found = f"found {_show(function.get('name'))}"
            yield Problem(number, f"{inner}.name", "wrong_tool", found, "the function's name")
        for key, kind, expected in (
            ("description", str, "a text"),
            ("parameters", dict, "a JSON schema"),
            ("strict", bool, "true or false"),
        ):
            if key in function and not isinstance(function[key], kind):
                yield Problem(
                    number, f"{inner}.{key}", "wrong_tool", f"found {_show(function[key])}", expected
                )


# --- rows of critics and sets of anchors ------------------------------------------------------------------


def _check_anchors() -> RowCheck:
    """Return a check of rows that remembers the lines of a set."""
    first_lines: dict[tuple[tuple[str, str], ...], int] = {}

    def check(number: int, row: Row) -> Iterator[Problem]:
        if (yield from _count(_check_anchor_row(number, row))):
            return
        prompt = tuple((each["role"], each["content"]) for each in row["messages"])
        first = first_lines.setdefault(prompt, number)
        if first != number:
            yield Problem(
                number,
                "$.messages",
                "wrong_anchor",
                f"these messages stand in line {first} already",
                "each anchor once, because the monitor must not watch what is trained on",
            )

    return check


def _check_anchor_row(number: int, row: Row) -> Iterator[Problem]:
    messages = yield from _check_messages(number, row, ("messages",), PLAIN_MESSAGE)
    if messages is not None and messages[-1]["role"] != "user":
        yield Problem(
            number,
            "$.messages",
            "wrong_anchor",
            f"the last message has the role {messages[-1]['role']}",
            "the user's: the reply to an anchor is the base model's own",
        )


def _check_critic_row(number: int, row: Row) -> Iterator[Problem]:
    keys = ("messages", "label", "group", "borderline")
    messages = yield from _check_messages(number, row, keys, PLAIN_MESSAGE)
    label = row.get("label")
    if isinstance(label, bool) or label not in (0, 1):
        expected = "1 where the last message is harmful, else 0"
        yield Problem(number, "$.label", "wrong_label", f"found {_show(label)}", expected)
    if not isinstance(row.get("borderline", False), bool):
        expected = "true where it only looks harmful"
        yield Problem(number, "$.borderline", "wrong_label", f"found {_show(row['borderline'])}", expected)
    if not isinstance(row.get("group"), str) or not row["group"]:
        expected = "the topic, as a text: topics are held out"
        yield Problem(number, "$.group", "wrong_label", f"found {_show(row.get('group'))}", expected)
    if messages is not None and (
        messages[-1]["role"] not in ("user", "assistant") or not _has_request(messages)
    ):
        yield Problem(
            number,
            "$.messages",
            "wrong_label",
            f"the last message has the role {messages[-1]['role']}",
            "the last message to be the user's, or an assistant's after one: a critic reads requests, and replies to"
            " them",
        )


def _has_request(messages: list[dict[str, Any]]) -> bool:
    return any(each["role"] == "user" for each in messages)


def _check_prompt_row(number: int, row: Row) -> Iterator[Problem]:
    messages = yield from _check_messages(number, row, ("messages", "kind", "answer"), PROMPT_MESSAGE)
    if messages is not None and messages[-1]["role"] != "user":
        found = f"the last message has the role {messages[-1]['role']}"
        expected = "the user's: the reply to it is the model's"
        yield Problem(number, "$.messages", "wrong_prompt", found, expected)
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        found = f"found {_show(kind)}" if "kind" in row else "missing"
        yield Problem(number, "$.kind", "wrong_prompt", found, f"one of {', '.join(KINDS)}")
    if "answer" in row:
        yield from _check_text(number, row, "answer")
    answer = row.get("answer")
    if isinstance(answer, str) and len(answer) > MAX_ANSWER:
        found, expected = f"an answer of {len(answer)} characters", f"at most {MAX_ANSWER}"
        yield Problem(number, "$.answer", "wrong_prompt", found, expected)


# --- what rows share --------------------------------------------------------------------------------------

PROMPT_MESSAGE = ("role", "content", "name")
PLAIN_MESSAGE = ("role", "content", "name", "weight")
CHAT_MESSAGE = (*PLAIN_MESSAGE, "tool_calls", "tool_call_id")


def _check_messages(
    number: int, row: Row, keys: tuple[str, ...], message_keys: tuple[str, ...]
) -> Generator[Problem, None, list[dict[str, Any]] | None]:
    """Yield the problems of a row's keys and messages; return the messages where there is none."""
    wrong = yield from _count(_unknown_keys(number, "$", row, keys, "a row here"))
    messages = row.get("messages")
    if "messages" not in row:
        yield Problem(number, "$.messages", "missing", "missing", "a list of messages")
        return None
    if not isinstance(messages, list) or not messages:
        yield _wrong_type(number, "$.messages", messages, "a list of at least one message")
        return None
    calls: set[str] = set()
    for index, message in enumerate(messages):
        found = _check_message(number, f"$.messages[{index}]", message, message_keys, calls)
        wrong += yield from _count(found)
    return None if wrong else messages


def _count(problems: Iterable[Problem]) -> Generator[Problem, None, int]:
    """Yield problems and return how many there were."""
    count = 0
    for problem in problems:
        yield problem
        count += 1
    return count


def _check_message(
    number: int, path: str, message: Any, keys: tuple[str, ...], calls: set[str]
) -> Iterator[Problem]:
    """Yield the problems of a message; `calls` has the ids of the tool calls so far, and gets this one's."""
    if not isinstance(message, dict):
        yield _wrong_type(number, path, message, "an object with role and content")
        return
    yield from _unknown_keys(number, path, message, keys, "a message here")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        yield Problem(
            number, f"{path}.role", "wrong_role", f"found {_show(role)}", f"one of {', '.join(ROLES)}"
        )
    has_calls = "tool_calls" in message and "tool_calls" in keys
    if not (has_calls and message.get("content") is None):
        yield from _check_text(number, message, "content", path)
    if not isinstance(message.get("name", ""), str):
        yield _wrong_type(number, f"{path}.name", message["name"], "a text")
    if "weight" in message:
        weight = message["weight"]
        if role != "assistant":
            found = f"a weight on a message of the role {_show(role)}"
            yield Problem(number, f"{path}.weight", "wrong_weight", found, "one on assistant messages only")
        elif isinstance(weight, bool) or weight not in (0, 1):
            yield Problem(number, f"{path}.weight", "wrong_weight", f"found {_show(weight)}", "0 or 1")
    if has_calls:
        yield from _check_tool_calls(number, path, message, calls)
    if "tool_call_id" in message and "tool_call_id" in keys:
        call_id = message["tool_call_id"]
        if role != "tool" or not isinstance(call_id, str) or call_id not in calls:
            yield Problem(
                number,
                f"{path}.tool_call_id",
                "wrong_tool_call",
                f"found {_show(call_id)} on a message of the role {_show(role)}",
                "in a message of the role tool, the id of a tool call before it",
            )


def _check_tool_calls(number: int, path: str, message: Row, calls: set[str]) -> Iterator[Problem]:
    def problem(below: str, found: str, expected: str) -> Problem:
        return Problem(number, f"{path}.tool_calls{below}", "wrong_tool_call", found, expected)

    made = message["tool_calls"]
    if message.get("role") != "assistant":
        yield problem("", f"tool calls of the role {_show(message.get('role'))}", "the assistant's only")
    elif not isinstance(made, list) or not made:
        yield problem("", f"found {_kind(made)}", "a list of at least one call")
    else:
        for index, call in enumerate(made):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or call.get("type") != "function":
                yield problem(f"[{index}]", f"found {_kind(call)}", "a call of the type `function`")
                continue
            inner = f"{path}.tool_calls[{index}]"
            yield from _unknown_keys(number, inner, call, ("id", "type", "function"), "a call")
            yield from _unknown_keys(
                number, f"{inner}.function", function, ("name", "arguments"), "a call's function"
            )
            if isinstance(call.get("id"), str) and call["id"]:
                calls.add(call["id"])
            else:
                yield problem(f"[{index}].id", f"found {_show(call.get('id'))}", "the call's id, as a text")
            if not isinstance(function.get("name"), str) or not function["name"]:
                found = f"found {_show(function.get('name'))}"
                yield problem(f"[{index}].function.name", found, "the function's name")
            wrong = _wrong_arguments(function.get("arguments"))
            if wrong is not None:
                yield problem(f"[{index}].function.arguments", wrong, "a JSON object, written as a text")


def _wrong_arguments(arguments: Any) -> str | None:
    """Return what is wrong with the arguments of a tool call, if anything is."""
    if not isinstance(arguments, str):
        return f"found {_kind(arguments)}"
    try:
        value = _DECODER.decode(arguments)
    except (ValueError, RecursionError):
        return "found a text that is not strict JSON"
    if not isinstance(value, dict):
        return f"found the JSON text of {_kind(value)}"
    return None if _depth(value) <= MAX_DEPTH and _is_unicode(value) else "found arguments nested too deeply"


def _unknown_keys(number: int, path: str, value: Row, keys: tuple[str, ...], what: str) -> Iterator[Problem]:
    for key in value:
        if key not in keys:
            known = ", ".join(f"`{each}`" for each in keys)
            expected = f"{what} to have {known} and nothing else"
            yield Problem(number, f"{path}.{_shorten(key)}", "unknown_key", "unknown key", expected)


def _check_text(number: int, value: Row, key: str, path: str = "$") -> Iterator[Problem]:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        kind = "empty_text" if text == "" else "wrong_type" if key in value else "missing"
        found = f"found {_show(text)}" if key in value else "missing"
        yield Problem(number, f"{path}.{key}", kind, found, "a text that is not empty")


def _wrong_type(number: int, path: str, value: Any, expected: str) -> Problem:
    return Problem(number, path, "wrong_type", f"found {_kind(value)}", expected)


def _shorten(key: str) -> str:
    return key if len(key) <= 40 else key[:39] + "…"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    if value == [] and isinstance(value, list):
        return "an empty list"
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) <= 40 else _kind(value)
