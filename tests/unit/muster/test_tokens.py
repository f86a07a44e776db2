"""Issuing tokens from a deployment's outputs."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import boto3
import jwt
import pytest
from botocore.stub import Stubber

from muster.outputs import Outputs
from muster.tokens import TokenError, TokenIssuer, issue_token

SECRET = "s" * 64
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:muster-jwt-x"

OUTPUTS = Outputs(
    region="us-east-1",
    websocket_url="wss://api.example.org/live",
    connections_endpoint="https://api.example.org/live",
    broadcast_state_machine_arn="arn:aws:states:us-east-1:000000000000:stateMachine:muster-broadcast",
    fanout_state_machine_arn="arn:aws:states:us-east-1:000000000000:stateMachine:muster-fanout",
    offline_topic_arn="arn:aws:sns:us-east-1:000000000000:muster-offline",
    offline_queue_url="https://sqs.us-east-1.amazonaws.com/000000000000/muster-offline",
    offline_queue_arn="arn:aws:sqs:us-east-1:000000000000:muster-offline",
    connections_table="muster-connections",
    users_table="muster-users",
    messages_table="muster-messages",
    shelters_table="muster-shelters",
    jwt_issuer="issuer",
    jwt_audience="audience",
    jwt_secret_arn=ARN,
)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Stubber:
    """Stand in for Secrets Manager, behind the outputs."""
    client = boto3.client(
        "secretsmanager", region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    stubber = Stubber(client)
    stubber.activate()

    def only_secrets(_outputs: Outputs, service: str) -> Any:
        assert service == "secretsmanager"
        return client

    monkeypatch.setattr(Outputs, "client", only_secrets)
    return stubber


def decode(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        token, SECRET, algorithms=["HS256"], issuer="issuer", audience="audience"
    )
    return claims


def test_a_token_is_valid_for_the_user_the_deployment_and_the_requested_time(secrets: Stubber) -> None:
    secrets.add_response("get_secret_value", {"SecretString": SECRET}, {"SecretId": ARN})
    claims = decode(issue_token(OUTPUTS, "admin-ada", timedelta(minutes=5)))
    assert claims["sub"] == "admin-ada"
    assert claims["exp"] - claims["iat"] == 300
    assert abs(claims["iat"] - time.time()) < 5


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_token_is_signed_as_the_deployment_verifies_it(secrets: Stubber, algorithm: str) -> None:
    secrets.add_response("get_secret_value", {"SecretString": SECRET})
    token = issue_token(replace(OUTPUTS, jwt_algorithms=[algorithm]), "admin-ada")
    assert jwt.decode(token, SECRET, algorithms=[algorithm], audience="audience")["sub"] == "admin-ada"


def test_an_issuer_reads_the_secret_once(secrets: Stubber) -> None:
    secrets.add_response("get_secret_value", {"SecretString": SECRET})
    issuer = TokenIssuer.from_outputs(OUTPUTS)
    assert [decode(issuer.issue(user))["sub"] for user in ("a", "b")] == ["a", "b"]


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(TokenIssuer(SECRET, "issuer", "audience"))


def test_a_deployment_with_an_identity_provider_says_where_tokens_come_from() -> None:
    with pytest.raises(TokenError, match="identity provider") as error:
        issue_token(replace(OUTPUTS, jwt_secret_arn=None), "admin-ada")
    assert "--token" in (error.value.fix or "")


def test_an_unreadable_secret_names_itself(secrets: Stubber) -> None:
    secrets.add_client_error("get_secret_value", "AccessDeniedException")
    with pytest.raises(TokenError, match="AccessDenied") as error:
        issue_token(OUTPUTS, "admin-ada")
    assert ARN in (error.value.fix or "")


def test_a_token_without_a_user_is_refused() -> None:
    with pytest.raises(TokenError, match="needs a user"):
        TokenIssuer(SECRET, "issuer", "audience").issue("")


def test_a_secret_that_is_stored_as_bytes_is_an_error_that_names_it(secrets: Stubber) -> None:
    secrets.add_response("get_secret_value", {"SecretBinary": SECRET.encode()})
    with pytest.raises(TokenError, match="stored as bytes") as error:
        issue_token(OUTPUTS, "admin-ada")
    assert ARN in (error.value.fix or "")
    assert SECRET not in str(error.value)
