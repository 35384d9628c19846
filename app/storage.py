"""Bytes under their SHA-256: uploads, adapters, critics. A local folder, written atomically, checked on read."""

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import PayloadTooLarge, StorageUnavailable

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored: the address and the length."""

    sha256: str
    size_bytes: int


def store_stream(root: Path, stream: BinaryIO, *, max_bytes: int | None = None) -> Stored:
    """Copy a stream into storage and return its address.

    The file appears under its name only whole and on disk (written aside, fsynced, renamed), so a crash or
    a full disk leaves nothing behind. Raises PayloadTooLarge beyond `max_bytes` and StorageUnavailable where
    the disk refuses.
    """
    aside = root / f".incoming-{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with aside.open("xb") as file:
                stored = _copy(stream, file, max_bytes)
                file.flush()
                os.fsync(file.fileno())
            target = path_of(root, stored.sha256)
            target.parent.mkdir(exist_ok=True, mode=0o700)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        _fsync_folder(target.parent)
    except OSError as error:
        raise StorageUnavailable(
            f"the storage folder cannot take the file ({error.strerror}); nothing was kept. Free space or mend"
            " the folder, then send it again"
        ) from error
    return stored


def store_file(root: Path, path: Path) -> Stored:
    """Copy a file into storage and return its address."""
    with path.open("rb") as file:
        return store_stream(root, file)


def path_of(root: Path, sha256: str) -> Path:
    """Return where the bytes of this address lie."""
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is not a SHA-256 in hexadecimal")
    return root / sha256[:2] / sha256


def find_stored(root: Path, sha256: str) -> Path:
    """Return where stored bytes lie. Raises StorageUnavailable where they are missing."""
    path = path_of(root, sha256)
    if not path.is_file():
        raise StorageUnavailable(f"the bytes of {sha256} are not in storage; restore the storage folder")
    return path


def read_checked(root: Path, sha256: str) -> bytes:
    """Return stored bytes after checking them against their address."""
    content = find_stored(root, sha256).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageUnavailable(f"the stored bytes of {sha256} are damaged; restore the storage folder")
    return content


def _copy(source: BinaryIO, target: BinaryIO, max_bytes: int | None) -> Stored:
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


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
