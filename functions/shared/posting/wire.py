"""One kept-alive HTTP/1.1 connection that never blocks: the part of an HTTP client that posting needs.

A wire carries one request at a time. Its owner starts a request, waits with a selector until the socket is
ready for what `wants` says, and advances the wire, which returns the status of the answer. Everything that
goes wrong raises one of BROKEN; the wire is then of no more use and is to be closed.
"""

import re
import selectors
import socket
import ssl
from contextlib import suppress
from typing import Any

BROKEN = (OSError, ValueError)
"""What a connection that breaks (TLS failures are OSErrors) or an answer that is no HTTP raises."""

MAX_ANSWER_BYTES = 65_536
"""The answers of `@connections` are a few hundred bytes; more is no answer."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r\n(?![ \t])")

Address = tuple[int, Any]
"""An address family and the address in it, as `socket.getaddrinfo` gives them."""


class Wire:
    """A connection that opens while its first request waits. TLS is verified against `hostname`."""

    def __init__(
        self, address: Address, hostname: str, tls: ssl.SSLContext | None, session: ssl.SSLSession | None
    ) -> None:
        """Begin to connect. An earlier wire's TLS `session` spares most of the handshake."""
        family, where = address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect_ex(where)  # in progress; how it ended shows when the socket is writable
        self._tls, self._hostname, self._session = tls, hostname, session
        self._open = False
        self._unsent = b""
        self._received = b""
        self.wants = selectors.EVENT_WRITE
        self.kept = False
        """Whether it is left from an earlier batch and has not answered since: it may be dead."""
        self.used = False
        """Whether an answer has come through it: a used wire may have died while it was idle."""
        self.answering = False
        """Whether part of an answer has come: the server took the request."""
        self.status: int | None = None
        """The status of the answer as soon as it is known, even if the rest never comes."""
        self.reusable = False
        """Whether the answer was read to its end and the connection can carry another request."""

    def fileno(self) -> int:
        """The socket's file descriptor, for the selector."""
        return self._socket.fileno()

    @property
    def is_open(self) -> bool:
        """Whether the TCP connection, and TLS if any, is established."""
        return self._open

    def start(self, request: bytes) -> None:
        """Send a request, or as much of it as the socket takes now. The wire must be idle."""
        self._unsent, self._received = request, b""
        self.answering = self.reusable = False
        self.status = None
        if self._open:
            self._send()

    def advance(self) -> int | None:
        """Do what the socket is ready for. Return the status of an answer that has ended, else None.

        An answer ends with the bytes that its Content-Length announces. One that is framed in another way, or
        not at all, ends with its head: only the status matters, and the wire is then not `reusable`.
        """
        if not self._open:
            self._open_up()
        elif self._unsent:
            self._send()
        else:
            return self._receive()
        return None

    def tls_session(self) -> ssl.SSLSession | None:
        """The TLS session, for the next wires; there is one once an answer has come."""
        return self._socket.session if isinstance(self._socket, ssl.SSLSocket) else None

    def close(self) -> None:
        """Close without a goodbye: nothing is owed to a connection that carries no request."""
        self._socket.close()

    def _open_up(self) -> None:
        if not isinstance(self._socket, ssl.SSLSocket):
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "the connection was not made")
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
            raise ValueError("the answer is longer than any that @connections gives")
        self.used = True
        self.reusable = missing == 0
        return self.status


def read_answer(received: bytes) -> tuple[int | None, int | None]:
    """The status of the final answer in all that was received for one request, and how its body is framed.

    The status is None as long as the answer's head is not complete; 1xx answers are skipped. The second value
    is the number of bytes that are still to come. 0: the answer was read to its end. None: nobody can tell
    where it ends, or there is more than it announces, or its server closes, so that the connection must not
    carry another request. Raises ValueError for what is no HTTP/1.
    """
    start = 0
    while True:
        end = received.find(b"\r\n\r\n", start) + 4
        if end < 4:
            return None, None
        line = _STATUS.match(received, start)
        if not line:
            raise ValueError("the answer is no HTTP/1.1")
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
