import json
import time
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import Mock
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from functions import default
from functions.shared import broadcasts, messages, settings
from functions.shared.connections import Connections, Users
from functions.shared.errors import KeysUnavailable
from functions.shared.instants import epoch, iso
from functions.shared.messages import id_time, uuid7
from functions.shared.settings import Permission
from functions.shared.telemetry import metrics
from functions.shared.tokens import Verifier
from tests.support.fake_aws import ConnectionsApi, DynamoDB, SecretsManager, StepFunctions
from tests.support.functions import (
    ROLES,
    SECRET,
    STATE_MACHINE,
    Context,
    Hostile,
    answered,
    cpu_seconds,
    event,
    hostile,
    leaks,
    properties,
    token,
)
from tests.support.schemas import conforming
from tests.unit.functions.conftest import Logs

TTL = 1_000
LATER = int(time.time()) + 86_400
CONNECTED = "2026-11-23T08:00:00.000Z"
CONNECTION = {
    "connectionId": "c1=",
    "userId": "u1",
    "role": "admin",
    "connectedAt": CONNECTED,
    "lastSeenAt": CONNECTED,
    "ttl": LATER,
}
USER = {"userId": "u1", "email": "u1@example.org", "role": "admin", "active": True}
ALL = {"all": True}
PAYLOAD = {"text": "the bridge is closed"}
MESSAGE_ID = "0190a6b2-7f00-7000-8000-000000000000"


@dataclass
class Server:
    """`$default` with its dependencies. Every answer must follow its schema."""

    dynamodb: DynamoDB
    stepfunctions: StepFunctions
    api: ConnectionsApi
    using: default.Dependencies

    def ask(self, frame: Any, connection_id: str = "c1=") -> dict[str, Any]:
        """The answer to a frame, which is given as text or as JSON."""
        text = frame if isinstance(frame, str) else json.dumps(frame)
        answer = default.respond(text, connection_id, self.using)[0]
        assert answered(answer)
        return answer

    def refuse(self, frame: Any) -> tuple[str, list[str]]:
        """The code and the fault pointers of the error for a frame, which must start nothing."""
        answer = self.ask(frame)
        assert answer["type"] == "error"
        assert self.stepfunctions.executions == {}
        return answer["code"], [fault["pointer"] for fault in answer.get("faults", ())]

    def connection(self, **changes: Any) -> None:
        """Change the row of the connection c1=."""
        self.dynamodb.add("connections", CONNECTION | changes)


@pytest.fixture
def server(
    dynamodb: DynamoDB, stepfunctions: StepFunctions, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> Server:
    roles = ROLES | {"warden": Permission(frozenset({"alert", "shelter_update"}), True)}
    config = settings.Default(
        jwt_algorithms=("HS256",),
        jwt_issuer="muster",
        jwt_audience="muster",
        jwt_secret_arn="arn:secret",
        connections_table="connections",
        users_table="users",
        messages_table="messages",
        connections_endpoint="https://h/live",
        broadcast_state_machine_arn=STATE_MACHINE,
        roles=roles,
        connection_ttl_seconds=TTL,
        audience_shards=4,
    )
    api = ConnectionsApi()
    verifier = Verifier(config, SecretsManager(SECRET).client)
    using = default.Dependencies(
        settings=config,
        verifier=lambda: verifier,
        users=Users(dynamodb.client, "users", roles),
        connections=Connections(dynamodb.client, "connections"),
        queue=messages.Queue(dynamodb.client, "messages"),
        starter=broadcasts.Starter(stepfunctions.client, STATE_MACHINE),
        gateway=api.client,
    )
    monkeypatch.setattr(default, "dependencies", lambda: using)
    dynamodb.add("connections", CONNECTION)
    dynamodb.add("users", USER, USER | {"userId": "u2"})
    return Server(dynamodb, stepfunctions, api, using)


# Ping


def test_a_pong_has_what_a_client_needs_to_roll_over(server: Server) -> None:
    before = time.time()
    pong = server.ask({"action": "ping", "id": "p-1"})
    assert before - 0.001 <= epoch(pong.pop("serverTime")) <= time.time()
    assert pong == {
        "type": "pong",
        "replyTo": "p-1",
        "role": "admin",
        "connectedAt": CONNECTED,
        "expiresAt": iso(LATER),
        "reconnectBy": "2026-11-23T09:55:00.000Z",
        "idleTimeoutSeconds": 600,
    }


def test_every_frame_updates_when_the_connection_was_last_seen(server: Server) -> None:
    before = iso(time.time())
    assert server.ask({"action": "ping"})["replyTo"] is None
    (row,) = server.dynamodb.rows("connections")
    assert before <= row.pop("lastSeenAt") <= iso(time.time())
    assert CONNECTION.items() > row.items()


# Sending


def test_a_message_starts_a_broadcast_and_is_acknowledged_with_its_id(server: Server) -> None:
    frame = {
        "action": "shelter_update",
        "id": "m-1",
        "shelterId": "s1",
        "target": {"roles": ["resident"], "users": ["u2"]},
        "payload": PAYLOAD,
        "offline": "always",
    }
    before = time.time()
    ack = server.ask(frame)
    (request,) = server.stepfunctions.inputs
    assert conforming("broadcast", request) == {
        "type": "shelter_update",
        "id": ack["id"],
        "shelterId": "s1",
        "target": frame["target"],
        "payload": PAYLOAD,
        "offline": "always",
        "sender": {"userId": "u1", "role": "admin"},
    }
    assert before - 0.002 <= id_time(ack["id"]) <= time.time()
    assert ack == {"type": "ack", "replyTo": "m-1", "id": ack["id"], "execution": ack["execution"]}
    assert next(iter(server.stepfunctions.executions)).endswith(f":muster-broadcast:{ack['execution']}")


def test_a_shelter_update_without_a_target_is_for_its_shelter(server: Server) -> None:
    server.ask({"action": "shelter_update", "shelterId": "s1", "payload": {}})
    assert server.stepfunctions.inputs[0]["target"] == {"shelters": ["s1"]}


def test_frames_without_an_id_are_all_sent(server: Server) -> None:
    acks = [server.ask({"action": "alert", "target": ALL, "payload": PAYLOAD}) for _ in range(3)]
    assert len({ack["id"] for ack in acks}) == len(server.stepfunctions.executions) == 3


def test_a_frame_sent_again_with_its_id_starts_nothing_and_is_acknowledged_with_the_first_id(
    server: Server,
) -> None:
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": {"n": 1.0, "s": "é"}}
    first = server.ask(frame)
    assert server.ask(frame) == first
    assert len(server.stepfunctions.executions) == 1


def test_a_frame_sent_again_after_the_senders_role_has_changed_is_the_same_message(server: Server) -> None:
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": PAYLOAD}
    first = server.ask(frame)
    server.connection(role="first_responder")
    assert server.ask(frame) == first
    assert len(server.stepfunctions.executions) == 1


def test_describing_an_execution_is_retried_until_it_is_visible(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": PAYLOAD}
    first = server.ask(frame)
    described = server.stepfunctions.DescribeExecution
    pauses: list[float] = []

    def late(executionArn: str) -> dict[str, Any]:
        return described(executionArn if len(pauses) == 2 else "unknown")

    monkeypatch.setattr(server.stepfunctions, "DescribeExecution", late)
    monkeypatch.setattr("functions.shared.broadcasts.time.sleep", pauses.append)
    assert server.ask(frame) == first
    assert pauses == [0.2, 0.5]


def test_a_message_whose_broadcast_failed_needs_a_new_id(server: Server) -> None:
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": PAYLOAD}
    server.ask(frame)
    server.stepfunctions.status = "FAILED"
    assert server.ask(frame)["code"] == "conflict"


def test_another_message_with_the_same_id_is_a_conflict(server: Server) -> None:
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": {"n": 1}}
    server.ask(frame)
    changes: list[dict[str, Any]] = [
        {"payload": {}},
        {"payload": {"n": True}},
        {"target": {"users": ["u1"]}},
        {"offline": "never"},
        {"action": "broadcast"},
    ]
    for change in changes:
        answer = server.ask(frame | change)
        assert (answer["code"], answer["replyTo"]) == ("conflict", "m-1")
    assert len(server.stepfunctions.executions) == 1


def test_two_users_may_choose_the_same_id(server: Server) -> None:
    server.dynamodb.add("connections", CONNECTION | {"connectionId": "c2=", "userId": "u2"})
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": PAYLOAD}
    assert server.ask(frame)["id"] != server.ask(frame, "c2=")["id"]
    assert len(server.stepfunctions.executions) == 2


FRAMES: dict[str, dict[str, Any]] = {
    "broadcast": {"target": ALL, "payload": {}},
    "alert": {"target": ALL, "payload": {}},
    "shelter_update": {"shelterId": "s1", "payload": {}},
}


@pytest.mark.parametrize("action", FRAMES)
@pytest.mark.parametrize("role", [*ROLES, "a-role-no-longer-configured"])
def test_a_role_sends_only_its_actions(server: Server, role: str, action: str) -> None:
    server.connection(role=role, shelterId="s1")
    answer = server.ask({"action": action, "id": "m-1"} | FRAMES[action])
    may = role in ROLES and action in ROLES[role].actions
    assert answer["type"] == ("ack" if may else "error")
    assert len(server.stepfunctions.executions) == may
    if not may:
        assert (answer["code"], answer["faults"][0]["pointer"]) == ("forbidden", "/action")
        allowed = ", ".join(sorted(ROLES[role].actions)) if role in ROLES else ""
        assert answer["faults"][0]["fix"] == f"it may send {allowed or 'nothing'}"


@pytest.mark.parametrize("role", ["shelter_operator", "warden"])
@pytest.mark.parametrize(
    ("own", "fix"), [("s1", "use s1"), (None, "ask for a shelter to be assigned to you")]
)
def test_a_role_bound_to_its_own_shelter_updates_no_other(
    server: Server, role: str, own: str | None, fix: str
) -> None:
    server.connection(role=role, **{"shelterId": own} if own else {})
    answer = server.ask({"action": "shelter_update", "shelterId": "s2", "payload": {}})
    assert answer["code"] == "forbidden"
    assert answer["faults"] == [{"pointer": "/shelterId", "problem": "is not your own shelter", "fix": fix}]
    assert server.stepfunctions.executions == {}


@pytest.mark.parametrize(
    "target", [ALL, {"shelters": ["s1", "s2"]}, {"shelters": ["s2"]}, {"users": ["u2"]}, {"roles": ["admin"]}]
)
@pytest.mark.parametrize("role", ["shelter_operator", "warden"])
def test_a_role_bound_to_its_own_shelter_updates_only_its_own_audience(
    server: Server, role: str, target: dict[str, Any]
) -> None:
    server.connection(role=role, shelterId="s1")
    update = {"action": "shelter_update", "shelterId": "s1", "payload": {}}
    assert server.refuse(update | {"target": target}) == ("forbidden", ["/target"])
    assert server.ask(update | {"target": {"shelters": ["s1"]}})["type"] == "ack"
    assert server.ask(update)["type"] == "ack"


def test_a_role_bound_to_its_own_shelter_sends_its_other_messages_freely(server: Server) -> None:
    server.connection(role="warden", shelterId="s1")
    assert server.ask({"action": "alert", "target": ALL, "payload": {}})["type"] == "ack"


def test_an_unknown_role_in_the_target_is_a_fault(server: Server) -> None:
    frame = {"action": "alert", "target": {"roles": ["admin", "wizard"]}, "payload": {}}
    assert server.refuse(frame) == ("invalid_message", ["/target/roles/1"])


# Refusals


@pytest.mark.parametrize(
    ("frame", "code", "pointers"),
    [
        ("", "invalid_json", [""]),
        ("hello", "invalid_json", [""]),
        ("[]", "invalid_json", [""]),
        ('[{"action":"ping"}]', "invalid_json", [""]),
        ("NaN", "invalid_json", [""]),
        ('{"action":"alert","target":{"all":true},"payload":{"n":NaN}}', "invalid_json", [""]),
        ('{"action":"alert","target":{"all":true},"payload":{"n":1e999}}', "invalid_message", ["/payload/n"]),
        (
            '{"action":"alert","target":{"all":true},"payload":{"s":"\\ud800"}}',
            "invalid_message",
            ["/payload/s"],
        ),
        ("[" * 30_000, "invalid_json", [""]),
        ({}, "unknown_action", ["/action"]),
        ({"action": "dance"}, "unknown_action", ["/action"]),
        ({"action": ["ping"]}, "unknown_action", ["/action"]),
        ({"action": None}, "unknown_action", ["/action"]),
        ({"action": "alert", "target": ALL}, "invalid_message", ["/payload"]),
        ({"action": "ping", "extra": 1}, "invalid_message", ["/extra"]),
        ({"action": "ping", "日本": 1}, "invalid_message", ["/日本"]),
        ({"action": "ping", "id": 7}, "invalid_message", ["/id"]),
        ({"action": "alert", "target": ALL, "payload": []}, "invalid_message", ["/payload"]),
        ({"action": "alert", "target": "all", "payload": {}}, "invalid_message", ["/target"]),
        ({"action": "alert", "target": {}, "payload": {}}, "invalid_message", ["/target"]),
        (
            {"action": "alert", "target": ALL, "payload": {}, "sender": {"service": "me"}},
            "invalid_message",
            ["/sender"],
        ),
        ({"action": "resume", "after": "x"}, "invalid_message", ["/after"]),
        ({"action": "renew"}, "invalid_message", ["/token"]),
        ("x" * 200_000, "too_large", [""]),
        (
            {"action": "alert", "target": ALL, "payload": {"text": "x" * 31_000}},
            "too_large",
            ["/payload"],
        ),
    ],
)
def test_an_invalid_frame_is_answered_with_the_field_and_the_fix_and_the_connection_stays_open(
    server: Server, frame: Any, code: str, pointers: list[str]
) -> None:
    assert server.refuse(frame) == (code, pointers)
    assert server.ask({"action": "ping"})["type"] == "pong"


def test_a_payload_that_nests_too_deep_is_a_fault(server: Server) -> None:
    deep: Any = {}
    for _ in range(40):
        deep = {"n": deep}
    code, (pointer,) = server.refuse({"action": "alert", "target": ALL, "payload": deep})
    assert (code, pointer) == ("invalid_message", "/payload" + "/n" * 32)


def test_a_frame_of_exactly_the_limit_is_read_and_one_byte_more_is_not(server: Server) -> None:
    frame = '{"action":"ping"}'
    padded = frame + " " * (default.MAX_FRAME_BYTES - len(frame))
    assert server.ask(padded)["type"] == "pong"
    assert server.ask(padded + " ")["code"] == "too_large"


def test_a_payload_in_any_script_is_passed_on_unchanged(server: Server) -> None:
    payload: dict[str, Any] = {
        "text": "Évacuez 世界 🌍 \u0000\u2028",
        "list": [1, 2.5, None, True, {"a": []}],
    }
    server.ask({"action": "alert", "target": ALL, "payload": payload})
    assert server.stepfunctions.inputs[0]["payload"] == payload


@pytest.mark.parametrize(
    ("identifier", "reply_to"), [("a-1", "a-1"), ("a b", None), (7, None), ("a" * 65, None), ("a\n", None)]
)
def test_an_error_has_the_id_of_the_frame_that_it_answers(
    server: Server, identifier: Any, reply_to: str | None
) -> None:
    assert server.ask({"action": "dance", "id": identifier})["replyTo"] == reply_to


@pytest.mark.parametrize("failing", ["dynamodb", "stepfunctions"])
def test_a_failure_of_the_server_gets_a_fixed_sentence_and_its_cause_is_logged(
    server: Server, failing: str, logs: Logs
) -> None:
    server.dynamodb.failing.add("UpdateItem" if failing == "dynamodb" else "")
    server.stepfunctions.failing.add("StartExecution")
    frame = {"action": "alert", "id": "m-1", "target": ALL, "payload": PAYLOAD}
    assert server.ask(frame) == {
        "type": "error",
        "code": "internal",
        "message": "Something went wrong on the server; try again.",
        "replyTo": "m-1",
    }
    (line,) = logs()
    assert (line["level"], line["message"]) == ("ERROR", "message failed")
    assert "the disk of host 10.0.0.7 is full" in line["exception"]
    assert "bridge" not in json.dumps(line)


# Unknown connections


@pytest.mark.parametrize("ttl", [None, int(time.time()) - 1], ids=["no row", "expired"])
def test_an_unknown_connection_gets_an_error_and_is_closed(
    server: Server, ttl: int | None, context: Context
) -> None:
    server.dynamodb.empty()
    if ttl is not None:
        server.connection(ttl=ttl)
    answer = default.handler(event({"action": "ping", "id": "p-1"}), context)
    assert answer == {"statusCode": 200}
    (post, posted), delete = server.api.calls
    assert (post, posted["ConnectionId"]) == ("PostToConnection", "c1=")
    last_words = json.loads(posted["Data"])
    assert answered(last_words)
    assert (last_words["code"], last_words["replyTo"]) == ("unknown_connection", "p-1")
    assert delete == ("DeleteConnection", {"ConnectionId": "c1="})
    assert len(server.dynamodb.rows("connections")) == (ttl is not None)


def test_closing_a_connection_that_is_gone_is_not_a_failure(
    server: Server, context: Context, logs: Logs
) -> None:
    server.dynamodb.empty()
    server.api.gone = True
    assert default.handler(event({"action": "ping"}), context) == {"statusCode": 200}
    assert [line["level"] for line in logs() if "level" in line] == ["WARNING", "INFO"]


# Renewing


def test_a_renewal_extends_the_connection_to_the_expiry_of_the_token(server: Server) -> None:
    server.connection(ttl=int(time.time()) + 5)
    end = int(time.time()) + 500
    answer = server.ask({"action": "renew", "id": "r-1", "token": token(exp=end)})
    assert answer == {"type": "renewed", "replyTo": "r-1", "expiresAt": iso(end), "role": "admin"}
    assert server.dynamodb.rows("connections")[0]["ttl"] == end


def test_a_renewal_is_limited_by_the_time_to_live(server: Server) -> None:
    before = int(time.time())
    answer = server.ask({"action": "renew", "token": token(exp=before + 10 * TTL)})
    assert before + TTL <= epoch(answer["expiresAt"]) <= time.time() + TTL


@pytest.mark.parametrize(
    ("presented", "code"),
    [
        (token("u2"), "token_invalid"),
        (token(exp=int(time.time()) - 1), "token_invalid"),
        (token(key="", algorithm="none"), "token_invalid"),
        ("Bearer " + token(), "token_invalid"),
        ("garbage", "token_invalid"),
    ],
    ids=["another user's", "expired", "alg none", "with a prefix", "garbage"],
)
def test_a_renewal_with_a_refused_token_changes_nothing(
    server: Server, presented: str, code: str, logs: Logs
) -> None:
    answer = server.ask({"action": "renew", "token": presented})
    assert answer["code"] == code
    assert server.dynamodb.rows("connections")[0]["ttl"] == LATER
    assert not leaks(presented, json.dumps([answer, logs()]))


@pytest.mark.parametrize("change", [{"active": False}, {"role": "wizard"}, {"shelterId": "a b"}])
def test_a_renewal_of_a_user_who_may_not_connect_any_more_ends_the_connection(
    server: Server, change: dict[str, Any], context: Context
) -> None:
    server.dynamodb.add("users", USER | change)
    frame = {"action": "renew", "id": "r-1", "token": token()}
    assert default.handler(event(frame), context) == {"statusCode": 200}
    (_, posted), (closed, _) = server.api.calls
    last_words = json.loads(posted["Data"])
    assert answered(last_words)
    assert (last_words["code"], last_words["replyTo"]) == ("forbidden", "r-1")
    assert closed == "DeleteConnection"
    assert server.dynamodb.rows("connections")[0]["ttl"] <= time.time()
    assert server.ask({"action": "ping"})["code"] == "unknown_connection"


def test_a_renewal_stores_the_users_present_role_and_shelter_in_one_write(server: Server) -> None:
    server.connection(role="admin", roleShard="admin#9", shard="all#9", shelterId="s1")
    server.dynamodb.add("users", USER | {"role": "resident", "shelterId": "s2"})
    answer = server.ask({"action": "renew", "token": token()})
    assert (answer["type"], answer["role"], answer["shelterId"]) == ("renewed", "resident", "s2")
    (row,) = server.dynamodb.rows("connections")
    shard = crc32(b"c1=") % 4
    assert (row["role"], row["roleShard"]) == ("resident", f"resident#{shard}")
    assert (row["shelterId"], row["shard"]) == ("s2", f"all#{shard}")
    assert len(server.dynamodb.called("UpdateItem")) == 2  # one marks the connection as seen
    assert server.refuse({"action": "alert", "target": ALL, "payload": {}})[0] == "forbidden"
    pong = server.ask({"action": "ping"})
    assert (pong["role"], pong["shelterId"]) == ("resident", "s2")


def test_a_renewal_of_a_user_without_a_shelter_removes_the_shelter(server: Server) -> None:
    server.connection(shelterId="s1")
    answer = server.ask({"action": "renew", "token": token()})
    assert "shelterId" not in answer
    assert "shelterId" not in server.dynamodb.rows("connections")[0]


def test_after_a_renewal_a_resume_reads_the_new_audiences(server: Server) -> None:
    server.connection(role="resident")
    sent_at = epoch(CONNECTED) + 60
    text = messages.envelope({"type": "alert", "payload": {}}, uuid7(sent_at, bytes(10)), sent_at)
    row = {"audience": "role#admin", "messageId": uuid7(sent_at, bytes(10)), "envelope": text, "ttl": LATER}
    server.dynamodb.add("messages", row)
    after = uuid7(epoch(CONNECTED), bytes(10))
    assert server.ask({"action": "resume", "after": after})["messages"] == []
    server.ask({"action": "renew", "token": token()})
    assert server.ask({"action": "resume", "after": after})["messages"] == [json.loads(text)]


# Invalid rows


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"userId": None}, "userId is not a string"),
        ({"userId": 7}, "userId is not a string"),
        ({"userId": "a b"}, "userId contains white space"),
        ({"userId": "x" * 129}, "userId takes 129 bytes"),
        ({"role": None}, "role is not a string"),
        ({"role": 7}, "role is not a string"),
        ({"shelterId": 7}, "shelterId is not a string"),
        ({"connectedAt": None}, "connectedAt is not an ISO 8601 time"),
        ({"connectedAt": 7}, "connectedAt is not an ISO 8601 time"),
        ({"connectedAt": "yesterday"}, "connectedAt is not an ISO 8601 time"),
        ({"ttl": 10**30}, "ttl is not in whole epoch seconds"),
    ],
)
def test_a_connection_with_an_invalid_row_is_closed_and_the_reason_logged(
    server: Server, change: dict[str, Any], reason: str, logs: Logs
) -> None:
    row = {name: value for name, value in (CONNECTION | change).items() if value is not None}
    server.dynamodb.add("connections", row)
    message, closes = default.respond('{"action":"ping"}', "c1=", server.using)
    assert (message["code"], closes) == ("unknown_connection", True)
    (line,) = logs()
    assert line["reason"].startswith(f"invalid row: {reason}")


@pytest.mark.parametrize("bad", [{}, {"envelope": 7}, {"envelope": "no JSON"}])
def test_a_resume_skips_a_queued_row_that_is_not_a_message(
    server: Server, bad: dict[str, Any], logs: Logs
) -> None:
    ids = [uuid7(1_795_000_000 + n, bytes(10)) for n in range(3)]
    for n, identifier in enumerate(ids):
        text = messages.envelope({"type": "alert", "payload": {}}, identifier, 1_795_000_000 + n)
        row = {"audience": "all", "messageId": identifier, "ttl": LATER}
        server.dynamodb.add("messages", row | (bad if n == 1 else {"envelope": text}))
    answer = server.ask({"action": "resume"})
    assert [message["id"] for message in answer["messages"]] == [ids[0], ids[2]]
    assert answer["more"] is False
    assert logs()[0]["message"] == "queued message skipped"


def test_a_renewal_fails_without_a_refusal_while_keys_cannot_be_read(
    server: Server, monkeypatch: pytest.MonkeyPatch, context: Context, logs: Logs
) -> None:
    verifier = Mock(verify=Mock(side_effect=KeysUnavailable("https://id.example.org: down")))
    monkeypatch.setattr(default, "dependencies", lambda: replace(server.using, verifier=lambda: verifier))
    metrics.clear_metrics()  # of tests that do not call the handler, which flushes them
    answer = default.handler(event({"action": "renew", "token": token()}), context)
    assert json.loads(answer["body"])["code"] == "internal"
    line, counted = logs()
    assert (line["level"], line["message"]) == ("ERROR", "message failed")
    assert "https://id.example.org: down" in line["exception"]
    assert counted["ClientMessagesFailed"] == [1]
    assert "ClientMessagesRefused" not in counted


# Resuming


def test_resuming_half_a_megabyte_takes_frames_under_32_kb_and_loses_nothing(
    server: Server, context: Context
) -> None:
    ids = [uuid7(1_795_000_000 + n, bytes(10)) for n in range(60)]
    for n, identifier in enumerate(ids):
        request = {"type": "alert", "payload": {"text": "é" * (15_000 if n % 10 == 0 else 100 * n)}}
        audience = ("all", "user#u1", "role#admin")[n % 3]
        text = messages.envelope(request, identifier, 1_795_000_000 + n)
        assert len(text.encode()) <= messages.MAX_ENVELOPE_BYTES
        row = {"audience": audience, "messageId": identifier, "envelope": text, "ttl": LATER}
        server.dynamodb.add("messages", row)
    received: list[str] = []
    frame = {"action": "resume", "id": "i" * 64}
    sizes = []
    while True:
        body = default.handler(event(frame), context)["body"]
        sizes.append(len(body.encode()))
        resumed = json.loads(body)
        assert answered(resumed)
        received += [message["id"] for message in resumed["messages"]]
        if not resumed["more"]:
            break
        frame["cursor"] = resumed["cursor"]
    assert received == ids
    assert max(sizes) < 32_000
    assert sum(sizes) > 400_000


def test_a_resume_after_the_last_message_is_empty(server: Server) -> None:
    answer = server.ask({"action": "resume", "after": MESSAGE_ID})
    assert answer == {"type": "resumed", "replyTo": None, "messages": [], "more": False, "cursor": None}


# The handler


def test_the_handler_answers_in_the_body_and_logs_neither_payload_nor_token(
    server: Server, context: Context, logs: Logs
) -> None:
    presented = token()
    frames: list[dict[str, Any]] = [
        {"action": "alert", "target": ALL, "payload": PAYLOAD},
        {"action": "alert", "target": ALL, "payload": PAYLOAD, "extra": presented},
        {"action": "renew", "token": presented},
        {"action": "renew", "token": presented + "x"},
    ]
    answers = [default.handler(event(frame), context) for frame in frames]
    assert [json.loads(answer["body"])["type"] for answer in answers] == ["ack", "error", "renewed", "error"]
    assert {answer["statusCode"] for answer in answers} == {200}
    written = logs()
    assert sum("ClientMessages" in line for line in written) == len(frames)
    assert not leaks(presented, json.dumps(written))
    assert "bridge" not in json.dumps(written)


def test_a_frame_without_a_body_is_answered_too(server: Server, context: Context) -> None:
    assert json.loads(default.handler(event(None), context)["body"])["code"] == "invalid_json"


# Hostile frames


def test_the_role_is_checked_before_the_schema(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.connection(role="resident")
    monkeypatch.setattr(default, "validate", lambda *_: pytest.fail("validated"))
    assert server.refuse({"action": "alert", "target": 7}) == ("forbidden", ["/action"])


@properties
@given(hostile('{"action":"alert",'))
def test_any_frame_is_answered_within_50_ms_of_cpu(server: Server, frame: Hostile) -> None:
    text = frame.text()
    assert cpu_seconds(lambda: server.ask(text), 0.05) < 0.1


def test_half_a_surrogate_pair_outside_json_is_answered_too(server: Server) -> None:
    assert server.refuse("\ud800")[0] == "invalid_json"


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # also half of a surrogate pair
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
TARGETS = st.sampled_from([ALL, {"users": ["u1"]}, {"roles": ["admin", "x"]}, {"shelters": ["s 1"]}, {}])
ANY_FRAME = st.fixed_dictionaries(
    {"action": st.sampled_from([*default.ACTIONS, "dance"])},
    optional={
        "id": st.sampled_from(["a-1", "a b"]) | ANY_JSON,
        "target": TARGETS | ANY_JSON,
        "payload": st.dictionaries(ANY_TEXT, ANY_JSON, max_size=3) | ANY_JSON,
        "shelterId": st.just("s1") | ANY_JSON,
        "offline": st.sampled_from(["never", "maybe"]),
        "after": st.just(MESSAGE_ID) | ANY_JSON,
        "cursor": st.just(MESSAGE_ID) | ANY_JSON,
        "token": ANY_JSON,
    },
)


@properties
@given(st.text() | ANY_JSON.map(json.dumps))
@example('{"action":' * 9_000)
@example('{"' + "~" * 30_000 + '":1,"action":"ping"}')
@example('{"action":"ping","n":' + "1" * 5_000 + "}")
def test_any_text_is_answered(server: Server, text: str) -> None:
    assert server.ask(text).get("code") != "internal"


@properties
@given(ANY_FRAME)
def test_any_frame_is_answered_without_an_internal_error(server: Server, frame: dict[str, Any]) -> None:
    answer = server.ask(frame)
    assert answer.get("code") != "internal"
    messages.serialise(answer).encode()


@properties
@given(
    frame=ANY_FRAME,
    field=st.sampled_from(
        ["id", "token", "shelterId", "after", "cursor", "target", "offline", "extra", "action"]
    ),
    wrapped=st.sampled_from([lambda value: value, lambda value: [value], lambda value: {"token": value}]),
    presented=st.sampled_from([token(), token("u2"), token(exp=1), token(key="k" * 64)]),
)
def test_no_answer_contains_a_token(
    server: Server, frame: dict[str, Any], field: str, wrapped: Any, presented: str
) -> None:
    answer = server.ask(frame | {field: wrapped(presented)})
    assert not leaks(presented, json.dumps(answer))
