"""The kernel's count of processes that it killed for want of memory."""

from pathlib import Path

import pytest

from worker.memory import count_oom_kills


@pytest.mark.parametrize(
    ("membership", "file", "content"),
    [
        (
            "0::/system.slice/tether.service\n",
            "system.slice/tether.service/memory.events",
            "oom 4\noom_kill 3\n",
        ),
        # Within a container the group has the host's name, and its files lie at the root.
        ("0::/docker/1a2b\n", "memory.events", "low 0\noom_kill 3\noom_group_kill 0\n"),
        (
            "5:cpu:/x\n4:blkio,memory:/x\n0::/x\n",
            "memory/x/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        ),
    ],
)
def test_the_count_is_found_where_the_system_has_it(
    tmp_path: Path, membership: str, file: str, content: str
) -> None:
    (tmp_path / "membership").write_text(membership)
    (tmp_path / "root" / file).parent.mkdir(parents=True)
    (tmp_path / "root" / file).write_text(content)
    assert count_oom_kills(tmp_path / "membership", tmp_path / "root") == 3


def test_where_the_system_does_not_say_there_is_none(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path / "membership", tmp_path) is None
    (tmp_path / "membership").write_text("0::/x\n")
    assert count_oom_kills(tmp_path / "membership", tmp_path) is None


def test_asking_this_system_never_raises() -> None:
    found = count_oom_kills()
    assert found is None or found >= 0
