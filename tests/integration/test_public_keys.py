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

from tests.deployment import Deployment, unique
from tests.integration.handshakes import assert_refused, handshake
from tests.integration.variants import Variants


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def key_url(deployment: Deployment, key: rsa.RSAPrivateKey) -> Iterator[str]:
    """Where the provider publishes its keys: an object in S3, which a Lambda reaches wherever it runs."""
    s3, place = deployment.outputs.client("s3"), {"Bucket": unique("keys"), "Key": "jwks.json"}
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    keys = {"keys": [jwk | {"kid": "one", "alg": "RS256", "use": "sig"}]}
    s3.create_bucket(Bucket=place["Bucket"])
    s3.put_object(**place, Body=json.dumps(keys))
    yield s3.generate_presigned_url("get_object", Params=place)
    s3.delete_object(**place)
    s3.delete_bucket(Bucket=place["Bucket"])


@pytest.fixture(scope="session")
def function(variants: Variants, key_url: str) -> str:
    changes = {"JWT_ALGORITHMS": "RS256", "JWT_JWKS_URL": key_url, "JWT_SECRET_ARN": None}
    return variants.function("connect", environment=changes)


def test_admits_what_the_private_key_signed(
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


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
