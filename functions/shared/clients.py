"""AWS clients, created once per execution environment.

They come from botocore: boto3 adds resources and transfers, which no function uses, and takes a seventh
longer to import.
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
    """Call `build` once: in Lambda at import, elsewhere at the first call.

    Creating a client takes about 50 ms of CPU. Lambda gives more CPU to the initialisation of a function
    than to its events: at 512 MB, it would take three times as long in the first event. If `build` fails at
    import, the first event calls it again and reports the error.
    """
    built = cache(build)
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        with suppress(Exception):
            built()
    return built


@cache
def session() -> Session:
    """The session of all clients, with the region and the function's credentials."""
    _seed_restored_environments()
    trace_clients()
    return Session()


def _seed_restored_environments() -> None:
    """Seed `random` again in every environment that is restored from a SnapStart snapshot.

    The snapshot contains the state of `random`, so all environments would wait equally long before a retry.
    """
    with suppress(ImportError):  # only runtimes with SnapStart have it [Lambda, SnapStart runtime hooks]
        import_module("snapshot_restore_py").register_after_restore(random.seed)


@cache
def client(service: str, endpoint_url: str | None = None) -> Any:
    """The client of an AWS service, at `endpoint_url` if it is given.

    A call that gets no answer is retried after 3 s, and fails after three attempts: 9 s and the pauses,
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
