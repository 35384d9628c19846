"""Bounding the memory of a process: what a real process meets, and what the kernel is told where it has groups for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.memory_limit import (
    DELEGATED,
    MEMBERSHIP,
    ROOT,
    _find_parent,
    limit_memory,
    remove_empty_groups,
    remove_group,
)

MIB = 2**20

PROGRAM = """
import sys
from worker.memory_limit import limit_memory
print(limit_memory({limit}, "test-limit", on_gpu={on_gpu}))
{rest}
"""
TORCH = """
import torch
from worker.training.memory import is_out_of_memory
torch.set_num_threads(1)
print(torch.ones(1000, 1000).sum().item())
try:
    torch.ones(2**30)
except Exception as error:
    print(is_out_of_memory(error))
"""

is_ours = pytest.mark.skipif(
    _find_parent(MEMBERSHIP, ROOT) is None, reason="no control group of this machine is given to this process"
)


def run(limit: int, rest: str = "", *, on_gpu: bool = False) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(limit=limit, on_gpu=on_gpu, rest=rest)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's data")
def test_torch_works_below_the_limit_and_above_it_memory_runs_out() -> None:
    done = run(2048 * MIB, TORCH)
    assert done.stdout.splitlines()[1:] == ["1000000.0", "True"], done.stderr
    assert done.stdout.splitlines()[0] in ("rlimit", "cgroup")


def test_no_limit_is_the_default() -> None:
    done = run(0, "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0])")
    assert done.stdout.splitlines() == ["None", "-1"]


@pytest.mark.skipif(_find_parent(MEMBERSHIP, ROOT) is not None, reason="a control group serves here")
def test_with_a_gpu_only_a_control_group_limits_and_its_lack_is_told() -> None:
    done = run(64 * MIB, "x = bytearray(2**28); print(len(x))", on_gpu=True)
    assert done.stdout.splitlines() == ["None", str(2**28)]
    assert "TETHER_TRAINER_MEMORY_BYTES has no effect" in done.stderr


@is_ours
def test_the_kernel_ends_what_goes_beyond_its_group_and_counts_it() -> None:
    done = run(256 * MIB, "x = bytearray(2**30); print('still here')")
    assert done.returncode == -9
    assert remove_group("test-limit") >= 1
    assert remove_group("test-limit") == 0


class TestWhatTheKernelIsTold:
    """On files as the kernel documents them: control groups of version 2 with memory are not on every machine."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """A tree in which systemd gave a group away, with our own process in a group below it."""
        root = tmp_path / "cgroup"
        (root / "system.slice/tether.service/worker").mkdir(parents=True)
        try:
            os.setxattr(root / "system.slice/tether.service", DELEGATED, b"1")
        except (OSError, AttributeError) as error:
            pytest.skip(f"the temporary folder keeps no extended attributes ({error})")
        (tmp_path / "membership").write_text("0::/system.slice/tether.service/worker\n")
        return root

    @pytest.fixture
    def membership(self, root: Path) -> Path:
        return root.parent / "membership"

    def test_a_group_of_its_own_beside_ours(self, root: Path, membership: Path) -> None:
        how = limit_memory(5 * MIB, "host:process-1", on_gpu=True, membership=membership, root=root)
        assert how == "cgroup"
        parent = root / "system.slice/tether.service"
        group = parent / "tether-host-process-1"
        assert (parent / "cgroup.subtree_control").read_text() == "+memory"
        told = {each.name: each.read_text() for each in group.iterdir()}
        assert told == {
            "memory.max": str(5 * MIB),
            "memory.swap.max": "0",
            "memory.oom.group": "1",
            "cgroup.procs": str(os.getpid()),
        }

    def test_a_group_that_nobody_gave_away_is_not_touched(self, root: Path, membership: Path) -> None:
        os.removexattr(root / "system.slice/tether.service", DELEGATED)
        before = sorted(root.rglob("*"))
        assert limit_memory(5 * MIB, "p", on_gpu=True, membership=membership, root=root) is None
        assert sorted(root.rglob("*")) == before

    @pytest.mark.parametrize("lines", ["", "0::/\n", "4:memory:/a/b\n0::/\n", "0::/../../etc/passwd\n"])
    def test_a_process_without_a_group_of_its_own_gets_none(
        self, root: Path, tmp_path: Path, lines: str
    ) -> None:
        (tmp_path / "membership").write_text(lines)
        assert limit_memory(5 * MIB, "p", on_gpu=True, membership=tmp_path / "membership", root=root) is None

    def test_groups_that_dead_workers_left_are_removed(self, root: Path, membership: Path) -> None:
        parent = root / "system.slice/tether.service"
        for name in ("tether-left", "tether-used", "another"):
            (parent / name).mkdir()
        # As the kernel keeps a group with processes, a folder with a file stays.
        (parent / "tether-used/cgroup.procs").write_text("1")
        remove_empty_groups(membership=membership, root=root)
        assert sorted(each.name for each in parent.iterdir()) == ["another", "tether-used", "worker"]

    def test_the_kills_of_a_group_are_counted_and_the_group_goes(
        self, root: Path, membership: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group = root / "system.slice/tether.service/tether-p"
        group.mkdir()
        (group / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n")
        # The kernel removes a group with its files; a folder goes only when it is empty.
        monkeypatch.setattr("worker.memory_limit.REMOVAL_TRIES", 1)
        monkeypatch.setattr("worker.memory_limit.REMOVAL_PAUSE_S", 0.0)
        assert remove_group("p", membership=membership, root=root) == 3
        assert (group / "cgroup.kill").read_text() == "1"
        assert remove_group("q", membership=membership, root=root) == 0
