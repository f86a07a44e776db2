"""A `connect` that verifies RS256 tokens by the public keys of an identity provider."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.deployment import Deployment, unique
from tests.support.handshakes import assert_refused, handshake
from tests.support.variants import Variants


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def key_urls(deployment: Deployment, key: rsa.RSAPrivateKey) -> Iterator[dict[str, str]]:
    """Where providers publish their keys: objects in S3, which a Lambda reaches wherever it runs.

    One names its key, one does not, and one publishes nothing.
    """
    s3, bucket = deployment.outputs.client("s3"), unique("keys")
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    published = {"named": jwk | {"kid": "one", "alg": "RS256", "use": "sig"}, "unnamed": jwk}
    s3.create_bucket(Bucket=bucket)
    for name, members in published.items():
        s3.put_object(Bucket=bucket, Key=name, Body=json.dumps({"keys": [members]}))
    yield {
        name: s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": name})
        for name in (*published, "nothing")
    }
    for name in published:
        s3.delete_object(Bucket=bucket, Key=name)
    s3.delete_bucket(Bucket=bucket)


def verifying(variants: Variants, key_url: str) -> str:
    """A `connect` that takes keys from this address."""
    changes = {"JWT_ALGORITHMS": "RS256", "JWT_JWKS_URL": key_url, "JWT_SECRET_ARN": None}
    return variants.function("connect", environment=changes)


@pytest.fixture(scope="session")
def function(variants: Variants, key_urls: dict[str, str]) -> str:
    return verifying(variants, key_urls["named"])


def test_admits_a_token_signed_with_the_private_key(
    deployment: Deployment, function: str, key: rsa.RSAPrivateKey
) -> None:
    claims = deployment.claims(deployment.user().user_id)
    token = jwt.encode(claims, key, "RS256", headers={"kid": "one"})

    connection_id, answer = handshake(deployment, query=token, function=function)

    deployment.forget_connections([connection_id])
    assert answer.payload == {"statusCode": 200, "headers": {}}


def test_refuses_hs256_signed_with_the_public_key(
    deployment: Deployment, function: str, key: rsa.RSAPrivateKey
) -> None:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256", "typ": "JWT", "kid": "one"}
    # By hand: PyJWT refuses to sign with a public key.
    parts = [header, deployment.claims(deployment.user().user_id)]
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
    signature = hmac.digest(public, signed.encode(), hashlib.sha256)
    token = f"{signed}.{_encoded(signature)}"

    connection_id, answer = handshake(deployment, query=token, function=function)

    assert_refused(deployment, connection_id, answer, 401, "TokenRefused: algorithm", token)


def test_refuses_a_key_that_the_provider_does_not_have(deployment: Deployment, function: str) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = deployment.claims(deployment.user().user_id)
    token = jwt.encode(claims, other, "RS256", headers={"kid": "one"})

    connection_id, answer = handshake(deployment, query=token, function=function)

    assert_refused(deployment, connection_id, answer, 401, "TokenRefused: signature", token)


def test_admits_a_token_without_a_key_id_by_the_only_key_without_one(
    deployment: Deployment, variants: Variants, key_urls: dict[str, str], key: rsa.RSAPrivateKey
) -> None:
    token = jwt.encode(deployment.claims(deployment.user().user_id), key, "RS256")

    connection_id, answer = handshake(
        deployment, query=token, function=verifying(variants, key_urls["unnamed"])
    )

    deployment.forget_connections([connection_id])
    assert answer.payload == {"statusCode": 200, "headers": {}}


def test_without_keys_of_the_provider_a_handshake_fails_and_the_log_says_why(
    deployment: Deployment, variants: Variants, key_urls: dict[str, str], key: rsa.RSAPrivateKey
) -> None:
    token = jwt.encode(deployment.claims(deployment.user().user_id), key, "RS256", headers={"kid": "one"})

    connection_id, answer = handshake(
        deployment, query=token, function=verifying(variants, key_urls["nothing"])
    )

    assert answer.payload == {"statusCode": 500}
    assert deployment.connection(connection_id) is None
    (record,) = answer.records("connection failed")
    assert record["exception_name"] == "KeysUnavailable"
    assert "HTTP Error 404" in record["exception"]
    assert not [part for part in token.split(".") if part in answer.log]


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
