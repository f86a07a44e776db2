"""Signature Version 4 for PostToConnection [AWS, Create a signed AWS API request].

The posts of a batch have the same body, headers and host. Only the connection id in the path differs. So the
signing key, the payload's hash and the canonical request around the path are computed once per batch, and a
post costs two SHA-256 digests and two HMAC finalisations.
"""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote, urlsplit

from functions import __version__

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "execute-api"


class Credentials(Protocol):
    """The attributes of botocore's frozen credentials."""

    access_key: str
    secret_key: str
    token: str | None


class PostSigner:
    """Builds the heads of signed `POST <endpoint>/@connections/<id>` requests that have the same body.

    All signatures carry the time at which the signer was made. AWS accepts them for five minutes.
    """

    def __init__(
        self,
        endpoint: str,
        region: str,
        credentials: Credentials,
        body: bytes,
        now: datetime | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Sign requests to `endpoint`, which is `https://host[:port]/stage` without a trailing slash.

        `trace_id` is the X-Ray trace header of the execution, which the posts pass on.
        """
        url = urlsplit(endpoint)
        default_port = {"https": 443, "http": 80}[url.scheme]
        host = url.hostname or ""
        if url.port and url.port != default_port:
            host += f":{url.port}"
        stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{region}/{SERVICE}/aws4_request"
        headers = {"host": host, "x-amz-date": stamp}
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        signed = ";".join(headers)
        canonical_headers = "".join(f"{name}:{value}\n" for name, value in headers.items())

        self._path = url.path + "/@connections/"
        # The canonical path is the request's path, encoded once more: @ becomes %40, and %3D becomes %253D.
        self._canonical_start = hashlib.sha256(f"POST\n{quote(self._path, safe='/~')}".encode())
        self._canonical_end = (
            f"\n\n{canonical_headers}\n{signed}\n{hashlib.sha256(body).hexdigest()}".encode()
        )
        self._to_sign = hmac.new(_signing_key(credentials.secret_key, scope), digestmod=hashlib.sha256)
        self._to_sign.update(f"{ALGORITHM}\n{stamp}\n{scope}\n".encode())
        # Not signed: a proxy may change them.
        unsigned = f"user-agent: muster/{__version__}\r\n"
        if trace_id:
            unsigned += f"x-amzn-trace-id: {trace_id}\r\n"
        signed_headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head_end = (
            f" HTTP/1.1\r\n{signed_headers}{unsigned}content-length: {len(body)}\r\n"
            f"authorization: {ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature="
        )

    def head(self, connection_id: str) -> bytes:
        """Return the head of the request for one connection, including the empty line at its end."""
        encoded = quote(connection_id, safe="~")
        canonical = self._canonical_start.copy()
        canonical.update(encoded.replace("%", "%25").encode())
        canonical.update(self._canonical_end)
        signature = self._to_sign.copy()
        signature.update(canonical.hexdigest().encode())
        return f"POST {self._path}{encoded}{self._head_end}{signature.hexdigest()}\r\n\r\n".encode()


def _signing_key(secret: str, scope: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
