"""The configuration of the functions: one frozen dataclass each, read from environment variables.

Terraform sets the variables: the field `connections_table` is read from CONNECTIONS_TABLE. `load` reports all
missing and invalid variables in one `SettingsError`.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from functions.shared.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HMAC_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})
KEY_PAIR_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"})


@dataclass(frozen=True)
class Permission:
    """What a role may send.

    With `own_shelter_only`, it sends shelter updates only about the sender's own shelter and to its audience.
    """

    actions: frozenset[str]
    own_shelter_only: bool


T = TypeVar("T", bound="DataclassInstance")

Roles = Mapping[str, Permission]
Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Jwt:
    """How to verify tokens. Exactly one key source is set: a secret (HMAC) or a JWKS URL (key pairs)."""

    jwt_algorithms: Names
    jwt_issuer: str
    jwt_audience: str
    jwt_secret_arn: str | None = None
    jwt_jwks_url: str | None = None

    def __post_init__(self) -> None:
        """Reject mixed algorithm families: an HMAC with a public key as its secret must never verify."""
        algorithms = set(self.jwt_algorithms)
        hmac, key_pair = algorithms <= HMAC_ALGORITHMS, algorithms <= KEY_PAIR_ALGORITHMS
        if not algorithms or not (hmac or key_pair):
            raise ValueError("JWT_ALGORITHMS must be only HS*, or only RS* and ES*")
        if hmac and not (self.jwt_secret_arn and not self.jwt_jwks_url):
            raise ValueError("HS* algorithms need JWT_SECRET_ARN and no JWT_JWKS_URL")
        if key_pair and not (self.jwt_jwks_url and not self.jwt_secret_arn):
            raise ValueError("RS* and ES* algorithms need JWT_JWKS_URL and no JWT_SECRET_ARN")


@dataclass(frozen=True, kw_only=True)
class Connect(Jwt):
    """Settings of `connect`; without `allowed_origins`, every web page may connect."""

    connections_table: str
    users_table: str
    roles: Roles
    connection_ttl_seconds: int
    audience_shards: int
    allowed_origins: Names = ()


@dataclass(frozen=True, kw_only=True)
class Disconnect:
    """Settings of `disconnect`."""

    connections_table: str


@dataclass(frozen=True, kw_only=True)
class Default(Jwt):
    """Settings of `default`."""

    connections_table: str
    users_table: str
    messages_table: str
    connections_endpoint: str
    broadcast_state_machine_arn: str
    roles: Roles
    connection_ttl_seconds: int
    audience_shards: int


@dataclass(frozen=True, kw_only=True)
class Accept:
    """Settings of `accept`."""

    roles: Roles
    audience_shards: int
    message_retention_seconds: int


@dataclass(frozen=True, kw_only=True)
class Deliver:
    """Settings of `deliver`; `post_concurrency` is the number of simultaneous posts of one invocation."""

    connections_endpoint: str
    post_concurrency: int


@dataclass(frozen=True, kw_only=True)
class Offline:
    """Settings of `offline`."""

    connections_table: str
    users_table: str
    messages_table: str
    offline_topic_arn: str
    message_retention_seconds: int


def load(kind: type[T], environ: Mapping[str, str] = os.environ) -> T:
    """The settings of `kind` from `environ`.

    Raises `SettingsError`, whose text names every missing and invalid variable.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in fields(kind):
        variable = field.name.upper()
        text = environ.get(variable, "")
        if not text:
            if field.default is MISSING:
                problems.append(f"{variable} is not set")
            continue
        try:
            values[field.name] = PARSERS.get(hints[field.name], str)(text)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"{variable}: {error}")
    if not problems:
        try:
            return kind(**values)
        except ValueError as error:
            problems.append(str(error))
    raise SettingsError(f"{kind.__name__} settings: " + "; ".join(problems))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"must be 1 or more, not {number}")
    return number


def _roles(text: str) -> Roles:
    return {
        role: Permission(frozenset(entry["actions"]), bool(entry.get("own_shelter_only", False)))
        for role, entry in json.loads(text).items()
    }


def _names(text: str) -> Names:
    return tuple(part.strip() for part in text.split(","))


PARSERS: dict[Any, Callable[[str], Any]] = {int: _positive, Roles: _roles, Names: _names}
