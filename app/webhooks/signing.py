"""Signatures by Standard Webhooks: HMAC-SHA256 over «id.timestamp.body»."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
SECRET_BYTES = 32


def make_secret() -> bytes:
    """Return a new key to sign with."""
    return secrets.token_bytes(SECRET_BYTES)


def show_secret(secret: bytes) -> str:
    """Return a key in the form that receivers configure."""
    return PREFIX + base64.b64encode(secret).decode("ascii")


def read_secret(text: str) -> bytes:
    """Return the key of the form that receivers configure. Raises ValueError, which repeats nothing of it."""
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        secret = b""
    if not text.startswith(PREFIX) or not 24 <= len(secret) <= 64:
        raise ValueError(f"is not {PREFIX} and the Base64 of 24 to 64 bytes")
    return secret


def hint_secret(secret: bytes) -> str:
    """Return what tells keys apart and opens nothing."""
    return f"{PREFIX}…{base64.b64encode(secret).decode('ascii').rstrip('=')[-4:]}"


def sign(keys: Sequence[bytes], *, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a delivery; its signature is given once for each key."""
    content = f"{event_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode("ascii") for key in keys)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }
