"""The socket that the API listens on, and that a folder has one service."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.serve import alone_in, listen


def test_replies_leave_at_once() -> None:
    """Without TCP_NODELAY the body of a reply waits until its head is acknowledged, most often for 40 ms."""
    found: list[int] = []

    async def run() -> None:
        listening = listen("127.0.0.1", 0)

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("socket")
            found.append(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(answer, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    asyncio.run(run())
    assert found == [1]


HOLD = "import sys; from pathlib import Path; from app.serve import alone_in\nwith alone_in(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"


class TestAloneIn:
    def test_second_service_on_a_folder_is_refused_with_who_has_it(self, tmp_path: Path) -> None:
        with (
            alone_in(tmp_path),
            pytest.raises(ConfigurationError, match=rf"\(process {os.getpid()}\) runs on the folder"),
            alone_in(tmp_path),
        ):
            pass
        with alone_in(tmp_path):
            pass

    def test_killed_service_lets_go(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(ConfigurationError, match=f"process {holder.pid}"), alone_in(tmp_path):
                pass
            holder.kill()
            holder.wait()
            with alone_in(tmp_path):
                pass

    def test_folders_of_their_own_do_not_meet(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with alone_in(tmp_path / "a"), alone_in(tmp_path / "b"):
            pass
