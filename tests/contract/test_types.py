"""Each type of muster/types.py has the properties of its schema, and requires the same ones."""

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from muster import types

SCHEMAS = Path(__file__).parents[2] / "schemas"

TYPES = {
    "BroadcastRequest": "broadcast.schema.json",
    "Envelope": "envelope.schema.json",
    "FaultEntry": "common.schema.json#fault",
    "PartitionEntry": "common.schema.json#partition",
    "Sender": "common.schema.json#sender",
    "Target": "target.schema.json",
    "Pong": "server-pong.schema.json",
    "Ack": "server-ack.schema.json",
    "Renewed": "server-renewed.schema.json",
    "Resumed": "server-resumed.schema.json",
    "ErrorReply": "server-error.schema.json",
    "ReceiptOutput": "receipt.schema.json",
    "OfflineNotification": "offline-notification.schema.json",
}


def schema(name: str) -> dict[str, Any]:
    file, _, definition = name.partition("#")
    document: dict[str, Any] = json.loads((SCHEMAS / file).read_text())
    return document["$defs"][definition] if definition else document


@pytest.mark.parametrize(("name", "file"), TYPES.items())
def test_a_type_has_the_properties_of_its_schema_and_requires_the_same(name: str, file: str) -> None:
    kind, described = getattr(types, name), schema(file)
    assert set(get_type_hints(kind)) == set(described["properties"])
    assert set(kind.__required_keys__) == set(described.get("required", ()))


def test_no_type_is_left_out() -> None:
    declared = {name for name, kind in vars(types).items() if hasattr(kind, "__required_keys__")}
    assert declared == TYPES.keys() | {"ReceivedEnvelope"}


def test_a_received_envelope_is_an_envelope_that_may_be_late() -> None:
    assert set(get_type_hints(types.ReceivedEnvelope)) == set(get_type_hints(types.Envelope)) | {"late"}
    assert types.ReceivedEnvelope.__required_keys__ == types.Envelope.__required_keys__


@pytest.mark.parametrize(
    ("kind", "described"),
    [
        (types.MessageType, schema("common.schema.json#messageType")),
        (types.Offline, schema("common.schema.json#offline")),
        (types.ErrorCode, schema("server-error.schema.json")["properties"]["code"]),
        (
            get_type_hints(types.OfflineNotification)["reason"],
            schema("offline-notification.schema.json")["properties"]["reason"],
        ),
    ],
)
def test_literals_are_the_values_of_their_schema(kind: Any, described: dict[str, Any]) -> None:
    assert set(get_args(kind)) == set(described["enum"])


@pytest.mark.parametrize("name", ["Pong", "Ack", "Renewed", "Resumed", "ErrorReply"])
def test_the_type_of_a_reply_is_the_constant_of_its_schema(name: str) -> None:
    (value,) = get_args(get_type_hints(getattr(types, name))["type"])
    assert value == schema(TYPES[name])["properties"]["type"]["const"]
