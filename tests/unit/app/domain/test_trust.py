"""The trust policy: what it may say, and the field that is named where it says something else."""

import pytest

from app.domain.note import parse_key
from app.domain.trust import format_trust, parse_trust
from tests.unit.app.domain.test_note import ENOCH, PETER


def test_a_policy_reads_back() -> None:
    keys = [parse_key(PETER), parse_key(ENOCH)]
    text = format_trust("tether.example/log", keys)
    assert parse_trust(text).logs == {"tether.example/log": tuple(keys)}
    assert parse_trust(text + format_trust("other", keys[:1])).logs["other"] == (keys[0],)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logs", "is not TOML"),
        ("", r"\[\[logs\]\], and nothing else"),
        ("logs = []", r"\[\[logs\]\], and nothing else"),
        ("quorum = 1\n" + format_trust("o", [parse_key(PETER)]), "nothing else"),
        ('[[logs]]\norigin = "o"', r"logs\[0\] has the fields origin and keys"),
        ('[[logs]]\norigin = 1\nkeys = ["k"]', r"logs\[0\].origin is 1"),
        ('[[logs]]\norigin = "o"\nkeys = []', r"logs\[0\].keys is \[\]"),
        ('[[logs]]\norigin = "o"\nkeys = [1]', r"logs\[0\].keys\[0\] is 1"),
        ('[[logs]]\norigin = "o"\nkeys = ["a+b+c"]', r"logs\[0\].keys\[0\]: 'a\+b\+c' is not an Ed25519 key"),
        (format_trust("o", [parse_key(PETER)]) * 2, r"logs\[1\].origin: o stands there twice"),
    ],
    ids=range(10),
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_trust(text)
