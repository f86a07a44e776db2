from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from functions import __version__
from functions.shared.posting.signing import PostSigner
from tests.support.functions import Keys, properties

REGION = "eu-west-1"
ENDPOINTS = [
    "https://abc123.execute-api.eu-west-1.amazonaws.com/live",
    "https://abc123.execute-api.eu-west-1.amazonaws.com/$default",
    "https://abc123.execute-api.eu-west-1.amazonaws.com:443/live",
    "https://ws.example.org",
    "https://WS.Example.org/base/v1",
    "https://ws.example.org:8443/base~path",
    "http://127.0.0.1:80/live",
    "http://127.0.0.1:4566/_aws/execute-api/abc123/live",
]


KEYS = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)


@dataclass
class Head:
    """A parsed request head."""

    line: str
    headers: dict[str, str]

    @classmethod
    def parse(cls, head: bytes) -> "Head":
        line, *fields, empty, end = head.decode("ascii").split("\r\n")
        assert (empty, end) == ("", "")
        return cls(line, dict(field.split(": ", 1) for field in fields))


@cache
def boto3_client(endpoint: str) -> Any:
    """A real client whose requests are stored in `client.sent` instead of sent."""
    session = boto3.Session(region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test")
    client: Any = session.client("apigatewaymanagementapi", endpoint_url=endpoint)
    client.sent = []

    def intercept(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        client.sent.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), _Empty())

    client.meta.events.register("before-send", intercept)
    return client


class _Empty:
    def stream(self, **_: Any) -> list[bytes]:
        return []


def boto3_request(endpoint: str, connection_id: str, body: bytes) -> AWSPreparedRequest:
    """The request that boto3 sends."""
    client = boto3_client(endpoint)
    client.post_to_connection(ConnectionId=connection_id, Data=body)
    request: AWSPreparedRequest = client.sent.pop()
    return request


def botocore_signature(url: str, body: bytes, keys: Keys) -> tuple[dict[str, str], datetime]:
    """The headers that botocore adds to a post to `url`, and the time that it signs."""
    request = AWSRequest(method="POST", url=url, data=body)
    SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token), "execute-api", REGION).add_auth(
        request
    )
    headers = {name.lower(): value for name, value in request.headers.items()}
    return headers, datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


IDS = (
    st.from_regex(r"[A-Za-z0-9_-]{10,14}=", fullmatch=True)
    | st.text("=+/%~ @:;&?#é世🌍aZ09-_.!*'()\"\\", min_size=1)
    | st.text(min_size=1)
).filter(lambda identifier: identifier not in (".", ".."))  # a URL's path cannot contain them


@properties
@given(
    endpoint=st.sampled_from(ENDPOINTS),
    connection_id=IDS,
    body=st.binary(max_size=100),
    session_token=st.none() | st.from_regex(r"[A-Za-z0-9+/=]{1,80}", fullmatch=True),
)
@example(ENDPOINTS[0], "L0SM9cOFvHcCIhw=", b"{}", None)
@example(ENDPOINTS[1], "a+b/c%d e~é==", b"{}", "token")
def test_a_head_equals_boto3s_request_and_botocores_signature(
    endpoint: str, connection_id: str, body: bytes, session_token: str | None
) -> None:
    keys = replace(KEYS, token=session_token)
    sent = boto3_request(endpoint, connection_id, body)
    signed, now = botocore_signature(sent.url, body, keys)

    head = Head.parse(PostSigner(endpoint, REGION, keys, body, now).head(connection_id))

    target = "/" + sent.url.split("/", 3)[3]
    assert head.line == f"POST {target} HTTP/1.1"
    assert head.headers.pop("content-length") == str(len(body))
    assert head.headers.pop("user-agent") == f"muster/{__version__}"
    assert head.headers.pop("host") in sent.url.lower()
    assert head.headers == signed


def test_the_host_header_omits_the_default_port() -> None:
    hosts = {
        "https://h.example/live": "h.example",
        "https://h.example:443/live": "h.example",
        "http://h.example:80/live": "h.example",
        "https://h.example:80/live": "h.example:80",
        "http://h.example:4566/live": "h.example:4566",
    }
    heads = {url: Head.parse(PostSigner(url, REGION, KEYS, b"").head("c")) for url in hosts}
    assert {url: head.headers["host"] for url, head in heads.items()} == hosts


@pytest.mark.parametrize("change", ["body", "connection", "keys", "instant"])
def test_the_signature_depends_on_everything_signed(change: str) -> None:
    now = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
    first = PostSigner(ENDPOINTS[0], REGION, KEYS, b"{}", now).head("c1=")
    other = {
        "body": lambda: PostSigner(ENDPOINTS[0], REGION, KEYS, b"[]", now).head("c1="),
        "connection": lambda: PostSigner(ENDPOINTS[0], REGION, KEYS, b"{}", now).head("c2="),
        "keys": lambda: PostSigner(ENDPOINTS[0], REGION, replace(KEYS, secret_key="other"), b"{}", now).head(
            "c1="
        ),
        "instant": lambda: PostSigner(ENDPOINTS[0], REGION, KEYS, b"{}", now.replace(second=1)).head("c1="),
    }[change]()
    signatures = {Head.parse(head).headers["authorization"].rpartition("=")[2] for head in (first, other)}
    assert len(signatures) == 2


def test_each_connection_has_its_own_stable_signature() -> None:
    signer = PostSigner(ENDPOINTS[0], REGION, KEYS, b"{}")
    assert len({signer.head(f"c{n}=") for n in range(50)} | {signer.head("c7=")}) == 50
