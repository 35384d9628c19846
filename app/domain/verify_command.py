"""The command line of the offline verifier: `tether verify`, and the whole of the tether-verify.pyz that auditors run.

Standard library and cryptography only.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from typing import TypeVar

from app.domain.installation_log import RECEIPT, parse_receipt
from app.domain.terminal_text import escape_controls
from app.domain.trust import parse_trust
from app.domain.verification import Held
from app.domain.verify import verify_bundle
from app.domain.verify_options import BUNDLE_HELP, DESCRIPTION, OPTIONS, UsageError

T = TypeVar("T")

MAX_SMALL_BYTES = 1024 * 1024
"""Of a policy, a receipt or a proof: what is read as a whole."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line, verify, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="tether-verify.pyz", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("bundle", type=Path, help=BUNDLE_HELP)
    for option in OPTIONS:
        if option.is_flag:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            action = "append" if option.is_repeatable else "store"
            parser.add_argument(
                f"--{option.name}", type=Path, metavar="FILE", action=action, help=option.help
            )
    given = vars(parser.parse_args(arguments))
    try:
        code, text = run(**{name: value for name, value in given.items() if value is not None})
    except UsageError as error:
        parser.error(str(error))
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough; what is left must not be written when Python ends, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def run(
    *,
    bundle: Path,
    adapter: Path | None = None,
    data: Path | None = None,
    parent: Path | None = None,
    policy: Path | None = None,
    receipt: Sequence[Path] = (),
    rows: Path | None = None,
    key: Path | None = None,
    require_ended: bool = False,
    json: bool = False,
) -> tuple[int, str]:
    """Verify a bundle; return the exit code and what to print. Raises UsageError."""
    try:
        if not bundle.exists():
            raise UsageError(f"{bundle} is not there")
        for file in (adapter, data, parent, policy, rows, key, *receipt):
            if file is not None and not file.is_file():
                raise UsageError(f"{file} is not a file that can be read")
    except OSError as error:
        raise UsageError(str(error)) from error
    report = verify_bundle(
        bundle,
        adapter=adapter,
        data=data,
        parent=parent,
        trust=_read("policy", policy, lambda text: parse_trust(text.decode())) if policy else None,
        held=tuple(_read("receipt", file, partial(_parse_held, file.name)) for file in receipt),
        must_have_ended=require_ended,
        rows=rows,
        dataset_key=_read("key", key, _parse_key) if key else None,
    )
    if json:
        # DEL is the one control character that JSON would let through.
        return report.exit_code, dumps(report.to_dict(), indent=2).replace("\x7f", "\\u007f") + "\n"
    # A bundle comes from whoever it accuses.
    return report.exit_code, "".join(f"{escape_controls(line)}\n" for line in report.lines())


def _read(option: str, file: Path, parse: Callable[[bytes], T]) -> T:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_SMALL_BYTES + 1)
        if len(content) > MAX_SMALL_BYTES:
            raise ValueError(f"it has more than {MAX_SMALL_BYTES} bytes")
        return parse(content)
    except (OSError, ValueError) as error:
        raise UsageError(f"--{option} {file}: {error}") from error


def _parse_key(content: bytes) -> bytes:
    text = content.decode("ascii").strip()
    if len(text) != 64:
        raise ValueError("it is not 64 hex digits")
    return bytes.fromhex(text)


def _parse_held(name: str, content: bytes) -> Held:
    if content.startswith(RECEIPT.encode()):
        head, note = parse_receipt(content)
        return Held(name, note, head)
    return Held(name, content, None)
