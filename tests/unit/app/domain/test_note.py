"""Signed notes: the published example, and what every reader has to refuse."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.note import (
    MAX_SIGNATURES,
    NoteError,
    VerifierKey,
    open_note,
    parse_key,
    sign_note,
    split_note,
    verifier_key,
)

# The example of the format's reference implementation (golang.org/x/mod/sumdb/note).
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER_LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
ENOCH_LINE = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
NOTE = (TEXT + "\n" + PETER_LINE).encode()


def names(signed: tuple[VerifierKey, ...]) -> list[str]:
    return [key.name for key in signed]


def test_the_published_example_verifies() -> None:
    text, signed = open_note(NOTE, [parse_key(PETER)])
    assert (text, names(signed)) == (TEXT, ["PeterNeumann"])


def test_signing_makes_the_published_bytes() -> None:
    private = Ed25519PrivateKey.from_private_bytes(PETER_SEED)
    assert str(verifier_key("PeterNeumann", private)) == PETER
    assert sign_note(TEXT, [("PeterNeumann", private)]) == NOTE


def test_a_signature_of_somebody_else_is_passed_over() -> None:
    both = NOTE + ENOCH_LINE.encode()
    assert names(open_note(both, [parse_key(PETER)])[1]) == ["PeterNeumann"]
    assert names(open_note(both, [parse_key(ENOCH)])[1]) == ["EnochRoot"]
    assert names(open_note(both, [parse_key(ENOCH), parse_key(PETER)])[1]) == ["PeterNeumann", "EnochRoot"]
    with pytest.raises(NoteError, match="signed by none of the keys"):
        open_note(NOTE, [parse_key(ENOCH)])
    with pytest.raises(NoteError, match="signed by none of the keys"):
        open_note(NOTE, [])


def test_a_signature_counts_once() -> None:
    assert names(open_note(NOTE + PETER_LINE.encode(), [parse_key(PETER)])[1]) == ["PeterNeumann"]


def test_one_wrong_signature_under_a_trusted_id_spoils_the_note() -> None:
    damaged = PETER_LINE.replace("x08go/ZJ", "x08go/ZK")
    with pytest.raises(NoteError, match="is not one over this text"):
        open_note((TEXT + "\n" + damaged).encode(), [parse_key(PETER)])
    with pytest.raises(NoteError, match="is not one over this text"):
        open_note((TEXT + "\n" + damaged + ENOCH_LINE).encode(), [parse_key(PETER), parse_key(ENOCH)])


def test_every_flipped_byte_is_noticed() -> None:
    key = [parse_key(PETER)]
    for at in range(len(NOTE)):
        changed = bytearray(NOTE)
        changed[at] ^= 1
        with pytest.raises(NoteError):
            open_note(bytes(changed), key)


@pytest.mark.parametrize(
    "note",
    [
        TEXT,
        TEXT + "\n",
        TEXT + "\n" + PETER_LINE[:-1],
        "\x01" + TEXT + "\n" + PETER_LINE,
        TEXT + "\n" + PETER_LINE + "Unexpected line.\n",
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Peter Neumann"),
        TEXT + "\n" + PETER_LINE.replace("AM=", "AN="),
        TEXT + "\n— PeterNeumann x08goA==\n".replace("x08goA==", "x08goQ=="),
        TEXT + "\n" + PETER_LINE * (MAX_SIGNATURES + 1),
        "a" * 70_000 + "\n\n" + PETER_LINE,
        "",
    ],
    ids=range(11),
)
def test_what_is_not_a_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        open_note(note.encode(), [parse_key(PETER)])


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(NoteError, match="not UTF-8 at byte 0"):
        split_note(b"\xff" + NOTE)


def test_every_part_of_a_key_is_checked() -> None:
    for start in range(len(PETER) + 1):
        for end in range(start + 1, len(PETER) + 1):
            if (start, end) != (0, len(PETER)):
                with pytest.raises(NoteError):
                    parse_key(PETER[start:end])
    for at in range(len(PETER)):
        with pytest.raises(NoteError):
            parse_key(PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :])


@pytest.mark.parametrize(
    "key",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_a_key_of_another_length_or_algorithm_is_refused(key: str) -> None:
    with pytest.raises(NoteError):
        parse_key(key)
