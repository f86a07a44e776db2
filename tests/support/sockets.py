"""Plain WebSockets, without Muster's client."""

import json
from typing import Any
from uuid import uuid4

from websockets.sync.client import ClientConnection, connect

from muster.local.seed import User
from tests.support.deployment import Deployment, Json
from tests.support.schemas import conforming

ENVELOPES = {"alert", "broadcast", "shelter_update"}

SECONDS = 15
"""How long a reply may take: a cold Lambda on a busy machine."""


class Socket:
    """One user's WebSocket. It separates replies from broadcasts, and validates each by its schema."""

    def __init__(
        self, user: User, connection: ClientConnection, connection_id: str, handshake_seconds: float = 0
    ) -> None:
        self.user = user
        self.connection = connection
        self.connection_id = connection_id
        self.handshake_seconds = handshake_seconds
        self.received: list[Json] = []
        """Broadcast messages that came before a reply."""

    def close(self) -> None:
        self.connection.close()

    def ask(self, message: Json | str) -> Json:
        """Send a message and return the server's reply. Broadcasts that come first are kept for `heard`.

        A JSON message gets an id, unless it has one, and the reply is the one that carries it.
        """
        if isinstance(message, str):
            self.connection.send(message)
            return self._reply()
        message = {"id": uuid4().hex, **message}
        self.connection.send(json.dumps(message))
        reply = self._reply()
        assert reply["replyTo"] == message["id"]
        return reply

    def resume(self, after: str) -> list[Json]:
        """Return the messages that a resume after this id gives back, following its cursors to the end."""
        reply = self.ask({"action": "resume", "after": after})
        messages: list[Json] = reply["messages"]
        while reply["more"]:
            reply = self.ask({"action": "resume", "cursor": reply["cursor"]})
            messages += reply["messages"]
        return messages

    def heard(self) -> list[Json]:
        """Return, oldest first, the broadcast messages since the last call.

        Frames of one connection keep their order: what was posted before the call has come before the pong.
        """
        assert self.ask({"action": "ping"})["type"] == "pong"
        messages, self.received = self.received, []
        return messages

    def next(self) -> Json:
        """Wait for the next frame of any kind."""
        message: Json = json.loads(self.connection.recv(timeout=SECONDS))
        kind = "envelope" if message["type"] in ENVELOPES else f"server-{message['type']}"
        return dict(conforming(kind, message))

    def _reply(self) -> Json:
        while (message := self.next())["type"] in ENVELOPES:
            self.received.append(message)
        return message


def websocket(deployment: Deployment, token: str | None = None, **options: Any) -> ClientConnection:
    """Open a WebSocket, to be used as a context manager.

    The token, if one is given, travels in the Authorization header. `query` goes into the address; the other
    `options` are those of `websockets`.
    """
    url = deployment.outputs.websocket_url + options.pop("query", "")
    if token is not None:
        options["additional_headers"] = {"Authorization": f"Bearer {token}"}
    connection: ClientConnection = connect(
        url, compression=None, proxy=None, open_timeout=SECONDS, close_timeout=SECONDS, **options
    )
    return connection
