"""The evidence bundle: the same bytes for the same record, and no trust in anybody else's zip."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.bundle import UNSIGNED, BundleError, read_bundle, write_bundle
from app.domain.canonical import canonical_bytes
from app.domain.ledger import MAX_LEAF_BYTES
from app.domain.merkle import leaf_hash, root

LEAVES = [b'{"a":%d}' % i for i in range(5)]
TABLE = [b'{"row":%d}' % i for i in range(3)]
MANIFEST = {
    "format": UNSIGNED,
    "job": "ftjob-1",
    "size": 5,
    "root": root(map(leaf_hash, LEAVES)).hex(),
    "head": leaf_hash(LEAVES[-1]).hex(),
}


def written(table: list[bytes] | None = TABLE) -> bytes:
    buffer = io.BytesIO()
    write_bundle(buffer, job="ftjob-1", leaves=iter(LEAVES), risk_table=table)
    return buffer.getvalue()


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def members(**changes: bytes | None) -> dict[str, bytes]:
    result = {
        "manifest.json": canonical_bytes(MANIFEST),
        "leaves.jsonl": b"".join(leaf + b"\n" for leaf in LEAVES),
    }
    for name, content in changes.items():
        member = f"{name}.json" if name == "manifest" else f"{name}.jsonl"
        if content is None:
            del result[member]
        else:
            result[member] = content
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evidence.zip"


def read_all(path: Path) -> tuple[dict[str, object], list[bytes], list[bytes] | None]:
    with read_bundle(path) as bundle:
        table = bundle.risk_table()
        return bundle.manifest, list(bundle.leaves()), None if table is None else list(table)


@pytest.mark.parametrize("table", [TABLE, [], None])
def test_a_bundle_reads_back(path: Path, table: list[bytes] | None) -> None:
    path.write_bytes(written(table))
    assert read_all(path) == (MANIFEST, LEAVES, table)


def test_the_same_record_makes_the_same_bytes() -> None:
    assert written() == written()


def test_a_bundle_can_be_written_to_a_stream_that_cannot_seek(path: Path) -> None:
    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            chunks.append(bytes(data))
            return len(data)

    chunks: list[bytes] = []
    write_bundle(Pipe(), job="ftjob-1", leaves=LEAVES, risk_table=TABLE)  # type: ignore[arg-type]
    path.write_bytes(b"".join(chunks))
    assert read_all(path) == (MANIFEST, LEAVES, TABLE)


def test_leaves_and_table_can_be_read_at_the_same_time(path: Path) -> None:
    path.write_bytes(written())
    with read_bundle(path) as bundle:
        table = bundle.risk_table()
        assert table is not None
        assert list(zip(bundle.leaves(), table, strict=False)) == list(zip(LEAVES, TABLE, strict=False))


def test_an_empty_ledger_and_a_leaf_of_two_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="no leaf"):
        write_bundle(io.BytesIO(), job="ftjob-1", leaves=[], risk_table=None)
    with pytest.raises(ValueError, match="newline"):
        write_bundle(io.BytesIO(), job="ftjob-1", leaves=[b"1\n2"], risk_table=None)


def bad_manifest(**changes: object) -> Callable[[], bytes]:
    return lambda: zip_of(members(manifest=canonical_bytes(MANIFEST | changes)))


def twice() -> bytes:
    buffer = io.BytesIO(zip_of(members()))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("leaves.jsonl", b"{}\n")
    return buffer.getvalue()


def many_members() -> bytes:
    return zip_of(members() | {f"x{i}": b"" for i in range(1000)})


def zip64_count() -> bytes:
    """Claim, in the end record, the members that the ZIP64 form stands for."""
    whole = zip_of(members())
    return whole[:-14] + struct.pack("<HH", 0xFFFF, 0xFFFF) + whole[-10:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "too short"),
        (lambda: b"no zip at all, but long enough", "cut short"),
        (lambda: written()[:-1], "cut short"),
        (lambda: written() + b"\x00", "cut short"),
        (lambda: b"#!/bin/sh\n" + written(), "directory"),
        (lambda: zip_of(members() | {"notes.txt": b""}), "members|unknown member"),
        (lambda: zip_of(members() | {"../leaves.jsonl": b""}), "unknown member"),
        (lambda: zip_of(members() | {"/leaves.jsonl": b""}), "unknown member"),
        (lambda: zip_of(members() | {"leaves.jsonl/": b""}), "unknown member"),
        (lambda: zip_of(members() | {"LEAVES.jsonl": b""}), "unknown member"),
        (many_members, "members"),
        (zip64_count, "members"),
        (twice, "twice"),
        (lambda: zip_of(members(), zipfile.ZIP_BZIP2), "method"),
        (lambda: zip_of(members(leaves=b"0" * 30_000_000)), "200 to 1"),
        (lambda: zip_of(members(manifest=b" " * 70_000)), "most allowed"),
        (lambda: zip_of(members(manifest=None)), "no manifest.json"),
        (lambda: zip_of(members(leaves=None)), "no leaves.jsonl"),
        (lambda: zip_of(members(manifest=b"{}")), "expected an object"),
        (lambda: zip_of(members(manifest=b"[]")), "expected an object"),
        (lambda: zip_of(members(manifest=b"\xff")), "UTF-8"),
        (lambda: zip_of(members(manifest=canonical_bytes(MANIFEST) + b"\n")), "canonical"),
        (bad_manifest(size="5"), "expected an object"),
        (bad_manifest(size=True), "expected an object"),
        (bad_manifest(extra=1), "expected an object"),
        (bad_manifest(format="tether.bundle/9"), "tether.bundle/1"),
        (lambda: zip_of(members(leaves=b"{}\n{}")), "line 1 .* newline"),
        (lambda: zip_of(members(leaves=b"{}\n" + b"1" * (MAX_LEAF_BYTES + 1) + b"\n")), "line 1 .* too long"),
    ],
)
def test_what_is_no_bundle_is_refused(path: Path, make: Callable[[], bytes], message: str) -> None:
    path.write_bytes(make())
    with pytest.raises(BundleError, match=message):
        read_all(path)


def test_a_line_of_the_greatest_length_is_read(path: Path) -> None:
    path.write_bytes(zip_of(members(leaves=b"1" * MAX_LEAF_BYTES + b"\n")))
    assert read_all(path)[1] == [b"1" * MAX_LEAF_BYTES]


def test_an_encrypted_member_is_refused(path: Path) -> None:
    whole = bytearray(written())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        whole[whole.index(signature) + offset] |= 1
    path.write_bytes(whole)
    with pytest.raises(BundleError, match="encrypted"):
        read_all(path)


def test_a_flipped_bit_in_a_member_is_refused(path: Path) -> None:
    whole = bytearray(zip_of(members(), zipfile.ZIP_STORED))
    whole[whole.index(b'{"a":3}') + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(BundleError, match=r"leaves\.jsonl cannot be read"):
        read_all(path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"evidence\.zip cannot be read: .*No such file"):
        read_bundle(tmp_path / "evidence.zip")
