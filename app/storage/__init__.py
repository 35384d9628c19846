"""Bytes under their SHA-256: uploads, adapters, critics. Written whole or not at all, checked when they are read.

Every function takes the place first (`settings.storage`): a folder, or the URL of a bucket.
"""

import io
import time
import uuid
from pathlib import Path
from typing import BinaryIO

from app.errors import StorageUnavailable
from app.storage import local
from app.storage.content import CHUNK_BYTES, Stored
from app.storage.local import find_stored, path_of

__all__ = [
    "CHUNK_BYTES",
    "Place",
    "Stored",
    "check",
    "discard",
    "discard_older",
    "find_stored",
    "open_stored",
    "path_of",
    "prepare",
    "probe",
    "read_checked",
    "store_file",
    "store_stream",
]

Place = Path | str
"""A folder, or `s3://bucket/prefix`. What speaks S3 is imported only where a bucket is used."""


def prepare(place: Place) -> None:
    """Make the place ready at the start of a process. Raises ConfigurationError where it never can be."""
    if isinstance(place, Path):
        return local.prepare(place)
    from app.storage import s3

    return s3.prepare(place)


def check(place: Place) -> None:
    """Raise StorageUnavailable where the place cannot be used; cheap, and writes nothing."""
    if isinstance(place, Path):
        return local.check(place)
    from app.storage import s3

    return s3.check(place)


def probe(place: Place) -> None:
    """Write, read and remove a few bytes. Raises StorageUnavailable where one of these fails."""
    content = f"probe {uuid.uuid4()}".encode()
    stored = store_stream(place, io.BytesIO(content))
    try:
        found = read_checked(place, stored.sha256)
    finally:
        discard(place, stored.sha256)
    if found != content:
        raise StorageUnavailable("the storage gave other bytes than it was given")


def store_stream(place: Place, stream: BinaryIO, *, max_bytes: int | None = None) -> Stored:
    """Copy a stream into storage, in bounded memory, and return its address.

    Raises PayloadTooLarge beyond `max_bytes` and StorageUnavailable where the place refuses, and then keeps
    nothing.
    """
    if isinstance(place, Path):
        return local.store_stream(place, stream, max_bytes=max_bytes)
    from app.storage import s3

    return s3.store_stream(place, stream, max_bytes=max_bytes)


def store_file(place: Place, path: Path) -> Stored:
    """Copy a file into storage and return its address."""
    with path.open("rb") as file:
        return store_stream(place, file)


def open_stored(place: Place, sha256: str) -> BinaryIO:
    """Open stored bytes, all of them checked against their address before the first is given.

    Raises StorageUnavailable where they are missing or damaged.
    """
    if isinstance(place, Path):
        return local.open_stored(place, sha256)
    from app.storage import s3

    return s3.open_stored(place, sha256)


def read_checked(place: Place, sha256: str) -> bytes:
    """Return stored bytes after checking them against their address."""
    with open_stored(place, sha256) as file:
        return file.read()


def discard_older(place: Place, sha256: str, age_s: float) -> bool:
    """Remove stored bytes unless they were stored within the last `age_s` seconds; say whether they are gone."""
    if isinstance(place, Path):
        stored_at = local.stored_at(place, sha256)
    else:
        from app.storage import s3

        stored_at = s3.stored_at(place, sha256)
    if stored_at is not None and time.time() - stored_at < age_s:
        return False
    discard(place, sha256)
    return True


def discard(place: Place, sha256: str) -> None:
    """Remove stored bytes, if they are there."""
    if isinstance(place, Path):
        return local.discard(place, sha256)
    from app.storage import s3

    return s3.discard(place, sha256)
