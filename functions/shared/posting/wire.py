"""A wire: one kept-alive, non-blocking HTTP/1.1 connection to the `@connections` endpoint.

The name keeps it apart from a WebSocket connection, which is a recipient of posts.

A wire carries one request at a time. Its owner starts a request, waits with a selector until the socket is
ready for `wants`, and calls `advance`, which returns the status once the answer is complete. Every failure
raises one of BROKEN. The owner must then close the wire.
"""

import re
import selectors
import socket
import ssl
from contextlib import suppress
from typing import Any

BROKEN = (OSError, ValueError)
"""What a broken connection (OSError, TLS failures included) or a malformed answer (ValueError) raises."""

MAX_ANSWER_BYTES = 65_536
"""The limit of an answer. Those of `@connections` have a few hundred bytes."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r\n(?![ \t])")

Address = tuple[int, Any]
"""An address family and an address, as `socket.getaddrinfo` returns them."""


class Wire:
    """One HTTP connection, opened by its first request. TLS certificates are verified against `hostname`."""

    def __init__(
        self, address: Address, hostname: str, tls: ssl.SSLContext | None, session: ssl.SSLSession | None
    ) -> None:
        """Start to connect. The TLS `session` of an earlier wire saves most of the TLS handshake."""
        family, where = address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect_ex(where)  # in progress; the result is known when the socket is writable
        self._tls, self._hostname, self._session = tls, hostname, session
        self._open = False
        self._unsent = b""
        self._received = b""
        self.wants = selectors.EVENT_WRITE
        self.kept = False
        """Whether it comes from an earlier batch and has not answered since. It may be dead."""
        self.used = False
        """Whether it has received an answer before. A used wire may have died while it was idle."""
        self.answering = False
        """Whether part of the answer has arrived, so that the server received the request."""
        self.status: int | None = None
        """The status of the answer as soon as it is known, before the answer is complete."""
        self.reusable = False
        """Whether the answer was read to its end, so that the wire can carry another request."""

    def fileno(self) -> int:
        """The socket's file descriptor, for the selector."""
        return self._socket.fileno()

    @property
    def is_open(self) -> bool:
        """Whether the TCP connection, and TLS if any, is established."""
        return self._open

    def start(self, request: bytes) -> None:
        """Start to send a request. The wire must be idle."""
        self._unsent, self._received = request, b""
        self.answering = self.reusable = False
        self.status = None
        if self._open:
            self._send()

    def advance(self) -> int | None:
        """Send or receive what the socket is ready for. Return the status of a complete answer, else None.

        An answer with a Content-Length is complete after that many bytes. Any other answer is complete after
        its head, because only the status matters; the wire is then not `reusable`.
        """
        if not self._open:
            self._open_up()
        elif self._unsent:
            self._send()
        else:
            return self._receive()
        return None

    def tls_session(self) -> ssl.SSLSession | None:
        """Return the TLS session for the next wires. It is None before the first answer and without TLS."""
        return self._socket.session if isinstance(self._socket, ssl.SSLSocket) else None

    def close(self) -> None:
        """Close the socket, without TLS's close_notify."""
        self._socket.close()

    def _open_up(self) -> None:
        if not isinstance(self._socket, ssl.SSLSocket):
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "the connection failed")
            if self._tls:
                self._socket = self._tls.wrap_socket(
                    self._socket,
                    server_hostname=self._hostname,
                    do_handshake_on_connect=False,
                    session=self._session,
                )
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.do_handshake()
            except ssl.SSLWantReadError:
                self.wants = selectors.EVENT_READ
                return
            except ssl.SSLWantWriteError:
                self.wants = selectors.EVENT_WRITE
                return
        self._open = True
        self._send()

    def _send(self) -> None:
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        self.wants = selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def _receive(self) -> int | None:
        try:
            data = self._socket.recv(MAX_ANSWER_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError:
            if self.status is None:
                raise
            return self.status
        if not data:
            if self.status is None:
                raise ConnectionResetError("closed before the answer was complete")
            return self.status
        self.answering = True
        self._received += data
        self.status, missing = read_answer(self._received)
        if self.status is None or missing:
            if len(self._received) <= MAX_ANSWER_BYTES:
                return None
            raise ValueError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        self.used = True
        self.reusable = missing == 0
        return self.status


def read_answer(received: bytes) -> tuple[int | None, int | None]:
    """Parse all bytes received for one request. Return the answer's status and the number of missing bytes.

    The status is None until the head is complete. 1xx answers are skipped. The second value is 0 when the
    answer was read to its end. It is None when the connection must not carry another request: the answer has
    no clear end, more bytes follow it than it announces, or the server closes the connection. Raises
    ValueError when the bytes are not HTTP/1.
    """
    start = 0
    while True:
        end = received.find(b"\r\n\r\n", start) + 4
        if end < 4:
            return None, None
        line = _STATUS.match(received, start)
        if not line:
            raise ValueError("the answer is not HTTP/1.1")
        minor, status = line.groups()
        if status >= b"200":
            break
        start = end
    head = received[start:end].lower()
    length = _LENGTH.search(head)
    if (
        minor == b"0"
        or not length
        or head.count(b"content-length") > 1
        or b"transfer-encoding" in head
        or b"close" in head
    ):
        return int(status), None
    missing = end + int(length[1]) - len(received)
    return int(status), missing if missing >= 0 else None
