"""What the notary keeps by itself: its key, the last checkpoint that it signed, and the public halves of former keys.

All are files in a folder of the notary's own. The second makes it a witness against its own database: what it once
signed it remembers, whatever a restored backup says.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app import durable
from app.domain.installation_log import Checkpoint
from app.domain.note import check_name
from app.errors import ConfigurationError

KEY, STATE = "key", "last-signed.json"
NEXT_KEY = "key.next"
"""While the key is rotated: the one that comes after."""
FORMER_KEYS = "former-keys.json"
"""The public halves of keys that were rotated away; of their private halves there is none any more."""
LOCK = "lock"


def make_folder(folder: Path) -> None:
    """Make the notary's folder, readable by its owner alone."""
    try:
        # A power cut that took the folder would take what was signed last.
        durable.make_folder(folder)
    except OSError as error:
        raise ConfigurationError(
            f"the notary's folder {folder} cannot be made ({error.strerror}); make it, or name another by TETHER_NOTARY_DIR"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let nobody else sign, or change what is signed with, before the block ends. A process that dies lets go of it.

    To look at what was signed last and to write down what is signed next must be one act: of two notaries of one
    folder, the slower one would else put the memory back to before the quicker one's signature.
    """
    with (folder / LOCK).open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_key(folder: Path) -> Ed25519PrivateKey:
    """Return the notary's key, made at the first time.

    Raises ConfigurationError where the file is no key, is open to others, or is missing though something was signed.
    """
    path = folder / KEY
    if not path.exists():
        if (folder / STATE).exists():
            raise ConfigurationError(
                f"the notary's key {path} is missing, though something was signed here before; put the copy of it back"
                f" that you keep. Where there is none, move {folder} away and open a new log with: tether log fork"
            )
        _write_key(path)
    return _read_key(path)


def load_next_key(folder: Path) -> Ed25519PrivateKey | None:
    """Return the key that comes after this one; None where no rotation was begun. Raises ConfigurationError as `load_key`."""
    path = folder / NEXT_KEY
    return _read_key(path) if path.exists() else None


def make_next_key(folder: Path) -> Ed25519PrivateKey:
    """Begin a rotation; return the key that comes. One that was begun and cut off goes on with its key."""
    path = folder / NEXT_KEY
    if not path.exists():
        _write_key(path)
    return _read_key(path)


def take_next_key(folder: Path) -> None:
    """End a rotation: the next key is the key, and of the one before only the public half is kept.

    Whatever happens in between, doing it again ends it.
    """
    former, old = load_former_keys(folder), load_key(folder).public_key().public_bytes_raw()
    if old not in former:
        _write(folder / FORMER_KEYS, json.dumps([each.hex() for each in (*former, old)]) + "\n")
    (folder / NEXT_KEY).replace(folder / KEY)
    durable.sync_folder(folder)


def load_former_keys(folder: Path) -> list[bytes]:
    """Return the public halves of the keys before this one, oldest first. Raises ConfigurationError for a damaged file."""
    path = folder / FORMER_KEYS
    if not path.exists():
        return []
    try:
        return [bytes.fromhex(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}); put its copy back, so that auditors can be told of former keys"
        ) from None


def _write_key(path: Path) -> None:
    _write(path, Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")


def _read_key(path: Path) -> Ed25519PrivateKey:
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"the notary's key {path} can be read by others; run: chmod 600 {path}")
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except (ValueError, UnicodeDecodeError):
        raise ConfigurationError(
            f"{path} does not hold a key (64 hexadecimal digits); put the copy of it back that you keep"
        ) from None


def load_last(folder: Path) -> Checkpoint | None:
    """Return what was signed last; None before the first time. Raises ConfigurationError where the file is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Checkpoint(str(found["origin"]), int(found["size"]), bytes.fromhex(found["root"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}), so that nobody knows what the notary signed last; put its copy back, or"
            " open a new log with: tether log fork"
        ) from None


def save_last(folder: Path, checkpoint: Checkpoint) -> None:
    """Keep what is about to be signed. It is on the disk when this returns."""
    check_name(checkpoint.origin)
    values = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
    _write(folder / STATE, json.dumps(values) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    durable.sync_folder(path.parent)
