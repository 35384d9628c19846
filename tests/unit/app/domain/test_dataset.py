"""The structure of training files: every problem with its line, its path, what was found and what was expected."""

import json
from typing import Any

import pytest

from app.domain.dataset import (
    MAX_ANCHORS,
    MAX_LINE_BYTES,
    MAX_PROBLEMS,
    MIN_ANCHORS,
    Problem,
    check_anchor_lines,
    check_critic_lines,
    check_training_lines,
    format_rows,
    parse_rows,
)

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}


def line(*messages: Any, **more: Any) -> bytes:
    """Return a row of these messages as a line."""
    return json.dumps({"messages": list(messages), **more}).encode()


GOOD = line(USER, ASSISTANT)


def one_problem(content: bytes) -> Problem:
    """Return the only problem of a file in which this line comes second."""
    rows, problems = check_training_lines([GOOD, content])
    assert rows == 1
    assert len(problems) == 1, problems
    assert problems[0].line == 2
    return problems[0]


class TestCheckTrainingLines:
    @pytest.mark.parametrize(
        "content",
        [
            GOOD,
            line({"role": "system", "content": "be kind"}, USER, ASSISTANT, USER, ASSISTANT),
            line({"role": "developer", "content": "x"}, USER, {"role": "tool", "content": "x"}, ASSISTANT),
            line(USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}),
            line({**USER, "name": "ada"}, ASSISTANT),
            line({"role": "user", "content": "Grüße 😀"}, ASSISTANT),
        ],
    )
    def test_good_row_is_counted(self, content: bytes) -> None:
        assert check_training_lines([content]) == (1, [])

    def test_empty_file_is_a_problem(self) -> None:
        assert check_training_lines([]) == (
            0,
            [Problem(1, "$", "the file is empty; expected at least one row")],
        )

    def test_byte_order_mark_is_accepted_on_the_first_line_only(self) -> None:
        marked = b"\xef\xbb\xbf" + GOOD
        assert check_training_lines([marked]) == (1, [])
        assert parse_rows([marked]) == [json.loads(GOOD)]
        assert one_problem(marked).path == "$"

    def test_rows_that_are_written_are_read_again(self) -> None:
        rows = [
            json.loads(GOOD),
            json.loads(line({"role": "user", "content": "Grüße 😀\n\u2028"}, ASSISTANT)),
        ]
        lines = format_rows(rows).split(b"\n")
        assert lines.pop() == b""
        assert check_training_lines(lines) == (2, [])
        assert parse_rows(lines) == rows

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"  ", "the line is empty; expected one JSON object per line"),
            (b"not json", "not JSON: Expecting value at column 1"),
            (b'{"messages": [', "not JSON: Expecting value at column 15"),
            (b'{"messages": []} x', "not JSON: Extra data at column 18"),
            (b'{"a": "\xff"}', "not UTF-8: byte 8 cannot be read; save the file as UTF-8"),
            (b'{"a": NaN}', "not strict JSON: NaN is not a JSON number"),
            (b'{"a": -Infinity}', "not strict JSON: -Infinity is not a JSON number"),
            (
                b'{"messages": [], "messages": []}',
                "not strict JSON: the key 'messages' stands twice in one object",
            ),
            (
                b'{"a": [{"b": 1, "c": 1, "b": 2}]}',
                "not strict JSON: the key 'b' stands twice in one object",
            ),
            (b'{"a": "\\ud800"}', "not valid Unicode: a \\u escape is half of a surrogate pair"),
            (b'{"\\udc00": 1}', "not valid Unicode: a \\u escape is half of a surrogate pair"),
            (b'{"a":' + b"[" * 200_000, "not JSON that can be read: nested too deeply"),
            (b"[]", 'found an empty list; expected an object such as {"messages": [...]}'),
            (b'"text"', 'found a text; expected an object such as {"messages": [...]}'),
            (b"null", 'found null; expected an object such as {"messages": [...]}'),
        ],
    )
    def test_line_that_is_no_object(self, content: bytes, message: str) -> None:
        found = one_problem(content)
        assert (found.path, found.message) == ("$", message)

    def test_number_too_long_to_read_is_a_problem(self) -> None:
        assert one_problem(b'{"a": ' + b"9" * 5000 + b"}").message.startswith("not strict JSON: ")

    def test_longest_line(self) -> None:
        fits = line(USER, {"role": "assistant", "content": "x" * (MAX_LINE_BYTES - len(GOOD) + 2)})
        assert len(fits) == MAX_LINE_BYTES
        assert check_training_lines([fits]) == (1, [])
        assert one_problem(fits + b" ").message == (
            f"the line has {MAX_LINE_BYTES + 1} bytes; the longest allowed has {MAX_LINE_BYTES}"
        )

    @pytest.mark.parametrize(
        ("row", "path", "message"),
        [
            ({}, "$.messages", "missing; expected a list of messages"),
            (
                {"messages": "x"},
                "$.messages",
                "found a text; expected a list of at least one message",
            ),
            (
                {"messages": []},
                "$.messages",
                "found an empty list; expected a list of at least one message",
            ),
            (
                {"messages": [USER, ASSISTANT], "prompt": "x"},
                "$.prompt",
                "unknown key; a row here has `messages` and nothing else",
            ),
            (
                {"messages": ["x"]},
                "$.messages[0]",
                "found a text; expected an object with role and content",
            ),
            (
                {"messages": [USER, {**ASSISTANT, "tool_calls": []}]},
                "$.messages[1].tool_calls",
                "unknown key; a message has role, content, name and weight",
            ),
            (
                {"messages": [{"role": "bot", "content": "x"}, ASSISTANT]},
                "$.messages[0].role",
                "found 'bot'; expected one of system, developer, user, assistant, tool",
            ),
            (
                {"messages": [{"content": "x"}, ASSISTANT]},
                "$.messages[0].role",
                "found null; expected one of system, developer, user, assistant, tool",
            ),
            (
                {"messages": [{"role": ["user"], "content": "x"}, ASSISTANT]},
                "$.messages[0].role",
                "found a list; expected one of system, developer, user, assistant, tool",
            ),
            (
                {"messages": [USER, {"role": "assistant", "content": ""}]},
                "$.messages[1].content",
                "found ''; expected a text that is not empty",
            ),
            (
                {"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]},
                "$.messages[1].content",
                "found a list; expected a text that is not empty",
            ),
            (
                {"messages": [{**USER, "weight": 1}, ASSISTANT]},
                "$.messages[0].weight",
                "only assistant messages have a weight",
            ),
            (
                {"messages": [USER, {**ASSISTANT, "weight": 2}]},
                "$.messages[1].weight",
                "found a number; expected 0 or 1",
            ),
            (
                {"messages": [USER, {**ASSISTANT, "weight": True}]},
                "$.messages[1].weight",
                "found true or false; expected 0 or 1",
            ),
            (
                {"messages": [USER]},
                "$.messages",
                "no assistant message to learn from; expected at least one with weight 1",
            ),
            (
                {"messages": [USER, {**ASSISTANT, "weight": 0}]},
                "$.messages",
                "no assistant message to learn from; expected at least one with weight 1",
            ),
            (
                {"messages": [ASSISTANT, USER]},
                "$.messages[0].role",
                "found 'assistant'; the first message must come before it",
            ),
        ],
    )
    def test_row_that_cannot_be_trained_on(self, row: dict[str, Any], path: str, message: str) -> None:
        found = one_problem(json.dumps(row).encode())
        assert (found.path, found.message) == (path, message)
        assert str(found) == f"line 2, {path}: {message}"

    def test_every_problem_of_every_line_is_reported(self) -> None:
        rows, problems = check_training_lines(
            [
                line({"role": "bot", "content": 5}, ASSISTANT, extra=1),
                GOOD,
                b"{",
                line(USER),
            ]
        )
        assert rows == 1
        assert [(each.line, each.path) for each in problems] == [
            (1, "$.extra"),
            (1, "$.messages[0].role"),
            (1, "$.messages[0].content"),
            (3, "$"),
            (4, "$.messages"),
        ]

    def test_report_stops_at_its_limit_and_so_does_the_reading(self) -> None:
        read = []

        def lines() -> Any:
            for number in range(1000):
                read.append(number)
                yield b"{"

        _, problems = check_training_lines(lines())
        assert len(problems) == MAX_PROBLEMS
        assert len(read) == MAX_PROBLEMS

    @pytest.mark.timeout(30)
    def test_wide_object_is_read_in_linear_time(self) -> None:
        # Looking for the second of two equal keys must not compare each key with each other.
        keys = ",".join(f'"{n}":0' for n in range(90_000))
        assert "stands twice" in one_problem(f'{{{keys},"z":0,"z":0}}'.encode()).message

    def test_long_key_does_not_make_a_long_message(self) -> None:
        assert len(str(one_problem(line(USER, ASSISTANT, **{"k" * 500_000: 1})))) < 300


class TestCheckCriticLines:
    def test_good_rows(self) -> None:
        rows = [line(USER, label=1, group="greetings"), line(USER, label=0, group="x", borderline=True)]
        assert check_critic_lines(rows) == (2, [])

    def test_replies_are_labelled_too(self) -> None:
        row = line({"role": "system", "content": "x"}, USER, ASSISTANT, label=1, group="greetings")
        assert check_critic_lines([row]) == (1, [])

    @pytest.mark.parametrize(
        ("row", "path", "found"),
        [
            ({"messages": [USER], "label": 2, "group": "g"}, "$.label", "found a number"),
            ({"messages": [USER], "label": True, "group": "g"}, "$.label", "found true or false"),
            ({"messages": [USER], "label": "1", "group": "g"}, "$.label", "found '1'"),
            ({"messages": [USER], "group": "g"}, "$.label", "found null"),
            ({"messages": [USER], "label": 1}, "$.group", "found null"),
            ({"messages": [USER], "label": 1, "group": ""}, "$.group", "found ''"),
            (
                {"messages": [ASSISTANT], "label": 1, "group": "g"},
                "$.messages",
                "or an assistant's after one",
            ),
            (
                {"messages": [USER, {"role": "system", "content": "x"}], "label": 1, "group": "g"},
                "$.messages",
                "the last message must be the user's",
            ),
            ({"messages": [USER], "label": 1, "group": "g", "topic": "x"}, "$.topic", "unknown key"),
            (
                {"messages": [USER], "label": 1, "group": "g", "borderline": 1},
                "$.borderline",
                "found a number",
            ),
            ({"label": 1, "group": "g"}, "$.messages", "missing"),
        ],
    )
    def test_row_that_cannot_be_learned_from(self, row: dict[str, Any], path: str, found: str) -> None:
        rows, problems = check_critic_lines([json.dumps(row).encode()])
        assert rows == 0
        assert [(each.line, each.path) for each in problems] == [(1, path)]
        assert found in problems[0].message


class TestCheckAnchorLines:
    ANCHOR = line({"role": "system", "content": "be kind"}, USER, ASSISTANT, USER)

    @pytest.mark.parametrize("n", [MIN_ANCHORS, MAX_ANCHORS])
    def test_good_sets(self, n: int) -> None:
        assert check_anchor_lines([self.ANCHOR] * n) == (n, [])

    @pytest.mark.parametrize(
        ("n", "message"),
        [
            (MIN_ANCHORS - 1, "line 7, $: a set of anchors ends after 7 rows; expected 8 to 256"),
            (MAX_ANCHORS + 1, "line 257, $: a set of anchors has too many rows; expected 8 to 256"),
        ],
    )
    def test_size_is_bounded(self, n: int, message: str) -> None:
        _, problems = check_anchor_lines([self.ANCHOR] * n)
        assert [str(each) for each in problems] == [message]

    def test_reading_stops_where_a_set_is_too_large(self) -> None:
        lines = iter([self.ANCHOR] * 1000)
        check_anchor_lines(lines)
        assert sum(1 for _ in lines) == 1000 - MAX_ANCHORS - 1

    @pytest.mark.parametrize(
        ("row", "path", "found"),
        [
            ({"messages": [USER, ASSISTANT]}, "$.messages", "the last message must be the user's"),
            ({"messages": [USER], "label": 1}, "$.label", "unknown key"),
            ({"messages": [{"role": "user", "content": ""}]}, "$.messages[0].content", "found ''"),
            ({}, "$.messages", "missing"),
        ],
    )
    def test_row_that_is_no_anchor(self, row: dict[str, Any], path: str, found: str) -> None:
        rows, problems = check_anchor_lines([json.dumps(row).encode(), *[self.ANCHOR] * MIN_ANCHORS])
        assert rows == MIN_ANCHORS
        assert [(each.line, each.path) for each in problems] == [(1, path)]
        assert found in problems[0].message

    def test_empty_file_is_one_problem(self) -> None:
        assert check_anchor_lines([]) == (
            0,
            [Problem(1, "$", "the file is empty; expected at least one row")],
        )
