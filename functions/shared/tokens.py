"""Finds and verifies the JWT of a client."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt import exceptions

from functions.shared.errors import KeysUnavailable, TokenRefused
from functions.shared.keys import PublicKeys, SharedSecret, Source
from functions.shared.settings import Jwt
from functions.shared.telemetry import metrics

SUBPROTOCOL = "muster"
"""The WebSocket subprotocol that browsers offer with the token, and that the server selects."""

LEEWAY_SECONDS = 30
"""How far an issuer's clock may be ahead, and `iat` and `nbf` in the future."""

MAX_TOKEN_LENGTH = 8_192
"""As in client-renew.schema.json. The request line and headers of a handshake may take 10,240 bytes in total
[API Gateway quotas]."""

FORM = re.compile(r"[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*")
"""A JWT in compact form (RFC 7515, 3.1). Some issuers pad its parts. An unsigned JWT ends with a dot."""

REASONS: dict[type[Exception], str] = {
    exceptions.InvalidTokenError: "malformed",
    exceptions.DecodeError: "malformed",
    exceptions.InvalidSignatureError: "signature",
    exceptions.InvalidAlgorithmError: "algorithm",
    exceptions.InvalidIssuerError: "claims",
    exceptions.InvalidAudienceError: "claims",
    exceptions.MissingRequiredClaimError: "claims",
    exceptions.ImmatureSignatureError: "claims",
    exceptions.InvalidIssuedAtError: "claims",
    exceptions.InvalidSubjectError: "claims",
    exceptions.InvalidJTIError: "claims",
}
"""The reason that is logged for an error of PyJWT. Muster adds the reasons missing, expired, key (the JWKS
has no key with the token's key id) and "token of another user"."""


@dataclass(frozen=True)
class Claims:
    """The claims of a verified token; it expires at the epoch second `expires_at`."""

    user_id: str
    expires_at: int


@dataclass(frozen=True)
class Offer:
    """An unverified token, and the subprotocol to select in the response (None: none was offered)."""

    token: str
    subprotocol: str | None = None


def find(event: Mapping[str, Any]) -> Offer:
    """The token of a `$connect` event: the first JWT in `?Authorization=`, the header or the subprotocols.

    A JWT may follow `Bearer`. Credentials of other schemes are ignored. Browsers cannot set headers on a
    WebSocket, so they offer the subprotocols `muster` and the token itself. The response must select one of
    the offered subprotocols, or the browser closes the socket. Raises `TokenRefused` with the reason
    malformed if `Authorization` has a value that is not a JWT, and missing if there is nothing.
    """
    authorizations = [
        *_values(event, "queryStringParameters", "authorization"),
        *_values(event, "headers", "authorization"),
    ]
    offered = [
        part.strip()
        for value in _values(event, "headers", "sec-websocket-protocol")
        for part in value.split(",")
    ]
    in_subprotocols = [part for part in offered if FORM.fullmatch(part)]
    selected = SUBPROTOCOL if SUBPROTOCOL in offered else next(iter(in_subprotocols), None)
    for candidate in [_without_bearer(value) for value in authorizations] + in_subprotocols:
        if FORM.fullmatch(candidate):
            return Offer(candidate, selected)
    raise TokenRefused("malformed" if any(value.strip() for value in authorizations) else "missing")


def _without_bearer(value: str) -> str:
    return re.sub(r"^bearer\s+", "", value.strip(), flags=re.IGNORECASE)


def _values(event: Mapping[str, Any], field: str, name: str) -> Iterator[str]:
    """Every value of a header or query parameter, ignoring the case of its name.

    API Gateway has a field with all values and one with the last value; some emulators have only the latter.
    """
    several = event.get(f"multiValue{field[0].upper()}{field[1:]}") or {}
    single = {key: [value] for key, value in (event.get(field) or {}).items()}
    for key, values in (single | several).items():
        if key.lower() == name:
            yield from values or ()


class Verifier:
    """Verifies tokens against a fixed configuration, with keys from a `keys.Source`."""

    def __init__(self, settings: Jwt, secrets: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """`secrets` is a Secrets Manager client, None if there is a JWKS URL; `clock` returns seconds."""
        self._settings = settings
        if settings.jwt_jwks_url:
            public_keys = PublicKeys(settings.jwt_jwks_url, settings.jwt_algorithms)
            self._source = Source(settings.jwt_jwks_url, public_keys, clock)
        else:
            arn = settings.jwt_secret_arn or ""
            self._source = Source(arn, SharedSecret(secrets, arn), clock)

    def verify(self, token: str) -> Claims:
        """Verify `token` and return its claims.

        Checks the algorithm, the signature, `exp`, `iss`, `aud` and `sub`. Raises `TokenRefused`, whose
        reason never contains a part of the token, or `KeysUnavailable` if the token cannot be verified now:
        there are no keys, or the token may be signed with newer keys that cannot be read.
        """
        settings = self._settings
        if len(token) > MAX_TOKEN_LENGTH or not FORM.fullmatch(token):
            raise TokenRefused("malformed")
        try:
            header = jwt.get_unverified_header(token)
            # Check this before reading a key: a token must not choose its own algorithm.
            if header.get("alg") not in settings.jwt_algorithms:
                raise TokenRefused("algorithm")
            claims = jwt.decode(
                token,
                self._key(header["alg"], header.get("kid") or None),
                algorithms=list(settings.jwt_algorithms),
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=LEEWAY_SECONDS,
                # PyJWT would apply the leeway to `exp` too.
                options={"require": ["exp", "iss", "aud", "sub"], "verify_exp": False},
            )
        except jwt.InvalidSignatureError:
            raise self._refusal("signature") from None
        except jwt.PyJWTError as error:
            raise TokenRefused(REASONS.get(type(error), "malformed")) from None
        try:
            expires_at = int(claims["exp"])
        except (ValueError, TypeError, OverflowError):
            raise TokenRefused("claims") from None
        if expires_at <= time.time():
            raise TokenRefused("expired")
        if not claims["sub"]:
            raise TokenRefused("claims")
        return Claims(user_id=claims["sub"], expires_at=expires_at)

    def _key(self, algorithm: str, key_id: str | None) -> Any:
        key = self._source.keys()(algorithm, key_id) or self._source.keys(newer=True)(algorithm, key_id)
        stale_seconds = self._source.stale_seconds()
        if stale_seconds is not None:
            metrics.add_metric("StaleKeyAge", "Seconds", stale_seconds)
        if key is None:
            raise self._refusal("key")
        return key

    def _refusal(self, reason: str) -> TokenRefused | KeysUnavailable:
        """The error for a token that newer keys might verify."""
        problem = self._source.problem
        return TokenRefused(reason) if problem is None else KeysUnavailable(problem)
