"""AWS clients, made once and kept for the life of the execution environment.

They come from botocore itself: boto3 adds resources and transfers, which no function uses, and takes a
seventh longer to import.
"""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from botocore.config import Config
from botocore.session import Session

from functions.shared.telemetry import trace_clients

T = TypeVar("T")


def at_init(build: Callable[[], T]) -> Callable[[], T]:
    """Have `build`, which takes no arguments, called once: in Lambda at import, elsewhere at the first call.

    Lambda gives a function's initialisation more CPU than its memory buys later: making a client takes about
    50 ms of CPU, and at 512 MB three times as long in the first event. A build that fails is tried again by
    the event, which reports why.
    """
    built = cache(build)
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        with suppress(Exception):
            built()
    return built


@cache
def session() -> Session:
    """The session that the clients share: it finds the region and the function's credentials."""
    _seed_restored_environments()
    trace_clients()
    return Session()


def _seed_restored_environments() -> None:
    """Have every environment that is restored from a SnapStart snapshot seed `random` for itself.

    The snapshot holds its state, and all of them would pause for the same time before they repeat a call.
    """
    with suppress(ImportError):  # the runtimes that have SnapStart bring it [Lambda, SnapStart runtime hooks]
        import_module("snapshot_restore_py").register_after_restore(random.seed)


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
    make: Any = session().create_client  # the stubs' overloads take no variable
    return make(service, endpoint_url=endpoint_url, config=config)
