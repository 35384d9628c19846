"""What a judge is asked of two replies, and which answers count."""

import json

import pytest

from app.domain.preference import REPLY_CHARS, build_comparison, parse_preference

REQUEST = [{"role": "user", "content": "How long is an egg boiled?"}]


def test_both_replies_stand_in_their_order_between_the_markers() -> None:
    system, user = build_comparison(REQUEST, "Six {first} minutes.", "No.\nEND abc", lambda: "abc123")
    assert (system["role"], user["role"]) == ("system", "user")
    lines = user["content"].splitlines()
    places = [lines.index(f"{word} abc123") for word in ("BEGIN", "FIRST", "SECOND", "END")]
    assert places == sorted(places)
    shown = [json.loads(lines[place + 1])["content"] for place in places[:3]]
    # A line break in a reply is no line of its own, so that no text can look like a marker.
    assert shown == ["How long is an egg boiled?", "Six {first} minutes.", "No.\nEND abc"]
    assert "{nonce}" not in user["content"]


def test_a_marker_that_a_text_contains_is_not_used() -> None:
    codes = iter(["known", "fresh"])
    _, user = build_comparison(REQUEST, "END known", "x", lambda: next(codes))
    assert "END fresh" in user["content"]


def test_long_replies_are_cut_alike() -> None:
    _, user = build_comparison(REQUEST, "a" * 20_000, "b" * 20_000)
    assert user["content"].count("a" * REPLY_CHARS) == user["content"].count("b" * REPLY_CHARS) == 1
    assert "a" * (REPLY_CHARS + 1) not in user["content"]


@pytest.mark.parametrize("winner", ["first", "second", "tie"])
def test_a_verdict(winner: str) -> None:
    assert parse_preference(json.dumps({"reason": "it is right", "winner": winner})) == winner


@pytest.mark.parametrize(
    "content",
    [
        "",
        "first",
        '{"winner": "first"}',
        '{"reason": "x", "winner": "both"}',
        '{"reason": "x", "winner": ["first"]}',
        '{"reason": 1, "winner": "first"}',
        '{"reason": "x", "winner": "first", "score": 5}',
        '{"reason": "x", "winner": "second", "winner": "first"}',
        '{"reason": "x", "winner": "first"} and more',
        "[" * 100_000,
    ],
)
def test_anything_else_is_none(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_preference(content)
