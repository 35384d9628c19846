"""How a key is written: `ftk_live_<last 8 of its id>_<32 letters and digits><checksum>`.

The prefix is for scanners that look for leaked secrets, the eight characters tell whose row it is, and the checksum
turns away what was mistyped or made up without a look into the database. Keys of another form are no worse: an
operator may choose one, and older ones begin with `tether_`.
"""

import hashlib
import re
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "ftk_"
_FORM = re.compile(r"ftk_[a-z]+_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}")
_CHECKSUM_LENGTH = 6


def make_secret(key_id: str) -> str:
    """Return a new secret for the key with this id. It has 190 bits of randomness."""
    random = "".join(secrets.choice(ALPHABET) for _ in range(32))
    body = f"{PREFIX}live_{key_id[-8:]}_{random}"
    return body + _checksum(body)


def is_damaged(secret: str) -> bool:
    """Say whether this cannot be a key, because it has the form of one and the checksum does not fit."""
    if not secret.startswith(PREFIX):
        return False
    body, end = secret[:-_CHECKSUM_LENGTH], secret[-_CHECKSUM_LENGTH:]
    return _FORM.fullmatch(secret) is None or _checksum(body) != end


def digest_secret(secret: str) -> str:
    """Return what is stored of a key.

    A made key cannot be found from its SHA-256 by trying: it is one of 2^190. So a slow hash or a pepper would add
    nothing but a second secret to keep, whose loss would void every key.
    """
    return hashlib.sha256(secret.encode("utf-8")).hexdigest()


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii", "replace"))
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
