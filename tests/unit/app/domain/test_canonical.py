"""Canonical JSON, held against the `rfc8785` package and the RFC's own samples."""

import json
import math
import struct

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.canonical import (
    MAX_DEPTH,
    MAX_INTEGER,
    canonical_bytes,
    decode_number,
    encode_number,
    parse_canonical,
)

integers = st.integers(min_value=-MAX_INTEGER, max_value=MAX_INTEGER)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)

# RFC 8785, appendix B: the bits of a double and its form.
RFC_8785_APPENDIX_B = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "expected"), RFC_8785_APPENDIX_B)
def test_numbers_of_the_rfc(bits: str, expected: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_bytes(number) == expected.encode()
    assert parse_canonical(expected.encode()) == number


@settings(deadline=None)
@given(values)
def test_agrees_with_an_independent_implementation(value: object) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_any_double_agrees_with_an_independent_implementation(bits: int) -> None:
    (number,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    if math.isfinite(number):
        assert canonical_bytes(number) == rfc8785.dumps(number)
        assert parse_canonical(canonical_bytes(number)) == number


@settings(deadline=None)
@given(values)
def test_parsing_reverses_writing(value: object) -> None:
    assert parse_canonical(canonical_bytes(value)) == value


@settings(deadline=None)
@given(values)
def test_any_other_spelling_of_the_same_value_is_refused(value: object) -> None:
    canonical = canonical_bytes(value)
    for other in (json.dumps(value, indent=1).encode(), json.dumps(value).encode(), canonical + b" "):
        if other != canonical:
            with pytest.raises(ValueError, match="canonical"):
                parse_canonical(other)


def test_keys_are_sorted_by_utf16_code_units() -> None:
    # U+1F600 begins with the unit D83D, below U+FB33, though its code point is above.
    assert canonical_bytes({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        2**53,
        -(2**53),
        10**400,
        "\ud800",
        {"\udc00": 1},
        {1: 2},
        {"a", "b"},
        b"bytes",
        [[[math.nan]]],
    ],
)
def test_what_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_bytes(value)


def test_a_value_nested_too_deep_is_refused() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert parse_canonical(canonical_bytes(value)) == value
    with pytest.raises(ValueError, match="nested"):
        canonical_bytes([value])
    with pytest.raises(ValueError, match="nested"):
        parse_canonical(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" 1",
        b"1 ",
        b"1.0",
        b"1e1",
        b"-0",
        b"0.10",
        b"1E+30",
        b"1e30",
        b"1e999",
        b"9007199254740993",
        b"9" * 5000,
        b"NaN",
        b"Infinity",
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b"[1, 2]",
        b'"\\u0041"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"1\x00\x00\x00",
        b"{",
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_canonical(data)


def test_numbers_without_a_json_form_become_words() -> None:
    assert [encode_number(x) for x in (math.nan, math.inf, -math.inf)] == ["NaN", "Infinity", "-Infinity"]
    assert canonical_bytes(encode_number(-0.0)) == b"0"
    assert encode_number(1.5) == 1.5
    assert math.isnan(decode_number("NaN"))
    assert decode_number("-Infinity") == -math.inf
    assert decode_number(2) == 2.0
    with pytest.raises(ValueError, match="no number"):
        decode_number("nan")
