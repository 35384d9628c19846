"""The HTTP of the server, over a real connection: what is answered, and what is refused before it fills the memory."""

import asyncio
from collections.abc import Iterator

import uvicorn

from app.bounded_http import MAX_HEAD_BYTES, BoundedHttp
from app.serve import listen


async def say_length(scope: dict, receive, send) -> None:  # type: ignore[no-untyped-def, type-arg]
    """An application that answers with how long the body is that it was sent."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message["body"])
        more = message["more_body"]
    body = str(length).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_all(pieces: Iterator[bytes]) -> tuple[bytes, int]:
    """Send pieces over one connection until the server has answered; return its answer and how much it took."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(say_length, http=BoundedHttp, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        answer = asyncio.create_task(reader.read(4096))
        taken = 0
        for piece in pieces:
            if answer.done():
                break
            writer.write(piece)
            taken += len(piece)
            try:
                await writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0.001)
        found = await asyncio.wait_for(answer, 30)
        writer.close()
        return found, taken
    finally:
        server.should_exit = True
        await running


def endless(start: bytes, piece: bytes) -> Iterator[bytes]:
    """Yield a beginning, and then eight megabytes."""
    yield start
    for _ in range(8 * 1024 * 1024 // len(piece)):
        yield piece


def refused(pieces: Iterator[bytes]) -> bool:
    """Say whether the server has refused this soon after what it keeps at most."""
    answer, taken = asyncio.run(send_all(pieces))
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    # What the two sockets hold comes on top.
    return taken < 64 * MAX_HEAD_BYTES


HEAD = b"POST / HTTP/1.1\r\nhost: here\r\n"


def test_body_of_any_length_is_handed_on() -> None:
    pieces = endless(HEAD + b"content-length: 8388608\r\n\r\n", b"x" * 65536)
    assert asyncio.run(send_all(pieces))[0].endswith(b"8388608")


def test_body_in_chunks_is_handed_on() -> None:
    def chunks() -> Iterator[bytes]:
        yield HEAD + b"transfer-encoding: chunked\r\n\r\n"
        for _ in range(64):
            yield b"1000\r\n" + b"x" * 4096 + b"\r\n"
        yield b"0\r\n\r\n"

    assert asyncio.run(send_all(chunks()))[0].endswith(b"262144")


def test_many_headers_without_an_end_are_refused() -> None:
    assert refused(endless(HEAD, b"x-more: 1\r\n" * 1000))


def test_header_without_an_end_is_refused() -> None:
    assert refused(endless(HEAD + b"x-more: ", b"x" * 16384))


def test_address_without_an_end_is_refused() -> None:
    assert refused(endless(b"GET /", b"x" * 16384))


def test_lines_without_an_end_after_a_body_in_chunks_are_refused() -> None:
    start = HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    assert refused(endless(start, b"x-more: 1\r\n" * 1000))
