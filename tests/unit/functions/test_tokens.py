import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from functions.shared import tokens
from functions.shared.errors import KeysUnavailable, TokenRefused, reply
from functions.shared.settings import Jwt
from functions.shared.tokens import Claims, Offer, Verifier, find

from .aws import SecretsManager
from .support import AUDIENCE, ISSUER, SECRET, leaks, properties, token

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
RSA_PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def settings(*algorithms: str, jwks_url: str | None = None) -> Jwt:
    return Jwt(
        jwt_algorithms=algorithms,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_secret_arn=None if jwks_url else "arn:secret",
        jwt_jwks_url=jwks_url,
    )


def hmac_verifier(*algorithms: str, secret: str = SECRET) -> Verifier:
    return Verifier(settings(*(algorithms or ("HS256",))), SecretsManager(secret).client)


def refusal(verifier: Verifier, presented: str) -> str:
    """Why a token is refused; in no form does the refusal hold any of it."""
    with pytest.raises(TokenRefused) as refused:
        verifier.verify(presented)
    shown = [str(refused.value), repr(refused.value), json.dumps(reply(refused.value, None))]
    assert not any(leaks(presented, text) for text in shown)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return refused.value.reason


class Jwks(ThreadingHTTPServer):
    """A JWKS endpoint on the loopback interface that counts how often it is read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _JwksHandler)
        self.body = json.dumps({"keys": [_jwk(RSA, "rsa", "RS256"), _jwk(EC, "ec", "ES256")]}).encode()
        self.reads = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks.json"


class _JwksHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Jwks)
        self.server.reads += 1
        self.send_response(200)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "alg": algorithm, "use": "sig"}


@pytest.fixture
def jwks() -> Iterator[Jwks]:
    with Jwks() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("value", ["a.b.c", "Bearer a.b.c"])
@pytest.mark.parametrize("place", ["query", "Authorization", "authorization", "AUTHORIZATION"])
def test_the_token_is_found_in_the_query_and_in_the_header_of_any_case(place: str, value: str) -> None:
    event = (
        {"queryStringParameters": {"Authorization": value}}
        if place == "query"
        else {"headers": {place: value}}
    )
    assert find(event) == Offer("a.b.c", None)


@pytest.mark.parametrize(
    ("offered", "offer"),
    [
        ("muster, a.b.c", Offer("a.b.c", "muster")),
        ("a.b.c,muster", Offer("a.b.c", "muster")),
        ("a.b.c", Offer("a.b.c", "a.b.c")),
        ("graphql-ws, a.b.c, muster", Offer("a.b.c", "muster")),
    ],
)
def test_of_the_subprotocols_offered_muster_is_selected_or_else_the_token(offered: str, offer: Offer) -> None:
    assert find({"headers": {"Sec-WebSocket-Protocol": offered}}) == offer


def test_muster_is_selected_too_when_the_token_comes_another_way() -> None:
    event = {
        "queryStringParameters": {"Authorization": "a.b.c"},
        "headers": {"Sec-WebSocket-Protocol": "muster"},
    }
    assert find(event) == Offer("a.b.c", "muster")


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"headers": None, "queryStringParameters": None},
        {"headers": {"Host": "h", "Sec-WebSocket-Protocol": "muster"}},
        {"queryStringParameters": {"Authorization": ""}, "headers": {"Sec-WebSocket-Protocol": " , "}},
    ],
)
def test_a_missing_token_is_refused_as_missing(event: dict[str, Any]) -> None:
    with pytest.raises(TokenRefused) as refused:
        find(event)
    assert refused.value.reason == "missing"


def test_a_good_token_gives_its_user_and_its_end() -> None:
    end = int(time.time()) + 60
    assert hmac_verifier().verify(token("u7", exp=end)) == Claims("u7", end)


@pytest.mark.parametrize(
    ("presented", "reason"),
    [
        ("", "malformed"),
        ("not a token", "malformed"),
        ("a.b.c", "malformed"),
        (token("u2").rpartition(".")[0] + "." + token("u1").rpartition(".")[2], "signature"),
        (token(key="another secret, as long as it needs to be for HS256"), "signature"),
        (token(exp=int(time.time()) - 1), "expired"),
        (token(nbf=int(time.time()) + 3600), "claims"),
        (token(iss="another"), "claims"),
        (token(aud="another"), "claims"),
        (token(exp=None), "claims"),
        (token(sub=None), "claims"),
        (token(iss=None), "claims"),
        (token(aud=None), "claims"),
        (token(sub=""), "claims"),
        (token(sub=7), "claims"),
        (token(key="", algorithm="none"), "algorithm"),
        (token(algorithm="HS512"), "algorithm"),
    ],
    ids=[
        "empty",
        "text",
        "garbage",
        "claims-exchanged",
        "other-key",
        "expired",
        "not-yet",
        "iss",
        "aud",
        "no-exp",
        "no-sub",
        "no-iss",
        "no-aud",
        "empty-sub",
        "sub-a-number",
        "alg-none",
        "alg-not-configured",
    ],
)
def test_a_token_that_does_not_hold_is_refused_for_its_reason(presented: str, reason: str) -> None:
    assert refusal(hmac_verifier("HS256"), presented) == reason


VERIFIER = hmac_verifier()


@properties
@given(
    st.text()
    | st.lists(
        st.binary(max_size=30).map(lambda part: base64.urlsafe_b64encode(part).decode()),
        min_size=3,
        max_size=3,
    ).map(".".join)
)
def test_no_text_whatever_does_anything_but_be_refused(presented: str) -> None:
    with pytest.raises(TokenRefused):
        VERIFIER.verify(presented)


def test_every_configured_hmac_algorithm_verifies() -> None:
    verifier = hmac_verifier("HS256", "HS384", "HS512")
    assert {verifier.verify(token(algorithm=name)).user_id for name in ("HS256", "HS384", "HS512")} == {"u1"}


def test_rs256_and_es256_tokens_verify_with_the_keys_of_the_jwks(jwks: Jwks) -> None:
    verifier = Verifier(settings("RS256", "ES256", jwks_url=jwks.url), secrets=None)
    assert verifier.verify(token("u1", RSA, "RS256", kid="rsa")).user_id == "u1"
    assert verifier.verify(token("u2", EC, "ES256", kid="ec")).user_id == "u2"


def test_an_hmac_keyed_with_the_public_key_is_refused_before_any_key_is_fetched(jwks: Jwks) -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa","typ":"JWT"}').rstrip(b"=")
    body = token().split(".")[1].encode()
    key = jwt.get_algorithm_by_name("HS256")
    # PyJWT would refuse to make this token, so it is put together by hand.
    signature = base64.urlsafe_b64encode(key.sign(header + b"." + body, RSA_PEM)).rstrip(b"=")
    forged = b".".join([header, body, signature]).decode()
    assert jwt.decode(forged, options={"verify_signature": False})["sub"] == "u1"
    assert refusal(Verifier(settings("RS256", jwks_url=jwks.url), secrets=None), forged) == "algorithm"
    assert jwks.reads == 0


@pytest.mark.parametrize(
    ("presented", "reason"),
    [
        (token(key=RSA, algorithm="RS256", kid="ec"), "algorithm"),
        (token(key=rsa.generate_private_key(65537, 2048), algorithm="RS256", kid="rsa"), "signature"),
        (token(key=RSA, algorithm="RS256", kid="unknown"), "key"),
        (token(key=RSA, algorithm="RS256"), "key"),
        (token(key=RSA, algorithm="RS384", kid="rsa"), "algorithm"),
    ],
    ids=["key-of-the-other-family", "other-key", "unknown-kid", "no-kid", "alg-not-configured"],
)
def test_a_key_pair_token_that_does_not_hold_is_refused(jwks: Jwks, presented: str, reason: str) -> None:
    assert refusal(Verifier(settings("RS256", "ES256", jwks_url=jwks.url), None), presented) == reason


def test_the_jwks_is_read_once_and_not_again_for_unknown_keys(jwks: Jwks) -> None:
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), secrets=None)
    for _ in range(3):
        verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
        refusal(verifier, token(key=RSA, algorithm="RS256", kid="made up to have the keys fetched"))
    assert jwks.reads == 1


def test_the_jwks_is_read_again_after_its_lifetime(jwks: Jwks, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), secrets=None)
    good, now = token(key=RSA, algorithm="RS256", kid="rsa"), time.monotonic()
    verifier.verify(good)
    monkeypatch.setattr(time, "monotonic", lambda: now + tokens.KEY_LIFETIME_SECONDS - 1)
    verifier.verify(good)
    assert jwks.reads == 1
    monkeypatch.setattr(time, "monotonic", lambda: now + tokens.KEY_LIFETIME_SECONDS + 1)
    verifier.verify(good)
    assert jwks.reads == 2


def test_unreachable_keys_refuse_nobody_and_say_so() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks.json"
        verifier = Verifier(settings("RS256", jwks_url=url), secrets=None)
        with pytest.raises(KeysUnavailable, match=url):
            verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))


@pytest.mark.parametrize("body", [b"<html>down</html>", b"[]", b'{"keys": []}'])
def test_an_answer_that_is_no_jwks_refuses_nobody(jwks: Jwks, body: bytes) -> None:
    jwks.body = body
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), secrets=None)
    with pytest.raises(KeysUnavailable, match=jwks.url):
        verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))


def test_keys_that_become_unreachable_refuse_no_new_key(jwks: Jwks, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), secrets=None)
    verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
    jwks.body = b"<html>down</html>"
    soon = time.monotonic() + tokens.KEY_LIFETIME_SECONDS - 1
    monkeypatch.setattr(time, "monotonic", lambda: soon)
    verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
    with pytest.raises(KeysUnavailable):
        verifier.verify(token(key=RSA, algorithm="RS256", kid="rotated in meanwhile"))


def test_the_secret_is_read_once_and_again_after_its_lifetime() -> None:
    now, secrets = 0.0, SecretsManager(SECRET)
    verifier = Verifier(settings("HS256"), secrets.client, clock=lambda: now)
    verifier.verify(token())
    now = tokens.KEY_LIFETIME_SECONDS - 0.001
    verifier.verify(token())
    assert secrets.calls == [("GetSecretValue", {"SecretId": "arn:secret"})]

    secrets.secret = "the new secret after a rotation, long enough as well"
    now = tokens.KEY_LIFETIME_SECONDS
    assert verifier.verify(token(key=secrets.secret)).user_id == "u1"
    assert refusal(verifier, token()) == "signature"
    assert len(secrets.calls) == 2
