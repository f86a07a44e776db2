"""boto3 clients, made on first use and kept for the life of the execution environment."""

import random
from functools import cache
from typing import Any

import boto3
from botocore.config import Config


@cache
def session() -> boto3.Session:
    """The session that the clients share: it finds the region and the function's credentials.

    A SnapStart snapshot holds the state of `random`, and every environment restored from it would pause for
    the same time before it repeats a call: seeded here, each pauses for its own.
    """
    random.seed()
    return boto3.Session()


@cache
def client(service: str, endpoint_url: str | None = None) -> Any:
    """The client of an AWS service, at an endpoint of its own where one is given.

    A stuck call is repeated rather than waited for, three times in all and so for at most 9 s and a pause:
    within the 10 s that the shortest functions have.
    """
    config = Config(
        connect_timeout=1,
        read_timeout=2,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=16,
    )
    make: Any = session().client  # the service is a variable, which the type stubs' overloads do not take
    return make(service, endpoint_url=endpoint_url, config=config)
