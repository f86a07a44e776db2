"""The messaging commands: what they take, print and answer to the shell."""

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import typer
from botocore.exceptions import ClientError
from typer.testing import CliRunner, Result

from muster.broadcaster import Broadcaster, Execution, InvalidBroadcast, Receipt
from muster.cli import messaging
from muster.cli.console import echo_json
from muster.cli.messaging import app, json_object, parse_target
from muster.client import Refused
from muster.errors import MusterError
from tests.unit.muster.test_broadcaster import EXECUTION, MACHINE, RECEIPT
from tests.unit.muster.test_outputs import FLAT


class FakeClient:
    """Stands in for `Client`: yields two messages, then stays silent; answers by its `answer`."""

    made: "FakeClient"
    answer: ClassVar[dict[str, Any]] = {"type": "pong", "replyTo": "1"}

    def __init__(self, url: str, token: Any, *, position: str | None = None) -> None:
        FakeClient.made = self
        self.url, self.token, self.position = url, token, position
        self._numbers = iter((1, 2))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        for number in self._numbers:
            return {"id": number, "payload": {"text": "ü"}}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.answer["type"] == "error":
            raise Refused(self.answer)
        return self.answer | {"got": message}


@pytest.fixture(autouse=True)
def _fake_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging, "Client", FakeClient)
    monkeypatch.delenv("MUSTER_TOKEN", raising=False)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("values", "target"),
    [
        (["all"], {"all": True}),
        (["role:admin", "role:resident", "role:admin"], {"roles": ["admin", "resident"]}),
        (
            ["user:a:b", "shelter:north", "role:admin"],
            {"users": ["a:b"], "shelters": ["north"], "roles": ["admin"]},
        ),
    ],
)
def test_targets_are_combined(values: list[str], target: dict[str, Any]) -> None:
    assert parse_target(values) == target


@pytest.mark.parametrize("values", [["everybody"], ["role:"], ["all", "role:admin"], ["team:a"]])
def test_an_invalid_target_is_refused(values: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_target(values)


def test_json_is_an_argument_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payload.json").write_text('{"a": 2}')
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 3}'))
    assert json_object('{"a": 1}') == {"a": 1}
    assert json_object(f"@{tmp_path / 'payload.json'}") == {"a": 2}
    assert json_object("-") == {"a": 3}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encoding_of_a_file_is_detected(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "payload.json").write_text('{"text": "水"}', encoding=encoding)
    assert json_object(f"@{tmp_path / 'payload.json'}") == {"text": "水"}


@pytest.mark.parametrize("text", ["{", "[1]", "@/nowhere/at/all", "@/", "@", "[" * 100_000, "9" * 5_000])
def test_anything_but_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        json_object(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": NaN}', "/a"),
        ('{"a": [1, -Infinity]}', "/a/1"),
        ('{"a": {"b/c": 1e999}}', "/a/b~1c"),
        ('{"a": "\\ud800"}', "/a"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["broadcast", "--to", "all", "--payload"], ["send", "--token", "t", "--url", "ws://x"]],
    ids=["broadcast", "send"],
)
def test_a_value_that_json_does_not_allow_is_a_usage_error_that_names_its_place(
    command: list[str], text: str, place: str
) -> None:
    refused = invoke(*command, text)
    assert refused.exit_code == 2
    assert f"{place} " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_listen_prints_a_line_of_json_for_each_message_and_stops_at_the_count() -> None:
    result = invoke("listen", "--token", "t", "--url", "ws://x", "--count", "2", "--resume", "last")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 2]
    assert result.exit_code == 0
    assert FakeClient.made.position == "last"
    assert "--resume last" in result.stderr


def test_characters_that_stdout_cannot_encode_are_escaped(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(sys.stdout.buffer, "latin-1", write_through=True))
    echo_json({"text": "ü 水 😀"})
    echo_json({"text": "ü"})
    half = json.loads('"\\ud83d"')  # a client may send half of a pair
    echo_json({"text": half})
    lines = capsysbinary.readouterr().out.decode("latin-1").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["ü 水 😀", "ü", half]
    assert lines[1] == '{"text": "ü"}'


def test_listen_stops_after_its_timeout_and_fails_if_messages_are_missing() -> None:
    in_time = invoke("listen", "--token", "t", "--url", "ws://x", "--timeout", "0.05")
    short = invoke("listen", "--token", "t", "--url", "ws://x", "--timeout", "0.05", "--count", "3")
    assert in_time.exit_code == 0
    assert isinstance(short.exception, MusterError)
    assert "2 of 3" in str(short.exception)


def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_TOKEN", "from-environment")
    invoke("send", "--url", "ws://x", "{}")
    assert FakeClient.made.token == "from-environment"


@pytest.mark.parametrize("who", [[], ["--token", "t", "--user", "u"]])
def test_exactly_one_identity_is_required(who: list[str]) -> None:
    assert invoke("send", "--url", "ws://x", *who, "{}").exit_code == 2


def test_send_prints_the_reply() -> None:
    result = invoke("send", "--token", "t", "--url", "ws://x", '{"action": "ping"}')
    assert json.loads(result.stdout)["got"] == {"action": "ping"}
    assert result.exit_code == 0


def test_send_prints_an_error_reply_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"type": "error", "code": "forbidden", "message": "No.", "replyTo": "1"}
    monkeypatch.setattr(FakeClient, "answer", error)
    result = invoke("send", "--token", "t", "--url", "ws://x", '{"action": "alert"}')
    assert json.loads(result.stdout) == error
    assert result.exit_code == 1


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace starting and waiting; collect what was started."""
    calls: list[dict[str, Any]] = []

    def start(_self: Broadcaster, kind: str, target: Any, payload: Any, **options: Any) -> Execution:
        calls.append({"type": kind, "target": target, "payload": payload} | options)
        return Execution(EXECUTION, already_started=options["name"] == "again")

    monkeypatch.setattr(Broadcaster, "__init__", lambda _self, arn: None)
    monkeypatch.setattr(Broadcaster, "start", start)
    monkeypatch.setattr(Broadcaster, "wait_accepted", lambda *_args: None)
    monkeypatch.setattr(Broadcaster, "wait", lambda *_args, **_options: Receipt.parse(RECEIPT))
    return calls


def broadcast(*arguments: str) -> Result:
    return invoke("broadcast", "--state-machine-arn", MACHINE, *arguments)


def test_broadcast_starts_the_request_and_prints_the_arn(started: list[dict[str, Any]]) -> None:
    options = ("--type", "shelter_update", "--shelter-id", "north", "--offline", "always", "--id", "one")
    result = broadcast("--to", "role:admin", "--to", "user:ann", "--payload", '{"a": 1}', *options)
    assert result.stdout == f"{EXECUTION}\n"
    assert started == [
        {
            "type": "shelter_update",
            "target": {"roles": ["admin"], "users": ["ann"]},
            "payload": {"a": 1},
            "shelter_id": "north",
            "offline": "always",
            "name": "one",
            "sender": {"service": "muster-cli"},
        }
    ]


@pytest.mark.usefixtures("started")
def test_broadcast_with_wait_shows_the_receipt_within_80_columns() -> None:
    result = broadcast("--to", "all", "--payload", "{}", "--wait")
    assert str(RECEIPT["id"]) in result.stdout
    assert "all#1" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("told", "hint"),
    [({}, True), ({"offline": 1}, False), ({"notified": True}, False), ({"audience": 1}, False)],
)
def test_a_broadcast_without_recipients_says_who_gets_the_message(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], hint: bool
) -> None:
    receipt = RECEIPT | {"audience": 0, "offline": 0, "notified": False} | told
    monkeypatch.setattr(Broadcaster, "wait", lambda *_args, **_options: Receipt.parse(receipt))
    result = broadcast("--to", "shelter:ghost", "--payload", "{}", "--wait")
    assert (result.exit_code, "Nobody in this target is connected" in result.stderr) == (0, hint)


@pytest.mark.usefixtures("started")
def test_broadcast_json_is_one_object() -> None:
    waited = json.loads(
        broadcast("--to", "all", "--payload", "{}", "--json", "--wait", "--id", "again").stdout
    )
    assert waited == {"execution": EXECUTION, "alreadyStarted": True, "receipt": RECEIPT}
    started_only = json.loads(broadcast("--to", "all", "--payload", "{}", "--json").stdout)
    assert started_only == {"execution": EXECUTION, "alreadyStarted": False}


@pytest.mark.parametrize(
    "options", [["--type", "shelter_update"], ["--type", "alert", "--shelter-id", "north"]]
)
def test_only_a_shelter_update_takes_a_shelter_id_and_requires_it(
    started: list[dict[str, Any]], options: list[str]
) -> None:
    assert broadcast("--to", "all", "--payload", "{}", *options).exit_code == 2
    assert started == []


@pytest.mark.usefixtures("started")
def test_broadcast_without_wait_fails_when_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = json.dumps({"faults": [{"pointer": "/target", "problem": "is empty", "fix": "name somebody"}]})

    def refuse(*_arguments: object) -> None:
        raise InvalidBroadcast(Execution(EXECUTION), cause)

    monkeypatch.setattr(Broadcaster, "wait_accepted", refuse)
    result = broadcast("--to", "all", "--text", "hi")
    assert isinstance(result.exception, InvalidBroadcast)
    assert result.stdout == ""


def test_text_is_short_for_a_payload(started: list[dict[str, Any]]) -> None:
    assert broadcast("--to", "all", "--text", "Water").exit_code == 0
    assert started[0]["payload"] == {"text": "Water"}
    assert broadcast("--to", "all", "--text", "Water", "--payload", "{}").exit_code == 2
    assert len(started) == 1


@pytest.mark.usefixtures("started")
def test_an_unknown_name_in_a_target_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(FLAT))
    monkeypatch.setattr(Broadcaster, "from_outputs", lambda _outputs: object.__new__(Broadcaster))
    monkeypatch.setattr(messaging, "unknown_in", lambda *_arguments: ["The shelter 'x' is unknown."])
    result = invoke("broadcast", "--to", "shelter:x", "--text", "hi", "--json", "--outputs", str(path))
    assert result.exit_code == 0
    assert "Warning: The shelter 'x' is unknown." in result.stderr
    assert json.loads(result.stdout)["warnings"] == ["The shelter 'x' is unknown."]


@pytest.mark.usefixtures("started")
def test_a_broadcast_starts_without_permission_to_read_the_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_arguments: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "Scan")

    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(FLAT))
    monkeypatch.setattr(Broadcaster, "from_outputs", lambda _outputs: object.__new__(Broadcaster))
    monkeypatch.setattr(messaging, "unknown_in", refuse)
    result = invoke("broadcast", "--to", "shelter:x", "--text", "hi", "--json", "--outputs", str(path))
    assert result.exit_code == 0
    assert "warnings" not in json.loads(result.stdout)
