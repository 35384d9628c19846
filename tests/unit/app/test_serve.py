"""The socket that the API listens on."""

import asyncio
import socket

from app.serve import listen


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
