"""A JWKS endpoint on the loopback interface, with two key pairs."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, algorithm: str, **changes: Any) -> dict[str, Any]:
    """The public key as a JWK; members that are None are omitted."""
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    members = {**public, "alg": algorithm, "use": "sig", **changes}
    return {name: value for name, value in members.items() if value is not None}


class Jwks(ThreadingHTTPServer):
    """Publishes keys, and records the headers of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, str]] = []
        self.status = 200
        self.body = b""
        self.answering = threading.Event()
        """Requests wait while this is not set."""
        self.answering.set()
        self.publish(jwk(RSA, "RS256", kid="rsa"), jwk(EC, "ES256", kid="ec"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks.json"

    @property
    def reads(self) -> int:
        return len(self.requests)

    def publish(self, *keys: Any) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[Self]:
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever, args=[0.01])
            thread.start()
            yield server
            server.answering.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Jwks)
        self.server.requests.append({name.lower(): value for name, value in self.headers.items()})
        self.server.answering.wait(30)
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""
