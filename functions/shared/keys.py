"""The keys that verify tokens: where they come from, and how long they are used while that place is down."""

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
"""How long keys are used before they are read again: the longest that a rotation can go unnoticed."""

STALE_SECONDS = 24 * 60 * 60
"""How long after they were read keys are used at most, while their source is down: as long as a connection
lives by default, so an outage extends no access beyond what a client that connected before it has anyway."""

RETRY_SECONDS = 30
"""The shortest time between two reads while there are keys, so that tokens with unknown key ids and a source
that is down cost one environment two requests a minute."""

FIRST_RETRY_SECONDS = 1
"""The same while there are none, and every handshake fails."""

READ_SECONDS = 5
"""How long a token waits for a read: half of what the shortest function has [terraform/functions.tf]."""

Keys = Callable[[str, str | None], Any]
"""The key for an algorithm and a key id (None: the token names none), or None where there is none. Raises
`TokenRefused` for a key that is there, but for another algorithm."""


class Source:
    """Keys that are read on demand, and kept while they cannot be read again.

    `read` returns the keys or raises `KeysUnavailable`. It runs in a thread, because neither urllib nor
    botocore bounds the whole of a call, name resolution included, and a function that times out loses its
    keys. The result of a read that takes too long is taken by a later call.
    """

    def __init__(self, name: str, read: Callable[[], Keys], clock: Callable[[], float]) -> None:
        """`name` says in errors what was read; `clock` counts seconds."""
        self.problem: str | None = None
        """Why the last read failed; None when it did not. Until it succeeds, there may be newer keys."""
        self._name = name
        self._read = read
        self._clock = clock
        self._keys: Keys | None = None
        self._read_at = self._started_at = self._tried_at = -math.inf
        self._reading: Future[tuple[Keys, float]] | None = None

    def keys(self, newer: bool = False) -> Keys:
        """The keys; `newer` reads them again before their time, unless that was tried just before.

        Raises `KeysUnavailable` when there are none, or none that may still be used.
        """
        if self._reading and self._reading.done():
            self._collect(self._reading, 0)
        now = self._clock()
        age = now - self._read_at
        if age >= STALE_SECONDS:
            self._keys = None
        pause = RETRY_SECONDS if self._keys else FIRST_RETRY_SECONDS
        if (newer or age >= KEY_LIFETIME_SECONDS) and now - self._tried_at >= pause:
            if self._reading is None or now - self._started_at >= RETRY_SECONDS:
                self._reading, self._started_at = self._start(), now
            self._collect(self._reading, READ_SECONDS)
            self._tried_at = self._clock()
        if self._keys is None:
            raise KeysUnavailable(self.problem or "")
        return self._keys

    def stale_seconds(self) -> float:
        """How long ago the keys were read, when that is longer than they should be used; 0 otherwise."""
        age = self._clock() - self._read_at
        return age if age >= KEY_LIFETIME_SECONDS else 0

    def _start(self) -> Future[tuple[Keys, float]]:
        reading: Future[tuple[Keys, float]] = Future()

        def run() -> None:
            try:
                reading.set_result((self._read(), self._clock()))
            except BaseException as error:  # raised again by whoever collects
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
        except Exception as error:  # unforeseen: the last good keys are used all the same
            self.problem = f"{self._name}: {type(error).__name__}"
        if reading.done():
            self._reading = None
        if self.problem and self._keys:
            age = round(self._clock() - self._read_at)
            logger.warning("keys not read", extra={"reason": self.problem, "ageSeconds": age})


class SharedSecret:
    """Reads the secret of HS... from Secrets Manager: the bytes of its text, or its bytes, as they are."""

    def __init__(self, secrets: Any, arn: str) -> None:
        """`secrets` is a Secrets Manager client."""
        self._secrets = secrets
        self._arn = arn
        self._last: bytes | None = None

    def __call__(self) -> Keys:
        """The secret, for every algorithm and key id. Raises `KeysUnavailable`, without any of the secret."""
        try:
            answer = self._secrets.get_secret_value(SecretId=self._arn)
        except (BotoCoreError, ClientError) as error:
            raise KeysUnavailable(str(error)) from None
        key = answer["SecretString"].encode() if "SecretString" in answer else answer["SecretBinary"]
        parsed = None
        with suppress(ValueError, RecursionError):
            parsed = json.loads(key)
        if not key.strip():
            raise KeysUnavailable("the secret is empty; store the key that tokens are signed with")
        if isinstance(parsed, dict | list):
            raise KeysUnavailable(
                "the secret is JSON; store nothing but the key itself, in the console as Plaintext and not "
                "as Key/value"
            )
        try:
            jwt.get_algorithm_by_name("HS256").prepare_key(key)
        except jwt.InvalidKeyError:
            raise KeysUnavailable(
                "the secret is a certificate or a key of a key pair; HS... takes a random key, RS... and "
                "ES... take jwt.jwks_url"
            ) from None
        if key != self._last and key.isascii() and (key != key.strip() or isinstance(parsed, str)):
            logger.warning(
                "the JWT secret starts or ends with white space, a newline or quotation marks, which are "
                "part of the key: if the issuer leaves them out, every token is refused for its signature"
            )
        self._last = key
        return lambda algorithm, key_id: key


class PublicKeys:
    """Reads the public keys of RS... and ES... from a JWKS (RFC 7517)."""

    def __init__(self, url: str, algorithms: Sequence[str]) -> None:
        """`algorithms` are those that tokens may be signed with; a key for any other is left out."""
        self._algorithms = algorithms
        # A firewall in front of a provider may refuse what urllib calls itself by default.
        headers = {"User-Agent": f"muster/{__version__}"}
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, headers=headers, timeout=READ_SECONDS)

    def __call__(self) -> Keys:
        """The usable keys. Raises `KeysUnavailable` when there are none.

        A token without a key id is verified with the only key that has none either.
        """
        try:
            answer = self._client.fetch_data()
        except (OSError, ValueError, RecursionError, jwt.PyJWTError) as error:
            raise KeysUnavailable(f"{type(error).__name__}: {error}") from None
        listed = answer.get("keys")
        if not isinstance(listed, list):
            raise KeysUnavailable("the answer is no JWKS, it has no list of keys")
        usable: dict[tuple[str | None, str], list[jwt.PyJWK]] = {}
        for key in listed:
            if not isinstance(key, dict) or key.get("use") not in (None, "sig"):
                continue
            key_id = key.get("kid")
            if not isinstance(key_id, str | None):
                continue
            for algorithm in self._algorithms:
                # A key without `alg` serves each algorithm of its type; PyJWT by itself would assume one.
                if key.get("alg") in (None, algorithm):
                    with suppress(jwt.PyJWTError):
                        made = jwt.PyJWK(key, algorithm)
                        made.Algorithm.prepare_key(made.key)  # refuses a curve of another algorithm
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
