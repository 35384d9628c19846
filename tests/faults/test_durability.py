"""What a power cut would leave of what was said to be kept: read from the system calls of a real process.

What `fsync` does cannot be seen while the power is on. So strace writes down every call, and a small model of a disk keeps
what is only in memory: the contents of files since their last `fsync`, and names in a folder since the folder's.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 120.0
CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,copy_file_range,sendfile"
)
MARK = "-- from here on --"
SCRIPTS = {
    "a file in storage": """
import io
from app.storage import local
def keep(root):
    local.store_stream(root / "storage", io.BytesIO(bytes(3_000_000)), max_bytes=None)
""",
    "what the notary signed last": """
from app.domain.installation_log import Checkpoint
from app.notary import keyfile
def keep(root):
    keyfile.make_folder(root / "notary")
    for size in (1, 2):
        keyfile.save_last(root / "notary", Checkpoint("a/log", size, bytes(32)))
""",
    "a checkpoint": """
from worker.training.checkpoint import write_checkpoint
def keep(root):
    write_checkpoint(root / "checkpoints", 7, {"adapter": bytes(100_000), "trainer": b"{}"})
""",
}
RUN = """
import sys
from pathlib import Path
root = Path(sys.argv[1])
root.mkdir()
print({mark!r}, flush=True)
keep(root)
"""

_CALL = re.compile(
    r"^(?:\d+\s+)?(?P<name>\w+)\((?P<arguments>.*)\)\s+=\s+(?P<result>-?\d+)(?:<(?P<opened>.*?)>)?"
)
_DESCRIPTOR = re.compile(r"^\d+<(.*?)>")
_PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Disk:
    """What is in memory alone, by what a process has called."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.contents: set[str] = set()
        """Files whose contents are not all on the disk."""
        self.names: set[str] = set()
        """Names that their folder on the disk does not have yet."""
        self.torn: list[str] = []
        """Names that were given to something whose contents were not on the disk."""

    def call(self, name: str, arguments: str, opened: str | None) -> None:
        """Note what a call that succeeded changes."""
        paths = [path for path in _PATHS.findall(arguments) if path.startswith(self.root)]
        descriptor = _DESCRIPTOR.match(arguments)
        if name == "openat" and "O_CREAT" in arguments and opened:
            self.names.add(opened)
            self.contents.add(opened)
        elif name in ("write", "pwrite64", "copy_file_range", "sendfile") and descriptor:
            self.contents.add(descriptor[1])
        elif name in ("fsync", "fdatasync") and descriptor:
            self._synchronise(descriptor[1])
        elif name.startswith("mkdir") and paths:
            self.names.add(paths[0])
        elif name.startswith("rename") and len(paths) == 2:
            self._rename(*paths)

    def lost(self) -> list[str]:
        """Return what a power cut would now take of what is there."""
        return sorted(
            path for path in self.contents | self.names if path.startswith(self.root) and Path(path).exists()
        )

    def _synchronise(self, path: str) -> None:
        self.contents.discard(path)
        self.names -= {name for name in self.names if str(Path(name).parent) == path}

    def _rename(self, before: str, after: str) -> None:
        below = f"{before}/"
        if any(path == before or path.startswith(below) for path in self.contents) or any(
            name.startswith(below) for name in self.names
        ):
            self.torn.append(after)
        for kept in (self.contents, self.names):
            moved = {path for path in kept if path == before or path.startswith(below)}
            kept.difference_update(moved)
            kept.update(after + path.removeprefix(before) for path in moved)
        self.names.add(after)


def trace(script: str, root: Path, folder: Path) -> Iterator[tuple[str, str, str | None]]:
    """Run a script under strace and yield its calls after the mark: name, arguments, and what was opened."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    out = folder / "strace.out"
    options = ["-f", "-y", "-qq", "--seccomp-bpf", "-s", "64", "-o", str(out), "-e", f"trace={CALLS}"]
    code = script + RUN.format(mark=MARK)
    done = subprocess.run(
        [program, *options, sys.executable, "-c", code, str(root)],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = iter(out.read_text(encoding="utf-8", errors="replace").splitlines())
    assert any(MARK in line for line in lines)
    for line in lines:
        assert "<unfinished" not in line, "a thread came between, which this does not read"
        found = _CALL.match(line)
        if found and int(found["result"]) >= 0:
            yield found["name"], found["arguments"], found["opened"]


@pytest.mark.parametrize("what", SCRIPTS)
def test_what_is_kept_outlives_a_power_cut(what: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    disk = Disk(root)
    synchronised = 0
    for name, arguments, opened in trace(SCRIPTS[what], root, tmp_path):
        synchronised += name in ("fsync", "fdatasync")
        disk.call(name, arguments, opened)
    assert disk.torn == [], "these had their name before their contents were on the disk"
    assert disk.lost() == [], "this would be gone"
    assert synchronised >= 2
    assert [path for path in root.rglob("*") if path.is_file()]


class TestDisk:
    """The model itself: it must not find everything good."""

    def test_contents_and_names_are_lost_until_they_are_synchronised(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        disk = Disk(tmp_path)
        disk.call("openat", f'AT_FDCWD, "{file}", O_WRONLY|O_CREAT|O_EXCL, 0666', str(file))
        disk.call("write", f'3<{file}>, "x"..., 10', None)
        disk.call("fsync", f"3<{file}>", None)
        assert disk.lost() == [str(file)], "its name is not on the disk"
        disk.call("fsync", f"4<{tmp_path}>", None)
        assert disk.lost() == []
        disk.call("write", f'3<{file}>, "x"..., 10', None)
        assert disk.lost() == [str(file)]

    def test_a_name_for_what_is_not_on_the_disk_is_torn(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path)
        aside, folder = tmp_path / ".aside", tmp_path / "folder"
        disk.call("mkdir", f'"{aside}", 0777', None)
        disk.call("openat", f'AT_FDCWD, "{aside}/file", O_WRONLY|O_CREAT, 0666', f"{aside}/file")
        disk.call("fsync", f"3<{aside}/file>", None)
        disk.call("rename", f'"{aside}", "{folder}"', None)
        assert disk.torn == [str(folder)], "the folder aside did not have the name of its file"
