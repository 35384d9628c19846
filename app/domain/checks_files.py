"""The checks of files that lie beside a bundle: the training file, and the adapter's zip. Standard library only."""

import hashlib
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from app.domain.bundle import DAMAGE, check_packing
from app.domain.provenance import ADAPTER_MANIFEST
from app.domain.verification import Broken, JobSoFar, NotChecked, counted, ensured


def _training_file_at_end(job: JobSoFar) -> str:
    if job.data is None:
        raise NotChecked("no training file was given")
    found, expected = hash_file(job.data), ensured(job.created)["training_sha256"]
    if found != expected:
        raise Broken(f"its SHA-256 is {found}; the record says {expected}")
    return "the file is the one that the job was created with"


def _adapter_at_end(job: JobSoFar) -> str:
    if job.adapter is None:
        raise NotChecked("no adapter was given")
    if job.published is None:
        raise Broken("an adapter was given, but the record has none published")
    found = hash_file(job.adapter)
    if found != job.published["zip_sha256"]:
        step = next((step for step, digest in job.adapters if digest == found), None)
        if step is not None:
            return f"the zip is the adapter of the checkpoint after step {step}, not the last one"
        raise Broken(f"its SHA-256 is {found}; the record says {job.published['zip_sha256']}")
    size = job.adapter.stat().st_size
    if size != job.published["bytes"]:
        raise Broken(f"it has {size} bytes; the record says {job.published['bytes']}")
    files = hash_members(job.adapter)
    if files != job.published["files"]:
        names = sorted(
            name
            for name in files.keys() | job.published["files"].keys()
            if files.get(name) != job.published["files"].get(name)
        )
        raise Broken(f"the record and the zip differ in {', '.join(map(repr, names[:5]))}")
    return (
        f"the zip and its {counted(len(files), 'file')} are those published at step {job.published['step']}"
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file. Raises Broken where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Broken(f"{path.name} cannot be read: {error.strerror}") from error


def hash_members(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a zip. Raises Broken where it cannot be read."""
    result: dict[str, str] = {}
    try:
        with open_adapter(path) as archive:
            for info in archive.infolist():
                if info.filename in result:
                    raise Broken(f"{info.filename[:80]!r} stands twice in the zip")
                with archive.open(info) as member:
                    result[info.filename] = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    except DAMAGE as error:
        raise Broken(f"the zip cannot be read: {error}") from error
    return result


def open_adapter(path: Path) -> zipfile.ZipFile:
    """Open a zip that may come from anybody. Raises one of DAMAGE where it is none, or is not packed as adapters are."""
    _check_directory(path)
    archive = zipfile.ZipFile(path)
    try:
        for info in archive.infolist():
            check_packing(info)
    except BaseException:
        archive.close()
        raise
    return archive


def read_adapter_manifest(path: Path) -> bytes:
    """Return what an adapter's zip says of itself. Raises KeyError where it says nothing, and else one of DAMAGE."""
    with open_adapter(path) as archive:
        size = archive.getinfo(ADAPTER_MANIFEST).file_size
        if size > MAX_MANIFEST_BYTES:
            raise ValueError(f"it has {size} bytes; the most allowed is {MAX_MANIFEST_BYTES}")
        return archive.read(ADAPTER_MANIFEST)


def _check_directory(path: Path) -> None:
    """Raise ValueError for a zip whose directory is longer than that of any adapter: zipfile reads it as a whole."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        tail = file.read()
    end = tail.rfind(_END_MAGIC)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise ValueError("it does not end as a zip does")
    (length,) = struct.unpack_from("<L", tail, end + 12)
    locator = end - _LOCATOR_BYTES
    if locator >= 0 and tail.startswith(_LOCATOR_MAGIC, locator):
        # Some versions of zipfile go where the locator points, and some take what stands before it.
        wide = locator - _END64_BYTES
        (where,) = struct.unpack_from("<Q", tail, locator + 8)
        if wide < 0 or not tail.startswith(_END64_MAGIC, wide) or where != start + wide:
            raise ValueError("its ZIP64 end record is not where its locator says")
        (length,) = struct.unpack_from("<Q", tail, wide + 40)
    if length > MAX_DIRECTORY_BYTES:
        raise ValueError(f"its directory has {length} bytes; the most allowed is {MAX_DIRECTORY_BYTES}")


_END_MAGIC, _END_BYTES = b"PK\x05\x06", 22
_END64_MAGIC, _END64_BYTES = b"PK\x06\x06", 56
_LOCATOR_MAGIC, _LOCATOR_BYTES = b"PK\x06\x07", 20
_TAIL_BYTES = 66_000
"""What zipfile looks for these in: a comment has at most 65,535 bytes."""
MAX_DIRECTORY_BYTES = 1024 * 1024
MAX_MANIFEST_BYTES = 1024 * 1024


AT_END: dict[str, Callable[[JobSoFar], str]] = {
    "training file": _training_file_at_end,
    "adapter": _adapter_at_end,
}
