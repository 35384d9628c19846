"""The HTTP of the server: uvicorn's fast parser, and a bound that it lacks.

It keeps every header until the head of a request is whole, so that a client without any key could send one that fills
the memory; the lines after a body in chunks are kept in the same way.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class BoundedHttp(HttpToolsProtocol):
    """A connection that is refused once this many bytes have come without a whole head, or a piece of a body."""

    _has_advanced = False
    _unused_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read what has come, and refuse it where it leads nowhere."""
        self._has_advanced = False
        super().data_received(data)
        self._unused_bytes = 0 if self._has_advanced else self._unused_bytes + len(data)
        if self._unused_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._has_advanced = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on."""
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._has_advanced = True
        super().on_message_complete()
