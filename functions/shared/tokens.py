"""Finding and verifying the JWT that a client presents."""

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
"""The WebSocket subprotocol that browsers offer beside the token, and that the server selects."""

LEEWAY_SECONDS = 30
"""How far an issuer's clock may be ahead: `iat` and `nbf` may lie so far in the future."""

MAX_TOKEN_LENGTH = 8_192
"""As in client-renew.schema.json. A handshake's request line and headers take 10,240 bytes in all
[API Gateway quotas]."""

FORM = re.compile(r"[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*")
"""A JWT in its compact form (RFC 7515, 3.1). Some issuers pad its parts; an unsigned one ends with a dot."""

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
"""What PyJWT raises for a token, and the reason that the log gives. Muster's own reasons are missing, expired
and key: the JWKS has no key of the token's key id."""


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
    """The token of a `$connect` event: the first JWT in `?Authorization=`, the header or the subprotocols.

    A JWT may follow `Bearer`. Credentials of any other scheme are not for Muster, and are passed over.
    Browsers cannot set headers on a WebSocket, so they offer the subprotocols `muster` and the token itself;
    one of those offered must be selected in the answer or the browser closes the socket.
    Raises `TokenRefused`: malformed where only `Authorization` holds something, missing where nothing does.
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
    for candidate in (*map(_bare, authorizations), *in_subprotocols):
        if FORM.fullmatch(candidate):
            return Offer(candidate, selected)
    raise TokenRefused("malformed" if any(map(str.strip, authorizations)) else "missing")


def _bare(value: str) -> str:
    return re.sub(r"^bearer\s+", "", value.strip(), flags=re.IGNORECASE)


def _values(event: Mapping[str, Any], field: str, name: str) -> Iterator[str]:
    """Every value of a header or query parameter, whose name may be in any case.

    API Gateway repeats the last value of each in a second field, which is all that some emulators have.
    """
    several = event.get(f"multiValue{field[0].upper()}{field[1:]}") or {}
    single = {key: [value] for key, value in (event.get(field) or {}).items()}
    for key, values in (single | several).items():
        if key.lower() == name:
            yield from values or ()


class Verifier:
    """Verifies tokens against one fixed configuration, with keys that `keys.Source` keeps."""

    def __init__(self, settings: Jwt, secrets: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """`secrets` is a Secrets Manager client, None where there is a JWKS URL; `clock` counts seconds."""
        self._settings = settings
        if settings.jwt_jwks_url:
            public_keys = PublicKeys(settings.jwt_jwks_url, settings.jwt_algorithms)
            self._source = Source(settings.jwt_jwks_url, public_keys, clock)
        else:
            arn = settings.jwt_secret_arn or ""
            self._source = Source(arn, SharedSecret(secrets, arn), clock)

    def verify(self, token: str) -> Claims:
        """The claims of `token`.

        They hold only when the signature, `exp`, `iss`, `aud` and `sub` do, under a configured algorithm.
        Raises `TokenRefused`, whose reason never contains any part of the token, and nothing else but
        `KeysUnavailable` when the token cannot be judged: there are no keys, or the token may be signed with
        newer ones than could be read.
        """
        settings = self._settings
        if len(token) > MAX_TOKEN_LENGTH or not FORM.fullmatch(token):
            raise TokenRefused("malformed")
        try:
            header = jwt.get_unverified_header(token)
            # Before any key is fetched: a token must not choose its own algorithm.
            if header.get("alg") not in settings.jwt_algorithms:
                raise TokenRefused("algorithm")
            claims = jwt.decode(
                token,
                self._key(header["alg"], header.get("kid") or None),
                algorithms=list(settings.jwt_algorithms),
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=LEEWAY_SECONDS,
                # PyJWT would give `exp` the leeway too.
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
        if stale := self._source.stale_seconds():
            metrics.add_metric("StaleKeyAge", "Seconds", stale)
        if key is None:
            raise self._refusal("key")
        return key

    def _refusal(self, reason: str) -> TokenRefused | KeysUnavailable:
        """What a token is refused with that newer keys might verify."""
        problem = self._source.problem
        return KeysUnavailable(problem) if problem else TokenRefused(reason)
