"""boto3 clients, made on first use and kept for the life of the execution environment."""

from functools import cache
from typing import Any

import boto3
from botocore.config import Config


@cache
def session() -> boto3.Session:
    """The session that the clients share: it finds the region and the function's credentials."""
    return boto3.Session()


@cache
def client(service: str, endpoint_url: str | None = None) -> Any:
    """The client of an AWS service, at an endpoint of its own where one is given.

    Its timeouts are short beside the functions' own (10 to 30 s), and it retries throttling and dropped
    connections itself, so that a stuck call is retried rather than waited for.
    """
    config = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 4})
    make: Any = session().client  # the service is a variable, which the type stubs' overloads do not take
    return make(service, endpoint_url=endpoint_url, config=config)
