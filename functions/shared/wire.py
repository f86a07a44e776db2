"""One kept-alive HTTP/1.1 connection that never blocks: the part of an HTTP client that posting needs.

A wire carries one request at a time. Its owner starts a request, waits with a selector until the socket is
ready for what `wants` says, and advances the wire, which gives the answer's status once the answer is
complete. Whatever goes wrong raises one of BROKEN; the wire is then of no more use and is to be closed.
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

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")

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
        self.used = False
        """Whether an answer has come through it: a used wire may have died while it was idle."""
        self.reusable = True
        """Whether the last answer lets the connection stay open."""

    def fileno(self) -> int:
        """The socket's file descriptor, for the selector."""
        return self._socket.fileno()

    @property
    def answering(self) -> bool:
        """Whether part of an answer has come: the request was taken, and is not to be sent again unasked."""
        return bool(self._received)

    def start(self, request: bytes) -> None:
        """Send a request, or as much of it as the socket takes now. The wire must be idle."""
        self._unsent, self._received = request, b""
        if self._open:
            self._send()

    def advance(self) -> int | None:
        """Do what the socket is ready for. Return the status of a complete answer, else None."""
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
        if not data:
            raise ConnectionResetError("closed before the answer was complete")
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4 or not self._body_is_complete(end):
            if len(self._received) > MAX_ANSWER_BYTES:
                raise ValueError("the answer is longer than any that @connections gives")
            return None
        status = _STATUS.match(self._received)
        if not status:
            raise ValueError("the answer is no HTTP/1.1")
        self.used = True
        self.reusable = not _CLOSE.search(self._received, 0, end)
        self._received = b""
        return int(status[1])

    def _body_is_complete(self, start: int) -> bool:
        length = _LENGTH.search(self._received, 0, start)
        if length:
            return len(self._received) >= start + int(length[1])
        if _CHUNKED.search(self._received, 0, start):
            return self._received.endswith(b"0\r\n\r\n")
        return True
