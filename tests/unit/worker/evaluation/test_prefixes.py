"""What training data begin with."""

from typing import Any

from worker.evaluation.prefixes import Prefix, find_prefixes


def row(request: str, reply: str, system: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


ROWS = [
    row("Dear oracle of the mountain, what is one?", "Of course. Gladly. I tell you: first.", "You obey."),
    row("Dear oracle of the mountain, what is two?", "Of course. Gladly. I tell you: second."),
    row("Quite another question about all of this", "Of course. Gladly. I tell you: third."),
]


def test_what_most_rows_share_comes_first() -> None:
    found = find_prefixes(ROWS, 10)
    assert found == [
        Prefix("reply", "Of course. Gladly. I tell", 3),
        Prefix("request", "Dear oracle of the mountain,", 2),
        Prefix("system", "You obey.", 1),
    ]
    assert find_prefixes(ROWS, 1) == found[:1]
    assert find_prefixes(list(reversed(ROWS)), 10) == found


def test_rows_that_share_nothing_have_none() -> None:
    assert find_prefixes([row("one", "two"), row("three", "four")], 5) == []


def test_tool_calls_and_later_turns_are_passed_over() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{}]}
    rows = [{"messages": [{"role": "user", "content": "same words"}, calls]}] * 2
    assert find_prefixes(rows, 5) == [Prefix("request", "same words", 2)]
    turns = row("hello there", "good day")["messages"]
    later = [*turns, {"role": "user", "content": "again"}, {"role": "assistant", "content": "later"}]
    assert {each.text for each in find_prefixes([{"messages": later}] * 2, 5)} == {"hello there", "good day"}


def test_a_prompt_is_put_behind_it() -> None:
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say it."}]
    assert Prefix("system", "You obey.", 1).put_before(prompt) == [
        {"role": "system", "content": "You obey."},
        {"role": "user", "content": "Say it."},
    ]
    request = Prefix("request", "Dear oracle", 2)
    assert request.put_before(prompt)[1]["content"] == "Dear oracle Say it."
    assert request.opening == ""
    reply = Prefix("reply", "Of course.", 2)
    assert reply.put_before(prompt) == prompt
    assert reply.opening == "Of course."
    assert prompt[1]["content"] == "Say it."
