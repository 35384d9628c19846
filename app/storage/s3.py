"""Storage in a bucket that speaks S3. Endpoint, region and credentials are obstore's own AWS_* variables."""

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import BinaryIO

from app.durable import NO_ROOM
from app.errors import BytesDamaged, BytesMissing, ConfigurationError, StorageFull, StorageUnavailable
from app.storage.content import Found, Stored, copy_counted, is_address, key_of

try:
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import S3Store
except ModuleNotFoundError as error:
    raise ConfigurationError(
        "TETHER_STORAGE_URL names an S3 bucket, and what speaks to it is not installed; run:"
        " pip install 'tether[s3]'"
    ) from error

log = logging.getLogger(__name__)

PIECE_BYTES = 8 * 1024 * 1024
"""Bytes of one request, either way. A request has 30 seconds, so a piece must not be large."""
PIECES_AT_ONCE = 4
RETRIES = 8
"""After a 5xx, a refused or a cut connection; the waits double from 0.1 to 2 seconds, with jitter."""
BRIEF_RETRIES = 2
RETRY_TIMEOUT = timedelta(seconds=15)
"""From the first try on, none begins later than this."""


def prepare(url: str) -> None:
    """Make sure that the URL and the AWS_* variables make sense; the bucket itself is the operator's."""
    with _speaking(url):
        pass


def check(url: str) -> None:
    """Raise StorageUnavailable where the bucket cannot be listed. Who asks whether it is ready wants to know soon."""
    with _speaking(url, retries=BRIEF_RETRIES) as store:
        next(iter(store.list(chunk_size=1)), None)


def store_stream(url: str, stream: BinaryIO, *, max_bytes: int | None) -> Stored:
    """Copy a stream into the bucket.

    The address is known only when the last byte has come, so the stream waits in a temporary file on this
    machine. Only what is whole and within the limit is sent, and an object shows only when all of it is there.
    Sending the same bytes again replaces the object by itself, which mends a damaged one.
    """
    with tempfile.TemporaryFile() as file:
        try:
            stored = copy_counted(stream, file, max_bytes)
            file.seek(0)
        except OSError as error:
            kind = StorageFull if error.errno in NO_ROOM else StorageUnavailable
            raise kind(
                f"the file could not be set aside on its way to storage ({error.strerror}); nothing was kept."
                " Free space in the temporary folder (TMPDIR), then try again"
            ) from error
        with _speaking(url) as store:
            store.put(key_of(stored.sha256), file, chunk_size=PIECE_BYTES, max_concurrency=PIECES_AT_ONCE)
    return stored


def size_of(url: str, sha256: str) -> int:
    """Return the length of stored bytes."""
    with _speaking(url, sha256) as store:
        return store.head(key_of(sha256))["size"]


def read_range(url: str, sha256: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes from `start` up to `stop` in pieces, each asked for when the one before was taken.

    Nothing checks them: the digest is that of the whole.
    """
    for at in range(start, stop, PIECE_BYTES):
        with _speaking(url, sha256) as store:
            piece = bytes(store.get_range(key_of(sha256), start=at, end=min(at + PIECE_BYTES, stop)))
        yield piece


def read_whole(url: str, sha256: str, size: int) -> Iterator[bytes]:
    """Yield stored bytes in pieces. The last one is given only when the digest of all is right."""
    digest = hashlib.sha256()
    held = b""
    for piece in read_range(url, sha256, 0, size):
        if held:
            yield held
        digest.update(piece)
        held = piece
    if digest.hexdigest() != sha256:
        raise BytesDamaged(f"the stored bytes of {sha256} are damaged; restore the object in the bucket")
    yield held


def open_stored(url: str, sha256: str) -> BinaryIO:
    """Fetch stored bytes into a temporary file and open it after checking all of them."""
    size = size_of(url, sha256)
    file = tempfile.TemporaryFile()  # noqa: SIM115  (The caller closes it.)
    try:
        for piece in read_whole(url, sha256, size):
            file.write(piece)
        file.seek(0)
    except OSError as error:
        file.close()
        kind = StorageFull if error.errno in NO_ROOM else StorageUnavailable
        raise kind(
            f"the bytes of {sha256} could not be set aside ({error.strerror}); free space in the temporary folder"
            " (TMPDIR), or mend it"
        ) from error
    except BaseException:
        file.close()
        raise
    return file


def stored_at(url: str, sha256: str) -> float | None:
    """Return when bytes were last stored, in seconds since 1970; None where they are not there."""
    with _speaking(url) as store:
        try:
            return store.head(key_of(sha256))["last_modified"].timestamp()
        except FileNotFoundError:
            return None


def list_below(url: str, prefix: str) -> Iterator[Found]:
    """Yield what is stored under a prefix; the store is asked for a thousand names at a time."""
    for _, found in _list(url, prefix):
        yield found


def list_tree(url: str, name: str) -> Iterator[tuple[str, Found]]:
    """Yield what is stored in the places below `name`, each with the name of its place."""
    for path, found in _list(url, name):
        yield path.removeprefix(f"{name}/").partition("/")[0], found


def _list(url: str, prefix: str) -> Iterator[tuple[str, Found]]:
    with _speaking(url) as store:
        pages = iter(store.list(prefix, chunk_size=1000))
    while True:
        with _speaking(url):
            page = next(pages, None)
        if page is None:
            return
        for entry in page:
            sha256 = entry["path"].rpartition("/")[2]
            if is_address(sha256):
                yield entry["path"], Found(sha256, entry["last_modified"].timestamp(), entry["size"])


def discard(url: str, sha256: str) -> None:
    """Remove stored bytes, if they are there."""
    with _speaking(url) as store:
        store.delete(key_of(sha256))


@lru_cache(maxsize=8)
def _connect(url: str, retries: int) -> S3Store:
    # A store holds the connections, so a process keeps one per bucket. Client options must not be given here:
    # they would replace those of the environment, AWS_ALLOW_HTTP among them.
    return S3Store.from_url(
        url,
        retry_config={
            "max_retries": retries,
            "retry_timeout": RETRY_TIMEOUT,
            "backoff": {"max_backoff": timedelta(seconds=2)},
        },
    )


@contextmanager
def _speaking(url: str, sha256: str | None = None, *, retries: int = RETRIES) -> Iterator[S3Store]:
    """Give the store, and turn what it raises into StorageUnavailable; `sha256` is what is looked for."""
    try:
        yield _connect(url, retries)
    except FileNotFoundError as error:
        if sha256 is not None:
            raise BytesMissing(
                f"the bytes of {sha256} are not in storage; restore the object in the bucket"
            ) from error
        raise _unavailable(url, "there is no such bucket", error) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise _unavailable(url, "it refuses these credentials", error) from error
    except (BaseError, OSError) as error:
        missing = "<Code>NoSuchBucket</Code>" in str(error)
        kind = "there is no such bucket" if missing else "it gave no usable answer"
        raise _unavailable(url, kind, error) from error


def _unavailable(url: str, kind: str, error: Exception) -> StorageUnavailable:
    # The details name hosts of the operator's network; they are for the log, not for whoever sent the request.
    log.error("%s: %s", url, str(error).partition("\n")[0])
    return StorageUnavailable(
        f"the object store cannot be used: {kind}. The log has the details; mend the store, TETHER_STORAGE_URL"
        " or the AWS_* variables, then try again"
    )
