"""What the notary keeps by itself: its key, and the last checkpoint that it signed.

Both are files in a folder of the notary's own. The second makes it a witness against its own database: what it once
signed it remembers, whatever a restored backup says.
"""

import json
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.installation_log import Checkpoint
from app.domain.note import check_name
from app.errors import ConfigurationError

KEY, STATE = "key", "last-signed.json"


def make_folder(folder: Path) -> None:
    """Make the notary's folder, readable by its owner alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"the notary's folder {folder} cannot be made ({error.strerror}); make it, or name another by TETHER_NOTARY_DIR"
        ) from error


def load_key(folder: Path) -> Ed25519PrivateKey:
    """Return the notary's key, made at the first time. Raises ConfigurationError where the file is no key, or open to others."""
    path = folder / KEY
    if not path.exists():
        _write(path, Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
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
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
