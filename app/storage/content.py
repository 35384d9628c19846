"""What both kinds of storage share: the address of bytes, and copying them while they are counted and hashed."""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from app.errors import PayloadTooLarge

CHUNK_BYTES = 1024 * 1024
SHARDS = tuple(f"{number:02x}" for number in range(256))
"""What an address may begin with: the folders, or the prefixes of a bucket, over which the bytes are spread."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored: the address and the length."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a listing says of stored bytes."""

    sha256: str
    stored_at: float
    """Seconds since 1970, by the clock of the disk or the store."""
    size_bytes: int


def is_address(name: str) -> bool:
    """Say whether a name is a SHA-256 in hexadecimal."""
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def key_of(sha256: str) -> str:
    """Return the name under which bytes are kept, the same in a folder and in a bucket."""
    if not is_address(sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256 in hexadecimal")
    return f"{sha256[:2]}/{sha256}"


def copy_counted(source: BinaryIO, target: BinaryIO, max_bytes: int | None) -> Stored:
    """Copy a stream and return its address and length. Raises PayloadTooLarge beyond `max_bytes`."""
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK_BYTES):
        size += len(chunk)
        if max_bytes is not None and size > max_bytes:
            raise PayloadTooLarge(
                f"the file is larger than {max_bytes} bytes, the limit of this service (TETHER_MAX_FILE_BYTES)",
                param="file",
            )
        digest.update(chunk)
        target.write(chunk)
    return Stored(digest.hexdigest(), size)
