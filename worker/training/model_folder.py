"""Opening a model folder so that what is checked is what is loaded.

A path can lead elsewhere a moment later. So each file is opened once: it is hashed, and loaded, through that one
descriptor. What is small is copied into a private folder; the weights are too large for that, and stand there as links
to the open descriptors.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

from app.domain.safetensors_header import check_safetensors
from app.errors import InvalidBaseModel

LOADED = (".json", ".jinja", ".txt", ".safetensors")
"""What a folder's files that are loaded end with. No other file of it is as much as opened."""
MAX_SMALL_FILE_BYTES = 256 * 1024 * 1024
DESCRIPTORS = Path("/dev/fd")

parent: Path | None = None
"""Where the private folders are made; None is the system's temporary folder.

The process that works names its home, because what a killed one has left is collected there.
"""


@contextmanager
def open_model_folder(path: Path, files: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Give a private folder with a model's files, and nothing beside them.

    With `files` (SHA-256 by name) it has these and no others, their bytes checked; else every file that could be loaded.
    At the end the weights must not have been written to meanwhile. Raises InvalidBaseModel where a file is not what it
    should be, and OSError where one cannot be read.
    """
    names = sorted(files) if files is not None else _list_files(path)
    with ExitStack() as stack:
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix="tether-model-")))
        weights: dict[str, tuple[BufferedReader, os.stat_result]] = {}
        for name in names:
            file = stack.enter_context(_open(path, name))
            before = os.fstat(file.fileno())
            wanted = files[name] if files is not None else None
            target = private / name
            if name.endswith(".safetensors"):
                _check_weights(file, name, before.st_size, wanted)
                target.symlink_to(DESCRIPTORS / str(file.fileno()))
                weights[name] = file, before
            else:
                target.write_bytes(_read_small(file, name, before.st_size, wanted))
        yield private
        for name, (file, before) in weights.items():
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
                after.st_size,
                after.st_mtime_ns,
                after.st_ctime_ns,
            ):
                raise InvalidBaseModel(
                    f"{name} was changed while it was loaded; keep the folder of a base model as it was registered"
                )


def _list_files(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.name.endswith(LOADED) and each.is_file())


def _open(path: Path, name: str) -> BufferedReader:
    # Without waiting: a pipe in the place of a file would make the opening hang.
    descriptor = os.open(path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) or mode & stat.S_IWOTH:
        file.close()
        raise InvalidBaseModel(
            f"{name} may be written by everybody on this machine; take that right away: chmod o-w"
            if stat.S_ISREG(mode)
            else f"{name} is no file"
        )
    return file


def _check_weights(file: BufferedReader, name: str, size_bytes: int, wanted: str | None) -> None:
    if wanted is not None:
        _compare(name, hashlib.file_digest(file, "sha256").hexdigest(), wanted)
        file.seek(0)
    try:
        check_safetensors(file, size_bytes)
    except ValueError as error:
        raise InvalidBaseModel(f"{name} is not a safetensors file that is loaded: {error}") from None


def _read_small(file: BufferedReader, name: str, size_bytes: int, wanted: str | None) -> bytes:
    if size_bytes > MAX_SMALL_FILE_BYTES:
        raise InvalidBaseModel(
            f"{name} has {size_bytes} bytes; no tokenizer and no configuration is that large"
        )
    content = file.read()
    if wanted is not None:
        _compare(name, hashlib.sha256(content).hexdigest(), wanted)
    return content


def _compare(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise InvalidBaseModel(
            f"{name} of the base model is not what was registered; restore it, or register the folder anew under another"
            " name"
        )
