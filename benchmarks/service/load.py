"""A load on a running server, as a process of its own: `python -m benchmarks.service.load '{"url": …}'`.

It speaks HTTP by hand over connections that stay open, because a client library would need more of the machine than
the server that is measured.
"""

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit


async def read_reply(reader: asyncio.StreamReader) -> int:
    """Read one reply to its end and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if length:
        await reader.readexactly(length)
    return int(head[9:12])


def request_of(host: str, key: str, path: str) -> bytes:
    """Return the bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\r\n".encode()


async def ask(
    url: str, key: str, path: str, *, seconds: float, connections: int, streams: int, stream_path: str
) -> dict[str, Any]:
    """Ask for a path again and again over some connections, while streams are open; return times and statuses."""
    where = urlsplit(url)
    host, port = where.hostname or "", where.port or 80
    times: list[float] = []
    failed = 0
    opened = 0
    messages = 0

    async def follow(ready: asyncio.Event) -> None:
        nonlocal opened, messages
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request_of(host, key, stream_path))
        opened += (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        ready.set()
        try:
            while line := await reader.readline():
                messages += line.startswith(b"event:")
        finally:
            writer.close()

    async def repeat(until: float) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection(host, port)
        wanted = request_of(host, key, path)
        while (began := time.perf_counter()) < until:
            writer.write(wanted)
            failed += await read_reply(reader) != 200
            times.append(time.perf_counter() - began)
        writer.close()

    followers = []
    for _ in range(streams):
        ready = asyncio.Event()
        followers.append(asyncio.create_task(follow(ready)))
        await ready.wait()
    began = time.perf_counter()
    await asyncio.gather(*(repeat(began + seconds) for _ in range(connections)))
    took = time.perf_counter() - began
    for follower in followers:
        follower.cancel()
    await asyncio.gather(*followers, return_exceptions=True)
    times.sort()
    return {
        "rate": len(times) / took,
        "requests": len(times),
        "p50_ms": times[len(times) // 2] * 1000,
        "p99_ms": times[min(len(times) - 1, len(times) * 99 // 100)] * 1000,
        "failed": failed,
        "streams": opened,
        "messages": messages,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(**json.loads(sys.argv[1])))))
