"""Rows as their owner tokenizes them are the ones that a job commits to."""

import json
from pathlib import Path

from app.domain.bundle import write_bundle
from app.domain.canonical import parse_canonical
from app.domain.risk_table import row_commitment
from tests.unit.app.domain.synthetic_job import JOB, make_job
from tests.unit.worker.conftest import MakeTokenizer
from worker.measuring import commit_row
from worker.rows import find_spec, list_rows
from worker.training.data import tokenize_rows


def test_rows_have_the_commitments_that_the_trainer_gives_them(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    data, evidence = tmp_path / "data.jsonl", tmp_path / "evidence.zip"
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]}
        for text in ("one", "two", "a row that is too long to be kept " * 4)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = make_job()
    for number in (job.find("job.start"), job.find("job.resume")):
        job.records[number].body["spec"] |= {"max_seq_length": 80, "overlength": "drop"}
    with evidence.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)

    tokenizer = make_tokenizer("qwen")
    found = [parse_canonical(line) for line in list_rows(data, tokenizer, find_spec(evidence))]
    trained = tokenize_rows(tokenizer, rows, max_seq_length=80, overlength="drop")
    assert trained.dropped == (2,)
    assert [row["row"] for row in found] == [0, 1]  # type: ignore[index]
    for row, theirs in zip(found, trained.rows, strict=True):
        assert isinstance(row, dict)
        assert row_commitment(b"k", row["input_ids"], row["loss_mask"]) == commit_row(b"k", theirs)
