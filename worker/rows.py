"""The rows of a training file as a job's record commits to them: their tokens, and which of these bear loss.

`python -m worker.rows EVIDENCE --data FILE --model FOLDER > rows.jsonl`, for `tether verify --rows`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.domain.bundle import BundleError, read_bundle
from app.domain.canonical import canonical_bytes
from app.domain.dataset import read_chat_rows, read_lines
from app.domain.ledger import kind_of, parse_leaf
from app.errors import TetherError
from worker.training.data import tokenize_rows


def main() -> int:
    """Write the rows to standard output, one canonical object a line."""
    parser = argparse.ArgumentParser(prog="python -m worker.rows", description=__doc__)
    parser.add_argument("evidence", type=Path, help="the job's evidence bundle")
    parser.add_argument("--data", type=Path, required=True, help="the job's training file")
    parser.add_argument("--model", type=Path, required=True, help="the folder of its base model")
    given = parser.parse_args()
    try:
        spec = find_spec(given.evidence)
        tokenizer = AutoTokenizer.from_pretrained(given.model, local_files_only=True, trust_remote_code=False)
        for line in list_rows(given.data, tokenizer, spec):
            sys.stdout.buffer.write(line + b"\n")
    except (TetherError, BundleError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def find_spec(evidence: Path) -> dict[str, Any]:
    """Return the resolved spec that a bundle has on record. Raises BundleError where it has none."""
    with read_bundle(evidence) as bundle:
        for leaf in bundle.leaves():
            try:
                record = parse_leaf(leaf)
            except ValueError:
                # Of a record that was pruned only the hash is left.
                continue
            if kind_of(record) == "job.start":
                spec: dict[str, Any] = record["body"]["spec"]
                return spec
    raise BundleError("the record has no job.start, so that nobody knows how its rows were cut")


def list_rows(data: Path, tokenizer: PreTrainedTokenizerBase, spec: dict[str, Any]) -> Iterator[bytes]:
    """Yield each row that the job was to train on, as a canonical object. Raises JobFailure as the job would."""
    with data.open("rb") as file:
        rows = read_chat_rows(read_lines(file))
    found = tokenize_rows(
        tokenizer, rows, max_seq_length=spec["max_seq_length"], overlength=spec["overlength"]
    )
    for row in found.rows:
        mask = [int(bit) for bit in row.loss_mask]
        yield canonical_bytes({"row": row.index, "input_ids": list(row.input_ids), "loss_mask": mask})


if __name__ == "__main__":
    sys.exit(main())
