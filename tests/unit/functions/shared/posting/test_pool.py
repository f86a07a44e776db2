"""How HTTP connections are opened, reused and replaced."""

import asyncio
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from functions.shared.posting import batch, pool
from functions.shared.posting.batch import ATTEMPTS
from tests.support.functions import shorten_timeouts
from tests.support.loopback import (
    BODY,
    CHUNKED,
    DIES_LATER,
    IN_PIECES,
    LONG,
    OK,
    RESET,
    SILENT,
    Answer,
    Endpoint,
    Request,
    answer,
    gateway_to,
    old,
    outcomes,
    post,
    scripted,
)

pytestmark = pytest.mark.usefixtures("no_waiting")


# Reuse and replacement


def test_connections_are_kept_from_post_to_post_and_from_batch_to_batch() -> None:
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url, concurrency=1) as opened:
        for _ in range(3):
            posted = opened.post(old("c1", "c2", "c3"), BODY, time.monotonic() + LONG)
            assert posted.count("delivered") == 3
    assert len(endpoint.requests) == 9
    assert endpoint.streams == 1


def test_a_connection_that_the_server_will_close_is_not_reused() -> None:
    closing_some_time = Answer(answer(200, close=True).pieces, "keep")
    with Endpoint(scripted({}, otherwise=[closing_some_time])) as endpoint:
        posted = post(endpoint.url, old("c1", "c2", "c3"), concurrency=1)
    assert (posted.count("delivered"), posted.retries) == (3, 0)
    assert endpoint.streams == 3


def test_dead_kept_connections_are_replaced_without_a_retry() -> None:
    with Endpoint(scripted({}, otherwise=[DIES_LATER])) as endpoint, gateway_to(endpoint.url) as opened:
        for _ in range(3):
            posted = opened.post(old("c1", "c2", "c3", "c4"), BODY, time.monotonic() + LONG)
            assert (posted.count("delivered"), posted.retries) == (4, 0)
            while endpoint.open:
                time.sleep(0.001)
    assert len(endpoint.requests) == 12


def test_a_kept_connection_that_resets_on_a_request_is_replaced_without_a_retry() -> None:
    with (
        Endpoint(scripted({"c2": [RESET, OK]})) as endpoint,
        gateway_to(endpoint.url, concurrency=1) as opened,
    ):
        posted = opened.post(old("c1", "c2"), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (2, 0)
    assert endpoint.posts_to("c2") == 2


def test_kept_connections_that_died_together_use_up_no_attempt() -> None:
    frozen: set[int] = set()

    async def dead_since(request: Request) -> Answer:
        return RESET if request.stream in frozen else OK

    with Endpoint(dead_since) as endpoint, gateway_to(endpoint.url, concurrency=4) as opened:
        opened.post(old("c1", "c2", "c3", "c4"), BODY, time.monotonic() + LONG)
        frozen.update(request.stream for request in endpoint.requests)
        posted = opened.post(old("c5"), BODY, time.monotonic() + LONG)
    assert (outcomes(posted), posted.retries) == ({"c5": "delivered"}, 0)
    assert endpoint.posts_to("c5") == 2


def test_a_post_whose_connection_died_is_repeated_on_a_new_one() -> None:
    """Only connections that carry the post to "victim" reset."""
    with (
        Endpoint(scripted({"victim": [RESET, RESET, RESET, OK]})) as endpoint,
        gateway_to(endpoint.url) as opened,
    ):
        opened.post(old(*(f"c{n}" for n in range(20))), BODY, time.monotonic() + LONG)
        used = {request.stream for request in endpoint.requests}
        posted = opened.post(old("victim"), BODY, time.monotonic() + LONG)
    assert posted.count("delivered") == 1
    first, *others = (request.stream for request in endpoint.requests if request.connection_id == "victim")
    assert first in used
    assert not used & {*others}
    assert len({*others}) == len(others) == 3


def test_later_retries_of_a_post_use_kept_connections_again() -> None:
    script = scripted({"c2": [RESET, answer(503), answer(503), OK]})
    with Endpoint(script) as endpoint, gateway_to(endpoint.url, concurrency=1) as opened:
        posted = opened.post(old("c1", "c2"), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (2, 2)
    assert endpoint.streams == 2


def test_a_request_that_breaks_every_connection_fails_after_the_last_attempt() -> None:
    with Endpoint(scripted({"killer": [RESET]})) as endpoint:
        posted = post(endpoint.url, old("c1", "killer", "c2"), concurrency=1)
    assert outcomes(posted) == {"c1": "delivered", "killer": "failed", "c2": "delivered"}
    assert endpoint.posts_to("killer") == ATTEMPTS + 1  # the first broken connection does not count


def test_a_connection_that_was_idle_for_too_long_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0)
    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url, concurrency=1) as opened:
        for _ in range(3):
            assert opened.post(old("c1"), BODY, time.monotonic() + LONG).count("delivered") == 1
    assert endpoint.streams == 3


class Freeze:
    """Answers at once. When `deep` is set, the connections that were open until then stay silent."""

    def __init__(self) -> None:
        self.deep = False
        self.known: set[int] = set()

    async def __call__(self, request: Request) -> Answer:
        if not self.deep:
            self.known.add(request.stream)
            return OK
        return SILENT if request.stream in self.known else OK


def test_one_recipient_waits_for_one_dead_connection_only(hurried: None) -> None:
    freeze = Freeze()
    with Endpoint(freeze) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old(*(f"c{n}" for n in range(30))), BODY, time.monotonic() + LONG)
        assert len(freeze.known) == 8
        freeze.deep = True
        posted = opened.post(old("one"), BODY, time.monotonic() + LONG)
    assert (outcomes(posted), posted.retries) == ({"one": "delivered"}, 0)
    assert endpoint.posts_to("one") == 2


def test_dead_connections_are_found_before_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_timeouts(monkeypatch, LONG)
    monkeypatch.setattr(batch, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(batch, "REVIEW_SECONDS", 0.01)
    freeze = Freeze()
    with Endpoint(freeze) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old(*(f"c{n}" for n in range(30))), BODY, time.monotonic() + LONG)
        freeze.deep = True
        started = time.monotonic()
        posted = opened.post(old(*(f"d{n}" for n in range(50))), BODY, started + LONG)
        took = time.monotonic() - started
    assert (posted.count("delivered"), posted.retries) == (50, 0)
    assert took < LONG / 4
    assert sum(endpoint.posts_to(f"d{n}") for n in range(50)) == 50 + 8  # 8 were sent on dead connections


def test_slow_kept_connections_are_not_taken_for_dead(hurried: None) -> None:
    """At most one post is repeated to test them."""

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(0.15 if slow else 0)
        return OK

    slow = False
    with Endpoint(slowly) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old(*(f"c{n}" for n in range(30))), BODY, time.monotonic() + LONG)
        slow = True
        posted = opened.post(old(*(f"d{n}" for n in range(40))), BODY, time.monotonic() + LONG)
    assert (posted.count("delivered"), posted.retries) == (40, 0)
    assert sum(endpoint.posts_to(f"d{n}") for n in range(40)) <= 41


# Connect and resolve


def test_an_endpoint_that_refuses_connections_fails_every_recipient() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # it never listens
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/live"
        posted = post(url, old("c1", "c2"))
    assert outcomes(posted) == {"c1": "failed", "c2": "failed"}
    assert posted.retries == 2 * (ATTEMPTS - 1)


def test_a_host_without_an_address_fails_every_recipient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    started = time.monotonic()
    posted = post(
        "https://abc123.execute-api.eu-west-1.amazonaws.com/live", old(*(f"c{n}" for n in range(50)))
    )
    assert posted.count("failed") == 50
    assert time.monotonic() - started < LONG / 2
    assert set(asked) == {"abc123.execute-api.eu-west-1.amazonaws.com"}


def test_a_look_up_that_hangs_does_not_delay_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hanging(*_: Any, **__: Any) -> Any:
        over.wait(LONG)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    started = time.monotonic()
    with gateway_to("http://h.example/live") as opened:
        posted = opened.post(old("c1", "c2"), BODY, started + 0.2)
        assert time.monotonic() - started < 2
        over.set()
    assert posted.count("failed") == 2


def test_a_slow_look_up_does_not_shorten_the_timeout_of_a_post(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout is 0.4 s, the look-up takes 0.3 s and the answer 0.2 s."""
    real = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        threading.Event().wait(0.3)
        return real(*arguments, **options)

    async def late(request: Request) -> Answer:
        await asyncio.sleep(0.2)
        return OK

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    shorten_timeouts(monkeypatch, 0.4)
    with Endpoint(late) as endpoint:
        posted = post(endpoint.url, old("c1"))
    assert (outcomes(posted), posted.retries) == ({"c1": "delivered"}, 0)


def test_known_addresses_are_used_while_a_look_up_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, over, asked = socket.getaddrinfo, threading.Event(), []

    def hanging(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        over.wait(LONG)
        return real(*arguments, **options)

    with Endpoint(scripted({})) as endpoint, gateway_to(endpoint.url) as opened:
        opened.post(old("c1"), BODY, time.monotonic() + LONG)
        monkeypatch.setattr(socket, "getaddrinfo", hanging)
        monkeypatch.setattr(pool, "ADDRESS_SECONDS", 0.0)
        opened._pool._addresses_until = 0.0
        opened._pool.drop_idle()
        started = time.monotonic()
        for _ in range(3):
            posted = opened.post(old("c1", "c2"), BODY, started + LONG)
            assert (posted.count("delivered"), posted.retries) == (2, 0)
            opened._pool.drop_idle()
        assert time.monotonic() - started < 1
        over.set()
    assert len(asked) == 1


# TLS


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's TLS context for 127.0.0.1. Its certificate is `folder`/ca.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


def test_tls_connections_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with (
        Endpoint(scripted({"c3": [answer(503), RESET, CHUNKED]}, otherwise=[IN_PIECES]), tls) as endpoint,
        gateway_to(endpoint.url, concurrency=2) as opened,
    ):
        for _ in range(2):
            posted = opened.post(old(*(f"c{n}" for n in range(10))), BODY * 1000, time.monotonic() + LONG)
            assert posted.count("delivered") == 10
    assert {request.body for request in endpoint.requests} == {BODY * 1000}
    assert endpoint.streams <= 6  # 2, one more after the reset, and one after each chunked answer


def test_nothing_is_sent_to_a_server_whose_certificate_is_not_trusted(tmp_path: Path) -> None:
    with Endpoint(scripted({}), certificate(tmp_path)) as endpoint:
        posted = post(endpoint.url, old("c1", "c2"))
    assert posted.count("failed") == 2
    assert endpoint.requests == []
