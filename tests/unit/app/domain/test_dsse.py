"""Envelopes: the vector that the specification publishes, what is signed with a key of ours, and whatever else arrives."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from app.domain.canonical import canonical_bytes
from app.domain.dsse import DsseError, encode_for_signing, find_signers, parse_envelope, sign_envelope
from app.domain.note import verifier_key

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
OURS, THEIRS = verifier_key("log", KEY), verifier_key("log", OTHER)

# protocol.md of DSSE 1.0.0, "Test Vectors": ECDSA over NIST P-256, r and s side by side.
X = 46950820868899156662930047687818585632848591499744589407958293238635476079160
Y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
PUBLISHED = {
    "payload": "aGVsbG8gd29ybGQ=",
    "payloadType": "http://example.com/HelloWorld",
    "signatures": [
        {"sig": "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="}
    ],
}


def envelope(**changes: Any) -> bytes:
    return canonical_bytes({**json.loads(sign_envelope("text/x", b"payload", OURS, KEY.sign)), **changes})


def test_the_published_vector_verifies() -> None:
    found = parse_envelope(canonical_bytes(PUBLISHED))
    message = encode_for_signing(found.payload_type, found.payload)
    assert message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    signature = found.signatures[0][1]
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    public = ec.EllipticCurvePublicNumbers(X, Y, ec.SECP256R1()).public_key()
    public.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))


def test_lengths_count_bytes() -> None:
    assert encode_for_signing("é", "ü!".encode()) == b"DSSEv1 2 \xc3\xa9 3 \xc3\xbc!"


def test_who_signed_is_found_by_the_signature_and_not_by_the_name() -> None:
    signed = parse_envelope(envelope())
    assert (signed.payload_type, signed.payload) == ("text/x", b"payload")
    assert find_signers(signed, [THEIRS, OURS]) == (OURS,)
    renamed = json.loads(envelope())["signatures"][0] | {"keyid": "somebody else"}
    assert find_signers(parse_envelope(envelope(signatures=[renamed])), [OURS]) == (OURS,)
    with pytest.raises(DsseError, match="none of the keys"):
        find_signers(signed, [THEIRS])


@pytest.mark.parametrize(
    "changed", [{"payload": base64.b64encode(b"Payload").decode()}, {"payloadType": "text/y"}]
)
def test_what_was_changed_is_signed_by_nobody(changed: dict[str, Any]) -> None:
    with pytest.raises(DsseError, match="none of the keys"):
        find_signers(parse_envelope(envelope(**changed)), [OURS])


def test_both_alphabets_are_read() -> None:
    found = parse_envelope(envelope(payload="-_-_", signatures=[{"sig": "+/+/"}]))
    assert (found.payload, found.signatures) == (bytes.fromhex("fbffbf"), (("", bytes.fromhex("fbffbf")),))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "nested|JSON"),
        (b"[]", "the fields payload"),
        (envelope(more=1), "and no other"),
        (envelope(payloadType=3), "payloadType is a text"),
        (envelope(signatures={}), "signatures a list"),
        (envelope(signatures=[]), "0 signatures"),
        (envelope(signatures=[{"sig": "AA=="}] * 101), "101 signatures"),
        (envelope(signatures=[{"keyid": "a"}]), "the field sig"),
        (envelope(signatures=["a"]), "the field sig"),
        (envelope(signatures=[{"sig": "AA==", "keyid": 1}]), "keyid"),
        (envelope(signatures=[{"sig": "?"}]), "sig is no Base64"),
        (envelope(payload=None), "payload is no text"),
        (envelope(payload="aGVsbG8é"), "payload is no Base64"),
    ],
)
def test_anything_else_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(DsseError, match=says):
        parse_envelope(data)
