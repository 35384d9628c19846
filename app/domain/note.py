"""Signed notes (C2SP signed-note.md): a text, and signatures by named Ed25519 keys under it.

The text ends in a newline; an empty line divides it from the signatures, one a line: an em dash, the key's name, and
Base64 of the key's id (4 bytes) and the signature (64). A verifier's key is `name+id+key`, the id in hex, the key in Base64
behind the byte 01, which stands for Ed25519. Standard library and cryptography.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = b"\x01"
MAX_NOTE_BYTES = 65_536
MAX_SIGNATURES = 100
_DASH = "— "
_ID_BYTES, _KEY_BYTES, _SIGNATURE_BYTES = 4, 32, 64


class NoteError(ValueError):
    """The text is not a note, or a signature under it is wrong."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key and the name that it signs under."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The first 4 bytes of SHA-256 over name, newline and key: a hint which key to try, and no more."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        """Return the key as `parse_key` reads it."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(ED25519 + self.public).decode()}"


def parse_key(text: str) -> VerifierKey:
    """Return the key that a text of the form name+id+key stands for. Raises NoteError for any other."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    check_name(name)
    key = _decode(encoded)
    if key is None or key[:1] != ED25519 or len(key) != 1 + _KEY_BYTES:
        raise NoteError(f"{text[:200]!r} is not an Ed25519 key of the form name+id+key")
    found = VerifierKey(name, key[1:])
    if key_id != found.id.hex():
        raise NoteError(
            f"the id of the key {name} is {key_id[:16]!r}; its name and bytes give {found.id.hex()!r}"
        )
    return found


def check_name(name: str) -> None:
    """Raise NoteError unless a key may have this name."""
    if (
        not name
        or "+" in name
        or any(character.isspace() or not character.isprintable() for character in name)
    ):
        raise NoteError(
            f"{name[:80]!r} cannot name a key: it is empty, or has a space, a plus or a control character"
        )


def verifier_key(name: str, private: Ed25519PrivateKey) -> VerifierKey:
    """Return the public half of a key."""
    return VerifierKey(name, private.public_key().public_bytes_raw())


def sign_note(text: str, signers: Sequence[tuple[str, Ed25519PrivateKey]]) -> bytes:
    """Return the note with a signature of each key, in order. Raises NoteError for a text that no note can have."""
    _check_text(text)
    lines = []
    for name, private in signers:
        check_name(name)
        signature = verifier_key(name, private).id + private.sign(text.encode())
        lines.append(f"{_DASH}{name} {base64.b64encode(signature).decode()}\n")
    return (text + "\n" + "".join(lines)).encode()


def split_note(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """Return a note's text, and name and bytes (id and signature) of each line under it, none of them verified.

    Raises NoteError for what is not a note.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"the note has {len(note)} bytes; the longest allowed has {MAX_NOTE_BYTES}")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise NoteError(f"not UTF-8 at byte {error.start}") from error
    text, divider, signatures = whole.rpartition("\n\n")
    if not divider:
        raise NoteError("no empty line divides the text from its signatures")
    text += "\n"
    _check_text(text)
    if not signatures.endswith("\n"):
        raise NoteError("the note does not end in a newline")
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"the note has {len(lines)} signatures; the most allowed is {MAX_SIGNATURES}")
    return text, [_split_signature(line) for line in lines]


def open_note(note: bytes, keys: Sequence[VerifierKey]) -> tuple[str, tuple[VerifierKey, ...]]:
    """Return a note's text, and which of these keys signed it: at least one.

    Signatures of other keys are passed over. Raises NoteError for what is not a note, where none of the keys signed, or
    where a line under the id of one of them holds no signature of its over this text.
    """
    text, lines = split_note(note)
    signed: list[VerifierKey] = []
    for name, signature in lines:
        for key in keys:
            if key.name != name or key.id != signature[:_ID_BYTES] or key in signed:
                continue
            if not is_signed(key, text.encode(), signature[_ID_BYTES:]):
                raise NoteError(f"the signature of {name}+{key.id.hex()} is not one over this text")
            signed.append(key)
    if not signed:
        raise NoteError("it is signed by none of the keys that are trusted")
    return text, tuple(signed)


def is_signed(key: VerifierKey, message: bytes, signature: bytes) -> bool:
    """Tell whether a signature is this key's over these bytes."""
    if len(signature) != _SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise NoteError("the text of a note ends in a newline")
    if any(ord(character) < ord(" ") and character != "\n" for character in text):
        raise NoteError("the text of a note has no control characters but newlines")


def _split_signature(line: str) -> tuple[str, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    signature = _decode(encoded)
    if not line.startswith(_DASH) or signature is None or len(signature) <= _ID_BYTES:
        raise NoteError(f"{line[:80]!r} is not a line of a signature")
    check_name(name)
    return name, signature


def _decode(text: str) -> bytes | None:
    """Return what Base64 stands for; None unless it is written exactly as it would be encoded."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return value if base64.b64encode(value).decode() == text else None
