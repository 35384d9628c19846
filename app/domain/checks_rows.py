"""The check of rows that their owner holds: that they are the ones whose commitments are on record. Standard library only.

It takes the rows as tokens, because a verifier has no tokenizer, and the dataset's key, without which the commitments are
random numbers. Where the dataset was erased nobody has the key, and nothing is checked.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from app.domain.canonical import parse_canonical
from app.domain.leaf_schema import TOKENS, Leaf, check_fields
from app.domain.risk_table import row_commitment
from app.domain.verification import Broken, JobSoFar, NotChecked, counted

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Of a row: a million tokens and more."""
ROWS = "rows"
"""What the file of rows is called where one of its lines is wrong."""


def _rows_at_end(job: JobSoFar) -> str:
    if job.rows is None:
        raise NotChecked("no rows were given to be held against their commitments")
    if job.table is None:
        raise NotChecked("the job ended, or stands, before its risk table")
    if job.dataset_key is None:
        raise NotChecked(
            "the dataset's key was not given, without which commitments mean nothing; where the dataset was erased, nobody"
            " has it"
        )
    seen = set()
    for number, line in enumerate(_read_lines(job.rows)):
        try:
            row = check_fields("the line", parse_canonical(line), TOKENS)
            index = row["row"]
            if index in seen:
                raise ValueError(f"row {index} stands twice")
            seen.add(index)
            _compare(job, job.dataset_key, row)
        except ValueError as error:
            raise Broken(str(error), number, ROWS) from error
    if not seen:
        raise Broken("the file of rows has no row")
    return f"{len(seen)} of {counted(len(job.commitments), 'row')} on record, by their tokens and which of them bear loss"


def _compare(job: JobSoFar, key: bytes, row: Leaf) -> None:
    recorded = job.commitments.get(row["row"])
    if recorded is None:
        raise ValueError(f"row {row['row']} is not in the risk table")
    found = row_commitment(key, row["input_ids"], row["loss_mask"])
    if found != recorded:
        raise ValueError(
            f"row {row['row']} has the commitment {found[:12]}… under this key; on record is {recorded[:12]}…, so that it is"
            " another row, or another dataset's key"
        )


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise Broken(f"a line of {path.name} has more than {MAX_LINE_BYTES} bytes")
                yield line.removesuffix(b"\n")
    except OSError as error:
        raise Broken(f"{path.name} cannot be read: {error.strerror}") from error


AT_END: dict[str, Callable[[JobSoFar], str]] = {"rows": _rows_at_end}
