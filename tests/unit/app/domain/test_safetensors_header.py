"""Hostile safetensors headers are refused fast, and with bounded memory, before any library parses them."""

import io
import json
import resource
import subprocess
import sys
from typing import Any

import pytest

from app.domain.safetensors_header import MAX_TENSORS, check_safetensors


def pack(header: Any, data: bytes = b"") -> bytes:
    """Return a file with this header, and these bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "U8") -> dict[str, Any]:
    """Return the description of a tensor, by default of single bytes."""
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


def check(content: bytes) -> None:
    check_safetensors(io.BytesIO(content), len(content))


def test_what_the_library_writes_passes() -> None:
    import numpy as np
    from safetensors.numpy import save

    check(save({}))
    check(save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.int8)}, metadata={"format": "pt"}))
    check(save({f"layer.{n}": np.zeros(n % 3, np.float16) for n in range(1000)}))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not end within the file"),
        (b"\x80\x04K\x01.", "does not end within the file"),  # A pickle.
        (pack({})[:-1], "does not end within the file"),
        ((2**62).to_bytes(8, "little") + b"{}", "does not end within the file"),
        (pack(b"[]"), "no JSON object"),
        (pack(b'{"a":'), "not the JSON"),
        (pack(b'{"a":NaN}'), "not the JSON"),
        (pack(b'{"a":' + b"[" * 100_000), "not the JSON"),
        (pack(b'{"a":' + b"9" * 5000 + b"}"), "not the JSON"),
        (pack(b'{"a":{"dtype":"\xff"}}'), "not the JSON"),
        (pack(b'{"a":{},"a":{}}'), "stands there twice"),
        (pack({"a": tensor(0, 4) | {"data_offsets": [0, 4, 8]}}, bytes(4)), "no usable place"),
        (pack({"a": tensor(0, 4) | {"data_offsets": [4, 0]}}, bytes(4)), "no usable place"),
        (pack({"a": tensor(0, 4) | {"data_offsets": [-4, 0]}}, bytes(4)), "no usable place"),
        (pack({"a": tensor(0, 4, [-4])}, bytes(4)), "no usable shape"),
        (pack({"a": tensor(0, 4, [4.0])}, bytes(4)), "no usable shape"),
        (pack({"a": tensor(0, 4, [True] * 4)}, bytes(4)), "no usable shape"),
        (pack({"a": tensor(0, 4, [1] * 1000)}, bytes(4)), "no usable shape"),
        (pack({"a": tensor(0, 4, [2**62, 2**62, 4])}, bytes(4)), "overflows"),
        (pack({"a": tensor(0, 4, [5])}, bytes(4)), "another size than its shape"),
        (pack({"a": tensor(0, 4, dtype="F99")}, bytes(4)), "unknown type"),
        (pack({"a": tensor(0, 4, dtype=["F32"])}, bytes(4)), "unknown type"),
        (pack({"a": {"dtype": "U8"}}), "not described"),
        (pack({"a": [1]}), "not described"),
        (pack({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)), "overlaps"),
        (pack({"a": tensor(0, 4), "b": tensor(6, 8)}, bytes(8)), "leaves bytes"),
        (pack({"a": tensor(0, 4)}, bytes(8)), "do not fill the file"),
        (pack({"a": tensor(0, 8)}, bytes(4)), "do not fill the file"),
        (pack({"__metadata__": {"a": 1}}), "no table of texts"),
        (pack({"__metadata__": ["a"]}), "no table of texts"),
        (pack({"__metadata__": {"a": "x" * 2**20}}), "more than 1048576 characters"),
    ],
    ids=range(31),
)
def test_what_no_honest_file_says_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(content)


PROGRAM = """
import sys
from app.domain.safetensors_header import check_safetensors
with open(sys.argv[1], "rb") as file:
    try:
        check_safetensors(file, int(sys.argv[2]))
    except ValueError as error:
        print(error)
"""


def bound() -> None:
    """Give the process 30 s of a processor and 256 MiB; what needs more is killed, or ends with a MemoryError."""
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    resource.setrlimit(resource.RLIMIT_DATA, (256 * 2**20,) * 2)


@pytest.mark.parametrize("attack", ["huge header", "100k tensors", "100k empty tensors", "millions of names"])
def test_a_header_that_is_a_bomb_costs_little(attack: str, tmp_path: Any) -> None:
    path = tmp_path / "model.safetensors"
    if attack == "huge header":
        # The file is as large as it says, and sparse.
        header_bytes = 100 * 10**6
        path.write_bytes(header_bytes.to_bytes(8, "little") + b"{")
        with path.open("r+b") as file:
            file.truncate(8 + header_bytes)
    elif attack == "100k tensors":
        path.write_bytes(pack({f"{n}": tensor(n, n + 1) for n in range(100_000)}, bytes(100_000)))
    elif attack == "100k empty tensors":
        entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        path.write_bytes(pack(b"{" + b",".join(entry % n for n in range(MAX_TENSORS + 1)) + b"}"))
    else:
        path.write_bytes(pack(b"{" + b",".join(b'"%x":0' % n for n in range(600_000)) + b"}"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, str(path.stat().st_size)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=bound,
    )
    assert done.stdout
