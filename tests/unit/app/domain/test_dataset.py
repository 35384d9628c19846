"""The structure of data files: every problem with its line, its path, what was found and what was expected."""

import io
import json
import re
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from app.domain import dataset
from app.domain.conversion import FORMATS, conversation_of, find_format, to_chat
from app.domain.dataset import (
    MAX_ANCHORS,
    MAX_COUNTED,
    MAX_LINE_BYTES,
    MAX_PROBLEMS,
    MENDS,
    MIN_ANCHORS,
    SHOWN_PROBLEMS,
    Findings,
    Problem,
    check_anchor_lines,
    check_critic_lines,
    check_training_lines,
    format_rows,
    parse_rows,
    read_chat_rows,
    read_lines,
)

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}


def line(*messages: Any, **more: Any) -> bytes:
    """Return a row of these messages as a line."""
    return json.dumps({"messages": list(messages), **more}).encode()


GOOD = line(USER, ASSISTANT)
KEYS = b",".join(b'"%x":0' % number for number in range(110_000))
ZEROS = b",".join([b"0"] * 110_000)


def of(found: Findings) -> tuple[int, list[Problem]]:
    """Return what most tests look at."""
    return found.rows, list(found.problems)


def training(lines: Iterable[bytes]) -> tuple[int, list[Problem]]:
    return of(check_training_lines(lines))


def critic(lines: Iterable[bytes]) -> tuple[int, list[Problem]]:
    return of(check_critic_lines(lines))


def anchor(lines: Iterable[bytes]) -> tuple[int, list[Problem]]:
    return of(check_anchor_lines(lines))


def one_problem(content: bytes) -> Problem:
    """Return the only problem of a file in which this line comes second."""
    rows, problems = training([GOOD, content])
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
        assert training([content]) == (1, [])

    def test_empty_file_is_a_problem(self) -> None:
        assert training([]) == (
            0,
            [Problem(1, "$", "empty_file", "the file is empty", "at least one row")],
        )

    def test_byte_order_mark_is_accepted_on_the_first_line_only(self) -> None:
        marked = b"\xef\xbb\xbf" + GOOD
        assert training([marked]) == (1, [])
        assert parse_rows([marked]) == [json.loads(GOOD)]
        assert one_problem(marked).path == "$"

    def test_rows_that_are_written_are_read_again(self) -> None:
        rows = [
            json.loads(GOOD),
            json.loads(line({"role": "user", "content": "Grüße 😀\n\u2028"}, ASSISTANT)),
        ]
        lines = format_rows(rows).split(b"\n")
        assert lines.pop() == b""
        assert training(lines) == (2, [])
        assert parse_rows(lines) == rows

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"  ", "the line is empty; expected one JSON object per line"),
            (b"not json", "not JSON: Expecting value at column 1; expected one JSON object per line"),
            (b'{"messages": [', "not JSON: Expecting value at column 15; expected one JSON object per line"),
            (b'{"messages": []} x', "not JSON: Extra data at column 18; expected one JSON object per line"),
            (b'{"a": "\xff"}', "not UTF-8: byte 8 cannot be read; expected a file that is saved as UTF-8"),
            (b'{"a": NaN}', "not strict JSON: NaN is not a JSON number; expected a finite number"),
            (
                b'{"a": -Infinity}',
                "not strict JSON: -Infinity is not a JSON number; expected a finite number",
            ),
            (
                b'{"messages": [], "messages": []}',
                "not strict JSON: the key 'messages' stands twice in one object; expected each key once",
            ),
            (
                b'{"a": [{"b": 1, "c": 1, "b": 2}]}',
                "not strict JSON: the key 'b' stands twice in one object; expected each key once",
            ),
            (
                b'{"a": "\\ud800"}',
                "not valid Unicode: a \\u escape is half of a surrogate pair; expected both halves",
            ),
            (
                b'{"\\udc00": 1}',
                "not valid Unicode: a \\u escape is half of a surrogate pair; expected both halves",
            ),
            (
                b'{"a":' + b"[" * 200_000,
                "the line is nested too deeply to be read; expected at most 16 levels",
            ),
            (b"[]", 'found an empty list; expected an object such as {"messages": [...]}'),
            (b'"text"', 'found a text; expected an object such as {"messages": [...]}'),
            (b"null", 'found null; expected an object such as {"messages": [...]}'),
        ],
    )
    def test_line_that_is_no_object(self, content: bytes, message: str) -> None:
        found = one_problem(content)
        assert (found.path, found.message) == ("$", message)

    @pytest.mark.parametrize(
        "content",
        [
            json.dumps([json.loads(GOOD)] * 30, indent=2).encode(),
            b"\xef\xbb\xbf" + json.dumps([json.loads(GOOD)] * 30, indent=2).encode(),
            json.dumps([json.loads(GOOD)] * 30).encode(),
            b"[" + b",\n".join([GOOD] * 30) + b"]",
            b"[" + GOOD * (MAX_LINE_BYTES // len(GOOD) + 1),
        ],
        ids=["printed", "byte order mark", "one line", "an object a line", "one line beyond the limit"],
    )
    def test_json_array_is_one_problem_with_what_to_do(self, content: bytes) -> None:
        rows, (found,) = training(dataset.read_lines(io.BytesIO(content)))
        assert rows == 0
        assert str(found) == (
            "line 1, $: the file is one JSON array; expected one JSON object per line, as it becomes with:"
            " jq -c '.[]' rows.json > rows.jsonl"
        )

    def test_rows_that_are_arrays_are_a_problem_each(self) -> None:
        rows, problems = training([b"[1]", b"[2]"])
        assert rows == 0
        assert [each.kind for each in problems] == ["not_an_object"] * 2

    def test_number_too_long_to_read_is_a_problem(self) -> None:
        assert one_problem(b'{"a": ' + b"9" * 5000 + b"}").message.startswith("not strict JSON: ")

    def test_longest_line(self) -> None:
        fits = line(USER, {"role": "assistant", "content": "x" * (MAX_LINE_BYTES - len(GOOD) + 2)})
        assert len(fits) == MAX_LINE_BYTES
        assert training([fits]) == (1, [])
        assert one_problem(fits + b" ").message == (
            f"the line has {MAX_LINE_BYTES + 1} bytes; expected at most {MAX_LINE_BYTES}"
        )

    @pytest.mark.parametrize(
        ("row", "path", "message"),
        [
            (
                {},
                "$",
                "found no key at all; expected the keys of one of chat, prompt_completion, alpaca, sharegpt",
            ),
            (
                {"text": "x"},
                "$",
                "found `text`; expected the keys of one of chat, prompt_completion, alpaca, sharegpt",
            ),
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
                "unknown key; expected a row here to have `messages`, `tools`, `parallel_tool_calls` and nothing else",
            ),
            (
                {"messages": ["x"]},
                "$.messages[0]",
                "found a text; expected an object with role and content",
            ),
            (
                {"messages": [USER, {**ASSISTANT, "refusal": None}]},
                "$.messages[1].refusal",
                "unknown key; expected a message here to have `role`, `content`, `name`, `weight`, `tool_calls`,"
                " `tool_call_id` and nothing else",
            ),
            (
                {"messages": [{**USER, "name": 7}, ASSISTANT]},
                "$.messages[0].name",
                "found a number; expected a text",
            ),
            (
                {"messages": [{**USER, "name": None}, ASSISTANT]},
                "$.messages[0].name",
                "found null; expected a text",
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
                "a weight on a message of the role 'user'; expected one on assistant messages only",
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
                "the first message is the assistant's; expected a message before it, which it answers",
            ),
        ],
    )
    def test_row_that_cannot_be_trained_on(self, row: dict[str, Any], path: str, message: str) -> None:
        found = one_problem(json.dumps(row).encode())
        assert (found.path, found.message) == (path, message)
        assert str(found) == f"line 2, {path}: {message}"

    def test_every_problem_of_every_line_is_reported(self) -> None:
        rows, problems = training(
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

    def test_all_problems_are_counted_and_the_first_are_kept(self) -> None:
        found = check_training_lines([b"{"] * 150 + [GOOD] + [b""] * 70)
        assert (found.rows, len(found.problems), found.n_problems) == (1, MAX_PROBLEMS, 220)
        assert found.kinds == (("not_json", 150), ("empty_line", 70))
        assert found.complete
        headline, shown = found.describe("training file")
        assert headline == "220 problems in the training file (150 not_json, 70 empty_line), the first 20 are"
        assert len(shown) == SHOWN_PROBLEMS
        record = found.to_record()
        assert record["problem_count"] == 220
        assert record["problem_kinds"] == {"not_json": 150, "empty_line": 70}
        assert record["problems"][0] == {
            "line": 1,
            "path": "$",
            "kind": "not_json",
            "found": "not JSON: Expecting property name enclosed in double quotes at column 2",
            "expected": "one JSON object per line",
            "example": MENDS["not_json"],
        }
        assert json.loads(json.dumps(record)) == record

    def test_file_that_is_wrong_all_over_is_not_read_to_its_end(self) -> None:
        def endless() -> Any:
            while True:
                yield b""

        found = check_training_lines(endless())
        assert (found.n_problems, found.complete, len(found.problems)) == (MAX_COUNTED, False, MAX_PROBLEMS)
        assert "100000 or more problems" in found.describe("training file")[0]

    @pytest.mark.parametrize(
        ("line", "check"),
        [
            (b'{"messages":[' + ZEROS + b"]}", check_training_lines),
            (b'{"messages":[' + ZEROS + b"]}", check_anchor_lines),
            (b'{"conversations":[' + ZEROS + b"]}", check_training_lines),
            (b'{"conversations":[{' + KEYS + b"}]}", check_training_lines),
            (b'{"messages":[{"role":"assistant","tool_calls":[' + ZEROS + b"]}]}", check_training_lines),
        ],
        ids=["messages", "anchors", "turns", "keys_of_a_turn", "calls"],
    )
    def test_one_line_that_is_wrong_all_over_costs_no_more_than_to_read_it(
        self, line: bytes, check: Callable[[Iterable[bytes]], Findings]
    ) -> None:
        assert len(line) <= MAX_LINE_BYTES

        def peak(work: Callable[[], Any]) -> int:
            tracemalloc.start()
            try:
                work()
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        read = peak(lambda: dataset._parse(1, line))
        found: list[Findings] = []
        checked = peak(lambda: found.append(check([line])))
        assert checked < read + 1024 * 1024
        assert (found[0].n_problems, found[0].complete) == (MAX_COUNTED, False)
        assert len(found[0].problems) == MAX_PROBLEMS

    def test_line_that_never_ends_is_cut(self) -> None:
        found = check_training_lines(read_lines(io.BytesIO(GOOD + b"\n" + b"x" * (5 * MAX_LINE_BYTES))))
        assert [each.kind for each in found.problems] == ["line_too_long"]
        assert not found.complete

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b'{"messages": 1e999}', "bad_number"),
            (b'{"a":' * 17 + b"1" + b"}" * 17, "too_deep"),
            (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
            (b'{"a": -1e400}', "bad_number"),
            (b'{"a": "\\uDFFF"}', "bad_unicode"),
        ],
    )
    def test_json_that_readers_disagree_on(self, content: bytes, kind: str) -> None:
        assert one_problem(content).kind == kind

    def test_deep_text_and_pairs_of_surrogates_are_good(self) -> None:
        rows = [
            line(USER, {**ASSISTANT, "content": "[{" * 100}),
            b'{"messages": ' + GOOD[13:-1].replace(b"hi", b"\\ud83d\\ude00") + b"}",
        ]
        assert training(rows) == (2, [])

    def test_windows_line_ends_and_no_last_line_end(self) -> None:
        assert training(read_lines(io.BytesIO(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD))) == (2, [])

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
        assert critic(rows) == (2, [])

    def test_replies_are_labelled_too(self) -> None:
        row = line({"role": "system", "content": "x"}, USER, ASSISTANT, label=1, group="greetings")
        assert critic([row]) == (1, [])

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
                "to be the user's",
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
        rows, problems = critic([json.dumps(row).encode()])
        assert rows == 0
        assert [(each.line, each.path) for each in problems] == [(1, path)]
        assert found in problems[0].message


class TestCheckAnchorLines:
    SYSTEM: ClassVar = {"role": "system", "content": "be kind"}

    @classmethod
    def anchors(cls, n: int) -> list[bytes]:
        """Return as many anchors, each another."""
        asked = [{"role": "user", "content": f"say {number}"} for number in range(n)]
        return [line(cls.SYSTEM, USER, ASSISTANT, each) for each in asked]

    @pytest.mark.parametrize("n", [MIN_ANCHORS, MAX_ANCHORS])
    def test_good_sets(self, n: int) -> None:
        assert anchor(self.anchors(n)) == (n, [])

    @pytest.mark.parametrize(
        ("n", "message"),
        [
            (MIN_ANCHORS - 1, "line 7, $: a set of anchors ends after 7 rows; expected 8 to 256"),
            (MAX_ANCHORS + 1, "line 257, $: a set of anchors has too many rows; expected 8 to 256"),
        ],
    )
    def test_size_is_bounded(self, n: int, message: str) -> None:
        _, problems = anchor(self.anchors(n))
        assert [str(each) for each in problems] == [message]

    def test_reading_stops_where_a_set_is_too_large(self) -> None:
        lines = iter(self.anchors(1000))
        anchor(lines)
        assert sum(1 for _ in lines) == 1000 - MAX_ANCHORS - 1

    @pytest.mark.parametrize(
        ("row", "path", "found"),
        [
            ({"messages": [USER, ASSISTANT]}, "$.messages", "expected the user's"),
            ({"messages": [USER], "label": 1}, "$.label", "unknown key"),
            ({"messages": [{"role": "user", "content": ""}]}, "$.messages[0].content", "found ''"),
            ({}, "$.messages", "missing"),
        ],
    )
    def test_row_that_is_no_anchor(self, row: dict[str, Any], path: str, found: str) -> None:
        rows, problems = anchor([json.dumps(row).encode(), *self.anchors(MIN_ANCHORS)])
        assert rows == MIN_ANCHORS
        assert [(each.line, each.path) for each in problems] == [(1, path)]
        assert found in problems[0].message

    def test_prompt_that_stands_twice_is_refused_with_both_lines(self) -> None:
        good = self.anchors(MIN_ANCHORS)
        # Written otherwise, it is the same prompt.
        again = good[2].replace(b'"role": "user", "content": "say 2"', b'"content":"say 2",  "role":"user"')
        assert again != good[2]
        rows, problems = anchor([*good, again, good[0]])
        assert rows == MIN_ANCHORS
        assert [str(each) for each in problems] == [
            "line 9, $.messages: these messages stand in line 3 already; expected each anchor once, because the"
            " monitor must not watch what is trained on",
            "line 10, $.messages: these messages stand in line 1 already; expected each anchor once, because the"
            " monitor must not watch what is trained on",
        ]
        other = line(
            {"role": "system", "content": "be brief"}, USER, ASSISTANT, {"role": "user", "content": "say 2"}
        )
        assert anchor([*good, other]) == (MIN_ANCHORS + 1, [])

    def test_empty_file_is_one_problem(self) -> None:
        assert anchor([]) == (
            0,
            [Problem(1, "$", "empty_file", "the file is empty", "at least one row")],
        )


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "content": "sunny", "tool_call_id": "c1"}


class TestTools:
    def test_calls_and_their_results_are_good_rows(self) -> None:
        row = line(USER, CALLING, ANSWERED, ASSISTANT, tools=[TOOL], parallel_tool_calls=False)
        assert training([row, line(USER, CALLING)]) == (2, [])

    @pytest.mark.parametrize(
        ("row", "path"),
        [
            (line(USER, ASSISTANT, tools=[]), "$.tools"),
            (line(USER, ASSISTANT, tools=[{"type": "search"}]), "$.tools[0]"),
            (line(USER, ASSISTANT, tools=[{**TOOL, "function": {"name": ""}}]), "$.tools[0].function.name"),
            (
                line(USER, ASSISTANT, tools=[{**TOOL, "function": {"name": "x", "parameters": []}}]),
                "$.tools[0].function.parameters",
            ),
            (line(USER, ASSISTANT, parallel_tool_calls=1), "$.parallel_tool_calls"),
            (line({**USER, "tool_calls": [CALL]}, ASSISTANT), "$.messages[0].tool_calls"),
            (line(USER, {**CALLING, "tool_calls": []}), "$.messages[1].tool_calls"),
            (line(USER, {**CALLING, "tool_calls": ["x"]}), "$.messages[1].tool_calls[0]"),
            (line(USER, {**CALLING, "tool_calls": [{**CALL, "id": ""}]}), "$.messages[1].tool_calls[0].id"),
            (line(USER, CALLING, {**ANSWERED, "tool_call_id": "c2"}), "$.messages[2].tool_call_id"),
            (line(USER, {**ASSISTANT, "tool_call_id": "c1"}), "$.messages[1].tool_call_id"),
            (line(USER, {**CALLING, "content": ""}), "$.messages[1].content"),
        ],
    )
    def test_what_is_wrong_is_named(self, row: bytes, path: str) -> None:
        assert one_problem(row).path == path

    @pytest.mark.parametrize(
        "arguments", [{"city": "Rome"}, "Rome", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', "{" * 5000]
    )
    def test_arguments_are_strict_json_in_a_text(self, arguments: Any) -> None:
        call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
        found = one_problem(line(USER, {**CALLING, "tool_calls": [call]}))
        assert found.path == "$.messages[1].tool_calls[0].function.arguments"

    def test_critics_and_anchors_have_none(self) -> None:
        _, problems = anchor([line(USER, CALLING, USER)] * 8)
        assert problems[0].path == "$.messages[1].tool_calls"


class TestPrompts:
    @staticmethod
    def check(*rows: dict[str, Any]) -> dataset.Findings:
        return dataset.check_prompt_lines(json.dumps(row).encode() for row in rows)

    def test_good_prompts(self) -> None:
        rows = (
            {"messages": [USER], "kind": "harmful"},
            {"messages": [{"role": "system", "content": "x"}, USER, ASSISTANT, USER], "kind": "borderline"},
            {"messages": [USER], "kind": "utility", "answer": "hi"},
        )
        assert self.check(*rows) == dataset.Findings(rows=3)

    @pytest.mark.parametrize(
        ("row", "path", "found"),
        [
            ({"messages": [USER]}, "$.kind", "missing"),
            (
                {"messages": [USER], "kind": "benign"},
                "$.kind",
                "found 'benign'; expected one of harmful, borderline, utility",
            ),
            ({"messages": [USER], "kind": 1}, "$.kind", "found a number"),
            ({"messages": [USER], "kind": ["harmful"]}, "$.kind", "found a list"),
            ({"messages": [USER, ASSISTANT], "kind": "utility"}, "$.messages", "has the role assistant"),
            ({"messages": [], "kind": "utility"}, "$.messages", "an empty list"),
            ({"kind": "utility"}, "$.messages", "missing"),
            ({"messages": [{**USER, "tools": []}], "kind": "utility"}, "$.messages[0].tools", "unknown key"),
            ({"messages": [USER], "kind": "utility", "answer": ""}, "$.answer", "found ''"),
            ({"messages": [USER], "kind": "utility", "answer": None}, "$.answer", "found null"),
            (
                {"messages": [USER], "kind": "utility", "answer": "é" * 8001},
                "$.answer",
                "an answer of 8001 characters; expected at most 8000",
            ),
            ({"messages": [USER], "kind": "utility", "label": 1}, "$.label", "unknown key"),
        ],
    )
    def test_row_that_is_no_prompt(self, row: dict[str, Any], path: str, found: str) -> None:
        findings = self.check({"messages": [USER], "kind": "harmful"}, row)
        (problem,) = findings.problems
        assert (problem.line, problem.path, findings.rows) == (2, path, 1)
        assert found in problem.message

    def test_no_prompts_and_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.check().problems[0].kind == "empty_file"
        monkeypatch.setattr(dataset, "MAX_PROMPTS", 3)
        good = {"messages": [USER], "kind": "harmful"}
        assert self.check(*[good] * 3).problems == ()
        (problem,) = self.check(*[good] * 9).problems
        assert str(problem) == "line 4, $: a file of prompts has too many rows; expected at most 3"


class TestFormats:
    AS_CHAT: ClassVar = {"messages": [USER, ASSISTANT]}
    WITH_SYSTEM: ClassVar = {"messages": [{"role": "system", "content": "be kind"}, USER, ASSISTANT]}

    @pytest.mark.parametrize(
        ("row", "name", "chat"),
        [
            (AS_CHAT, "chat", AS_CHAT),
            ({"prompt": "hello", "completion": "hi"}, "prompt_completion", AS_CHAT),
            ({"instruction": "hello", "output": "hi"}, "alpaca", AS_CHAT),
            ({"instruction": "hello", "input": "", "output": "hi", "text": "x"}, "alpaca", AS_CHAT),
            (
                {"system": "be kind", "instruction": "hello", "input": "", "output": "hi"},
                "alpaca",
                WITH_SYSTEM,
            ),
            (
                {"instruction": "Translate.", "input": "good day", "output": "hi"},
                "alpaca",
                {"messages": [{"role": "user", "content": "Translate.\n\ngood day"}, ASSISTANT]},
            ),
            (
                {
                    "id": 7,
                    "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}],
                },
                "sharegpt",
                AS_CHAT,
            ),
            (
                {
                    "system": "be kind",
                    "conversations": [
                        {"from": "user", "value": "hello"},
                        {"from": "assistant", "value": "hi"},
                    ],
                },
                "sharegpt",
                WITH_SYSTEM,
            ),
        ],
    )
    def test_every_format_becomes_a_chat(self, row: dict[str, Any], name: str, chat: dict[str, Any]) -> None:
        content = json.dumps(row).encode()
        found = check_training_lines([content])
        assert (found.problems, found.format_name) == ((), name)
        assert read_chat_rows([content]) == [chat]
        assert check_training_lines([json.dumps(to_chat(row)).encode()]).problems == ()

    @pytest.mark.parametrize("each", FORMATS.values(), ids=FORMATS)
    def test_example_of_a_format_is_a_good_row_of_it(self, each: Any) -> None:
        assert check_training_lines([each.example.encode()]).format_name == each.name
        assert find_format(json.loads(each.example)) is each

    def test_file_has_one_format(self) -> None:
        rows, problems = training([GOOD, b'{"prompt": "a", "completion": "b"}', GOOD])
        assert rows == 2
        assert [(each.line, each.kind) for each in problems] == [(2, "mixed_formats")]

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"input": {"messages": [USER]}, "preferred_output": [ASSISTANT]}, "preference (DPO)"),
            ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference (DPO)"),
            ({"messages": [USER], "reference_answer": "x"}, "reinforcement (RFT)"),
        ],
    )
    def test_data_of_another_way_of_training_is_refused_by_name(self, row: Any, said: str) -> None:
        found = one_problem(json.dumps(row).encode())
        assert found.kind == "unsupported_format"
        assert said in found.message

    @pytest.mark.parametrize(
        ("row", "path"),
        [
            ({"prompt": "a"}, "$.completion"),
            ({"prompt": "", "completion": "b"}, "$.prompt"),
            ({"prompt": ["a"], "completion": "b"}, "$.prompt"),
            ({"prompt": "a", "completion": "b", "c": 1}, "$.c"),
            ({"instruction": "a"}, "$.output"),
            ({"instruction": "a", "output": "b", "input": 5}, "$.input"),
            ({"instruction": "a", "output": "b", "history": []}, "$.history"),
            ({"conversations": []}, "$.conversations"),
            ({"conversations": ["x"]}, "$.conversations[0]"),
            ({"conversations": [{"from": "human", "value": "a"}]}, "$.conversations"),
            ({"conversations": [{"from": "gpt", "value": "a"}]}, "$.conversations[0].from"),
            ({"conversations": [{"from": "bot", "value": "a"}]}, "$.conversations[0].from"),
            ({"conversations": [{"from": "human", "value": ""}]}, "$.conversations[0].value"),
        ],
    )
    def test_row_of_a_format_that_is_wrong(self, row: Any, path: str) -> None:
        rows, problems = training([json.dumps(row).encode()])
        assert rows == 0
        assert path in [each.path for each in problems]

    def test_judge_reads_the_tools_too(self) -> None:
        row = {"messages": [USER, CALLING], "tools": [TOOL]}
        assert conversation_of(row) == [{"role": "tools", "tools": [TOOL]}, USER, CALLING]
        assert conversation_of({"messages": [USER]}) == [USER]


def test_every_kind_of_problem_is_documented() -> None:
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.M)) >= {*MENDS, *FORMATS}
