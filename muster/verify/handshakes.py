"""Checks of handshakes and frames, each with a socket of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from websockets.exceptions import InvalidStatus

from muster.verify import limits
from muster.verify.check import Check
from muster.verify.probe import Probe
from muster.verify.rows import Broken
from muster.verify.sockets import Socket
from muster.verify.sources import CONNECT_LOG, DEFAULT_LOG, PROTOCOL


async def token_in_query(probe: Probe) -> str:
    """Open a socket with the token in the address."""
    token = probe.tokens.issue(probe.users.listeners[0].user_id)
    async with probe.socket(query=token) as socket:
        return await _answered(socket)


async def token_in_header(probe: Probe) -> str:
    """Open a socket with the token in the Authorization header."""
    async with probe.socket(probe.tokens.issue(probe.users.listeners[0].user_id)) as socket:
        return await _answered(socket)


async def token_in_subprotocol(probe: Probe) -> str:
    """Open a socket with the token as a subprotocol, as browsers do."""
    token = probe.tokens.issue(probe.users.listeners[0].user_id)
    async with probe.socket(subprotocols=["muster", token]) as socket:
        selected = socket.connection.subprotocol
        if selected != "muster":
            raise Broken(
                f"The handshake selects {'no subprotocol' if selected is None else 'another subprotocol'}.",
                "Browsers close such a connection: check that $connect's response headers reach the client.",
            )
        return "The handshake selects muster. " + await _answered(socket)


async def _answered(socket: Socket) -> str:
    reply = await socket.ask({"action": "ping"})
    if reply.get("type") != "pong":
        raise Broken(f"A ping was answered with {reply.get('code', 'another message')}.", DEFAULT_LOG)
    return f"Opened in {1000 * socket.handshake_seconds:.0f} ms, and a ping was answered."


async def refused_401(probe: Probe) -> str:
    """Connect with tokens that must be refused, and without a token."""
    tokens: dict[str, str | None] = {"no token": None}
    tokens |= probe.tokens.refused(probe.users.listeners[0].user_id)
    return await _refused(probe, tokens, 401)


async def refused_403(probe: Probe) -> str:
    """Connect with valid tokens of users who may not connect."""
    users = {"an inactive user": probe.users.inactive, "an unknown user": probe.users.unknown}
    return await _refused(probe, {who: probe.tokens.issue(user.user_id) for who, user in users.items()}, 403)


async def _refused(probe: Probe, tokens: Mapping[str, str | None], expected: int) -> str:
    wrong = []
    for what, token in tokens.items():
        try:
            async with probe.socket(token):
                wrong.append(f"{what} was accepted")
        except InvalidStatus as refusal:
            if refusal.response.status_code != expected:
                wrong.append(f"{what} was answered with {refusal.response.status_code}")
    if wrong:
        raise Broken(f"{'; '.join(wrong)}; {expected} was expected.".capitalize(), CONNECT_LOG)
    return f"{expected} for {', '.join(tokens)}."


async def replies(probe: Probe) -> str:
    """Send a ping, and a frame that is not JSON."""
    async with probe.socket(probe.tokens.issue(probe.users.listeners[0].user_id)) as socket:
        try:
            pong = await socket.ask({"action": "ping"})
        except TimeoutError:
            raise Broken(
                "A ping got no reply.",
                "Check that the route $default has a route response, and that the stage is deployed.",
            ) from None
        connected = _seconds(pong["connectedAt"])
        rolls_over = _seconds(pong["reconnectBy"]) - connected
        problems = []
        if pong["idleTimeoutSeconds"] != limits.IDLE_SECONDS:
            problems.append(f"idleTimeoutSeconds is {pong['idleTimeoutSeconds']}, not {limits.IDLE_SECONDS}")
        if abs(rolls_over - limits.ROLL_OVER_SECONDS) > 1:
            problems.append(
                f"reconnectBy is {rolls_over:.0f} s after connectedAt, not {limits.ROLL_OVER_SECONDS}"
            )
        if _seconds(pong["expiresAt"]) <= _seconds(pong["serverTime"]):
            problems.append("expiresAt is in the past")
        error = await socket.ask("this is not JSON")
        if error.get("code") != "invalid_json":
            problems.append(f"a frame that is not JSON was answered with {error.get('code')}")
        if problems:
            raise Broken("; ".join(problems).capitalize() + ".", "Deploy this version of Muster.")
    return "The pong has the ping's id and every field. A frame that is not JSON got an error."


async def connect_action(probe: Probe) -> str:
    """Send a frame whose action is the name of a route."""
    async with probe.socket(probe.tokens.issue(probe.users.listeners[0].user_id)) as socket:
        await socket.connection.send(json.dumps({"action": "$connect", "id": "route"}))
        reply = await socket.ask({"action": "ping"})
        if reply.get("type") != "pong":
            raise Broken("The connection is unusable afterwards.", CONNECT_LOG)
    return "The connection stayed usable."


async def large_frame(probe: Probe) -> str:
    """Send the largest frame, then one that is a byte larger."""
    user_id = probe.users.listeners[0].user_id
    async with probe.socket(probe.tokens.issue(user_id)) as socket:
        fits = await socket.ask(_padded(limits.FRAME_BYTES))
        if fits.get("code") != "invalid_message":
            raise Broken(
                f"A frame of {limits.FRAME_BYTES} bytes was answered with {fits.get('code')}.", DEFAULT_LOG
            )
    async with probe.socket(probe.tokens.issue(user_id)) as socket:
        await socket.connection.send(json.dumps(_padded(limits.FRAME_BYTES + 1)))
        try:
            code = await socket.close_code(limits.CLOSE_SECONDS)
        except TimeoutError:
            raise Broken(
                "The connection stayed open.", "Report it to Muster's maintainers: AWS documents 1009."
            ) from None
    if code != 1009:
        raise Broken(
            f"The connection was closed with {code}.",
            "Report it to Muster's maintainers: AWS documents 1009.",
        )
    return (
        f"A frame of {limits.FRAME_BYTES} bytes was answered; one byte more closed the connection with 1009."
    )


def _padded(size: int) -> dict[str, Any]:
    """Return a ping of `size` bytes, which the server refuses because of its padding."""
    frame = {"id": "padded", "action": "ping", "padding": ""}
    return frame | {"padding": "x" * (size - len(json.dumps(frame)))}


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


CHECKS = (
    Check("query", "A token is accepted as ?Authorization=.", PROTOCOL, token_in_query),
    Check("header", "A token is accepted in the Authorization header.", PROTOCOL, token_in_header),
    Check(
        "subprotocol",
        "A token is accepted as a subprotocol, and `muster` is selected.",
        "AWS: WebSocket APIs that require the Sec-WebSocket-Protocol header",
        token_in_subprotocol,
    ),
    Check("refused-tokens", "An invalid token is answered with 401.", PROTOCOL, refused_401),
    Check("refused-users", "A user who may not connect is answered with 403.", PROTOCOL, refused_403),
    Check("replies", "A client's frame gets its reply.", "AWS: route responses of WebSocket APIs", replies),
    Check(
        "route-names",
        "A frame whose action is $connect does not break the connection.",
        "Muster: docs/local-stack.md",
        connect_action,
    ),
    Check(
        "large-frame",
        "A frame over 32 KB closes the connection with 1009.",
        "AWS: API Gateway WebSocket quotas",
        large_frame,
    ),
)
