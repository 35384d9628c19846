"""The header of a safetensors file, checked before any library parses it.

A file is eight bytes with the header's length, the header (one JSON object), and the tensors' bytes. The library's own
limit on a header is 100 MB, and what it does with one inside that limit is not ours to bound; so this is.
"""

import json
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_TENSORS = 50_000
"""Of one file. A model of hundreds of billions of weights has some thousands a file."""
MAX_DIMENSIONS = 16
MAX_METADATA_CHARS = 1024 * 1024
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64},
}
"""Bits of one number by its type's name in the header."""


def check_safetensors(file: BinaryIO, size_bytes: int) -> None:
    """Check the header of a file of this size from its beginning on. Raises ValueError with what is wrong.

    Every byte behind the header belongs to one tensor: none to two, and none to nobody.
    """
    header_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= header_bytes <= size_bytes - 8:
        raise ValueError("its header does not end within the file")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} are read")
    text = file.read(header_bytes)
    if len(text) != header_bytes or text[:1] != b"{":
        raise ValueError("its header is no JSON object")
    # Each tensor has this key once. Counting costs nothing; a hundred thousand small objects do.
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise ValueError(f"it has more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not the JSON that it should be ({error})") from None
    _check_metadata(header.pop("__metadata__", {}))
    end = 0
    for start, stop, name in sorted(_span(name, entry) for name, entry in header.items()):
        if start != end:
            how = "overlaps the tensor before it" if start < end else "leaves bytes before it to nobody"
            raise ValueError(f"the tensor {name[:80]!r} {how}")
        end = stop
    if 8 + header_bytes + end != size_bytes:
        raise ValueError("its tensors do not fill the file")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no table of texts")
    if sum(len(name) + len(value) for name, value in metadata.items()) > MAX_METADATA_CHARS:
        raise ValueError(f"its metadata have more than {MAX_METADATA_CHARS} characters")


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """Return where a tensor begins and ends behind the header. Raises ValueError where it cannot be there."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the tensor {name[:80]!r} is not described by dtype, shape and data_offsets")
    bits = BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise ValueError(f"the tensor {name[:80]!r} is of an unknown type")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"the tensor {name[:80]!r} has no usable shape")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the tensor {name[:80]!r} has no usable place")
    numbers = 1
    for length in shape:
        numbers *= length
        if numbers >= 1 << 63:
            raise ValueError(f"the shape of the tensor {name[:80]!r} overflows")
    if numbers * bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"the tensor {name[:80]!r} has another size than its shape")
    return offsets[0], offsets[1], name


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 63 for each in value)
