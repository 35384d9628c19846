"""Signed envelopes (DSSE 1.0, secure-systems-lab/dsse): a payload, its type, and Ed25519 signatures over both.

What is signed is `DSSEv1 LEN(type) type LEN(payload) payload`. No text of a note begins so, and no envelope ends in the newline
that every note's text ends in by itself: the same key may sign both. Standard library.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.note import VerifierKey, is_signed

MAX_SIGNATURES = 100


class DsseError(ValueError):
    """The bytes are not an envelope, or nobody who is trusted signed it."""


class Envelope(NamedTuple):
    """An envelope, read; nothing of it is verified."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    """The key's id, which is a hint and no more, and the signature."""


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a signature is over: the pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(
    payload_type: str, payload: bytes, key: VerifierKey, sign: Callable[[bytes], bytes]
) -> bytes:
    """Return an envelope with one signature, as canonical JSON. `sign` signs with the private half of `key`."""
    signature = sign(encode_for_signing(payload_type, payload))
    return canonical_bytes(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key_id(key), "sig": base64.b64encode(signature).decode()}],
        }
    )


def key_id(key: VerifierKey) -> str:
    """Return what an envelope calls a key: its name and the id that a note has of it."""
    return f"{key.name}+{key.id.hex()}"


def parse_envelope(data: bytes) -> Envelope:
    """Return what an envelope holds. Raises DsseError for bytes that are not one."""
    try:
        found = parse_canonical(data)
    except ValueError as error:
        raise DsseError(str(error)) from error
    if not isinstance(found, dict) or set(found) != {"payload", "payloadType", "signatures"}:
        raise DsseError("an envelope has the fields payload, payloadType and signatures, and no other")
    signatures = found["signatures"]
    if not isinstance(found["payloadType"], str) or not isinstance(signatures, list):
        raise DsseError("payloadType is a text and signatures a list")
    if not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise DsseError(f"it has {len(signatures)} signatures; expected 1 to {MAX_SIGNATURES}")
    return Envelope(
        found["payloadType"],
        _decode("payload", found["payload"]),
        tuple(_parse_signature(each) for each in signatures),
    )


def find_signers(envelope: Envelope, keys: Sequence[VerifierKey]) -> tuple[VerifierKey, ...]:
    """Return which of these keys signed an envelope: at least one. Raises DsseError where none did."""
    message = encode_for_signing(envelope.payload_type, envelope.payload)
    found = tuple(
        key for key in keys if any(is_signed(key, message, signature) for _, signature in envelope.signatures)
    )
    if not found:
        raise DsseError("it is signed by none of the keys that are trusted")
    return found


def _parse_signature(value: object) -> tuple[str, bytes]:
    if not isinstance(value, dict) or not {"sig"} <= set(value) <= {"sig", "keyid"}:
        raise DsseError("a signature has the field sig, and keyid or not, and no other")
    name = value.get("keyid", "")
    if not isinstance(name, str):
        raise DsseError("the keyid of a signature is a text")
    return name, _decode("sig", value["sig"])


def _decode(field: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise DsseError(f"{field} is no text")
    try:
        # The specification lets signers choose between the two alphabets.
        return base64.b64decode(value.translate(_STANDARD), validate=True)
    except (binascii.Error, ValueError):
        raise DsseError(f"{field} is no Base64") from None


_STANDARD = str.maketrans("-_", "+/")
