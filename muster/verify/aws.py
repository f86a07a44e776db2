"""Calls of AWS that a run makes: clients, pages, and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from muster.aws import error_code
from muster.outputs import Outputs

T = TypeVar("T")


class Aws:
    """The boto3 clients of a deployment, called from asyncio."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._clients: dict[str, Any] = {}

    def aws(self, service: str) -> Any:
        """Return a boto3 client of the deployment, made once."""
        if service not in self._clients:
            self._clients[service] = self.outputs.client(service)
        return self._clients[service]

    async def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Call AWS once. A cancellation waits for the answer: cleaning up must know what was made."""
        method = getattr(self.aws(service), operation)
        answer: dict[str, Any] = await finished(asyncio.to_thread(method, **arguments))
        return answer

    async def pages(self, service: str, operation: str, result: str, **arguments: Any) -> list[Any]:
        """Call AWS for every page, and return the entries of `result` of all pages."""

        def read() -> list[Any]:
            paginator = self.aws(service).get_paginator(operation)
            return [entry for page in paginator.paginate(**arguments) for entry in page.get(result, ())]

        return await finished(asyncio.to_thread(read))


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. When the caller is cancelled, let the work end before the cancellation continues."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def name_prefix(outputs: Outputs) -> str:
    """Return the deployment's name_prefix."""
    return outputs.broadcast_state_machine_arn.rpartition(":")[2].removesuffix("-broadcast")


def reason(error: BotoCoreError | ClientError) -> str:
    """Return what AWS refused, without its message, which may name resources."""
    if isinstance(error, ClientError):
        return f"{error.operation_name}: {error_code(error) or 'no code'}"
    return type(error).__name__
