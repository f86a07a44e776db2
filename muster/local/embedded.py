"""The emulator's program: MiniStack, corrected where it differs from AWS.

Before the server starts, it replaces functions of MiniStack. It ends with an error when one is missing or has
other parameters. A correction can be deleted once a MiniStack release behaves like AWS:

    always                                                                  AWS source
    $connect's status and `Sec-WebSocket-Protocol` reach the client         WebSocket APIs, $connect route
    a function that crashes answers 502, or an "Internal server error"      WebSocket APIs, integration errors
    a reply reaches the client only through a route response                WebSocket APIs, route responses
    a frame over 32 KB or a message over 128 KB closes the socket: 1009     API Gateway WebSocket quotas
    PostToConnection refuses more than 128 KB with 413                      API Gateway WebSocket quotas
    connection ids end with `=`                                             PostToConnection
    the output of functions called from sockets reaches CloudWatch Logs     Lambda logs
    the server never closes an idle HTTP connection first                   (see `_Config`)

    on request, by an environment variable
    MUSTER_EMULATED_IDLE_SECONDS       closes a socket after this time without messages (AWS: 600)
    MUSTER_EMULATED_LIFE_SECONDS       closes every socket at this age (AWS: 7,200)
    MUSTER_EMULATED_RATE               requests per second before 429: connects, messages and callbacks
                                       together, with a burst of half the rate (AWS: 10,000 and 5,000)
    MUSTER_EMULATED_DISCONNECTS=drop   never calls the $disconnect route, which is best effort on AWS

With MUSTER_LOG_DIR, each function's output is also appended to `<function>.log` in that folder.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from hypercorn import config
from hypercorn.protocol import ws_stream
from ministack import app
from ministack.core import lambda_runtime
from ministack.services import apigateway, lambda_svc

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

MAX_FRAME_BYTES = 32 * 1024
MAX_MESSAGE_BYTES = 128 * 1024
"""[API Gateway WebSocket quotas]"""

MAX_LOG_BYTES = 4_000_000
"""A log file of this size is renamed to `<function>.log.1`, and a new one begins."""

_TOO_MANY = "Too Many Requests"

# The functions that are replaced, and the parameters that they must have.
_REPLACED: tuple[tuple[Any, str, str], ...] = (
    (apigateway, "handle_websocket", "scope receive send api_id path_override"),
    (apigateway, "handle_connections_api", "method api_id stage connection_id body headers"),
    (
        apigateway,
        "_invoke_ws_lambda",
        "api_id account_id region route stage connection_id event_type message_id body_text source_ip "
        "headers query_params kwargs",
    ),
    (apigateway, "_refuse_ws_handshake", "scope send status message connection_id request_id"),
    (apigateway, "new_uuid", ""),
    (lambda_runtime, "get_or_create_worker", "func_name config code_zip qualifier"),
    (lambda_svc, "_emit_lambda_logs", "func request_id log_text error duration_ms log_source"),
    (ws_stream.WebsocketBuffer, "extend", "self event"),
)


class Crash(dict[str, Any]):
    """The response of API Gateway when a function failed."""


@dataclass
class Handshake:
    """One socket's handshake: whether its connection id was made, and the response of `$connect`."""

    id_made: bool = False
    answer: Event | None = None


class Bucket:
    """The account's token bucket: `rate` requests per second, with a burst of half the rate."""

    def __init__(self, rate: float) -> None:
        self._rate, self._size = rate, rate / 2
        self._tokens, self._at = self._size, time.monotonic()

    def take(self) -> bool:
        """Take one token; return False when there is none."""
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


_handshake: ContextVar[Handshake | None] = ContextVar("handshake", default=None)


def main() -> None:
    """Check MiniStack, install the corrections, and serve until a signal ends the process."""
    if faults := incompatible():
        sys.exit(
            f"MiniStack {version('ministack')} does not fit this version of Muster: {', '.join(faults)}. "
            "Install the version that Muster's `local` extra names."
        )
    rate = os.environ.get("MUSTER_EMULATED_RATE")
    folder = os.environ.get("MUSTER_LOG_DIR")
    install(
        idle_seconds=_seconds("MUSTER_EMULATED_IDLE_SECONDS"),
        life_seconds=_seconds("MUSTER_EMULATED_LIFE_SECONDS"),
        bucket=Bucket(float(rate)) if rate else None,
        drop_disconnects=os.environ.get("MUSTER_EMULATED_DISCONNECTS") == "drop",
        log_dir=Path(folder) if folder else None,
    )
    app.main()


def incompatible() -> list[str]:
    """Return the functions that MiniStack lacks, or that have other parameters than this module passes."""
    faults = []
    for owner, name, parameters in _REPLACED:
        found = getattr(owner, name, None)
        if found is None or list(inspect.signature(found).parameters) != parameters.split():
            faults.append(f"{owner.__name__}.{name} differs")
    return faults


def install(
    *,
    idle_seconds: float,
    life_seconds: float,
    bucket: Bucket | None,
    drop_disconnects: bool,
    log_dir: Path | None,
) -> None:
    """Replace MiniStack's functions in this process."""
    handle = apigateway.handle_websocket
    invoke = apigateway._invoke_ws_lambda
    callbacks = apigateway.handle_connections_api
    uuid = apigateway.new_uuid
    worker = lambda_runtime.get_or_create_worker
    emit = lambda_svc._emit_lambda_logs

    async def handle_websocket(
        scope: Event, receive: Receive, send: Send, api_id: str, path_override: str | None = None
    ) -> None:
        if bucket and not bucket.take():
            await receive()
            await apigateway._refuse_ws_handshake(scope, send, 429, _TOO_MANY, "", uuid())
            return
        handshake = Handshake()
        _handshake.set(handshake)
        socket = _Socket(scope, receive, send, handshake, idle_seconds, life_seconds)
        await handle(scope, socket.receive, socket.send, api_id, path_override)

    async def invoke_ws_lambda(
        api_id: str, account_id: str, region: str, route: Event, *arguments: Any, **options: Any
    ) -> Event | None:
        _stage, connection_id, kind, request_id = arguments[:4]
        if kind == "DISCONNECT" and drop_disconnects:
            return None
        if kind == "MESSAGE" and bucket and not bucket.take():
            return _failure(429, _TOO_MANY, connection_id, request_id)
        answer: Event | None = await invoke(api_id, account_id, region, route, *arguments, **options)
        if kind == "CONNECT" and (handshake := _handshake.get()):
            handshake.answer = answer
        if isinstance(answer, Crash):
            return _failure(502, "Internal server error", connection_id, request_id)
        if kind == "MESSAGE" and answer and not route.get("routeResponseSelectionExpression"):
            return {**answer, "body": None}
        return answer

    async def handle_connections_api(
        method: str, api_id: str, stage: str, connection_id: str, body: bytes, headers: Event
    ) -> tuple[int, dict[str, str], bytes]:
        refusal = None
        if bucket and not bucket.take():
            refusal = 429, "LimitExceededException", _TOO_MANY
        elif method == "POST" and len(body) > MAX_MESSAGE_BYTES:
            refusal = 413, "PayloadTooLargeException", "Message is too long"
        if refusal:
            status, name, message = refusal
            kind = {"Content-Type": "application/json", "x-amzn-ErrorType": name}
            return status, kind, json.dumps({"message": message}).encode()
        answer: tuple[int, dict[str, str], bytes] = await callbacks(
            method, api_id, stage, connection_id, body, headers
        )
        return answer

    def new_uuid() -> str:
        handshake = _handshake.get()
        if handshake is None or handshake.id_made:
            return str(uuid())
        # The first id that MiniStack makes for a socket is its connection id, which it cuts to 16 characters.
        handshake.id_made = True
        return base64.b64encode(os.urandom(11), altchars=b"Aa").decode()

    def emit_lambda_logs(
        func: Event, request_id: str, log_text: str, error: bool, duration_ms: int, **options: Any
    ) -> None:
        emit(func, request_id, log_text, error, duration_ms, **options)
        name = str((func.get("config") or func).get("FunctionName"))
        if log_dir and log_text:
            _append(log_dir / f"{name}.log", log_text)

    apigateway.handle_websocket = handle_websocket
    apigateway._invoke_ws_lambda = invoke_ws_lambda
    apigateway.handle_connections_api = handle_connections_api
    apigateway.new_uuid = new_uuid
    lambda_runtime.get_or_create_worker = lambda *arguments, **options: _Logged(worker(*arguments, **options))
    lambda_svc._emit_lambda_logs = emit_lambda_logs
    config.Config = _Config  # type: ignore[misc]  # MiniStack looks it up when it starts to serve
    ws_stream.WebsocketBuffer = _Buffer  # type: ignore[misc]  # the class is looked up when a socket opens


class _Socket:
    """One socket as MiniStack sees it, with the response of `$connect` and with AWS's time limits."""

    def __init__(
        self, scope: Event, receive: Receive, send: Send, handshake: Handshake, idle: float, life: float
    ) -> None:
        self._scope, self._receive, self._send, self._handshake = scope, receive, send, handshake
        self._idle, self._life = idle, life
        self._opened = self._used = time.monotonic()
        self._accepted = self._expired = False

    async def receive(self) -> Event:
        """Return the next event: a disconnection with 1001 when the socket is too old or idle."""
        receiving = asyncio.ensure_future(self._receive())
        try:
            while True:
                until = min(self._opened + self._life, self._used + self._idle)
                left = until - time.monotonic() if self._accepted and until != float("inf") else None
                if left is not None and left <= 0:
                    self._expired = True
                    return {"type": "websocket.disconnect", "code": 1001, "reason": "Going away"}
                done, _ = await asyncio.wait({receiving}, timeout=left)
                if done:
                    self._used = time.monotonic()
                    return receiving.result()
        finally:
            receiving.cancel()

    async def send(self, event: Event) -> None:
        answer = self._handshake.answer or {}
        self._used = time.monotonic()
        if event["type"] == "websocket.accept":
            self._accepted = True
            headers = {name.lower(): value for name, value in (answer.get("headers") or {}).items()}
            event = {**event, "subprotocol": headers.get("sec-websocket-protocol")}
        elif event["type"] == "websocket.close" and not self._accepted and answer:
            status = int(answer.get("statusCode", 502))
            message = {401: "Unauthorized", 403: "Forbidden"}.get(status, "Internal server error")
            await apigateway._refuse_ws_handshake(self._scope, self._send, status, message, "", "")
            return
        elif event["type"] == "websocket.close" and self._expired:
            event = {**event, "code": 1001, "reason": "Going away"}
        await self._send(event)


class _Logged:
    """A function's worker for one call from a socket. Logs the output; a failure becomes a `Crash`."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def invoke(self, event: Event, request_id: str) -> Event:
        began = time.monotonic()
        result: Event = self._worker.invoke(event, request_id)
        failed = result.get("status") == "error"
        lines = [result.get("log"), (result.get("trace") or result.get("error")) if failed else None]
        spent = int(1000 * (time.monotonic() - began))
        log = "\n".join(line for line in lines if line)
        lambda_svc._emit_lambda_logs(self._worker.config, request_id, log, failed, spent)
        return {"status": "ok", "result": Crash(statusCode=502)} if failed else result


class _Config(config.Config):
    """Hypercorn's settings, with a keep-alive that is longer than any client's.

    When a request arrives while Hypercorn closes an idle connection, Hypercorn may process it and never
    answer. MiniStack sets 75 s, and Terraform's AWS provider keeps connections for 90 s. So the provider
    repeats requests that had succeeded, which then fail ("already exists", "does not exist").
    """

    @property
    def keep_alive_timeout(self) -> float:
        return 3600.0

    @keep_alive_timeout.setter
    def keep_alive_timeout(self, seconds: float) -> None:
        """Ignore the value that MiniStack sets."""


class _Buffer(ws_stream.WebsocketBuffer):
    """A socket's incoming message, with API Gateway's limits in bytes.

    Hypercorn answers the error with 1009. Later frames are dropped here: after a second error Hypercorn stops
    reading, and would not notice that the client closes.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self._frame = self._message = 0
        self._exceeded = False

    def extend(self, event: Any) -> None:
        if self._exceeded:
            return
        data = event.data.encode() if isinstance(event.data, str) else event.data
        self._frame += len(data)
        self._message += len(data)
        if self._frame > MAX_FRAME_BYTES or self._message > MAX_MESSAGE_BYTES:
            self._exceeded = True
            raise ws_stream.FrameTooLargeError
        if event.frame_finished:
            self._frame = 0
        super().extend(event)

    def clear(self) -> None:
        super().clear()
        self._message = 0

    def to_message(self) -> dict[str, Any]:
        return {"type": "websocket.dropped"} if self._exceeded else super().to_message()


def _failure(status: int, message: str, connection_id: str, request_id: str) -> Event:
    """Return API Gateway's own error message, which needs no route response."""
    body = {"message": message, "connectionId": connection_id, "requestId": request_id}
    return {"statusCode": status, "body": json.dumps(body)}


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    with path.open("a") as file:
        file.write(text.rstrip("\n") + "\n")


def _seconds(name: str) -> float:
    return float(os.environ.get(name, "inf"))


if __name__ == "__main__":
    main()
