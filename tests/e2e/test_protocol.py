"""Replays every transcript of docs/protocol.md."""

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from functions.shared.messages import RESUME_OVERLAP_SECONDS, uuid7
from muster.local.seed import User
from tests.support.deployment import Deployment, Json, unique
from tests.support.fixtures import Open
from tests.support.sockets import ENVELOPES, SECONDS, Socket
from tests.support.transcripts import PAGE, UUID, Step, Transcript, differences, transcripts

TRANSCRIPTS = transcripts(PAGE.read_text())


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda transcript: transcript.title)
def test_transcript_is_what_clients_see(
    deployment: Deployment, open_socket: Open, transcript: Transcript
) -> None:
    replay = _Replay(deployment, open_socket)
    for step in transcript.steps:
        replay.take(step)
    replay.end()


class _Replay:
    """Clients that send what a transcript sends, with users, shelters, ids and tokens of their own."""

    def __init__(self, deployment: Deployment, open_socket: Open) -> None:
        self._deployment = deployment
        self._open_socket = open_socket
        self._sockets: dict[str, Socket] = {}
        self._current = ""
        self._closed: set[str] = set()
        self._names: dict[str, str] = {}
        """The page's users and shelters, and the real ones."""
        self._ids: dict[str, str] = {}
        self._executions: set[str] = set()
        # A resume reads again what lies shortly before its position. This position lets it begin with the
        # transcript's own messages, whatever other tests have sent to the same roles.
        self._position = uuid7(time.time() + RESUME_OVERLAP_SECONDS, bytes(10))

    def take(self, step: Step) -> None:
        if step.mark == ">":
            self._socket.connection.send(json.dumps(self._real(step.frame)))
        elif step.mark == "<":
            self._receive(step.frame)
        else:
            self._event(step.text)

    def end(self) -> None:
        """Fail if a client has received more than the page shows, now or once everything is delivered."""
        machine = self._deployment.outputs.broadcast_state_machine_arn
        for execution in self._executions:
            self._deployment.receipt(f"{machine.replace(':stateMachine:', ':execution:')}:{execution}")
        for name in self._sockets.keys() - self._closed:
            more = [message for message in self._sockets[name].heard() if message["id"] in self._ids.values()]
            assert not more, f"{name} received more than the page shows"

    @property
    def _socket(self) -> Socket:
        return self._sockets[self._current]

    def _receive(self, shown: Json) -> None:
        received = self._next(envelope=shown["type"] in ENVELOPES)
        found = list(differences(shown, self._as_in_the_page(received), self._ids))
        assert not found, f"{self._current} received {received}: " + "; ".join(found)
        if received["type"] == "ack":
            self._executions.add(received["execution"])

    def _next(self, *, envelope: bool) -> Json:
        """Wait for the next reply, or for the next of the transcript's messages: they come in any order."""
        waiting = self._socket.received
        if envelope and waiting:
            return waiting.pop(0)
        while (message := self._socket.next())["type"] in ENVELOPES:
            # Other tests send to the same roles. The transcript's own messages have been acknowledged by now.
            if message["id"] in self._ids.values():
                if envelope:
                    return message
                waiting.append(message)
        return message

    def _event(self, text: str) -> None:
        match re.split(r", | of (?=\w+,)", text):
            case [name, role, *shelter, "connects."]:
                shelter_id = self._shelter(shelter[0]) if shelter else None
                user = self._deployment.user(role, shelter_id)
                self._names[name] = user.user_id
                self._sockets[name] = self._open_socket(user)
                self._current = name
                return
        if named := re.fullmatch(r"(\w+):", text):
            self._current = named[1]
        elif named := re.fullmatch(r"The token of (\w+) expires\.", text):
            self._change(
                self._deployment.outputs.connections_table,
                {"connectionId": self._sockets[named[1]].connection_id},
                {"ttl": int(time.time()) - 1},
            )
        elif named := re.fullmatch(r"An administrator deactivates (\w+)\.", text):
            key = {"userId": self._sockets[named[1]].user.user_id}
            self._change(self._deployment.outputs.users_table, key, {"active": False})
        elif text == "The server closes the connection.":
            with pytest.raises(ConnectionClosed):
                self._socket.connection.recv(timeout=SECONDS)
            self._closed.add(self._current)
        else:
            raise AssertionError(f"a transcript says what no test can do: {text}")

    def _change(self, table: str, key: Json, values: Mapping[str, Any]) -> None:
        rows = self._deployment.tables.Table(table)
        rows.put_item(Item=rows.get_item(Key=key, ConsistentRead=True)["Item"] | values)

    def _shelter(self, name: str) -> str:
        return self._names.setdefault(name, unique("shelter"))

    def _real(self, value: Any) -> Any:
        """Return what the page sends with the real names in it."""
        if isinstance(value, dict):
            return {name: self._real(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._real(item) for item in value]
        if not isinstance(value, str):
            return value
        if UUID.fullmatch(value):
            return self._ids.get(value, self._position)
        if token := re.fullmatch(r"<(a fresh|an expired) token of (\w+)>", value):
            user: User = self._sockets[token[2]].user
            return self._deployment.token(user.user_id, 3600 if token[1] == "a fresh" else -60)
        return self._names.get(value, value)

    def _as_in_the_page(self, frame: Json) -> Json:
        """Return a received frame with the page's names in it."""
        text = json.dumps(frame)
        for shown, real in self._names.items():
            text = text.replace(real, shown)
        named: Json = json.loads(text)
        return named
