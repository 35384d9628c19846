"""Canonical JSON (RFC 8785, JCS): one value, one sequence of bytes, so that a digest means something.

Standard library only: the offline verifier is built from this file and its neighbours alone.
"""

import json
import math
import re
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import NoReturn

MAX_INTEGER = 2**53 - 1
"""The greatest integer that every JSON reader holds exactly."""
MAX_DEPTH = 64
"""Nesting that is refused beyond, so that no reader's stack decides what is valid."""

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""The words that stand for the numbers JSON has no signs for."""


def canonical_bytes(value: object) -> bytes:
    """Return the RFC 8785 form of a JSON value, in UTF-8.

    Raises ValueError for what has no such form: NaN and infinities, integers beyond ±(2^53 − 1), lone
    surrogates, keys that are not strings, types that are not JSON's, nesting deeper than `MAX_DEPTH`.
    """
    parts: list[str] = []
    _write(value, parts, 0)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a string holds a lone surrogate, which UTF-8 cannot carry") from error


def parse_canonical(data: bytes) -> object:
    """Return the value that canonical bytes stand for.

    Raises ValueError unless `data` is exactly what `canonical_bytes` makes of that value: duplicate or
    unsorted keys, spaces, needless escapes and numbers in another notation are all refused.
    """
    try:
        return _read_plain(data)
    except (ValueError, RecursionError):
        # Not plain, or wrong: what follows decides, and says where.
        pass
    try:
        value: object = json.loads(data.decode(), parse_int=_parse_integer, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    expected = canonical_bytes(value)
    if expected != data:
        place = next(
            (i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b),
            min(len(data), len(expected)),
        )
        raise ValueError(f"not in canonical form (RFC 8785) from byte {place} on")
    return value


def encode_number(x: float) -> int | float | str:
    """Return a number in the form that a record holds: non-finite ones as a word, -0.0 as 0.

    A loss that is not a number is exactly what has to be on record, and JSON has no sign for it.
    """
    if isinstance(x, int) or math.isfinite(x):
        return x if x else 0
    if math.isnan(x):
        return "NaN"
    return "Infinity" if x > 0 else "-Infinity"


def decode_number(x: float | str) -> float:
    """Return the float that `encode_number` wrote. Raises ValueError for any other string."""
    if isinstance(x, str):
        if x not in NON_FINITE:
            raise ValueError(f"{x!r} is no number; words for numbers are {', '.join(NON_FINITE)}")
        return NON_FINITE[x]
    return float(x)


def format_number(x: float) -> str:
    """Return a finite number as ECMAScript's Number::toString writes it, which RFC 8785 demands."""
    if isinstance(x, int):
        if abs(x) > MAX_INTEGER:
            raise ValueError(
                f"an integer of {x.bit_length()} bits is beyond ±(2^53 − 1); write it as a string"
            )
        return str(int(x))
    if not math.isfinite(x):
        raise ValueError(f"{x} is not finite, which JSON cannot write; see encode_number")
    if x == 0:
        return "0"
    # Python's repr already has the shortest digits that read back as x; only the notation differs, and seldom.
    text = repr(x)
    if "e" not in text and not text.endswith(".0"):
        return text
    mantissa, _, exponent = repr(abs(x)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    sign = "-" if x < 0 else ""
    # `point` is where the decimal point stands, counted from before the first digit: ECMAScript's n.
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    power = f"e{point - 1:+d}"
    return sign + digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + power


def _write(value: object, parts: list[str], depth: int) -> None:
    if value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif isinstance(value, str):
        # Python's encoder escapes exactly what RFC 8785 escapes, in the same spelling.
        parts.append(encode_basestring(value))
    elif isinstance(value, int | float):
        parts.append(format_number(value))
    elif depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    elif isinstance(value, Mapping):
        _write_object(value, parts, depth)
    elif isinstance(value, list | tuple):
        parts.append("[")
        for position, item in enumerate(value):
            if position:
                parts.append(",")
            _write(item, parts, depth + 1)
        parts.append("]")
    else:
        raise ValueError(f"JSON has no form for {type(value).__name__}")


def _write_object(value: Mapping[object, object], parts: list[str], depth: int) -> None:
    keys: list[str] = []
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"the key {key!r} is not a string")
        keys.append(key)
    # Code points and UTF-16 code units sort differently only above U+FFFF.
    keys.sort(key=None if all(map(str.isascii, keys)) else _utf16)
    parts.append("{")
    for position, key in enumerate(keys):
        if position:
            parts.append(",")
        parts.append(encode_basestring(key))
        parts.append(":")
        _write(value[key], parts, depth + 1)
    parts.append("}")


def _read_plain(data: bytes) -> object:
    """Return the value of canonical bytes that are plain: ASCII, nothing escaped, no space even in strings.

    Records are plain, and there are very many of them; whether they are canonical shows while they are read, in a third of
    the time that writing them anew takes. Raises ValueError or RecursionError where they are not plain, or not canonical.
    """
    if not data.isascii() or _NOT_PLAIN.search(data) or _depth(data) > MAX_DEPTH:
        raise ValueError("not plain")
    value: object = _PLAIN.decode(data.decode())
    return value


_NOT_PLAIN = re.compile(rb"[\\\s]")
_STRINGS = re.compile(rb'"[^"]*"')
_BRACKETS = re.compile(rb"[\[\]{}]")


def _depth(data: bytes) -> int:
    """Return how deep a plain text is nested, or a number that is greater and still small enough."""
    most = data.count(b"[") + data.count(b"{")
    if most <= MAX_DEPTH:
        return most
    depth = most = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        most = max(most, depth)
    return most


def _read_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    last = ""
    for position, (key, _) in enumerate(pairs):
        if key <= last and position:
            raise ValueError(f"the key {key!r} comes late, or twice")
        last = key
    return dict(pairs)


def _read_float(text: str) -> float:
    x = float(text)
    # Python writes these as RFC 8785 does; other numbers, and texts of other length, are compared with what that demands.
    if (repr(x) != text or "e" in text or text.endswith(".0")) and format_number(x) != text:
        raise ValueError(f"{text} is not how {x} is written")
    return x


def _read_integer(text: str) -> int | float:
    if len(text) < 16 and text != "-0":
        return int(text)
    value = _parse_integer(text)
    if format_number(value) != text:
        raise ValueError(f"{text} is not how {value} is written")
    return value


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be", "surrogatepass")


def _parse_integer(text: str) -> int | float:
    # A float of 17 to 21 digits is written without a point. Longer texts cannot be canonical.
    if len(text) > 22:
        raise ValueError(f"a number of {len(text)} digits is not in canonical form")
    integer = int(text)
    return integer if abs(integer) <= MAX_INTEGER else float(integer)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_PLAIN = json.JSONDecoder(
    object_pairs_hook=_read_object,
    parse_float=_read_float,
    parse_int=_read_integer,
    parse_constant=_refuse_constant,
)
