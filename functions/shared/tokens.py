"""Finding and verifying the JWT that a client presents."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt import exceptions

from functions.shared.errors import KeysUnavailable, TokenRefused
from functions.shared.settings import Jwt

SUBPROTOCOL = "muster"
"""The WebSocket subprotocol that browsers offer beside the token, and that the server selects."""

KEY_LIFETIME_SECONDS = 300
"""How long a verification key is kept before it is read again: the longest a rotation can go unnoticed."""

REASONS: dict[type[Exception], str] = {
    exceptions.ExpiredSignatureError: "expired",
    exceptions.InvalidSignatureError: "signature",
    exceptions.InvalidAlgorithmError: "algorithm",
    exceptions.InvalidIssuerError: "claims",
    exceptions.InvalidAudienceError: "claims",
    exceptions.MissingRequiredClaimError: "claims",
    exceptions.ImmatureSignatureError: "claims",
    exceptions.InvalidIssuedAtError: "claims",
    exceptions.InvalidSubjectError: "claims",
    exceptions.PyJWKClientError: "key",
}


@dataclass(frozen=True)
class Claims:
    """What a verified token says: whose it is and the epoch second at which it stops being valid."""

    user_id: str
    expires_at: int


@dataclass(frozen=True)
class Offer:
    """A token as it arrived, and the subprotocol to select in the answer (None: none was offered)."""

    token: str
    subprotocol: str | None = None


def find(event: Mapping[str, Any]) -> Offer:
    """The token of a `$connect` event, from `?Authorization=`, the header or the subprotocol list.

    Browsers cannot set headers on a WebSocket, so they offer the subprotocols `muster` and the token itself;
    one of those offered must be selected in the answer or the browser closes the socket.
    Raises `TokenRefused("missing")`.
    """
    query = event.get("queryStringParameters") or {}
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    offered = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",") if part.strip()]
    selected = SUBPROTOCOL if SUBPROTOCOL in offered else None
    for candidate in (query.get("Authorization"), headers.get("authorization")):
        if candidate:
            return Offer(re.sub("^bearer +", "", candidate, flags=re.IGNORECASE).strip(), selected)
    for part in offered:
        if part.count(".") == 2:
            return Offer(part, selected or part)
    raise TokenRefused("missing")


class Verifier:
    """Verifies tokens against one fixed configuration; keys are cached for KEY_LIFETIME_SECONDS."""

    def __init__(self, settings: Jwt, secrets: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """`secrets` is a Secrets Manager client, None where there is a JWKS URL; `clock` counts seconds."""
        self._settings = settings
        self._secrets = secrets
        self._clock = clock
        self._secret: tuple[str, float] | None = None
        self._jwks = (
            jwt.PyJWKClient(settings.jwt_jwks_url, lifespan=KEY_LIFETIME_SECONDS, timeout=5)
            if settings.jwt_jwks_url
            else None
        )

    def verify(self, token: str) -> Claims:
        """The claims of `token`.

        They hold only when the signature, `exp`, `iss`, `aud` and `sub` do, under a configured algorithm.
        Raises `TokenRefused`, whose reason never contains any part of the token; `KeysUnavailable` when the
        token cannot be judged.
        """
        settings = self._settings
        try:
            # Before any key is fetched: a token must not choose its own algorithm.
            if jwt.get_unverified_header(token).get("alg") not in settings.jwt_algorithms:
                raise TokenRefused("algorithm")
            claims = jwt.decode(
                token,
                self._key(token),
                algorithms=list(settings.jwt_algorithms),
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise TokenRefused(REASONS.get(type(error), "malformed")) from None
        if not claims["sub"]:
            raise TokenRefused("claims")
        return Claims(user_id=claims["sub"], expires_at=int(claims["exp"]))

    def _key(self, token: str) -> Any:
        if self._jwks:
            # PyJWT leaves some as they are: a connection that breaks, an answer that is not JSON.
            broken = (OSError, ValueError, exceptions.PyJWKClientConnectionError)
            try:
                self._jwks.get_signing_keys()
            except (*broken, exceptions.PyJWKClientError, exceptions.PyJWKSetError) as error:
                raise KeysUnavailable(f"{self._settings.jwt_jwks_url}: {error}") from None
            try:
                return self._jwks.get_signing_key_from_jwt(token)
            except broken as error:
                raise KeysUnavailable(f"{self._settings.jwt_jwks_url}: {error}") from None
        now = self._clock()
        if self._secret is None or self._secret[1] <= now:
            answer = self._secrets.get_secret_value(SecretId=self._settings.jwt_secret_arn)
            self._secret = (answer["SecretString"], now + KEY_LIFETIME_SECONDS)
        return self._secret[0]
