"""Bytes under their SHA-256: uploads, adapters, critics. Written whole or not at all, checked when they are read.

Every function takes the place first (`settings.storage`): a folder, or the URL of a bucket.
"""

import io
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.errors import StorageFull, StorageUnavailable
from app.failpoints import failpoint
from app.storage import local
from app.storage.content import CHUNK_BYTES, SHARDS, Found, Stored
from app.storage.local import find_stored, path_of

__all__ = [
    "CHUNK_BYTES",
    "SHARDS",
    "Found",
    "Place",
    "Stored",
    "below",
    "check",
    "check_room",
    "discard",
    "discard_older",
    "find_stored",
    "free_bytes",
    "list_shard",
    "list_tree",
    "open_stored",
    "path_of",
    "prepare",
    "probe",
    "read_checked",
    "store_file",
    "store_stream",
    "stored_at",
]

Place = Path | str
"""A folder, or `s3://bucket/prefix`. What speaks S3 is imported only where a bucket is used."""


def below(place: Place, *names: str) -> Place:
    """Return a place within a place, for bytes that belong to one owner alone."""
    if isinstance(place, Path):
        return place.joinpath(*names)
    return "/".join((place, *names))


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


def check_room(place: Place, size_bytes: int, reserve_bytes: int) -> None:
    """Raise StorageFull where so many bytes would leave less than the reserve on the disk that takes them.

    On the way to a bucket that is the one of the temporary folder.
    """
    free = free_bytes(place)
    missing = size_bytes + reserve_bytes - free
    if missing > 0:
        raise StorageFull(
            f"the server's disk has no room for {size_bytes} bytes: {missing} are missing (it has {free} free and keeps"
            f" {reserve_bytes}, TETHER_DISK_RESERVE_BYTES). Nothing was kept. Send it again when there is room"
        )


def free_bytes(place: Place) -> int:
    """Return how many bytes are free on the disk of a folder, or on that over which files go to a bucket."""
    folder = place if isinstance(place, Path) else Path(tempfile.gettempdir())
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
    failpoint("storage.before_write")
    if isinstance(place, Path):
        stored = local.store_stream(place, stream, max_bytes=max_bytes)
    else:
        from app.storage import s3

        stored = s3.store_stream(place, stream, max_bytes=max_bytes)
    failpoint("storage.after_write")
    return stored


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
    found = stored_at(place, sha256)
    if found is not None and time.time() - found < age_s:
        return False
    discard(place, sha256)
    return True


def stored_at(place: Place, sha256: str) -> float | None:
    """Return when bytes were last stored, in seconds since 1970; None where they are not there."""
    if isinstance(place, Path):
        return local.stored_at(place, sha256)
    from app.storage import s3

    return s3.stored_at(place, sha256)


def discard(place: Place, sha256: str) -> None:
    """Remove stored bytes, if they are there."""
    if isinstance(place, Path):
        return local.discard(place, sha256)
    from app.storage import s3

    return s3.discard(place, sha256)


def list_shard(place: Place, shard: str) -> Iterator[Found]:
    """Yield what is stored under the addresses that begin with these two characters, one of SHARDS.

    A file that is no bytes of ours is passed over.
    """
    if isinstance(place, Path):
        return local.list_shard(place, shard)
    from app.storage import s3

    return s3.list_below(place, shard)


def list_tree(url: str, name: str) -> Iterator[tuple[str, Found]]:
    """Yield what is stored in the places below `name` in a bucket, each with the name of its place."""
    from app.storage import s3

    return s3.list_tree(url, name)
