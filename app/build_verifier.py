"""`make verifier`: the offline verifier as one file, for people who install nothing of ours.

The file holds the verifying half of `app.domain` and nothing else, found by following the imports of its command line. It is
run as `python tether-verify.pyz` and needs Python and the package `cryptography`. The same sources make the same bytes.
"""

import argparse
import ast
import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = "app.domain.verify_command"
MAIN = b"""import sys

if sys.version_info < (3, 11):
    sys.exit("tether-verify needs Python 3.11 or newer")
try:
    import cryptography
except ImportError:
    sys.exit("tether-verify needs the package cryptography: python -m pip install cryptography")

from app.domain.verify_command import main

sys.exit(main())
"""


def main() -> None:
    """Write the file and say what its digest is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path, help="where to write it")
    file: Path = parser.parse_args().file
    content = build_verifier()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(0o755)
    sys.stdout.write(f"{file}  {len(content)} bytes  SHA-256 {hashlib.sha256(content).hexdigest()}\n")


def build_verifier() -> bytes:
    """Return the bytes of the verifier."""
    members = {"__main__.py": MAIN, "LICENSE": (ROOT / "LICENSE").read_bytes()}
    for source in list_sources():
        members[source.relative_to(ROOT).as_posix()] = source.read_bytes()
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n")
    buffer.seek(0, io.SEEK_END)
    # Stored, so that the bytes do not depend on a version of zlib; with fixed times.
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def list_sources() -> list[Path]:
    """Return the files of every module of ours that the verifier's command line imports, however indirectly."""
    found: dict[str, Path] = {}
    waiting = [COMMAND]
    while waiting:
        module = waiting.pop()
        path = ROOT / f"{module.replace('.', '/')}.py"
        if module in found or not path.is_file():
            continue
        found[module] = path
        waiting += _imports_of(path)
    return sorted({*found.values(), ROOT / "app/__init__.py", ROOT / "app/domain/__init__.py"})


def _imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


if __name__ == "__main__":
    main()
