"""The keys that verify tokens: how they are read, and how long they are used while their source is down."""

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any

import jwt
from botocore.exceptions import BotoCoreError, ClientError

from functions import __version__
from functions.shared.errors import KeysUnavailable, TokenRefused
from functions.shared.telemetry import logger

KEY_LIFETIME_SECONDS = 300
"""How long keys are used before they are read again. A rotation is noticed after this time at the latest."""

STALE_SECONDS = 24 * 60 * 60
"""How long keys are used while their source is down, counted from when they were read. Connections last as
long by default, so an outage gives nobody longer access than a client that connected before it."""

RETRY_SECONDS = 30
"""The shortest time between two reads while there are keys. It limits an environment to two requests a minute
while tokens have unknown key ids or the source is down."""

FIRST_RETRY_SECONDS = 1
"""The same while there are no keys and every handshake fails."""

READ_SECONDS = 5
"""How long a token waits for a read: half of the shortest function's timeout [terraform/functions.tf]."""

Keys = Callable[[str, str | None], Any]
"""Returns the key for an algorithm and a key id (None if the token has none), or None if there is no such
key. Raises `TokenRefused` if the key is for another algorithm."""


class Source:
    """Reads keys on demand, and keeps using them while they cannot be read again.

    `read` returns the keys or raises `KeysUnavailable`. It runs in a thread, because urllib and botocore do
    not limit the total time of a call with its name resolution, and a function that times out loses its
    keys. A later call uses the result of a read that took too long.
    """

    def __init__(self, name: str, read: Callable[[], Keys], clock: Callable[[], float]) -> None:
        """`name` names the source in errors; `clock` returns seconds."""
        self.problem: str | None = None
        """Why the last read failed, or None. While it is set, the source may have newer keys."""
        self._name = name
        self._read = read
        self._clock = clock
        self._keys: Keys | None = None
        self._read_at = self._started_at = self._tried_at = -math.inf
        self._reading: Future[tuple[Keys, float]] | None = None

    def keys(self, newer: bool = False) -> Keys:
        """The keys; with `newer`, they are read again early unless a read was just tried.

        Raises `KeysUnavailable` if there are none, or only keys that are older than STALE_SECONDS.
        """
        if self._reading is not None and self._reading.done():
            self._collect(self._reading, 0)
        now = self._clock()
        age = now - self._read_at
        if age >= STALE_SECONDS:
            self._keys = None
        pause = FIRST_RETRY_SECONDS if self._keys is None else RETRY_SECONDS
        if (newer or age >= KEY_LIFETIME_SECONDS) and now - self._tried_at >= pause:
            if self._reading is None or now - self._started_at >= RETRY_SECONDS:
                self._reading, self._started_at = self._start(), now
            self._collect(self._reading, READ_SECONDS)
            self._tried_at = self._clock()
        if self._keys is None:
            raise KeysUnavailable(self.problem or "")
        return self._keys

    def stale_seconds(self) -> float | None:
        """The age of the keys if they should have been read again by now, or None."""
        age = self._clock() - self._read_at
        return age if age >= KEY_LIFETIME_SECONDS else None

    def _start(self) -> Future[tuple[Keys, float]]:
        reading: Future[tuple[Keys, float]] = Future()

        def run() -> None:
            try:
                reading.set_result((self._read(), self._clock()))
            except BaseException as error:  # `_collect` raises it again
                reading.set_exception(error)

        Thread(target=run, name="keys", daemon=True).start()
        return reading

    def _collect(self, reading: Future[tuple[Keys, float]], seconds: float) -> None:
        try:
            self._keys, self._read_at = reading.result(seconds)
            self.problem = None
        except TimeoutError:
            self.problem = f"{self._name}: no answer within {READ_SECONDS} s"
        except KeysUnavailable as error:
            self.problem = f"{self._name}: {error}"
        except Exception as error:  # unexpected: keep using the last keys
            self.problem = f"{self._name}: {type(error).__name__}"
        if reading.done():
            self._reading = None
        if self.problem is not None and self._keys is not None:
            age = round(self._clock() - self._read_at)
            logger.warning("keys not read", extra={"reason": self.problem, "ageSeconds": age})


class SharedSecret:
    """Reads the secret of HS... from Secrets Manager: its text in UTF-8, or its bytes."""

    def __init__(self, secrets: Any, arn: str) -> None:
        """`secrets` is a Secrets Manager client."""
        self._secrets = secrets
        self._arn = arn
        self._last: bytes | None = None

    def __call__(self) -> Keys:
        """The secret, for every algorithm and key id. Raises `KeysUnavailable`, without any part of it."""
        try:
            answer = self._secrets.get_secret_value(SecretId=self._arn)
        except (BotoCoreError, ClientError) as error:
            raise KeysUnavailable(str(error)) from None
        key = answer["SecretString"].encode() if "SecretString" in answer else answer["SecretBinary"]
        parsed = None
        with suppress(ValueError, RecursionError):
            parsed = json.loads(key)
        if not key.strip():
            raise KeysUnavailable("the secret is empty; store the key that signs the tokens")
        if isinstance(parsed, dict | list):
            raise KeysUnavailable(
                "the secret is JSON; store only the key itself, in the console as Plaintext, not as Key/value"
            )
        try:
            jwt.get_algorithm_by_name("HS256").prepare_key(key)
        except jwt.InvalidKeyError:
            raise KeysUnavailable(
                "the secret is a certificate or a key of a key pair; HS... needs a random key, RS... and "
                "ES... need jwt.jwks_url"
            ) from None
        if key != self._last and key.isascii() and (key != key.strip() or isinstance(parsed, str)):
            logger.warning(
                "the JWT secret starts or ends with white space, a newline or quotation marks, which are "
                "part of the key: if the issuer signs without them, every signature is refused"
            )
        self._last = key
        return lambda algorithm, key_id: key


class PublicKeys:
    """Reads the public keys of RS... and ES... from a JWKS (RFC 7517)."""

    def __init__(self, url: str, algorithms: Sequence[str]) -> None:
        """`algorithms` are those that tokens may use; keys for others are ignored."""
        self._algorithms = algorithms
        # A firewall in front of a provider may block urllib's default User-Agent.
        headers = {"User-Agent": f"muster/{__version__}"}
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, headers=headers, timeout=READ_SECONDS)

    def __call__(self) -> Keys:
        """The usable keys. Raises `KeysUnavailable` if there are none.

        A token without a key id is verified with the key without a key id, if there is exactly one.
        """
        try:
            answer = self._client.fetch_data()
        except (OSError, ValueError, RecursionError, jwt.PyJWTError) as error:
            raise KeysUnavailable(f"{type(error).__name__}: {error}") from None
        listed = answer.get("keys")
        if not isinstance(listed, list):
            raise KeysUnavailable("the response is not a JWKS: it has no list of keys")
        usable: dict[tuple[str | None, str], list[jwt.PyJWK]] = {}
        for key in listed:
            if not isinstance(key, dict) or key.get("use") not in (None, "sig"):
                continue
            key_id = key.get("kid")
            if not isinstance(key_id, str | None):
                continue
            for algorithm in self._algorithms:
                # A key without `alg` is for each algorithm of its type, while PyJWT would assume one.
                if key.get("alg") in (None, algorithm):
                    with suppress(jwt.PyJWTError):
                        made = jwt.PyJWK(key, algorithm)
                        made.Algorithm.prepare_key(made.key)  # rejects a curve of another algorithm
                        usable.setdefault((key_id or None, algorithm), []).append(made)
        if not usable:
            allowed = ", ".join(self._algorithms)
            raise KeysUnavailable(f"none of the {len(listed)} keys verifies signatures by {allowed}")

        key_ids = {key_id for key_id, _ in usable}

        def find(algorithm: str, key_id: str | None) -> jwt.PyJWK | None:
            found = usable.get((key_id, algorithm), [])
            if key_id and not found and key_id in key_ids:
                raise TokenRefused("algorithm")
            return found[0] if len(found) == 1 or (found and key_id) else None

        return find
