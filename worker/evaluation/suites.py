"""The prompts of an evaluation: those that come with Tether, and those of a file."""

import hashlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.domain.dataset import format_rows, parse_rows, read_lines
from app.domain.evaluation import KINDS
from worker.miniature.corpus import evaluation_prompts


@dataclass(frozen=True, slots=True)
class Suite:
    """Prompts, each `{"messages", "kind", "answer"?}`, ending with the user."""

    name: str
    """A built-in name, or the id of a file."""
    sha256: str
    """Of the file of the prompts, or of the file that the built-in ones would make."""
    rows: tuple[dict[str, Any], ...]

    def count(self) -> dict[str, int]:
        """Count the prompts of each kind."""
        return {kind: sum(row["kind"] == kind for row in self.rows) for kind in KINDS}


def load_builtin(name: str) -> Suite:
    """Return a suite that comes with Tether. Raises KeyError for any other name."""
    rows = {"miniature": evaluation_prompts}[name]()
    return Suite(name, hashlib.sha256(format_rows(rows)).hexdigest(), tuple(rows))


def read_suite(name: str, sha256: str, file: BinaryIO) -> Suite:
    """Return the suite of a file of prompts that passed its check; `sha256` is the file's."""
    return Suite(name, sha256, tuple(parse_rows(read_lines(file))))
