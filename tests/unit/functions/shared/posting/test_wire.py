"""How answers are parsed, in any pieces. No answer is ever assigned to another request."""

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.shared.posting.wire import BROKEN, MAX_ANSWER_BYTES, Wire, read_answer
from tests.support.functions import properties
from tests.support.loopback import BODY, LONG, Answer, Endpoint, Request, gateway_to, old, outcomes

pytestmark = pytest.mark.usefixtures("no_waiting")

STATUSES = [200, 400, 403, 410, 413, 418, 451]
"""Only 410 is retried."""

INTERIM = b"".join(
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </410>\r\ncontent-length: 3\r\n\r\n",
    ]
)


def head(status: int, *fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"HTTP/%s %d Whatever" % (version, status), *fields, b"", b""])


@pytest.mark.parametrize(
    ("received", "status", "missing"),
    [
        (head(200, b"Content-Length: 0"), 200, 0),
        (head(410, b"content-length:3") + b"abc", 410, 0),
        (head(410, b"CONTENT-LENGTH: \t3 \t", b"date: now") + b"ab", 410, 1),
        (INTERIM + head(410, b"content-length: 0"), 410, 0),
        (head(200, b"content-length: 1") + b"ab", 200, None),
        (head(200, b"content-length: 0") + head(410, b"content-length: 0"), 200, None),
        (head(200, b"content-length: 0", b"Connection: Close"), 200, None),
        (head(200, b"content-length: 0", b"connection: x,close"), 200, None),
        (head(200, b"content-length: 0", version=b"1.0"), 200, None),
        (head(200), 200, None),
        (head(204), 204, None),
        (head(200, b"content-length: 1", b"content-length: 1") + b"a", 200, None),
        (head(200, b"content-length: 1,1") + b"a", 200, None),
        (head(200, b"content-length: +1") + b"a", 200, None),
        (head(200, b"content-length: -1"), 200, None),
        (head(200, b"content-length : 1") + b"a", 200, None),
        (head(200, b"content-length:", b" 1") + b"a", 200, None),
        (head(200, b"content-length: 1", b" 1") + b"a", 200, None),
        (head(200, b"x: y", b" content-length: 1") + b"a", 200, None),
        (head(200, b"content-length: 9999999") + b"a", 200, None),
        (head(200, b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 200, None),
        (head(200, b"content-length: 5", b"transfer-encoding:\tgzip, chunked") + b"0\r\n\r\n", 200, None),
        (
            head(410, b"transfer-encoding: chunked") + b"3;a=b\r\nabc\r\n0\r\nx: HTTP/1.1 200 OK\r\n\r\n",
            410,
            None,
        ),
    ],
    ids=str,
)
def test_the_status_is_read_with_every_framing(received: bytes, status: int, missing: int | None) -> None:
    assert read_answer(received) == (status, missing)


@pytest.mark.parametrize(
    "received", [b"", b"HTTP/1.1 200 OK", head(200)[:-1], INTERIM, INTERIM + head(410)[:-2]]
)
def test_there_is_no_status_before_the_head_is_complete(received: bytes) -> None:
    assert read_answer(received) == (None, None)


@pytest.mark.parametrize(
    "received",
    [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n"],
)
def test_bytes_that_are_not_http_are_rejected(received: bytes) -> None:
    with pytest.raises(ValueError, match="not HTTP"):
        read_answer(received)
    with pytest.raises(ValueError, match="not HTTP"):
        read_answer(INTERIM + received)


# Wires


@contextmanager
def connected() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire whose request is sent, and the server's socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        wire = Wire((socket.AF_INET, server.getsockname()), "127.0.0.1", None, None)
        peer, _ = server.accept()
        wire.start(b"request")
        while wire.wants != selectors.EVENT_READ:
            wire.advance()
        with peer:
            yield wire, peer
        wire.close()


def send(peer: socket.socket, wire: Wire, piece: bytes) -> int | None:
    """Send a piece and let the wire read it."""
    peer.sendall(piece)
    with selectors.DefaultSelector() as selector:
        selector.register(wire, selectors.EVENT_READ)
        assert selector.select(LONG)
    return wire.advance()


@properties
@given(
    interim=st.lists(st.sampled_from([100, 102, 103]), max_size=3),
    status=st.sampled_from(STATUSES),
    body=st.binary(max_size=20),
    name=st.sampled_from([b"Content-Length", b"content-length", b"cOnTeNt-LeNgTh"]),
    space=st.text(" \t", max_size=3),
    cuts=st.sets(st.integers(1, 400), max_size=12),
)
def test_an_answer_in_pieces_is_read_like_a_whole_one(
    interim: list[int], status: int, body: bytes, name: bytes, space: str, cuts: set[int]
) -> None:
    blank = space.encode()
    field = name + b":" + blank + b"%d" % len(body) + blank
    text = b"".join(head(code) for code in interim) + head(status, b"date: now", field) + body
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    with connected() as (wire, peer):
        statuses = [send(peer, wire, text[a:b]) for a, b in pairwise(places)]
    assert statuses == [None] * (len(statuses) - 1) + [status]
    assert wire.reusable


def test_an_answer_that_never_ends_breaks_the_wire() -> None:
    with connected() as (wire, peer):
        for _ in range(MAX_ANSWER_BYTES // 1024):
            assert send(peer, wire, b"x" * 1024) is None
        with pytest.raises(BROKEN):
            send(peer, wire, b"x")


# Whole batches: bytes after an answer are not the answer to the next request

FRAMINGS = {
    "length": lambda status: head(status, b"content-length: 2") + b"{}",
    "nothing": lambda status: head(status, b"content-length: 0"),
    "chunks": lambda status: (
        head(status, b"transfer-encoding: chunked") + b"2;x=y\r\n{}\r\n0\r\ntrailer: 1\r\n\r\n"
    ),
    "the end": lambda status: head(status, b"connection: close") + b"{}",
    "1.0": lambda status: head(status, b"content-length: 2", version=b"1.0") + b"{}",
    "two lengths": lambda status: head(status, b"content-length: 2", b"content-length: 0") + b"{}",
    "a length with a sign": lambda status: head(status, b"content-length: +2") + b"{}",
}
SURPLUS = [
    b"",
    b"",
    b"\r\n",
    b"{}",
    head(200, b"content-length: 0"),
    head(410, b"content-length: 0"),
    INTERIM,
]


@properties
@given(
    fates=st.lists(
        st.tuples(
            st.sampled_from(STATUSES),
            st.sampled_from([b"", b"", INTERIM]),
            st.sampled_from(sorted(FRAMINGS)),
            st.sampled_from(SURPLUS),
            st.lists(st.integers(1, 150), max_size=2),
        ),
        min_size=2,
        max_size=10,
    ),
    concurrency=st.integers(1, 3),
)
def test_no_answer_is_assigned_to_another_recipient(
    fates: list[tuple[int, bytes, str, bytes, list[int]]], concurrency: int
) -> None:
    async def decide(request: Request) -> Answer:
        status, before, framing, after, cuts = fates[int(request.connection_id)]
        text = before + FRAMINGS[framing](status)
        places = [0, *sorted({cut for cut in cuts if cut < len(text)}), len(text)]
        pieces = [text[a:b] for a, b in pairwise(places)]
        pieces[-1] += after
        return Answer(tuple(pieces), "close" if framing in ("the end", "1.0") else "keep")

    with Endpoint(decide) as endpoint, gateway_to(endpoint.url, concurrency) as opened:
        posted = opened.post(old(*map(str, range(len(fates)))), BODY, time.monotonic() + LONG)
    wanted = {200: "delivered", 410: "gone"}
    assert outcomes(posted) == {str(n): wanted.get(fate[0], "failed") for n, fate in enumerate(fates)}
    assert [endpoint.posts_to(str(n)) for n in range(len(fates))] == [
        2 if fate[0] == 410 else 1 for fate in fates
    ]
