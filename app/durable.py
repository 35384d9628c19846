"""Folders and names that a power cut does not take again."""

import errno
import os
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the file system says where a disk, a quota or the size of a file is at its end."""


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, readable by their owner alone. Raises OSError."""
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
        sync_folder(missing.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. A rename is not, until its folder is synchronised. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
