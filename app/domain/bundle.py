"""The evidence bundle: one zip with a job's leaves and risk table, for a verifier that needs nothing else.

Members: `manifest.json` (canonical JSON: format, job, size, root, head), `leaves.jsonl` and, where a risk
table was recorded, `risk_table.jsonl`; each line of these is one exact leaf or entry, ended by a newline.
The signed form (2) has `checkpoint.note`, what the notary signed, and `heads.jsonl`, the job's heads in the
installation's log, each an object of index, leaf, and proof that it is under that checkpoint.
In the pruned form (3) lines of `leaves.jsonl` may be hashes of records that are gone, and the last line of `heads.jsonl` is
the log's event that says which.
Standard library only. A bundle may come from anybody, so that reading one trusts nothing in it.
"""

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.ledger import MAX_LEAF_BYTES
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.note import MAX_NOTE_BYTES
from app.domain.retention import record_hash

UNSIGNED, SIGNED, PRUNED = "tether.bundle/1", "tether.bundle/2", "tether.bundle/3"
MANIFEST, LEAVES, RISK_TABLE = "manifest.json", "leaves.jsonl", "risk_table.jsonl"
CHECKPOINT, HEADS = "checkpoint.note", "heads.jsonl"
PROVENANCE, POLICY = "provenance.dsse.json", "policy.txt"
DERIVED = frozenset(
    {
        "bom.cdx.json",
        "compute.json",
        "critics.json",
        "environment.json",
        "evaluations.json",
        "lineage.json",
        "model_card.html",
    }
)
"""Documents that are made from the records and the database for people and other tools. They prove nothing by themselves."""
DOCUMENTS = DERIVED | {PROVENANCE, POLICY}
"""Further members; the manifest lists the digest of each that is there."""

GIB = 1024**3
MAX_BUNDLE_BYTES = 2 * GIB - 1
"""Beyond it a zip needs the ZIP64 form, which is refused."""
MAX_MEMBER_BYTES = {
    MANIFEST: 65_536,
    LEAVES: 4 * GIB,
    RISK_TABLE: 4 * GIB,
    CHECKPOINT: MAX_NOTE_BYTES,
    HEADS: 32 * 1024 * 1024,
    **dict.fromkeys(sorted(DOCUMENTS), 32 * 1024 * 1024),
    PROVENANCE: 1024 * 1024,
}
MAX_POLICY_BYTES = 65_536
"""Of a policy that is parsed, which takes a time that grows faster than it does."""
MAX_RATIO = 200
"""No member may be packed tighter. Real records shrink about tenfold; the worst bombs a thousandfold."""

MAX_DIRECTORY_BYTES = 65_536
"""Of the zip's directory, which is read as a whole."""

_END = struct.Struct("<4s4H2LH")
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""What zipfile raises for archives that somebody damaged or made up."""


class BundleError(ValueError):
    """The file is not an evidence bundle that can be read."""


class LogProof(NamedTuple):
    """What ties a job's ledger to a signed checkpoint."""

    checkpoint: bytes
    """The note."""
    heads: list[bytes]
    """The lines of `heads.jsonl`."""
    pruning: bytes | None = None
    """Its last line in the pruned form: what the log says was pruned."""


# --- writing ----------------------------------------------------------------------------------------------


def write_bundle(
    fileobj: IO[bytes],
    *,
    job: str,
    leaves: Iterable[bytes],
    risk_table: Iterable[bytes] | None,
    log: LogProof | None = None,
    documents: Mapping[str, bytes] | None = None,
) -> None:
    """Write the bundle of a job whose ledger is `leaves`, in order; in the signed form where `log` is given.

    In the pruned form, where `log` says what was pruned, the line of a hash may stand for a record.

    `documents` are further members, of the names in DOCUMENTS. The same input makes the same bytes (given the same zlib): times
    and permissions are fixed. Raises ValueError where there is no leaf, or for another name.
    """
    builder = RootBuilder()
    head = b""

    def hashed() -> Iterator[bytes]:
        nonlocal head
        for leaf in leaves:
            head = record_hash(leaf) if log is not None and log.pruning else leaf_hash(leaf)
            builder.append(head)
            yield leaf

    with zipfile.ZipFile(fileobj, "w") as archive:
        _write_lines(archive, LEAVES, hashed())
        if risk_table is not None:
            _write_lines(archive, RISK_TABLE, risk_table)
        if log is not None:
            _write_lines(archive, HEADS, [*log.heads, *([log.pruning] if log.pruning else [])])
            with archive.open(_member(CHECKPOINT), "w") as member:
                member.write(log.checkpoint)
        if not builder.size:
            raise ValueError(f"the ledger of {job} has no leaf, so there is nothing to prove")
        manifest = {
            "format": UNSIGNED if log is None else PRUNED if log.pruning else SIGNED,
            "job": job,
            "size": builder.size,
            "root": builder.root().hex(),
            "head": head.hex(),
            **_write_documents(archive, documents or {}),
        }
        with archive.open(_member(MANIFEST), "w") as member:
            member.write(canonical_bytes(manifest))


def _write_documents(archive: zipfile.ZipFile, documents: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Write the documents, and return what the manifest says of them."""
    if not documents.keys() <= DOCUMENTS:
        raise ValueError(f"no document of a bundle is called {min(documents.keys() - DOCUMENTS)}")
    for name, content in sorted(documents.items()):
        with archive.open(_member(name), "w") as member:
            member.write(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in documents.items()}
    return {"documents": digests} if digests else {}


def _write_lines(archive: zipfile.ZipFile, name: str, lines: Iterable[bytes]) -> None:
    with archive.open(_member(name), "w", force_zip64=True) as member:
        for line in lines:
            if b"\n" in line:
                raise ValueError(f"{name}: a line holds a newline, so it is not canonical JSON")
            member.write(line + b"\n")


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    return info


# --- reading ----------------------------------------------------------------------------------------------


class Bundle:
    """An open bundle. Its methods stream; nothing but the manifest is held. Close it, or use `with`."""

    def __init__(self, archive: zipfile.ZipFile, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        """format, job, size, root, head: what the bundle claims; see `app.domain.verify`."""
        self._archive = archive

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def leaves(self) -> Iterator[bytes]:
        """Yield the leaves in order. Raises BundleError where the member is damaged."""
        return _read_lines(self._archive, LEAVES)

    def log(self) -> LogProof | None:
        """Return what ties the ledger to a signed checkpoint; None in the unsigned form."""
        if self.manifest["format"] == UNSIGNED:
            return None
        try:
            checkpoint, lines = self._archive.read(CHECKPOINT), list(_read_lines(self._archive, HEADS))
        except DAMAGE as error:
            raise _as_bundle_error(error, CHECKPOINT) from error
        if self.manifest["format"] == SIGNED:
            return LogProof(checkpoint, lines)
        if not lines:
            raise BundleError(f"a bundle of the format {PRUNED} without a line that says what was pruned")
        return LogProof(checkpoint, lines[:-1], lines[-1])

    def documents(self) -> Mapping[str, str]:
        """Return the SHA-256 of each further member, by its name. Raises BundleError unless each is what the manifest says."""
        listed: dict[str, str] = self.manifest.get("documents", {})
        for name, expected in listed.items():
            try:
                with self._archive.open(name) as member:
                    found = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
            except DAMAGE as error:
                raise _as_bundle_error(error, name) from error
            if found != expected:
                raise BundleError(f"the SHA-256 of {name} is {found}; the manifest says {expected}")
        return listed

    def provenance(self) -> bytes | None:
        """Return the signed statement about the adapter, where the bundle has one."""
        return self._read_document(PROVENANCE)

    def policy(self) -> bytes | None:
        """Return the policy's text, where the bundle has it; of a long one the beginning, and more than MAX_POLICY_BYTES."""
        return self._read_document(POLICY, MAX_POLICY_BYTES + 1)

    def _read_document(self, name: str, most: int = -1) -> bytes | None:
        if name not in self.manifest.get("documents", {}):
            return None
        try:
            with self._archive.open(name) as member:
                return member.read(most)
        except DAMAGE as error:
            raise _as_bundle_error(error, name) from error

    def risk_table(self) -> Iterator[bytes] | None:
        """Return the entries of the risk table in order, or None where the bundle has none."""
        if RISK_TABLE not in self._archive.namelist():
            return None
        return _read_lines(self._archive, RISK_TABLE)


def read_bundle(path: Path) -> Bundle:
    """Open a bundle. Raises BundleError where the file is not one, is damaged, or is beyond the limits."""
    try:
        _check_end_record(path)
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise _as_bundle_error(error, path.name) from error
    try:
        for info in archive.infolist():
            _check_member(info)
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise BundleError("a member stands twice in the bundle")
        for name in (MANIFEST, LEAVES):
            if name not in names:
                raise BundleError(f"the bundle has no {name}")
        manifest = _parse_manifest(archive.read(MANIFEST))
        for name in (CHECKPOINT, HEADS):
            if (name in names) is not (manifest["format"] != UNSIGNED):
                raise BundleError(
                    f"a bundle of the format {manifest['format']} with{'' if name in names else 'out'} {name}"
                )
        listed = manifest.get("documents", {}).keys()
        if listed != DOCUMENTS & set(names):
            raise BundleError(
                f"the manifest and the bundle differ in {min(listed ^ (DOCUMENTS & set(names)))[:80]!r}"
            )
        return Bundle(archive, manifest)
    except BaseException as error:
        archive.close()
        if isinstance(error, DAMAGE):
            raise _as_bundle_error(error, MANIFEST) from error
        raise


def _as_bundle_error(error: Exception, name: str) -> BundleError:
    if isinstance(error, BundleError):
        return error
    return BundleError(f"{name} cannot be read: {error or type(error).__name__}")


def _check_end_record(path: Path) -> None:
    """Refuse, before the directory is parsed, an archive whose directory is large, hidden or in ZIP64 form."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError("it is a folder or a device; a bundle is one file, a zip")
    size = status.st_size
    if size > MAX_BUNDLE_BYTES:
        raise BundleError(f"the bundle has {size} bytes; the largest allowed has {MAX_BUNDLE_BYTES}")
    if size < _END.size:
        raise BundleError("the file is too short to be a zip")
    with path.open("rb") as file:
        file.seek(-_END.size, 2)
        magic, _, _, _, entries, length, offset, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise BundleError("the file does not end as a zip without a comment does; it may be cut short")
    if entries > len(MAX_MEMBER_BYTES):
        raise BundleError(f"the bundle has {entries} members; a bundle has at most {len(MAX_MEMBER_BYTES)}")
    if length > MAX_DIRECTORY_BYTES:
        raise BundleError(
            f"the zip's directory has {length} bytes; the most allowed is {MAX_DIRECTORY_BYTES}"
        )
    if offset + length + _END.size != size:
        raise BundleError("the zip's directory is not where its end record says")


def check_packing(info: zipfile.ZipInfo) -> None:
    """Raise BundleError for a member that is packed as no member of ours is.

    One that is longer packed than unpacked zipfile would read whole for a few bytes; of what the other methods raise for
    damaged bytes not all is in DAMAGE.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{info.filename[:80]!r} is packed by the unknown method {info.compress_type}")
    if info.compress_size > info.file_size + info.file_size // 1000 + 1024:
        raise BundleError(
            f"{info.filename[:80]!r} has {info.compress_size} bytes packed, and {info.file_size} unpacked"
        )


def _check_member(info: zipfile.ZipInfo) -> None:
    if info.filename not in MAX_MEMBER_BYTES or info.orig_filename != info.filename:
        raise BundleError(f"the bundle has the unknown member {info.orig_filename[:80]!r}")
    if info.flag_bits & 1:
        raise BundleError(f"{info.filename} is encrypted")
    check_packing(info)
    limit = MAX_MEMBER_BYTES[info.filename]
    if info.file_size > limit:
        raise BundleError(f"{info.filename} has {info.file_size} bytes; the most allowed is {limit}")
    if info.file_size > MAX_RATIO * info.compress_size + 65_536:
        raise BundleError(
            f"{info.filename} would grow from {info.compress_size} to {info.file_size} bytes;"
            f" more than {MAX_RATIO} to 1 is refused"
        )


def _parse_manifest(data: bytes) -> dict[str, Any]:
    manifest = parse_canonical(data)
    expected = {"format": str, "job": str, "size": int, "root": str, "head": str}
    if isinstance(manifest, dict) and "documents" in manifest:
        expected["documents"] = dict
        if not _lists_documents(manifest["documents"]):
            raise BundleError("documents is no map from the name of a document to its SHA-256")
    if not isinstance(manifest, dict) or {k: type(v) for k, v in manifest.items()} != expected:
        raise BundleError(f"expected an object of {', '.join(expected)}, numbers as numbers, words as words")
    if manifest["format"] not in (UNSIGNED, SIGNED, PRUNED):
        raise BundleError(
            f"the format is {manifest['format'][:80]!r}; this verifier reads {UNSIGNED}, {SIGNED} and {PRUNED}"
        )
    return manifest


def _lists_documents(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= DOCUMENTS
        and all(isinstance(each, str) for each in value.values())
    )


def _read_lines(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    try:
        with archive.open(name) as member:
            number = 0
            # Room for the longest line and its newline. zipfile may return some bytes more than asked for.
            while line := member.readline(MAX_LEAF_BYTES + 1):
                if len(line.removesuffix(b"\n")) > MAX_LEAF_BYTES:
                    raise BundleError(f"{name}: line {number} (from 0) is too long")
                if not line.endswith(b"\n"):
                    raise BundleError(f"{name}: line {number} (from 0) does not end in a newline")
                yield line[:-1]
                number += 1
    except DAMAGE as error:
        raise _as_bundle_error(error, name) from error
