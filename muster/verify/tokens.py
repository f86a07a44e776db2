"""Tokens for the users of a run, signed with the deployment's secret or printed by a command."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

import jwt

from muster.errors import MusterError
from muster.tokens import DEFAULT_LIFETIME, TokenIssuer

COMMAND_SECONDS = 60.0


class Tokens(Protocol):
    """The source of a run's tokens."""

    def user(self, suggested: str) -> str:
        """Return the id of a new user: the suggested one if tokens can be made for any id."""

    def issue(self, user_id: str) -> str:
        """Return a valid token of the user."""

    def first_expiry(self) -> float:
        """Return the Unix time at which the first token that `issue` returns now expires."""

    def refused(self, user_id: str) -> dict[str, str]:
        """Return tokens that must be refused, by their fault."""


def tampered(token: str) -> str:
    """Return a token with an invalid signature: its first character is changed."""
    body, _, signature = token.rpartition(".")
    return f"{body}.{'B' if signature[:1] == 'A' else 'A'}{signature[1:]}"


class SecretTokens:
    """Tokens that are signed here, for any user."""

    def __init__(self, issuer: TokenIssuer) -> None:
        self._issuer = issuer

    def user(self, suggested: str) -> str:
        """Return the suggested id."""
        return suggested

    def issue(self, user_id: str) -> str:
        """Sign a token that is valid for an hour."""
        return self._issuer.issue(user_id)

    def first_expiry(self) -> float:
        """Return the expiry of a token that is signed now."""
        return time.time() + DEFAULT_LIFETIME.total_seconds()

    def refused(self, user_id: str) -> dict[str, str]:
        """Return a token for each fault."""
        good = self._issuer.issue(user_id)
        return {
            "a malformed token": "garbage",
            "an expired token": self._issuer.issue(user_id, timedelta(minutes=-5)),
            "a token with a changed signature": tampered(good),
            "a token of another issuer": replace(self._issuer, issuer="https://elsewhere.invalid").issue(
                user_id
            ),
            "a token for another audience": replace(self._issuer, audience="elsewhere").issue(user_id),
        }


class CommandTokens:
    """Tokens that a command prints. It gets the suggested user id as MUSTER_USER_ID.

    An identity provider that chooses ids itself may ignore the suggestion: the token's `sub` becomes the
    user's id. Each call must print a token with another `sub`. The command runs once for each user, so the
    tokens must be valid for the whole run.
    """

    def __init__(self, command: str) -> None:
        try:
            self._command = shlex.split(command)
        except ValueError:
            raise MusterError(
                "The token command has an unclosed quotation mark.",
                fix="Quote the command as for a shell.",
            ) from None
        self._tokens: dict[str, str] = {}
        self._expiries: list[float] = []

    def user(self, suggested: str) -> str:
        """Run the command and return the `sub` of the token that it prints."""
        token = self._print(suggested)
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
            user_id, expiry = claims["sub"], float(claims["exp"])
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise _failed("did not print a JWT with a `sub` and an `exp`") from None
        if not isinstance(user_id, str) or user_id in self._tokens:
            raise _failed("printed a second token of the same user")
        self._tokens[user_id] = token
        self._expiries.append(expiry)
        return user_id

    def issue(self, user_id: str) -> str:
        """Return the user's token."""
        return self._tokens[user_id]

    def first_expiry(self) -> float:
        """Return the earliest expiry of the printed tokens."""
        return min(self._expiries)

    def refused(self, user_id: str) -> dict[str, str]:
        """Return the faulty tokens that can be made without the key."""
        return {
            "a malformed token": "garbage",
            "a token with a changed signature": tampered(self._tokens[user_id]),
        }

    def _print(self, user_id: str) -> str:
        environment = {**os.environ, "MUSTER_USER_ID": user_id}
        try:
            ended = subprocess.run(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=COMMAND_SECONDS,
                check=True,
                text=True,
            )
        except subprocess.CalledProcessError as error:
            raise _failed(f"ended with status {error.returncode}") from None
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise _failed(f"could not be run ({type(error).__name__})") from None
        return ended.stdout.strip()


def _failed(problem: str) -> MusterError:
    return MusterError(
        f"The token command {problem}.",
        fix="It must print a new JWT for the user in MUSTER_USER_ID, and nothing else.",
    )
