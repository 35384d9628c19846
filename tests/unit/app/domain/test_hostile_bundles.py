"""A verifier given anything at all ends with a verdict, never a traceback, and within a stated memory.

What could fill the memory is given to a verifier in a process of its own, which says how much it has used.
"""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.build_verifier import ROOT
from app.domain import ledger, verify
from app.domain.bundle import write_bundle
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.report import CHECKS, EXIT_CODES
from app.domain.trust import parse_trust
from tests.unit.app.domain.synthetic_job import (
    JOB,
    Record,
    SyntheticJob,
    make_job,
    manifest_of,
    run,
)
from tests.unit.app.domain.synthetic_run import make_run
from tests.unit.app.domain.test_checks_log import TRUST, Log

MAX_MB = 120
"""Of resident memory in a verifier that is given nonsense. Python and cryptography alone take about 30."""

MEASURE = """
import sys
from app.domain.verify_command import main
try:
    code = main()
finally:
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)
sys.exit(code)
"""


def judge(arguments: list[str], folder: Path) -> tuple[int, dict[str, Any], int]:
    """Verify in a process of its own; return its exit code, its report, and its greatest resident memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), int(done.stderr) // 1024


# --- files that are no bundle -----------------------------------------------------------------------------


def write_members(path: Path, members: dict[str, bytes], names: dict[str, str] | None = None) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo((names or {}).get(name, name))
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)


def good_members() -> dict[str, bytes]:
    buffer = io.BytesIO()
    job = make_job()
    write_bundle(buffer, job=JOB, leaves=job.leaves(), risk_table=job.table)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_member(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: write_members(path, good_members() | {name: content})


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: write_members(path, good_members(), {old: new})


def deep(path: Path) -> None:
    write_members(path, good_members() | {"leaves.jsonl": b'{"a":' * 10_000 + b"}" * 10_000 + b"\n"})


def deep_manifest(path: Path) -> None:
    write_members(path, good_members() | {"manifest.json": b"[" * 30_000 + b"]" * 30_000})


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)


def sparse_with_an_end(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31 - 100)
        file.seek(0, 2)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, 1000, 2**31 - 1100, 0))


def large_directory(path: Path) -> None:
    """The end record claims a directory of nearly a gigabyte: zipfile would read it as a whole."""
    size = 900 * 1024**2
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(0, 2)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, size, 0, 0))


def bomb(path: Path) -> None:
    """A thousandfold, which no record is packed."""
    write_members(path, good_members() | {"leaves.jsonl": b"a" * 50_000_000})


def quiet_bomb(path: Path) -> None:
    """Few bytes by the directory, half a gigabyte by the packed data: zipfile unpacks what is there."""
    members = good_members()
    write_members(path, members)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1024**2)) for _ in range(512)) + packer.flush()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_STORED
            archive.writestr(info, packed if name == "manifest.json" else content)
    data = bytearray(path.read_bytes())
    for magic, method_at, size_at, name_at in ((b"PK\x03\x04", 8, 22, 30), (b"PK\x01\x02", 10, 24, 46)):
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            if data[at + name_at : at + name_at + 13] == b"manifest.json":
                data[at + method_at : at + method_at + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
                data[at + size_at : at + size_at + 4] = struct.pack("<L", 300)
    path.write_bytes(data)


def huge_line(path: Path) -> None:
    chance = random.Random(3)  # noqa: S311 - bytes that do not pack well, no secrets.
    write_members(path, good_members() | {"leaves.jsonl": b'"' + chance.randbytes(10_000_000).hex().encode()})


def many_lines(path: Path) -> None:
    chance = random.Random(3)  # noqa: S311
    lines = b"".join(b'"%s"\n' % chance.randbytes(6).hex().encode() for _ in range(500_000))
    write_members(path, good_members() | {"risk_table.jsonl": lines})


def many_members(path: Path) -> None:
    write_members(path, good_members() | {f"member-{number}": b"" for number in range(60_000)})


def linked(path: Path) -> None:
    target = path.with_name("elsewhere.zip")
    write_members(target, good_members() | {"manifest.json": b"{}"})
    path.symlink_to(target)


def linked_member(path: Path) -> None:
    """A member that says of itself that it is a symbolic link: members are read, never unpacked."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in good_members().items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, b"/etc/passwd" if name == "leaves.jsonl" else content)


def cut_name(path: Path) -> None:
    """A reader that ends names at a zero byte takes this member for another one."""
    write_members(path, good_members(), {"leaves.jsonl": "leaves.jsonl?.txt"})
    path.write_bytes(path.read_bytes().replace(b"leaves.jsonl?", b"leaves.jsonl\0"))


FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.touch(),
    "one byte": lambda path: path.write_bytes(b"P"),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(100_000)),  # noqa: S311
    "text": lambda path: path.write_text("no bundle\n" * 1000),
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a link to nothing much": linked,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "10 GB of nothing": sparse,
    "2 GB with an end": sparse_with_an_end,
    "a directory of 900 MB": large_directory,
    "a bomb": bomb,
    "a quiet bomb": quiet_bomb,
    "60,000 members": many_members,
    "no member": lambda path: write_members(path, {}),
    "a manifest that is a list": with_member("manifest.json", b"[]"),
    "a manifest of wrong types": with_member(
        "manifest.json", b'{"format":1,"head":1,"job":1,"root":1,"size":"1"}'
    ),
    "a manifest with a key twice": with_member("manifest.json", b'{"format":"a","format":"b"}'),
    "a manifest that is deep": deep_manifest,
    "leaves that are deep": deep,
    "leaves of noise": with_member("leaves.jsonl", bytes(range(256)) * 100),
    "a leaf with a key twice": with_member("leaves.jsonl", b'{"t":"a","t":"a"}\n'),
    "a leaf with a great number": with_member("leaves.jsonl", b"1" * 60_000 + b"\n"),
    "no leaf": with_member("leaves.jsonl", b""),
    "a line of 20 MB": huge_line,
    "half a million lines of table": many_lines,
    "a path that leads out": renamed("leaves.jsonl", "../leaves.jsonl"),
    "an absolute path": renamed("leaves.jsonl", "/leaves.jsonl"),
    "a name that is cut": cut_name,
    "a name that steers a terminal": renamed("leaves.jsonl", "\x1b[31mleaves.jsonl"),
    "a member that is a link": linked_member,
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_bundle_gets_a_verdict_in_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.zip"
    FILES[name](path)
    code, report, megabytes = judge([str(path)], tmp_path)
    assert code in EXIT_CODES.values()
    assert report["ok"] is False
    assert megabytes < MAX_MB
    assert verify.STUMBLED not in json.dumps(report)


@pytest.mark.parametrize("option", ["adapter", "parent", "data"])
def test_what_lies_beside_a_bundle_may_be_anything_too(option: str, tmp_path: Path) -> None:
    write_members(tmp_path / "evidence.zip", good_members())
    large_directory(tmp_path / "other")
    code, report, megabytes = judge(["evidence.zip", f"--{option}", "other"], tmp_path)
    assert code in EXIT_CODES.values() or option == "parent"
    assert report["ok"] is False or option == "parent"
    assert megabytes < MAX_MB


@pytest.mark.parametrize(
    "text",
    ["", "a = " + "[" * 100_000, "logs = 1", "[[logs]]\norigin = 1\nkeys = 2", "\x00", "[[logs]]\n" * 50_000],
    ids=range(6),
)
def test_a_policy_may_be_anything(text: str) -> None:
    with pytest.raises(ValueError, match=r"policy|logs\[0\]"):
        parse_trust(text)


# --- bundles that are nearly right ------------------------------------------------------------------------


def test_every_flipped_byte_of_a_signed_bundle_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Some bytes of a zip mean nothing, such as a time. Where one of these is flipped, every member is as it was."""
    job = make_job(crash=False)
    buffer = io.BytesIO()
    write_bundle(buffer, job=JOB, leaves=job.leaves(), risk_table=job.table, log=Log(job).prove())
    whole = buffer.getvalue()
    path = tmp_path / "evidence.zip"
    path.write_bytes(whole)
    assert verify.verify_bundle(path, trust=TRUST, must_have_ended=True).ok
    before, passed = contents(path), 0
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        if verify.verify_bundle(path, trust=TRUST, must_have_ended=True).ok:
            assert contents(path) == before, at
            passed += 1
    assert 0 < passed < len(whole) / 10


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_of_wild_values_get_a_verdict(data: st.DataObject) -> None:
    """A record that its schema allows may still be nonsense: then a check fails, and none stumbles."""
    method = data.draw(
        st.sampled_from(("adaptive_kl", "filter", "lisa", "safety_mix", "fixed_kl", "vaccine"))
    )
    job = make_run(method) if data.draw(st.booleans()) else make_job()
    for _ in range(data.draw(st.integers(1, 3))):
        record = data.draw(st.sampled_from(job.records))
        change_somewhere(record.body, data)
    if data.draw(st.booleans()):
        seq = data.draw(st.integers(0, len(job.records) - 1))
        job.records.insert(seq, job.records[data.draw(st.integers(0, len(job.records) - 1))])
    try:
        leaves = job.leaves()
    except ValueError:
        return  # No leaf can hold this; other tests hand such ones to the verifier as they are.
    report = run(job, leaves, manifest_of(leaves))
    assert {check.name for check in report.checks} == set(CHECKS)
    assert verify.STUMBLED not in "\n".join(report.lines())


WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "NaN", "auto", "judge", "combined", "a" * 64, "x"]),
    st.lists(st.integers(0, 10), max_size=3),
    st.dictionaries(st.sampled_from(["type", "critics", "id", "rule", "weights"]), st.integers(0, 3)),
)


def change_somewhere(body: dict[str, Any], data: st.DataObject) -> None:
    """Put something wild into a body, at any depth."""
    place: Any = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(WILD)
        return


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_leaf_or_a_value_error(data: bytes) -> None:
    for parse in (ledger.parse_leaf, parse_canonical):
        try:
            parse(data)
        except ValueError:
            continue


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_quick_way_to_read_a_record_accepts_what_the_slow_one_does(data: st.DataObject) -> None:
    """Bytes that differ a little from canonical ones are refused by both, and what is accepted is written the same."""
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.floats()
        | st.text('ab\\" é\n\x7f', max_size=4),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text("ab~é", max_size=3), inner, max_size=4)
        ),
        max_leaves=12,
    )
    text = json.dumps(
        data.draw(values),
        ensure_ascii=data.draw(st.booleans()),
        sort_keys=data.draw(st.booleans()),
        separators=data.draw(st.sampled_from([(",", ":"), (", ", ": ")])),
    ).encode()
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.sampled_from([b"", b"0", b"-", b".0", b"e1", b" ", b"}"])) + text[at:]
    try:
        value = parse_canonical(text)
    except ValueError:
        return
    assert canonical_bytes(value) == text


def test_a_job_of_nothing_but_commands_is_read_in_bounded_time(job: SyntheticJob) -> None:
    job.records[1:] = [Record("cmd", {"command": "pause", "actor": "key-1"}, 0, 0) for _ in range(2000)]
    job.table = None
    assert run(job).ok
