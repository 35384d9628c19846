"""Storage in a folder: written aside, fsynced and renamed, so that a name always stands for whole bytes."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.durable import NO_ROOM, make_folder, sync_folder
from app.errors import BytesDamaged, BytesMissing, ConfigurationError, StorageFull, StorageUnavailable
from app.failpoints import failpoint
from app.storage.content import Found, Stored, copy_counted, is_address, key_of

ASIDE = ".incoming-"


def prepare(root: Path) -> None:
    """Make the folder."""
    try:
        make_folder(root)
    except OSError as error:
        raise ConfigurationError(f"the folder {root} cannot be made: {error.strerror}") from error


def check(root: Path) -> None:
    """Raise StorageUnavailable where the folder is missing or read-only."""
    if not os.access(root, os.W_OK):
        raise StorageUnavailable("the storage folder cannot be written")


def store_stream(root: Path, stream: BinaryIO, *, max_bytes: int | None) -> Stored:
    """Copy a stream into the folder. A crash or a full disk leaves nothing under an address."""
    aside = root / f"{ASIDE}{uuid.uuid4().hex}"
    try:
        make_folder(root)
        try:
            with aside.open("xb") as file:
                stored = copy_counted(stream, file, max_bytes)
                file.flush()
                os.fsync(file.fileno())
            target = path_of(root, stored.sha256)
            make_folder(target.parent)
            failpoint("storage.before_rename")
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        kind = StorageFull if error.errno in NO_ROOM else StorageUnavailable
        raise kind(
            f"the storage folder cannot take the file ({error.strerror}); nothing was kept. Free space or mend"
            " the folder, then try again"
        ) from error
    return stored


def path_of(root: Path, sha256: str) -> Path:
    """Return where the bytes of this address lie."""
    return root / key_of(sha256)


def find_stored(root: Path, sha256: str) -> Path:
    """Return where stored bytes lie. Raises StorageUnavailable where they are missing."""
    path = path_of(root, sha256)
    with _reaching(sha256):
        if path.is_file():
            return path
    raise BytesMissing(f"the bytes of {sha256} are not in storage; restore the storage folder")


def open_stored(root: Path, sha256: str) -> BinaryIO:
    """Open stored bytes after checking all of them against their address."""
    path = find_stored(root, sha256)
    with _reaching(sha256):
        file = path.open("rb")
        try:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise BytesDamaged(f"the stored bytes of {sha256} are damaged; restore the storage folder")
            file.seek(0)
        except BaseException:
            file.close()
            raise
    return file


def stored_at(root: Path, sha256: str) -> float | None:
    """Return when bytes were last stored, in seconds since 1970; None where they are not there."""
    with _reaching(sha256):
        try:
            return path_of(root, sha256).stat().st_mtime
        except FileNotFoundError:
            return None


def list_shard(root: Path, shard: str) -> Iterator[Found]:
    """Yield what lies in one of the folders of addresses."""
    with _reaching(shard):
        try:
            entries = list(os.scandir(root / shard))
        except FileNotFoundError:
            return
    for entry in entries:
        if is_address(entry.name):
            try:
                seen = entry.stat()
            except FileNotFoundError:
                continue
            yield Found(entry.name, seen.st_mtime, seen.st_size)


def list_aside(root: Path) -> Iterator[Path]:
    """Yield what is being written, and what killed processes have left of that."""
    if root.is_dir():
        yield from root.glob(f"{ASIDE}*")


def discard(root: Path, sha256: str) -> None:
    """Remove stored bytes, if they are there."""
    with _reaching(sha256):
        path_of(root, sha256).unlink(missing_ok=True)


@contextmanager
def _reaching(sha256: str) -> Iterator[None]:
    """Turn what the file system raises into StorageUnavailable."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"the bytes of {sha256} cannot be reached in the storage folder ({error.strerror}); mend the folder"
        ) from error
