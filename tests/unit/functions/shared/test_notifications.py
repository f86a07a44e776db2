import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from functions import offline
from functions.shared import notifications
from functions.shared.connections import Connections
from functions.shared.instants import iso
from functions.shared.notifications import Counts, Missed, Notifier, missed_users
from tests.support.fake_aws import DynamoDB, Sns
from tests.support.functions import TOPIC, Context, properties
from tests.support.schemas import conforming
from tests.unit.functions.conftest import Logs

MESSAGE_ID = "0190a6b2-7f00-7000-8000-000000000000"
ENVELOPE = {
    "type": "alert",
    "id": MESSAGE_ID,
    "sentAt": "2026-11-23T08:00:00.000Z",
    "sender": {"service": "alarms"},
    "payload": {"text": "the bridge is closed 🌍"},
}
LATER = int(time.time()) + 3600


def notifier_of(dynamodb: DynamoDB, sns: Sns) -> Notifier:
    return Notifier(
        dynamodb.client,
        sns.client,
        connections_table="connections",
        users_table="users",
        messages_table="messages",
        topic_arn=TOPIC,
        retention_seconds=600,
    )


def batch(*undelivered: dict[str, str], claim: str = "claim-1", **payload: Any) -> dict[str, Any]:
    """An `offline-batch`."""
    envelope = ENVELOPE | ({"payload": payload} if payload else {})
    return {
        "messageId": MESSAGE_ID,
        "type": "alert",
        "envelope": json.dumps(envelope),
        "claim": claim,
        "undelivered": list(undelivered),
    }


def missed(user: str, connection: str | None = None, reason: str = "gone") -> dict[str, str]:
    """An entry of an `offline-batch`: a failed connection, or an absent user."""
    if connection is None:
        return {"userId": user, "reason": "absent"}
    return {"userId": user, "reason": reason, "connectionId": connection}


def connect(dynamodb: DynamoDB, user: str, connection: str, ttl: int = LATER, **rest: str) -> None:
    dynamodb.add("connections", {"connectionId": connection, "userId": user, "ttl": ttl, **rest})


@pytest.fixture
def notifier(dynamodb: DynamoDB, sns: Sns) -> Notifier:
    return notifier_of(dynamodb, sns)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace `sleep`, and return the pauses in seconds."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_the_connections_of_a_user_are_one_entry() -> None:
    entries = [missed("u1", "c1"), missed("u2"), missed("u1", "c2", "failed")]
    assert missed_users(entries) == [Missed("u1", "gone", ["c1", "c2"]), Missed("u2", "absent", [])]


def test_a_notification_has_the_message_and_attributes_for_filters(
    notifier: Notifier, dynamodb: DynamoDB, sns: Sns
) -> None:
    dynamodb.add("users", {"userId": "u1", "email": "u1@example.org", "role": "resident", "shelterId": "s1"})
    dynamodb.add("users", {"userId": "u2", "email": "u2@example.org", "role": "admin"})
    given = batch(missed("u1", "c1"), missed("u1", "c2"), missed("u2", "c3", "failed"), missed("unknown"))
    assert notifier.notify(conforming("offline-batch", given)) == Counts(notified=3, failed=0)
    bodies = [conforming("offline-notification", json.loads(entry["Message"])) for entry in sns.published]
    assert bodies == [
        {"message": ENVELOPE, "reason": "gone", "userId": "u1"},
        {"message": ENVELOPE, "reason": "failed", "userId": "u2"},
        {"message": ENVELOPE, "reason": "absent", "userId": "unknown"},
    ]
    attributes = [
        {name: value["StringValue"] for name, value in entry["MessageAttributes"].items()}
        for entry in sns.published
    ]
    assert attributes == [
        {"type": "alert", "reason": "gone", "userId": "u1", "role": "resident", "shelterId": "s1"},
        {"type": "alert", "reason": "failed", "userId": "u2", "role": "admin"},
        {"type": "alert", "reason": "absent", "userId": "unknown"},
    ]
    assert [call["TopicArn"] for call in sns.called("PublishBatch")] == [TOPIC]


def test_without_missed_users_nothing_is_called(notifier: Notifier, dynamodb: DynamoDB, sns: Sns) -> None:
    assert notifier.notify(batch()) == Counts(0, 0)
    assert (dynamodb.calls, sns.calls) == ([], [])


def test_a_user_with_another_live_connection_is_not_notified(
    notifier: Notifier, dynamodb: DynamoDB, sns: Sns
) -> None:
    connect(dynamodb, "u1", "c1")
    connect(dynamodb, "u1", "c2")
    connect(dynamodb, "u2", "c3")
    assert notifier.notify(batch(missed("u1", "c1"), missed("u2", "c3"))) == Counts(1, 0)
    assert sns.users == ["u2"]


def test_an_expired_connection_is_not_a_live_connection(
    notifier: Notifier, dynamodb: DynamoDB, sns: Sns
) -> None:
    connect(dynamodb, "u1", "c2", ttl=int(time.time()) - 1)
    notifier.notify(batch(missed("u1", "c1")))
    assert sns.users == ["u1"]


def test_an_absent_user_who_has_connected_since_is_not_notified(
    notifier: Notifier, dynamodb: DynamoDB, sns: Sns
) -> None:
    connect(dynamodb, "u1", "c1")
    assert notifier.notify(batch(missed("u1"))) == Counts(0, 0)
    assert sns.published == []


def test_another_connection_is_found_on_any_page(notifier: Notifier, dynamodb: DynamoDB, sns: Sns) -> None:
    dynamodb.page_size = 2
    for number in range(7):
        connect(dynamodb, "u1", f"c{number}")
    six = [missed("u1", f"c{number}") for number in range(6)]
    assert notifier.notify(batch(*six)) == Counts(0, 0)
    assert notifier.notify(batch(missed("u1", "c6"), claim="claim-2")) == Counts(1, 0)


def test_a_retry_with_the_same_claim_publishes_again_and_another_claim_does_not(
    notifier: Notifier, sns: Sns
) -> None:
    given = batch(missed("u1", "c1"))
    assert [notifier.notify(given).notified for _ in range(2)] == [1, 1]
    assert notifier.notify(given | {"claim": "claim-2"}) == Counts(0, 0)
    assert sns.users == ["u1", "u1"]


def test_a_retry_publishes_after_a_failure_between_claim_and_publish(
    notifier: Notifier, sns: Sns, naps: list[float]
) -> None:
    sns.failing.add("PublishBatch")
    with pytest.raises(Exception, match="InternalServerError"):
        notifier.notify(batch(missed("u1", "c1")))
    sns.failing.clear()
    assert notifier.notify(batch(missed("u1", "c1"))) == Counts(1, 0)
    assert sns.users == ["u1"]


def test_a_failed_write_of_a_claim_is_not_another_claim(
    notifier: Notifier, dynamodb: DynamoDB, sns: Sns
) -> None:
    @contextmanager
    def failing_at_the_claim() -> Iterator[None]:
        if len(dynamodb.calls) == STEPS - 1:
            dynamodb.failing.add("UpdateItem")
        yield

    dynamodb.turn = failing_at_the_claim
    with pytest.raises(Exception, match="InternalServerError"):
        notifier.notify(batch(missed("u1", "c1")))
    assert sns.published == []


def test_a_user_is_notified_of_each_message(notifier: Notifier, sns: Sns) -> None:
    notifier.notify(batch(missed("u1", "c1")))
    other = batch(missed("u1", "c1"), claim="claim-2") | {"messageId": MESSAGE_ID.replace("0190", "0191")}
    notifier.notify(other)
    assert sns.users == ["u1", "u1"]


def test_claims_are_kept_as_long_as_messages_and_no_client_reads_them(
    notifier: Notifier, dynamodb: DynamoDB
) -> None:
    before = int(time.time())
    notifier.notify(batch(missed("u1", "c1"), missed("u1", "c2")))
    (row,) = dynamodb.rows("messages")
    assert before + 600 <= row.pop("ttl") <= time.time() + 600
    assert row == {
        "audience": "handover#u1",
        "messageId": MESSAGE_ID,
        "failedConnections": {"c1", "c2"},
        "claimedBy": "claim-1",
    }


def test_claims_of_a_message_have_one_partition_per_user(notifier: Notifier, dynamodb: DynamoDB) -> None:
    notifier.notify(batch(*(missed(f"u{n}", f"c{n}") for n in range(20))))
    assert len({row["audience"] for row in dynamodb.rows("messages")}) == 20


# Concurrent notifications


class Turns:
    """Runs the steps of threads in a given order; the turns of a thread that has ended are skipped."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = list(order)
        self._changed = threading.Condition()

    @contextmanager
    def take(self, who: int) -> Iterator[None]:
        """Wait for the thread's turn; steps after the end of the order run at any time."""
        with self._changed:
            mine = self._changed.wait_for(lambda: who not in self._order or self._order[0] == who, timeout=5)
            assert mine, "the order cannot be kept"
        yield
        with self._changed:
            if who in self._order:
                self._order.pop(0)
            self._changed.notify_all()

    def end(self, who: int) -> None:
        with self._changed:
            self._order = [other for other in self._order if other != who]
            self._changed.notify_all()


def interleave(dynamodb: DynamoDB, sns: Sns, batches: Sequence[dict[str, Any]], order: Sequence[int]) -> int:
    """Notify all batches concurrently, their table calls in this order; return the number of users."""
    turns, offline_counts = Turns(order), [0] * len(batches)

    def run(who: int) -> None:
        mine = DynamoDB()
        mine.tables = dynamodb.tables
        mine.turn = lambda: turns.take(who)
        try:
            offline_counts[who] = notifier_of(mine, sns).notify(batches[who]).notified
        finally:
            turns.end(who)

    threads = [threading.Thread(target=run, args=[who]) for who in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(offline_counts)


STEPS = 3
"""Table calls until a user is claimed: add the failed connections, look for others, claim."""


@pytest.mark.parametrize(
    "order", sorted(set(permutations([0, 1] * STEPS))), ids=lambda o: "".join(map(str, o))
)
def test_a_user_whose_connections_fail_on_two_pages_is_notified_once_in_any_interleaving(
    dynamodb: DynamoDB, sns: Sns, order: Sequence[int]
) -> None:
    pages = [batch(missed("u1", f"c{n}"), claim=f"claim-{n}") for n in range(2)]
    for n in range(2):
        connect(dynamodb, "u1", f"c{n}")
    assert interleave(dynamodb, sns, pages, order) == 1
    assert sns.users == ["u1"]


@properties
@given(
    order=st.permutations([0, 1, 2] * STEPS),
    connections=st.lists(st.sampled_from(["c0", "c1", "c2", "c3"]), min_size=3, max_size=3),
    deleted=st.sets(st.sampled_from(["c0", "c1", "c2"])),
)
def test_a_user_is_notified_once_if_no_connection_is_left_and_otherwise_not_at_all(
    order: list[int], connections: list[str], deleted: set[str], dynamodb: DynamoDB, sns: Sns
) -> None:
    dynamodb.empty()
    sns.published.clear()
    pages = [batch(missed("u1", name), claim=f"claim-{n}") for n, name in enumerate(connections)]
    for name in {"c0", "c1", "c2", "c3"} - deleted:  # rows of some gone connections are already deleted
        connect(dynamodb, "u1", name)
    left = {"c0", "c1", "c2", "c3"} - deleted - set(connections)
    assert interleave(dynamodb, sns, pages, order) == len(sns.users) == (0 if left else 1)


# Publishing


def test_a_publish_batch_has_at_most_ten_messages(notifier: Notifier, sns: Sns) -> None:
    users = [missed(f"u{n}", f"c{n}") for n in range(23)]
    assert notifier.notify(batch(*users)) == Counts(23, 0)
    sizes = [len(call["PublishBatchRequestEntries"]) for call in sns.called("PublishBatch")]
    assert sizes == [10, 10, 3]
    assert sns.users == [f"u{n}" for n in range(23)]


def test_a_publish_batch_has_at_most_256_kib(notifier: Notifier, sns: Sns) -> None:
    users = [missed(f"u{n}", f"c{n}") for n in range(12)]
    assert notifier.notify(batch(*users, text="é" * 15_000)) == Counts(12, 0)
    sizes = [len(call["PublishBatchRequestEntries"]) for call in sns.called("PublishBatch")]
    assert sizes == [8, 4]


def test_only_refused_entries_are_published_again(notifier: Notifier, sns: Sns, naps: list[float]) -> None:
    sns.refuse = lambda call, entry: (
        (call == 1 and entry["Id"] in "1234") or (call == 2 and entry["Id"] == "3")
    )
    users = [missed(f"u{n}", f"c{n}") for n in range(6)]
    assert notifier.notify(batch(*users)) == Counts(6, 0)
    ids = [[e["Id"] for e in call["PublishBatchRequestEntries"]] for call in sns.called("PublishBatch")]
    assert ids == [list("012345"), list("1234"), ["3"]]
    assert sorted(sns.users) == [f"u{n}" for n in range(6)]
    assert len(naps) == 2
    assert naps[1] > naps[0] > 0


def test_entries_that_sns_keeps_refusing_are_counted(notifier: Notifier, sns: Sns, naps: list[float]) -> None:
    sns.refuse = lambda call, entry: entry["Id"] in {"3", "12"}
    users = [missed(f"u{n}", f"c{n}") for n in range(15)]
    assert notifier.notify(batch(*users)) == Counts(notified=13, failed=2)
    assert (
        len(sns.called("PublishBatch")) == 2 + notifications.PUBLISH_ATTEMPTS - 1
    )  # the two refused share one
    assert len(sns.users) == 13


def test_pauses_do_not_grow_with_the_number_of_entries(
    notifier: Notifier, sns: Sns, naps: list[float]
) -> None:
    """If a page of 500 refused users took longer than the function has, its retry would notify them twice."""
    sns.refuse = lambda call, entry: True
    users = [missed(f"u{n}", f"c{n}") for n in range(60)]
    assert notifier.notify(batch(*users)) == Counts(notified=0, failed=60)
    assert sum(naps) < 2


def test_profiles_are_read_in_several_calls_with_unprocessed_keys(
    notifier: Notifier, dynamodb: DynamoDB, sns: Sns
) -> None:
    dynamodb.batch_get_answers = 30
    for n in range(130):
        dynamodb.add("users", {"userId": f"u{n}", "role": "resident"})
    assert notifier.notify(batch(*(missed(f"u{n}", f"c{n}") for n in range(130)))) == Counts(130, 0)
    roles = [entry["MessageAttributes"]["role"]["StringValue"] for entry in sns.published]
    assert roles == ["resident"] * 130
    asked = [call["RequestItems"]["users"]["Keys"] for call in dynamodb.called("BatchGetItem")]
    assert [len(keys) for keys in asked] == [100, 70, 40, 10, 30]


# The function


def test_the_function_answers_with_its_counts_and_logs_no_payload(
    dynamodb: DynamoDB,
    sns: Sns,
    context: Context,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
    naps: list[float],
) -> None:
    using = offline.Dependencies(
        notifier=notifier_of(dynamodb, sns), connections=Connections(dynamodb.client, "connections")
    )
    monkeypatch.setattr(offline, "dependencies", lambda: using)
    sns.refuse = lambda call, entry: entry["Id"] == "1"
    answer = offline.handler(batch(*(missed(f"u{n}", f"c{n}") for n in range(3))), context)
    assert conforming("offline-result", answer) == {"offline": 2, "offlineFailed": 1}
    line, metrics = logs()
    assert (line["messageId"], line["offline"], line["offlineFailed"]) == (MESSAGE_ID, 2, 1)
    assert (metrics["Offline"], metrics["OfflineFailed"]) == ([2], [1])
    assert "bridge" not in json.dumps([line, metrics])


# Deleted rows


@pytest.fixture
def using(notifier: Notifier, dynamodb: DynamoDB) -> offline.Dependencies:
    """The dependencies of Offline, with rows for two connections of two users."""
    for name in "gone", "other":
        connect(dynamodb, f"u-{name}", name)
    return offline.Dependencies(notifier=notifier, connections=Connections(dynamodb.client, "connections"))


def left(dynamodb: DynamoDB) -> list[str]:
    return [row["connectionId"] for row in dynamodb.rows("connections")]


def test_only_the_rows_of_gone_connections_are_deleted(
    using: offline.Dependencies, dynamodb: DynamoDB
) -> None:
    given = batch(missed("u-gone", "gone"), missed("u-other", "other", "failed"), missed("nobody"))
    assert offline.notify(given, using) == Counts(3, 0)
    assert left(dynamodb) == ["other"]


def test_rows_are_deleted_whatever_the_time_in_the_message_id(
    using: offline.Dependencies, dynamodb: DynamoDB
) -> None:
    """A sender may make the id, and its clock may be wrong by years."""
    dynamodb.add(
        "connections", {"connectionId": "c", "userId": "u", "ttl": LATER, "connectedAt": iso(time.time())}
    )
    for reason, rows in ("failed", ["gone", "other", "c"]), ("gone", ["gone", "other"]):
        offline.notify(batch(missed("u", "c", reason)), using)
        assert left(dynamodb) == rows


def test_a_row_without_a_user_is_logged_and_does_not_affect_others(
    using: offline.Dependencies, dynamodb: DynamoDB, sns: Sns, logs: Logs
) -> None:
    nameless = [
        {"connectionId": "odd", "reason": "failed"},
        {"connectionId": "odder", "reason": "failed", "userId": ""},
    ]
    given = batch(missed("u-gone", "gone"), *nameless, missed("u-other", "other", "failed"))
    assert offline.notify(given, using) == Counts(2, 0)
    assert (sns.users, left(dynamodb)) == (["u-gone", "u-other"], ["other"])
    (line,) = logs()
    assert (line["level"], line["connectionIds"]) == ("ERROR", ["odd", "odder"])


def test_rows_of_gone_connections_are_kept_when_notifying_fails(
    using: offline.Dependencies, dynamodb: DynamoDB, sns: Sns
) -> None:
    """A retry finds the users to notify by these rows."""
    sns.failing.add("PublishBatch")
    with pytest.raises(ClientError):
        offline.notify(batch(missed("u-gone", "gone")), using)
    assert "gone" in left(dynamodb)


def test_a_row_that_cannot_be_deleted_is_logged_and_the_users_stay_notified(
    using: offline.Dependencies, dynamodb: DynamoDB, logs: Logs
) -> None:
    dynamodb.failing.add("DeleteItem")
    assert offline.notify(batch(missed("u-gone", "gone")), using) == Counts(1, 0)
    (warning,) = logs()
    assert (warning["level"], warning["message"], warning["rows"]) == (
        "WARNING",
        "rows of gone connections kept",
        1,
    )


def test_a_table_that_stalls_does_not_time_out_the_function(
    using: offline.Dependencies, dynamodb: DynamoDB, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(offline, "DELETE_SECONDS", 0.1)
    monkeypatch.setattr(Connections, "delete", lambda *_: over.wait(30))
    try:
        assert offline.notify(batch(missed("u-gone", "gone")), using) == Counts(1, 0)
    finally:
        over.set()
    assert logs()[0]["rows"] == 1
