"""The checks of files that lie beside a bundle: the training file, and the adapter's zip. Standard library only."""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from app.domain.bundle import check_packing
from app.domain.verification import Broken, JobSoFar, NotChecked, counted, ensured


def _training_file_at_end(job: JobSoFar) -> str:
    if job.data is None:
        raise NotChecked("no training file was given")
    found, expected = _hash_file(job.data), ensured(job.created)["training_sha256"]
    if found != expected:
        raise Broken(f"its SHA-256 is {found}; the record says {expected}")
    return "the file is the one that the job was created with"


def _adapter_at_end(job: JobSoFar) -> str:
    if job.adapter is None:
        raise NotChecked("no adapter was given")
    if job.published is None:
        raise Broken("an adapter was given, but the record has none published")
    found = _hash_file(job.adapter)
    if found != job.published["zip_sha256"]:
        step = next((step for step, digest in job.adapters if digest == found), None)
        if step is not None:
            return f"the zip is the adapter of the checkpoint after step {step}, not the last one"
        raise Broken(f"its SHA-256 is {found}; the record says {job.published['zip_sha256']}")
    size = job.adapter.stat().st_size
    if size != job.published["bytes"]:
        raise Broken(f"it has {size} bytes; the record says {job.published['bytes']}")
    files = _hash_members(job.adapter)
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


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Broken(f"{path.name} cannot be read: {error.strerror}") from error


def _hash_members(path: Path) -> dict[str, str]:
    result: dict[str, str] = {}
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                check_packing(info)
                if info.filename in result:
                    raise Broken(f"{info.filename[:80]!r} stands twice in the zip")
                with archive.open(info) as member:
                    result[info.filename] = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        raise Broken(f"the zip cannot be read: {error}") from error
    return result


def _check_directory(path: Path) -> None:
    """Raise ValueError for a zip whose directory is longer than that of any adapter: zipfile reads it as a whole."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    end = tail.rfind(_END_MAGIC)
    wide = tail.rfind(_END64_MAGIC)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise ValueError("it does not end as a zip does")
    (length,) = struct.unpack_from("<L", tail, end + 12)
    if 0 <= wide <= len(tail) - _END64_BYTES:
        (length,) = struct.unpack_from("<Q", tail, wide + 40)
    if length > MAX_DIRECTORY_BYTES:
        raise ValueError(f"its directory has {length} bytes; the most allowed is {MAX_DIRECTORY_BYTES}")


_END_MAGIC, _END_BYTES = b"PK\x05\x06", 22
_END64_MAGIC, _END64_BYTES = b"PK\x06\x06", 56
_TAIL_BYTES = 66_000
"""What zipfile looks for these in: a comment has at most 65,535 bytes."""
MAX_DIRECTORY_BYTES = 1024 * 1024


AT_END: dict[str, Callable[[JobSoFar], str]] = {
    "training file": _training_file_at_end,
    "adapter": _adapter_at_end,
}
