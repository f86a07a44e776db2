"""The ways to post that are compared. Each runs in its own process.

`python contenders.py WAY ENDPOINT POSTS IN_FLIGHT` warms up, posts, and prints one JSON object: the seconds
and CPU seconds of the posts, and the peak memory of the process in MiB. With POSTS 0 it makes one post and
prints nothing, so that the caller can time the process from its start.
"""

import asyncio
import atexit
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BODY = b'{"type":"alert","payload":"' + b"x" * 471 + b'"}'
BATCH = 1000
Post = Callable[[int], None]


def connection_ids(count: int) -> list[str]:
    """Ids like API Gateway's, which end in a `=` that must be encoded."""
    return [f"L0SM9cOF{n:06d}="[:16] for n in range(count)]


def muster(endpoint: str, in_flight: int) -> Post:
    """The posting engine of this project, with batches as in Deliver."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from botocore.session import Session

    from functions.shared.posting.gateway import Gateway, Recipient

    gateway = Gateway(endpoint, Session(), in_flight)

    def post(count: int) -> None:
        ids = connection_ids(min(count, BATCH))
        batch = [Recipient(identifier, "user", 0) for identifier in ids]
        for done in range(0, count, BATCH):
            posted = gateway.post(batch[: count - done], BODY, time.monotonic() + 60)
            assert posted.count("delivered") == min(BATCH, count - done)

    return post


def boto3_threads(endpoint: str, in_flight: int) -> Post:
    """The most common way: the SDK's client and a pool of threads."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "apigatewaymanagementapi", endpoint_url=endpoint, config=Config(max_pool_connections=in_flight)
    )

    def post(count: int) -> None:
        def one(identifier: str) -> None:
            client.post_to_connection(ConnectionId=identifier, Data=BODY)

        with ThreadPoolExecutor(in_flight) as threads:
            for _ in threads.map(one, connection_ids(count)):
                pass

    return post


def aiobotocore(endpoint: str, in_flight: int) -> Post:
    """The SDK on asyncio."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    runner = asyncio.Runner()
    config = AioConfig(max_pool_connections=in_flight)
    context = get_session().create_client("apigatewaymanagementapi", endpoint_url=endpoint, config=config)
    client: Any = runner.run(context.__aenter__())
    atexit.register(lambda: runner.run(context.__aexit__(None, None, None)))

    async def work(identifiers: list[str]) -> None:
        while identifiers:
            await client.post_to_connection(ConnectionId=identifiers.pop(), Data=BODY)

    async def main(count: int) -> None:
        identifiers = connection_ids(count)
        await asyncio.gather(*(work(identifiers) for _ in range(in_flight)))

    return lambda count: runner.run(main(count))


def pycurl_http2(endpoint: str, in_flight: int) -> Post:
    """Muster's signer with libcurl's multi interface over HTTP/2, the fastest maintained library."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import pycurl

    from functions.shared.posting.signing import PostSigner

    credentials = SimpleNamespace(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        token=os.environ["AWS_SESSION_TOKEN"],
    )
    origin = endpoint.removesuffix("/live")
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, 4)
    idle: list[Any] = []
    for _ in range(in_flight):
        handle = pycurl.Curl()
        handle.setopt(pycurl.CAINFO, os.environ["SSL_CERT_FILE"])
        handle.setopt(pycurl.POSTFIELDS, BODY)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        handle.setopt(pycurl.PIPEWAIT, 1)
        handle.setopt(pycurl.WRITEFUNCTION, lambda _: None)
        idle.append(handle)

    def post(count: int) -> None:
        signer = PostSigner(endpoint, "us-east-1", credentials, BODY)
        waiting = connection_ids(count)
        taken = 0
        while taken < count:
            while idle and waiting:
                request, *headers = signer.head(waiting.pop()).decode().split("\r\n")
                handle = idle.pop()
                handle.setopt(pycurl.URL, origin + request.split(" ")[1])
                own = [line for line in headers if line.startswith(("x-amz", "authorization"))]
                handle.setopt(pycurl.HTTPHEADER, [*own, "Expect:", "Content-Type:"])
                multi.add_handle(handle)
            multi.perform()
            _, done, failed = multi.info_read()
            assert not failed, failed
            for handle in done:
                assert handle.getinfo(pycurl.RESPONSE_CODE) == 200
                multi.remove_handle(handle)
                idle.append(handle)
            taken += len(done)
            if not done:
                multi.select(0.1)

    return post


WAYS = {
    "muster": muster,
    "boto3-threads": boto3_threads,
    "aiobotocore": aiobotocore,
    "pycurl-http2": pycurl_http2,
}


def main() -> None:
    """Measure one way to post."""
    way, endpoint, posts, in_flight = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    post = WAYS[way](endpoint, in_flight)
    if posts == 0:
        post(1)
        return
    post(in_flight * 4)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    post(posts)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"posts": posts, "seconds": seconds, "cpu": cpu, "peak_mib": after.ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
