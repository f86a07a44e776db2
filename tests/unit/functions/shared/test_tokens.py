import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given
from hypothesis import strategies as st
from jwt import exceptions

from functions import connect, default
from functions.shared import keys, tokens
from functions.shared.connections import Connection
from functions.shared.errors import KeysUnavailable, TokenRefused, reply
from functions.shared.settings import Jwt
from functions.shared.telemetry import metrics
from functions.shared.tokens import Claims, Offer, Verifier, find
from tests.support.fake_aws import SecretsManager
from tests.support.functions import AUDIENCE, ISSUER, SECRET, Context, event, leaks, properties, token
from tests.support.jwks import EC, RSA, Jwks, jwk
from tests.unit.functions.conftest import Logs

RSA_PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


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
    """The reason for which a token is refused. The refusal contains no part of the token."""
    with pytest.raises(TokenRefused) as refused:
        verifier.verify(presented)
    shown = [str(refused.value), repr(refused.value), json.dumps(reply(refused.value, None))]
    assert not any(leaks(presented, text) for text in shown)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return refused.value.reason


# Finding


def arriving(place: str, value: str) -> dict[str, Any]:
    """A `$connect` event with a value in the query or in a header."""
    if place == "query":
        return {"queryStringParameters": {"Authorization": value}}
    return {"headers": {place: value}}


@pytest.mark.parametrize(
    "value", ["a.b.c", "Bearer a.b.c", "bearer a.b.c", "BEARER\ta.b.c", " Bearer   a.b.c ", "a.b.c\n"]
)
@pytest.mark.parametrize("place", ["query", "Authorization", "authorization", "AUTHORIZATION"])
def test_the_token_is_found_in_the_query_and_in_the_header_of_any_case(place: str, value: str) -> None:
    assert find(arriving(place, value)) == Offer("a.b.c", None)


@pytest.mark.parametrize(
    ("offered", "offer"),
    [
        ("muster, a.b.c", Offer("a.b.c", "muster")),
        ("a.b.c,muster", Offer("a.b.c", "muster")),
        (" muster ,\ta.b.c ", Offer("a.b.c", "muster")),
        ("a.b.c", Offer("a.b.c", "a.b.c")),
        ("graphql-ws, a.b.c, muster", Offer("a.b.c", "muster")),
        ("graphql-ws, v1.2.3.4, a.b.c", Offer("a.b.c", "a.b.c")),
    ],
)
def test_of_the_subprotocols_offered_muster_is_selected_or_else_the_token(offered: str, offer: Offer) -> None:
    assert find({"headers": {"Sec-WebSocket-Protocol": offered}}) == offer


@pytest.mark.parametrize(("offered", "selected"), [("muster", "muster"), ("x, d.e.f", "d.e.f"), ("x", None)])
def test_a_subprotocol_is_selected_too_when_the_token_comes_another_way(
    offered: str, selected: str | None
) -> None:
    event = {
        "queryStringParameters": {"Authorization": "a.b.c"},
        "headers": {"Sec-WebSocket-Protocol": offered},
    }
    assert find(event) == Offer("a.b.c", selected)


OTHERS = [
    "Basic dXNlcjpwYXNzd29yZA==",
    "Digest username=a.b.c",
    "Negotiate",
    "ApiKey 1.2",
    "Bearer opaque",
    "",
]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("place", ["query", "Authorization"])
def test_credentials_of_another_scheme_are_ignored(place: str, other: str) -> None:
    in_subprotocols = arriving(place, other)
    in_subprotocols.setdefault("headers", {})["sec-websocket-protocol"] = "muster, a.b.c"
    assert find(in_subprotocols) == Offer("a.b.c", "muster")
    if place == "query":
        assert find(arriving(place, other) | {"headers": {"authorization": "Bearer a.b.c"}}).token == "a.b.c"


def test_the_query_takes_precedence_over_the_header_and_the_header_over_the_subprotocols() -> None:
    event = {
        "queryStringParameters": {"Authorization": "q.u.e"},
        "headers": {"Authorization": "Bearer h.e.a", "Sec-WebSocket-Protocol": "muster, s.u.b"},
    }
    assert find(event).token == "q.u.e"
    del event["queryStringParameters"]
    assert find(event).token == "h.e.a"


def test_every_value_of_a_repeated_header_is_read() -> None:
    """API Gateway sends the last value in `headers` and all values in `multiValueHeaders`."""
    headers = {"Authorization": ["Bearer a.b.c", "Basic eA=="], "Sec-WebSocket-Protocol": ["x", "muster"]}
    last = {name: values[-1] for name, values in headers.items()}
    assert find({"headers": last, "multiValueHeaders": headers}) == Offer("a.b.c", "muster")
    query = {"Authorization": ["a.b.c", ""]}
    event = {"queryStringParameters": {"Authorization": ""}, "multiValueQueryStringParameters": query}
    assert find(event).token == "a.b.c"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({}, "missing"),
        ({"headers": None, "queryStringParameters": None}, "missing"),
        ({"multiValueHeaders": None, "multiValueQueryStringParameters": None}, "missing"),
        ({"headers": {"Host": "h", "Sec-WebSocket-Protocol": "muster"}}, "missing"),
        ({"queryStringParameters": {"Authorization": ""}, "headers": {"Authorization": " "}}, "missing"),
        ({"headers": {"Sec-WebSocket-Protocol": " , "}}, "missing"),
        ({"headers": {"Authorization": "Basic eA=="}}, "malformed"),
        ({"headers": {"Authorization": "Bearer"}}, "malformed"),
        ({"queryStringParameters": {"Authorization": "a.b c.d"}}, "malformed"),
    ],
)
def test_an_event_without_a_token_is_refused(event: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        find(event)
    assert refused.value.reason == reason


# Verifying


def test_a_valid_token_gives_its_user_and_expiry() -> None:
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
        (token(iat=int(time.time()) + 3600), "claims"),
        (token(jti=7), "claims"),
        (token(padding="x" * tokens.MAX_TOKEN_LENGTH), "malformed"),
        (token().replace(".", ".\N{LATIN SMALL LETTER E WITH ACUTE}"), "malformed"),
        (token() + "\n", "malformed"),
        (token() + "\ud800", "malformed"),
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
        "issued-in-the-future",
        "odd-jti",
        "long",
        "not-ascii",
        "newline",
        "half-a-surrogate-pair",
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
def test_an_invalid_token_is_refused_with_its_reason(presented: str, reason: str) -> None:
    assert refusal(hmac_verifier("HS256"), presented) == reason


def outcome(verifier: Verifier, presented: str) -> Claims | TokenRefused | KeysUnavailable:
    """What `verify` returns or raises, which must be one of its documented errors."""
    try:
        return verifier.verify(presented)
    except (TokenRefused, KeysUnavailable) as error:
        return error


def whole(claims: Any) -> bool:
    """Whether these claims are valid now, with a user id that a row may have."""
    return (
        isinstance(claims, Claims)
        and isinstance(claims.user_id, str)
        and type(claims.expires_at) is int
        and claims.expires_at > time.time()
    )


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_an_issuers_clock_may_be_ahead_by_half_a_minute(claim: str) -> None:
    now = int(time.time())
    for ahead in (2, tokens.LEEWAY_SECONDS - 2):
        assert hmac_verifier().verify(hand_made({claim: now + ahead})).user_id == "u1"
    assert refusal(hmac_verifier(), hand_made({claim: now + tokens.LEEWAY_SECONDS + 5})) == "claims"


@pytest.mark.parametrize("ago", [0, 1, tokens.LEEWAY_SECONDS - 1])
def test_an_expired_token_has_no_leeway(ago: int) -> None:
    assert refusal(hmac_verifier(), token(exp=int(time.time()) - ago)) == "expired"


NUMBERS = [True, False, -1, 1e308, 10**400, float("nan"), float("inf"), float("-inf"), "x", "", [], {}, [1]]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
def test_a_time_of_another_type_is_refused_or_a_whole_number(claim: str, value: Any) -> None:
    claims = outcome(hmac_verifier(), hand_made({claim: value}))
    if isinstance(claims, TokenRefused):
        assert claims.reason in {"claims", "malformed", "expired"}
    else:
        assert whole(claims)


@pytest.mark.parametrize("value", [7, 1.5, True, [], ["u1"], {"id": "u1"}, ""], ids=repr)
@pytest.mark.parametrize("claim", ["sub", "iss", "aud"])
def test_a_name_of_another_type_is_refused(claim: str, value: Any) -> None:
    assert refusal(hmac_verifier(), hand_made({claim: value})) == "claims"


def test_one_of_several_audiences_is_enough() -> None:
    assert hmac_verifier().verify(token(aud=["another", AUDIENCE])).user_id == "u1"
    assert refusal(hmac_verifier(), token(aud=["another", 7, AUDIENCE])) == "claims"


def test_every_exception_of_pyjwt_has_a_reason() -> None:
    about_tokens = {
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, exceptions.InvalidTokenError)
    }
    # `verify` judges `exp` itself, without the leeway.
    assert about_tokens - {exceptions.ExpiredSignatureError} == set(tokens.REASONS)


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def signed(header: str, body: str) -> str:
    """A correctly signed token of any text, also of text that PyJWT would not sign."""
    signing_input = f"{encoded(header.encode())}.{encoded(body.encode())}"
    return f"{signing_input}.{encoded(hmac.digest(SECRET.encode(), signing_input.encode(), hashlib.sha256))}"


def hand_made(claims: dict[str, Any], **header: Any) -> str:
    now = int(time.time())
    good = {"sub": "u1", "iss": ISSUER, "aud": AUDIENCE, "exp": now + 3600}
    return signed(json.dumps({"alg": "HS256", **header}), json.dumps(good | claims))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
odd_claims = st.dictionaries(st.sampled_from(["sub", "iss", "aud", "exp", "iat", "nbf", "jti"]), json_values)
headers = st.sampled_from(
    [{}, {"alg": "RS256", "kid": "rsa"}, {"alg": "ES256", "kid": "ec"}, {"alg": "RS256"}]
)
odd_headers = st.dictionaries(st.sampled_from(["kid", "typ", "crit", "b64", "alg", "jku"]), json_values)
json_texts = st.sampled_from(["", "{", "[]", "null", "1e999", '{"alg":"HS256"}', "[" * 4_000, "9" * 5_000])
mangled = st.tuples(st.integers(0, 150), st.text(max_size=3)).map(
    lambda edit: token()[: edit[0]] + edit[1] + token()[edit[0] :]
)
hostile = st.one_of(
    st.text(),
    st.from_regex(r"[\w=-]{1,40}\.[\w=-]{1,40}\.[\w=-]{0,40}", fullmatch=True),
    st.tuples(json_texts, json_texts).map(lambda texts: signed(*texts)),
    st.tuples(odd_claims, headers, odd_headers).map(lambda odd: hand_made(odd[0], **(odd[1] | odd[2]))),
    mangled,
)


@pytest.fixture(scope="module")
def verifiers() -> Iterator[list[Verifier]]:
    """Verifiers with a secret, with public keys, and without keys."""
    away = SecretsManager(SECRET)
    away.failing.add("GetSecretValue")
    with Jwks.serving() as server:
        yield [
            hmac_verifier(),
            Verifier(settings("RS256", "ES256", jwks_url=server.url), None),
            Verifier(settings("HS256"), away.client),
        ]


@properties
@given(presented=hostile)
def test_a_hostile_token_is_verified_or_refused_and_is_in_no_text(
    presented: str, verifiers: list[Verifier], logs: Logs
) -> None:
    for verifier in verifiers:
        claims = outcome(verifier, presented)
        if isinstance(claims, Exception):
            assert not leaks(presented, "".join(traceback.format_exception(claims)))
        else:
            assert whole(claims)
    assert not leaks(presented, json.dumps(logs()))


@properties
@given(presented=hostile.filter(lambda text: text.isprintable()))
@example(presented="00000000")
def test_a_hostile_token_is_in_no_response_and_no_log(
    presented: str, verifiers: list[Verifier], logs: Logs
) -> None:
    connection = Connection(
        connection_id="c1=",
        user_id="another user",
        role="resident",
        shelter_id=None,
        connected_at="2026-01-01T00:00:00.000Z",
        expires_at=0,
    )
    for verifier in verifiers:
        using = Mock(verifier=verifier)
        using.settings.allowed_origins = ()
        using.users.active.side_effect = RuntimeError("the table is away")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connect, "dependencies", lambda using=using: using)
            for place in ("query", "Authorization", "Sec-WebSocket-Protocol"):
                answer = connect.handler(event(kind="CONNECT", **arriving(place, presented)), Context())
                assert answer["statusCode"] in (401, 500)
                assert not leaks(presented, json.dumps(answer))
        renewing = Mock(verifier=lambda verifier=verifier: verifier)
        renewing.connections.touch.return_value = connection
        frame = json.dumps({"action": "renew", "token": presented})
        assert not leaks(presented, json.dumps(default.respond(frame, "c1=", renewing)))
    # A user's id or the account in the function's ARN may be equal to a part of the token.
    others = ("userId", "function_arn")
    written = [{name: value for name, value in line.items() if name not in others} for line in logs()]
    assert not leaks(presented, json.dumps(written))


TRACED = """
import json, sys
from unittest.mock import Mock
from functions import connect
from functions.shared.errors import TokenRefused
from functions.shared.telemetry import trace_clients
from tests.support.functions import Context, event
from tests.unit.functions.shared.test_tokens import hmac_verifier

trace_clients()
using = Mock(verifier=hmac_verifier())
using.settings.allowed_origins = ()
connect.dependencies = lambda: using
for presented in json.loads(sys.argv[1]):
    connect.handler(event(kind="CONNECT", queryStringParameters={"Authorization": presented}), Context())
"""


def test_no_trace_contains_a_part_of_a_token() -> None:
    presented = [token(key="another secret, as long as HS256 asks for"), token(exp=1), hand_made({"sub": 7})]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        environment = os.environ | {
            "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{daemon.getsockname()[1]}",
            "LAMBDA_TASK_ROOT": "/var/task",
            "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
        }
        command = [sys.executable, "-c", TRACED, json.dumps(presented)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        daemon.settimeout(5)
        traces = [daemon.recv(65_535).decode() for _ in (*presented, "the secret is read")]
    assert sum('"## handler"' in trace for trace in traces) == len(presented)
    assert sum('"GetSecretValue"' in trace for trace in traces) == 1
    assert not any(leaks(each, trace) for each in presented for trace in traces)
    assert SECRET not in "".join(traces)


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
    # PyJWT refuses to sign this token, so it is assembled by hand.
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
def test_an_invalid_key_pair_token_is_refused(jwks: Jwks, presented: str, reason: str) -> None:
    assert refusal(Verifier(settings("RS256", "ES256", jwks_url=jwks.url), None), presented) == reason


def test_a_token_without_a_key_id_is_verified_with_the_only_key_that_has_none(jwks: Jwks) -> None:
    jwks.publish(jwk(RSA, "RS256"), jwk(EC, "ES256", kid="ec"))
    verifier = Verifier(settings("RS256", "ES256", jwks_url=jwks.url), None)
    assert verifier.verify(token("u1", RSA, "RS256")).user_id == "u1"
    assert refusal(verifier, token("u1", RSA, "RS256", kid="made up")) == "key"
    assert refusal(verifier, token("u1", EC, "ES256")) == "key"


def test_a_key_without_an_algorithm_verifies_each_configured_one(jwks: Jwks) -> None:
    jwks.publish(jwk(RSA, "RS256", kid="rsa", alg=None))
    verifier = Verifier(settings("RS256", "RS512", jwks_url=jwks.url), None)
    for algorithm in ("RS256", "RS512"):
        assert verifier.verify(token(key=RSA, algorithm=algorithm, kid="rsa")).user_id == "u1"
    assert refusal(verifier, token(key=RSA, algorithm="RS384", kid="rsa")) == "algorithm"


@pytest.mark.parametrize("changes", [{"use": "enc"}, {"alg": "RSA-OAEP"}, {"alg": "RS512"}])
def test_a_key_for_another_purpose_or_algorithm_verifies_nothing(jwks: Jwks, changes: dict[str, str]) -> None:
    jwks.publish(jwk(RSA, "RS256", kid="rsa", **changes), jwk(EC, "ES256", kid="ec"))
    verifier = Verifier(settings("RS256", "ES256", jwks_url=jwks.url), None)
    assert refusal(verifier, token(key=RSA, algorithm="RS256", kid="rsa")) == "key"


def test_many_unknown_key_ids_cause_two_reads_a_minute(jwks: Jwks) -> None:
    clock = Clock()
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), None, clock)
    for number in range(120):
        refusal(verifier, token(key=RSA, algorithm="RS256", kid=f"made up {number}"))
        verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
        clock.now += 1
    assert jwks.reads == 120 / keys.RETRY_SECONDS


def test_a_key_that_was_just_published_is_found_within_the_pause(jwks: Jwks) -> None:
    clock = Clock()
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), None, clock)
    verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
    other = rsa.generate_private_key(65537, 2048)
    jwks.publish(jwk(RSA, "RS256", kid="rsa"), jwk(other, "RS256", kid="new"))
    clock.now += keys.RETRY_SECONDS
    assert verifier.verify(token(key=other, algorithm="RS256", kid="new")).user_id == "u1"


def test_unreachable_keys_are_an_error_and_not_a_refusal() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks.json"
        verifier = Verifier(settings("RS256", jwks_url=url), secrets=None)
        with pytest.raises(KeysUnavailable, match=url):
            verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))


@pytest.fixture
def stale_key_ages(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The metric calls about stale keys."""
    counted = Mock()
    monkeypatch.setattr(metrics, "add_metric", counted)
    return counted


def test_public_keys_that_cannot_be_read_again_verify_for_a_day_with_a_warning_and_a_metric(
    jwks: Jwks, logs: Logs, stale_key_ages: Mock
) -> None:
    clock = Clock()
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), None, clock)
    good = token(key=RSA, algorithm="RS256", kid="rsa")
    verifier.verify(good)
    jwks.status = 503
    clock.now += keys.KEY_LIFETIME_SECONDS - 1
    verifier.verify(good)
    assert (logs(), stale_key_ages.mock_calls) == ([], [])

    clock.now += 11
    assert verifier.verify(good).user_id == "u1"
    stale_key_ages.assert_called_once_with("StaleKeyAge", "Seconds", keys.KEY_LIFETIME_SECONDS + 10)
    (line,) = logs()
    assert (line["level"], line["message"]) == ("WARNING", "keys not read")
    assert jwks.url in line["reason"]

    clock.now += keys.STALE_SECONDS - keys.KEY_LIFETIME_SECONDS - 10
    with pytest.raises(KeysUnavailable, match="503"):
        verifier.verify(good)
    jwks.status = 200
    clock.now += keys.FIRST_RETRY_SECONDS
    assert verifier.verify(good).user_id == "u1"


def test_while_public_keys_cannot_be_read_a_token_of_a_newer_key_is_not_refused(jwks: Jwks) -> None:
    clock = Clock()
    verifier = Verifier(settings("RS256", jwks_url=jwks.url), None, clock)
    verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
    jwks.body = b"<html>down</html>"
    clock.now += keys.KEY_LIFETIME_SECONDS - 1
    with pytest.raises(KeysUnavailable):
        verifier.verify(token(key=RSA, algorithm="RS256", kid="rotated in meanwhile"))
    verifier.verify(token(key=RSA, algorithm="RS256", kid="rsa"))
    clock.now += keys.KEY_LIFETIME_SECONDS
    with pytest.raises(KeysUnavailable):
        verifier.verify(token(key=RSA, algorithm="RS256", kid="rotated in meanwhile"))


def test_the_secret_is_read_once_and_again_after_its_lifetime() -> None:
    clock, secrets = Clock(), SecretsManager(SECRET)
    verifier = Verifier(settings("HS256"), secrets.client, clock)
    verifier.verify(token())
    clock.now += keys.KEY_LIFETIME_SECONDS - 0.001
    verifier.verify(token())
    assert secrets.calls == [("GetSecretValue", {"SecretId": "arn:secret"})]

    secrets.secret = "the new secret after a rotation, long enough as well"
    clock.now += 0.001
    assert verifier.verify(token(key=secrets.secret)).user_id == "u1"
    assert refusal(verifier, token()) == "signature"
    assert len(secrets.calls) == 2


@pytest.mark.parametrize("outage", ["service", "key-value"])
def test_a_secret_that_cannot_be_read_again_verifies_for_a_day(
    outage: str, logs: Logs, stale_key_ages: Mock
) -> None:
    clock, secrets = Clock(), SecretsManager(SECRET)
    verifier = Verifier(settings("HS256"), secrets.client, clock)
    verifier.verify(token())
    if outage == "service":
        secrets.failing.add("GetSecretValue")
    else:
        secrets.secret = json.dumps({"key": SECRET})
    clock.now += keys.STALE_SECONDS - 1
    assert verifier.verify(token()).user_id == "u1"
    stale_key_ages.assert_called_once_with("StaleKeyAge", "Seconds", keys.STALE_SECONDS - 1)
    assert [line["message"] for line in logs()] == ["keys not read"]
    clock.now += 1
    with pytest.raises(KeysUnavailable, match="arn:secret: "):
        verifier.verify(token())


def test_while_the_secret_cannot_be_read_a_token_of_a_newer_one_is_not_refused(stale_key_ages: Mock) -> None:
    clock, secrets = Clock(), SecretsManager(SECRET)
    verifier = Verifier(settings("HS256"), secrets.client, clock)
    verifier.verify(token())
    secrets.failing.add("GetSecretValue")
    clock.now += keys.KEY_LIFETIME_SECONDS
    with pytest.raises(KeysUnavailable):
        verifier.verify(token(key="the secret after a rotation, long enough as well"))
    assert refusal(verifier, token(exp=1)) == "expired"


def test_a_secret_that_is_stored_as_bytes_verifies() -> None:
    assert Verifier(settings("HS256"), SecretsManager(SECRET.encode()).client).verify(token()).user_id == "u1"


def test_a_secret_that_is_not_a_key_is_an_error_and_not_a_refusal() -> None:
    verifier = Verifier(settings("HS256"), SecretsManager(json.dumps({"key": SECRET})).client)
    with pytest.raises(KeysUnavailable, match="JSON"):
        verifier.verify(token())
