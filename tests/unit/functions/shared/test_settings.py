import json

import pytest

from functions.shared import settings
from functions.shared.errors import SettingsError
from functions.shared.settings import Permission

JWT = {
    "JWT_ALGORITHMS": "HS256",
    "JWT_ISSUER": "muster",
    "JWT_AUDIENCE": "muster",
    "JWT_SECRET_ARN": "arn:secret",
}
CONNECT = JWT | {
    "CONNECTIONS_TABLE": "connections",
    "USERS_TABLE": "users",
    "ROLES": "{}",
    "CONNECTION_TTL_SECONDS": "86400",
    "AUDIENCE_SHARDS": "4",
}
ACCEPT = {"ROLES": "{}", "AUDIENCE_SHARDS": "4", "MESSAGE_RETENTION_SECONDS": "60"}


def roles(value: object) -> dict[str, str]:
    return ACCEPT | {"ROLES": json.dumps(value)}


def test_fields_are_read_from_the_variables_of_their_names_in_their_types() -> None:
    changed = {
        "JWT_ALGORITHMS": "HS256, HS512",
        "ALLOWED_ORIGINS": "https://a.example.org,https://b.example.org",
    }
    loaded = settings.load(settings.Connect, CONNECT | changed)
    assert loaded == settings.Connect(
        jwt_algorithms=("HS256", "HS512"),
        jwt_issuer="muster",
        jwt_audience="muster",
        jwt_secret_arn="arn:secret",
        connections_table="connections",
        users_table="users",
        roles={},
        connection_ttl_seconds=86400,
        audience_shards=4,
        allowed_origins=("https://a.example.org", "https://b.example.org"),
    )
    assert settings.load(settings.Connect, CONNECT | {"ALLOWED_ORIGINS": ""}).allowed_origins == ()


def test_every_missing_and_bad_variable_is_in_one_error() -> None:
    environment = {
        **CONNECT,
        "CONNECTION_TTL_SECONDS": "a day",
        "AUDIENCE_SHARDS": "0",
        "USERS_TABLE": "",
    }
    del environment["CONNECTIONS_TABLE"]
    with pytest.raises(SettingsError) as refusal:
        settings.load(settings.Connect, environment)
    text = str(refusal.value)
    assert text.startswith("Connect settings: ")
    for problem in (
        "CONNECTIONS_TABLE is not set",
        "USERS_TABLE is not set",
        "CONNECTION_TTL_SECONDS: ",
        "AUDIENCE_SHARDS: must be 1 or more, not 0",
    ):
        assert problem in text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"JWT_ALGORITHMS": "HS256,RS256"}, "JWT_ALGORITHMS"),
        ({"JWT_ALGORITHMS": "none"}, "JWT_ALGORITHMS"),
        ({"JWT_ALGORITHMS": "HS256,none"}, "JWT_ALGORITHMS"),
        ({"JWT_SECRET_ARN": ""}, "JWT_SECRET_ARN"),
        ({"JWT_JWKS_URL": "https://keys"}, "JWT_JWKS_URL"),
        ({"JWT_ALGORITHMS": "RS256,ES256"}, "JWT_JWKS_URL"),
        ({"JWT_ALGORITHMS": "RS256", "JWT_JWKS_URL": "https://keys"}, "JWT_SECRET_ARN"),
    ],
)
def test_algorithm_families_and_key_sources_do_not_mix(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        settings.load(settings.Connect, CONNECT | changes)


def test_key_pair_algorithms_take_a_jwks_url() -> None:
    environment = CONNECT | {"JWT_ALGORITHMS": "RS256,ES384", "JWT_JWKS_URL": "https://keys"}
    del environment["JWT_SECRET_ARN"]
    loaded = settings.load(settings.Connect, environment)
    assert (loaded.jwt_jwks_url, loaded.jwt_secret_arn) == ("https://keys", None)


def test_roles_are_read_as_terraform_writes_them() -> None:
    environment = roles(
        {
            "admin": {"actions": ["alert", "broadcast"], "own_shelter_only": False},
            "shelter_operator": {"actions": ["shelter_update"], "own_shelter_only": True},
            "resident": {"actions": []},
        }
    )
    assert settings.load(settings.Accept, environment).roles == {
        "admin": Permission(frozenset({"alert", "broadcast"}), False),
        "shelter_operator": Permission(frozenset({"shelter_update"}), True),
        "resident": Permission(frozenset(), False),
    }


@pytest.mark.parametrize("bad", ["{", "[]", '"admin"', '{"admin": {}}', '{"admin": []}', '{"admin": 1}'])
def test_bad_roles_are_a_settings_error(bad: str) -> None:
    with pytest.raises(SettingsError, match="ROLES: "):
        settings.load(settings.Accept, ACCEPT | {"ROLES": bad})
