"""Tokens for users of a deployment that verifies them with a shared secret (HS256), as the local stack does.

If an identity provider signs the tokens (RS256 or ES256 with JWKS), only that provider can issue them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import jwt

from muster.errors import MusterError

if TYPE_CHECKING:
    from muster.outputs import Outputs

DEFAULT_LIFETIME = timedelta(hours=1)


class TokenError(MusterError):
    """No token can be issued for this deployment."""


@dataclass(frozen=True)
class TokenIssuer:
    """Signs tokens with a deployment's secret. The secret is read once and is not shown in a repr."""

    secret: str = field(repr=False)
    issuer: str
    audience: str
    algorithm: str = "HS256"

    @classmethod
    def from_outputs(cls, outputs: Outputs) -> Self:
        """Read the secret of a deployment from Secrets Manager. Raises `TokenError`."""
        if outputs.jwt_secret_arn is None:
            raise TokenError(
                "This deployment verifies tokens with the keys of an identity provider, not with a secret.",
                fix="Get the token from that provider and pass it with --token or MUSTER_TOKEN.",
            )
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow to import

        try:
            answer = outputs.client("secretsmanager").get_secret_value(SecretId=outputs.jwt_secret_arn)
        except (BotoCoreError, ClientError) as error:
            raise TokenError(
                f"The secret that signs tokens cannot be read: {error}.",
                fix=f"Check that your credentials may read the secret {outputs.jwt_secret_arn}.",
            ) from error
        if not answer.get("SecretString"):
            raise TokenError(
                "The secret that signs tokens is stored as bytes.",
                fix=f"Store it as text in {outputs.jwt_secret_arn}.",
            )
        return cls(
            answer["SecretString"], outputs.jwt_issuer, outputs.jwt_audience, outputs.jwt_algorithms[0]
        )

    def issue(self, user_id: str, ttl: timedelta = DEFAULT_LIFETIME) -> str:
        """Return a token for a user, valid from now for `ttl`.

        It does not check that the user exists and is active; the server does when the user connects.
        Raises `TokenError` for an empty `user_id`.
        """
        if not user_id:
            raise TokenError("A token needs a user.", fix="Pass the id of a row of the users table.")
        now = int(time.time())
        claims = {
            "sub": user_id,
            "iss": self.issuer,
            "aud": self.audience,
            "iat": now,
            "exp": now + int(ttl.total_seconds()),
        }
        return jwt.encode(claims, self.secret, algorithm=self.algorithm)


def issue_token(outputs: Outputs, user_id: str, ttl: timedelta = DEFAULT_LIFETIME) -> str:
    """Return one token for a user of a deployment; for several, make a `TokenIssuer` once."""
    return TokenIssuer.from_outputs(outputs).issue(user_id, ttl)
