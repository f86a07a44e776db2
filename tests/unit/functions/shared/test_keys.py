"""Key sources: what they accept, how often they are read, and which keys are used while they are down."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from functions import __version__
from functions.shared import keys
from functions.shared.errors import KeysUnavailable, TokenRefused
from functions.shared.keys import Keys, PublicKeys, SharedSecret, Source
from tests.support.fake_aws import SecretsManager
from tests.support.functions import SECRET, properties
from tests.support.jwks import EC, RSA, Jwks, jwk
from tests.unit.functions.conftest import Logs

PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


class Place:
    """A key source whose keys can be replaced, and that can be down or slow."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.reads = 0
        self.version = "one"
        self.problem: str | None = None
        self.error: Exception | None = None
        self.answering = threading.Event()
        self.answering.set()
        self.source = Source("place", self.read, lambda: self.now)

    def read(self) -> Keys:
        self.reads += 1
        version, problem = self.version, self.problem
        assert self.answering.wait(30)
        if problem:
            raise KeysUnavailable(problem)
        if self.error:
            raise self.error
        return lambda algorithm, key_id: version

    def key(self, newer: bool = False) -> Any:
        return self.source.keys(newer)("HS256", None)


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.answering.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "READ_SECONDS", 0.05)


# Source


def test_keys_are_read_once_and_again_after_their_lifetime(place: Place) -> None:
    assert place.key() == "one"
    place.version = "two"
    place.now += keys.KEY_LIFETIME_SECONDS - 0.001
    assert (place.key(), place.reads) == ("one", 1)
    place.now += 0.001
    assert (place.key(), place.reads) == ("two", 2)
    assert place.source.stale_seconds() is None


def test_the_last_good_keys_are_used_while_their_source_is_down(place: Place, logs: Logs) -> None:
    place.key()
    assert logs() == []
    place.problem = "it is down"
    place.now += keys.KEY_LIFETIME_SECONDS
    assert place.key() == "one"
    assert place.source.stale_seconds() == keys.KEY_LIFETIME_SECONDS
    (line,) = logs()
    assert (line["level"], line["message"], line["reason"], line["ageSeconds"]) == (
        "WARNING",
        "keys not read",
        "place: it is down",
        keys.KEY_LIFETIME_SECONDS,
    )


def test_a_source_that_is_down_is_retried_after_a_pause_until_it_is_back(place: Place) -> None:
    place.key()
    place.problem = "it is down"
    place.now += keys.KEY_LIFETIME_SECONDS
    for _ in range(100):
        place.key()
    assert place.reads == 2
    place.problem, place.version = None, "two"
    place.now += keys.RETRY_SECONDS - 0.001
    assert place.key() == "one"
    place.now += 0.001
    assert place.key() == "two"
    assert (place.source.problem, place.source.stale_seconds()) == (None, None)


def test_stale_keys_are_used_for_a_day_and_no_longer(place: Place) -> None:
    place.key()
    place.problem = "it is down"
    place.now += keys.STALE_SECONDS - 0.001
    assert place.key() == "one"
    place.now += 0.001
    with pytest.raises(KeysUnavailable, match="place: it is down"):
        place.key()


def test_an_unexpected_error_loses_neither_the_keys_nor_later_reads(place: Place) -> None:
    place.key()
    place.error = MemoryError("of a token: ey...")
    place.now += keys.KEY_LIFETIME_SECONDS
    assert place.key() == "one"
    assert place.source.problem == "place: MemoryError"
    place.error, place.version = None, "two"
    place.now += keys.RETRY_SECONDS
    assert place.key() == "two"


def test_keys_of_an_environment_that_was_frozen_for_days_are_read_again_before_use(place: Place) -> None:
    place.key()
    place.version = "two"
    place.now += 3 * keys.STALE_SECONDS
    assert place.key() == "two"


def test_newer_keys_are_read_at_most_once_per_pause(place: Place) -> None:
    place.key()
    place.version = "two"
    for _ in range(100):
        assert place.key(newer=True) == "one"
    place.now += keys.RETRY_SECONDS
    for _ in range(100):
        assert place.key(newer=True) == "two"
    assert place.reads == 2


def test_without_keys_a_failed_read_is_retried_after_a_second(place: Place) -> None:
    place.problem = "it is down"
    for _ in range(100):
        with pytest.raises(KeysUnavailable, match="place: it is down"):
            place.key()
    assert place.reads == 1
    place.problem = None
    place.now += keys.FIRST_RETRY_SECONDS
    assert place.key() == "one"


@pytest.mark.usefixtures("impatient")
def test_a_slow_read_times_out_and_its_result_is_used_later(place: Place) -> None:
    place.key()
    place.now += keys.KEY_LIFETIME_SECONDS
    place.version = "two"
    place.answering.clear()
    assert place.key() == "one"
    assert place.source.problem == "place: no answer within 0.05 s"
    place.answering.set()
    deadline = time.monotonic() + 10
    while place.key() == "one" and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (place.key(), place.reads) == ("two", 2)
    assert not place.source.problem


@pytest.mark.usefixtures("impatient")
def test_without_keys_a_slow_read_is_awaited_again_and_not_repeated(place: Place) -> None:
    place.answering.clear()
    for _ in range(3):
        with pytest.raises(KeysUnavailable, match="no answer within"):
            place.key()
        place.now += keys.FIRST_RETRY_SECONDS
    assert place.reads == 1
    place.now += keys.RETRY_SECONDS
    with pytest.raises(KeysUnavailable, match="no answer within"):
        place.key()
    assert place.reads == 2


# SharedSecret


def secret_key(stored: str | bytes) -> Any:
    return SharedSecret(SecretsManager(stored).client, "arn:secret")()("HS256", None)


@pytest.mark.parametrize(
    "stored", [SECRET, SECRET.encode(), bytes(range(190, 254)), "Schlüssel" * 8, "7" * 64]
)
def test_a_secret_is_its_text_or_its_bytes(stored: str | bytes, logs: Logs) -> None:
    assert secret_key(stored) == (stored.encode() if isinstance(stored, str) else stored)
    assert logs() == []


@pytest.mark.parametrize(
    ("stored", "cause"),
    [
        (json.dumps({"key": SECRET}), "is JSON; store only the key itself"),
        (json.dumps({"key": SECRET}).encode(), "is JSON; store only the key itself"),
        (json.dumps([SECRET]), "is JSON; store only the key itself"),
        ("", "is empty"),
        (b"", "is empty"),
        (" \n", "is empty"),
        (PEM, "a certificate or a key of a key pair"),
        (PEM.decode(), "a certificate or a key of a key pair"),
    ],
    ids=["key-value", "key-value-bytes", "list", "empty", "no-bytes", "blank", "pem-bytes", "pem"],
)
def test_a_secret_that_is_not_a_key_is_an_error_with_the_cause(stored: str | bytes, cause: str) -> None:
    with pytest.raises(KeysUnavailable, match=cause) as unavailable:
        secret_key(stored)
    assert SECRET not in str(unavailable.value)
    assert "BEGIN" not in str(unavailable.value)
    assert unavailable.value.__cause__ is None


@pytest.mark.parametrize(
    "stored", [SECRET + "\n", " " + SECRET, SECRET + "\r\n", (SECRET + "\n").encode(), json.dumps(SECRET)]
)
def test_white_space_and_quotation_marks_are_part_of_the_key_and_logged_once(
    stored: str | bytes, logs: Logs
) -> None:
    read = SharedSecret(SecretsManager(stored).client, "arn:secret")
    for _ in range(3):
        assert read()("HS256", None) == (stored.encode() if isinstance(stored, str) else stored)
    (line,) = logs()
    assert line["level"] == "WARNING"
    assert "newline" in line["message"]
    assert SECRET not in json.dumps(line)


def test_random_bytes_that_end_in_white_space_cause_no_warning(logs: Logs) -> None:
    stored = bytes(range(190, 254)) + b"\n"
    assert secret_key(stored) == stored
    assert logs() == []


def test_a_secret_that_cannot_be_read_is_an_error() -> None:
    secrets = SecretsManager(SECRET)
    secrets.failing.add("GetSecretValue")
    with pytest.raises(KeysUnavailable, match="GetSecretValue"):
        SharedSecret(secrets.client, "arn:secret")()


# PublicKeys


def found(jwks: Jwks, algorithm: str, key_id: str | None, *configured: str) -> Any:
    return PublicKeys(jwks.url, configured or ("RS256", "ES256"))()(algorithm, key_id)


def test_a_jwks_is_requested_with_musters_user_agent(jwks: Jwks) -> None:
    assert found(jwks, "RS256", "rsa").key_id == "rsa"
    assert jwks.requests[0]["user-agent"] == f"muster/{__version__}"


def test_a_key_without_an_id_is_for_tokens_without_one(jwks: Jwks) -> None:
    jwks.publish(jwk(RSA, "RS256"), jwk(EC, "ES256", kid="ec"))
    assert found(jwks, "RS256", None).key_type == "RSA"
    assert found(jwks, "RS256", "rsa") is None
    assert found(jwks, "ES256", None) is None


def test_of_two_keys_without_an_id_neither_is_used(jwks: Jwks) -> None:
    other = rsa.generate_private_key(65537, 2048)
    jwks.publish(jwk(RSA, "RS256"), jwk(other, "RS256"), jwk(EC, "ES256"))
    assert found(jwks, "RS256", None) is None
    assert found(jwks, "ES256", None).key_type == "EC"


def test_a_key_for_encryption_is_ignored_even_with_the_same_id(jwks: Jwks) -> None:
    other = rsa.generate_private_key(65537, 2048)
    jwks.publish(
        jwk(other, "RS256", kid="one", use="enc"),
        jwk(other, "RS256", kid="one", use="enc", alg="RSA-OAEP"),
        jwk(RSA, "RS256", kid="one"),
    )
    key = found(jwks, "RS256", "one")
    assert key.key.public_numbers() == RSA.public_key().public_numbers()


def test_a_key_without_an_algorithm_is_for_every_configured_one_of_its_type(jwks: Jwks) -> None:
    jwks.publish(jwk(RSA, "RS256", kid="rsa", alg=None, use=None))
    configured = ("RS256", "RS384", "ES256")
    for algorithm in ("RS256", "RS384"):
        assert found(jwks, algorithm, "rsa", *configured).algorithm_name == algorithm
    with pytest.raises(TokenRefused, match="algorithm"):
        found(jwks, "ES256", "rsa", *configured)


def test_an_elliptic_key_is_only_for_the_algorithm_of_its_curve(jwks: Jwks) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    jwks.publish(jwk(key, "ES384", kid="ec", alg=None), jwk(RSA, "RS256", kid="rsa"))
    configured = ("RS256", "ES256", "ES384")
    assert found(jwks, "ES384", "ec", *configured).algorithm_name == "ES384"
    with pytest.raises(TokenRefused, match="algorithm"):
        found(jwks, "ES256", "ec", *configured)


ODD_KEYS: list[Any] = [
    None,
    7,
    {},
    {"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "x"},
    {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "oct"},
    {"kty": "RSA", "n": 5, "e": "AQAB", "kid": "rsa"},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "ec"},
    jwk(RSA, "RS256", kid=["a", "list"]),
    jwk(RSA, "RS256", kid=7),
    jwk(RSA, "RS256", kid="rsa", alg="RSA-OAEP"),
    jwk(RSA, "RS256", kid="rsa", alg="HS256"),
    jwk(RSA, "RS256", kid="rsa", alg=["RS256"]),
]


def test_unusable_keys_do_not_affect_others(jwks: Jwks) -> None:
    jwks.publish(*ODD_KEYS, jwk(RSA, "RS256", kid="good"), *ODD_KEYS)
    assert found(jwks, "RS256", "good").key_type == "RSA"
    assert found(jwks, "RS256", "rsa") is None


def test_a_jwks_without_a_usable_key_is_an_error_with_the_algorithms(jwks: Jwks) -> None:
    jwks.publish(*ODD_KEYS)
    problem = f"none of the {len(ODD_KEYS)} keys verifies signatures by RS256, ES256"
    with pytest.raises(KeysUnavailable, match=problem):
        PublicKeys(jwks.url, ("RS256", "ES256"))()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>down</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_response_that_is_not_a_jwks_is_an_error(jwks: Jwks, body: bytes) -> None:
    jwks.body = body
    with pytest.raises(KeysUnavailable):
        PublicKeys(jwks.url, ("RS256",))()


@pytest.mark.parametrize("status", [302, 403, 404, 500])
def test_a_response_other_than_200_is_an_error(jwks: Jwks, status: int) -> None:
    jwks.status = status
    with pytest.raises(KeysUnavailable, match=f"HTTP Error {status}"):
        PublicKeys(jwks.url, ("RS256",))()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = ("kty", "kid", "use", "alg", "crv", "n", "e", "d", "x", "y", "k", "oth", "key_ops")
WORDS = st.sampled_from(["RSA", "EC", "oct", "OKP", "sig", "RS256", "ES256", "P-256", "AQAB", "AA"])
odd_jwks = st.dictionaries(st.sampled_from(MEMBERS), WORDS | json_values, max_size=8)


@properties
@given(st.lists(odd_jwks | json_values, max_size=4) | json_values)
def test_any_jwks_gives_keys_or_an_error(listed: Any) -> None:
    read = PublicKeys("https://id.example.org/jwks", ("RS256", "ES256"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwt.PyJWKClient, "fetch_data", lambda self: {"keys": listed})
        with suppress(KeysUnavailable, TokenRefused):
            read()("RS256", None)
