"""The restricted process that checks rows."""

import json
import subprocess
import sys
from pathlib import Path

ROW = b'{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}\n'


def test_it_reads_its_input_and_has_no_environment(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW * 3 + b"{\n" * 400)
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "worker.row_check"], stdin=file, capture_output=True, check=True, env={}
        )
    found = json.loads(done.stdout)
    assert (found["rows"], found["problem_count"], len(found["problems"])) == (3, 400, 100)
    assert found["complete"]


def test_its_memory_is_bounded() -> None:
    program = (
        "import io, sys; sys.stdin = io.TextIOWrapper(io.BytesIO(b''));"
        "from worker import row_check; row_check.main(); x = bytearray(row_check.MEMORY_BYTES)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"MemoryError" in done.stderr


def test_it_writes_no_file(tmp_path: Path) -> None:
    program = (
        "import io, sys; sys.stdin = io.TextIOWrapper(io.BytesIO(b''));"
        f"from worker import row_check; row_check.main(); open({str(tmp_path / 'x')!r}, 'w').write('x' * 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode != 0
    assert (tmp_path / "x").stat().st_size == 0
