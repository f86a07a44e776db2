"""Whole broadcasts through the real state machines and functions, while their calls fail in turn."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from os import urandom
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from functions.shared.messages import uuid7
from tests.support.functions import shorten_timeouts
from tests.support.gateways import outcome_of
from tests.support.machines import ALWAYS, CALLS, Failures, Json, Machines
from tests.support.proxy import (
    BROKEN,
    CUT,
    FORBIDDEN,
    GARBAGE,
    GONE,
    RESET_AFTER,
    RESET_BEFORE,
    SILENT,
    TAKEN,
    THROTTLED,
    Act,
    FaultProxy,
    Script,
)
from tests.support.randomness import SEED

pytestmark = pytest.mark.usefixtures("quick")

ROLES = ["resident", "first_responder"]
SHELTERS = ["north", "south", None]
ACTS = [TAKEN, TAKEN, GONE, THROTTLED, FORBIDDEN, BROKEN, RESET_BEFORE, RESET_AFTER, CUT, GARBAGE, SILENT]

NAMES = [f"u{n}" for n in range(9)]
FATES = st.lists(st.sampled_from(ACTS), min_size=1, max_size=3)
POLICIES = st.sampled_from(["fallback"] * 4 + ["always", "never"])
SMALLEST_PAGE = 4
SIZES = st.tuples(st.integers(SMALLEST_PAGE, 9), st.integers(1, 4))
"""Connections per page and per batch."""

TARGETS = st.just({"all": True}) | st.fixed_dictionaries(
    {},
    optional={
        scope: st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=3)
        for scope, names in {"roles": ROLES, "shelters": ["north", "south"], "users": NAMES}.items()
    },
).filter(bool)

FAILURES = st.dictionaries(
    st.sampled_from(list(CALLS)),
    st.sets(st.integers(0, 4), min_size=1, max_size=4) | st.just(ALWAYS),
    min_size=1,
    max_size=3,
)


@dataclass(frozen=True)
class Person:
    """A user, whose connections all have the same role and shelter."""

    user_id: str
    role: str
    shelter_id: str | None

    def meant_by(self, target: Json) -> bool:
        return (
            "all" in target
            or self.role in target.get("roles", ())
            or self.shelter_id in target.get("shelters", ())
            or self.user_id in target.get("users", ())
        )

    def lies_in(self, partition: Mapping[str, str]) -> bool:
        return partition["scope"] == "all" or partition["value"].partition("#")[0] in (
            self.role,
            self.shelter_id,
            self.user_id,
        )


class Broadcasts(RuleBasedStateMachine):
    """Users connect, their connections fail or expire, and broadcasts are sent, in random order."""

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__()
        self.proxy = proxy
        self.machines = Machines(proxy.endpoint, 5, 2)
        self.people: list[Person] = []
        self.owner: dict[str, Person] = {}
        self.young: set[str] = set()
        self.fates: dict[str, list[Act]] = {}
        self.said: list[tuple[str, Json]] = []

    @initialize(
        people=st.lists(
            st.tuples(st.sampled_from(ROLES), st.sampled_from(SHELTERS), st.lists(FATES, max_size=3)),
            min_size=3,
            max_size=8,
        ),
        young=st.sets(st.integers(0, 7)),
    )
    def begin(self, people: list[tuple[str, str | None, list[list[Act]]]], young: set[int]) -> None:
        for n, (role, shelter_id, fates) in enumerate(people):
            self.people.append(Person(f"u{n}", role, shelter_id))
            for fate in fates:
                self._connect(self.people[-1], fate, n in young)

    @rule(who=st.integers(0, 99), fate=FATES, young=st.booleans())
    def connect(self, who: int, fate: list[Act], young: bool) -> None:
        person = self.people[who % len(self.people)]
        self._connect(person, fate, young)

    @precondition(lambda self: self.owner)
    @rule(which=st.integers(0, 99), fate=FATES)
    def change(self, which: int, fate: list[Act]) -> None:
        self._fate(sorted(self.owner)[which % len(self.owner)], fate)

    @precondition(lambda self: self.owner)
    @rule(which=st.integers(0, 99))
    def expire(self, which: int) -> None:
        rows = self.machines.rows()
        if rows:
            row = rows[sorted(rows)[which % len(rows)]]
            self.machines.dynamodb.add("connections", {**row, "ttl": 1})

    @rule(audience=TARGETS, offline=POLICIES, sizes=SIZES)
    def broadcast(self, audience: Json, offline: str, sizes: tuple[int, int]) -> None:
        self._broadcast(audience, offline, {}, sizes)

    @rule(audience=TARGETS, offline=POLICIES, sizes=SIZES, failures=FAILURES)
    def broadcast_with_failures(
        self, audience: Json, offline: str, sizes: tuple[int, int], failures: dict[str, Any]
    ) -> None:
        # If recording fails four times, the execution fails and nothing is sent: another test has this case.
        bearable = {what: calls for what, calls in failures.items() if what != "record" or len(calls) < 4}
        self._broadcast(audience, offline, bearable, sizes)

    # ----

    def _connect(self, person: Person, fate: list[Act], young: bool) -> None:
        # With a negative age, the connection stays in its handshake however long the example takes.
        connection_id = self.machines.connect(
            person.user_id, person.role, person.shelter_id, age=-3600 if young else 600
        )
        self.owner[connection_id] = person
        if young:
            self.young.add(connection_id)
        self._fate(connection_id, fate)

    def _fate(self, connection_id: str, fate: list[Act]) -> None:
        self.fates[connection_id] = fate

    def _broadcast(self, target: Json, offline: str, failures: Failures, sizes: tuple[int, int]) -> None:
        self.machines.size(*sizes)
        before = self._live()
        strangers = [Person(name, "", None) for name in NAMES[len(self.people) :]]
        meant = [who for who in self.people if who.meant_by(target)]
        meant += [who for who in strangers if who.user_id in target.get("users", ())]
        audience = [name for name in before if self.owner[name] in meant]
        self.proxy.reset(Script(self.fates))

        receipt = self.machines.broadcast(target, offline=offline, failures=failures)

        published = self.machines.notifications(receipt["id"])
        reported = {name: self.machines.reported.get(name, "failed") for name in audience}
        reached = {self.owner[name] for name, outcome in reported.items() if outcome == "delivered"}

        # In any case, the message is queued for every user of the target.
        self.said.append((receipt["id"], target))
        for person in self.people:
            waiting = self.machines.resumed(person.user_id, person.role, person.shelter_id)
            assert waiting == [
                identifier for identifier, meant_for in self.said if person.meant_by(meant_for)
            ]
        assert set(self.machines.reported) <= set(audience)
        if offline != "never" and "publish" not in failures:
            assert sorted(map(str, published.partitions)) == sorted(map(str, receipt["unreached"]))
        if not receipt["unreached"]:
            counts = {kind: list(reported.values()).count(kind) for kind in ("delivered", "gone", "failed")}
            assert {kind: receipt[kind] for kind in counts} == counts
            assert receipt["audience"] == len(audience)

        # The outcome of a connection follows from the responses to its posts.
        for name, outcome in self.machines.reported.items():
            assert outcome == outcome_of(self.proxy.posts_to(name), name in self.young)

        # No user who was reached is notified, and none is notified twice, unless Offline died after
        # notifying.
        if "notified" not in failures:
            assert max(published.users.values(), default=0) <= 1
        assert not {person.user_id for person in reached} & set(published.users)
        # Offline users are notified only if the target names them. Others get the message when they resume.
        recipients = {self.owner[name].user_id for name in audience} | set(target.get("users", ()))
        unreached = recipients - {person.user_id for person in reached}
        expected = unreached if offline != "never" else set()
        if not failures:
            assert set(published.users) == expected
            assert (receipt["offline"], receipt["offlineFailed"]) == (len(expected), 0)
            assert (published.page_users, receipt["unreached"]) == (set(), [])
            assert published.whole == (offline == "always")
            gone = {name for name, outcome in reported.items() if outcome == "gone"}
            assert set(before) - set(self._live()) == (gone if offline != "never" else set())
        else:
            lost = {
                person.user_id
                for person in meant
                if person.user_id in expected - set(published.users) - published.page_users
                and not any(person.lies_in(partition) for partition in receipt["unreached"])
            }
            # Every user who could not be notified is counted.
            assert len(lost) <= receipt["offlineFailed"], lost

    def _live(self) -> list[str]:
        return [name for name, row in self.machines.rows().items() if row["ttl"] > 1]


def test_no_user_is_lost_whatever_fails(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_timeouts(monkeypatch, 0.15)
    make: Any = seed(SEED)(lambda: Broadcasts(proxy))

    run_state_machine_as_test(
        make,
        settings=settings(
            max_examples=25,
            stateful_step_count=8,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate],  # shrinking an example takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- one failure at a time, with its receipt


@dataclass(frozen=True)
class Shelter:
    """Six residents of a shelter with one connection each: one page with two batches of three."""

    machines: Machines
    proxy: FaultProxy
    connections: list[str]

    def users(self) -> set[str]:
        return {f"u{n}" for n in range(6)}

    def broadcast(self, **request: Any) -> Json:
        """Broadcast to the shelter. The message must be in the queue, whatever fails."""
        receipt = self.machines.broadcast({"shelters": ["north"]}, **request)
        assert receipt["id"] in self.machines.resumed("u0", "resident", "north")
        return receipt


@pytest.fixture
def shelter(proxy: FaultProxy) -> Shelter:
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    return Shelter(machines, proxy, [machines.connect(f"u{n}", "resident", "north") for n in range(6)])


def _outcomes(receipt: Json) -> tuple[int, int, int]:
    return receipt["delivered"], receipt["gone"], receipt["failed"]


def test_query_that_is_throttled_briefly_is_retried(shelter: Shelter) -> None:
    receipt = shelter.broadcast(failures={"query": [0, 1, 2]})

    assert _outcomes(receipt) == (6, 0, 0)
    assert (receipt["unreached"], receipt["pages"]) == ([], 1)
    assert set(shelter.proxy.taken.values()) == {1}
    assert shelter.machines.calls["query"] == 4


def test_query_that_stays_throttled_publishes_the_partition(shelter: Shelter) -> None:
    receipt = shelter.broadcast(failures={"query": ALWAYS})

    partition = {"scope": "shelter", "value": "north"}
    assert (receipt["audience"], receipt["unreached"]) == (0, [partition])
    published = shelter.machines.notifications(receipt["id"])
    assert (published.partitions, published.users, shelter.proxy.posts) == ([partition], {}, [])


def test_later_page_that_stays_throttled_keeps_the_counts(shelter: Shelter) -> None:
    shelter.machines.size(4, 3)

    receipt = shelter.broadcast(failures={"query": range(1, 1000)})

    partition = {"scope": "shelter", "value": "north"}
    assert (_outcomes(receipt), receipt["pages"]) == ((4, 0, 0), 1)
    assert receipt["unreached"] == shelter.machines.notifications(receipt["id"]).partitions == [partition]
    assert shelter.machines.counted == {"PartitionsUnreached": 1}
    assert set(shelter.proxy.taken.values()) == {1}


def test_row_that_cannot_be_deleted_only_costs_410s_next_time(shelter: Shelter) -> None:
    gone = shelter.connections[2]
    shelter.proxy.reset(Script({gone: [GONE]}))

    for failures, rows in ({"forget": ALWAYS}, 6), ({}, 5):
        receipt = shelter.broadcast(failures=failures)

        assert (_outcomes(receipt), receipt["offline"]) == ((5, 1, 0), 1)
        assert shelter.machines.notifications(receipt["id"]).users == {"u2": 1}
        assert len(shelter.machines.rows()) == rows


def test_deliver_killed_after_posting_posts_again_and_counts_once(shelter: Shelter) -> None:
    receipt = shelter.broadcast(failures={"delivered": [0]})

    assert (_outcomes(receipt), receipt["offline"]) == ((6, 0, 0), 0)
    # One batch got it twice with the same id, so its clients drop the second.
    assert sorted(shelter.proxy.taken.values()) == [1, 1, 1, 2, 2, 2]
    assert len({seen.body for seen in shelter.proxy.posts}) == 1


def test_deliver_killed_every_time_notifies_its_users_who_may_have_the_message(shelter: Shelter) -> None:
    receipt = shelter.broadcast(failures={"delivered": ALWAYS})

    assert (_outcomes(receipt), receipt["offline"]) == ((0, 0, 6), 6)
    assert shelter.machines.notifications(receipt["id"]).users == dict.fromkeys(shelter.users(), 1)
    assert set(shelter.proxy.taken.values()) == {3}


def test_deliver_out_of_time_reports_the_rest_as_failed(shelter: Shelter) -> None:
    shelter.machines.post_seconds = 2.0
    shelter.proxy.reset(Script({name: [SILENT] for name in shelter.connections[:2]}))

    receipt = shelter.broadcast()

    assert (_outcomes(receipt), receipt["offline"]) == ((4, 0, 2), 2)
    assert shelter.machines.notifications(receipt["id"]).users == {"u0": 1, "u1": 1}


def test_offline_killed_after_publishing_publishes_again_and_counts_once(shelter: Shelter) -> None:
    shelter.proxy.reset(Script(otherwise=GONE))

    receipt = shelter.broadcast(failures={"notified": [0]})

    assert (_outcomes(receipt), receipt["offline"]) == ((0, 6, 0), 6)
    assert shelter.machines.notifications(receipt["id"]).users == dict.fromkeys(shelter.users(), 2)


def test_offline_killed_before_publishing_is_retried(shelter: Shelter) -> None:
    """The invocation that died had claimed the users."""
    shelter.proxy.reset(Script(otherwise=GONE))

    receipt = shelter.broadcast(failures={"publish_batch": [0]})

    assert (receipt["offline"], receipt["offlineFailed"]) == (6, 0)
    assert shelter.machines.notifications(receipt["id"]).users == dict.fromkeys(shelter.users(), 1)


def test_sns_refusing_the_batches_publishes_the_page(shelter: Shelter) -> None:
    shelter.proxy.reset(Script(otherwise=GONE))

    receipt = shelter.broadcast(failures={"publish_batch": ALWAYS})

    assert (receipt["offline"], receipt["offlineFailed"]) == (6, 0)
    assert shelter.machines.notifications(receipt["id"]).page_users == shelter.users()


def test_sns_refusing_everything_is_in_the_receipt(shelter: Shelter) -> None:
    shelter.proxy.reset(Script(otherwise=GONE))

    receipt = shelter.broadcast(failures={"publish_batch": ALWAYS, "publish": ALWAYS}, offline="always")

    assert (_outcomes(receipt), receipt["offline"], receipt["offlineFailed"]) == ((0, 6, 0), 0, 6)
    assert receipt["notified"] is False
    # Six users of the page, and one for the whole target.
    assert shelter.machines.counted == {"OfflineFailed": 6 + 1}


def test_broadcast_ends_with_its_receipt_if_metrics_fail(shelter: Shelter) -> None:
    shelter.proxy.reset(Script(otherwise=GONE))

    receipt = shelter.broadcast(
        failures={"publish_batch": ALWAYS, "publish": ALWAYS, "measure": ALWAYS}, offline="always"
    )

    assert (receipt["offlineFailed"], receipt["notified"]) == (6, False)
    assert shelter.machines.counted == {}


def test_sns_refusing_some_users_counts_them(shelter: Shelter) -> None:
    shelter.proxy.reset(Script(otherwise=GONE))
    shelter.machines.sns.refuse = lambda call, entry: '"u3"' in entry["Message"]

    receipt = shelter.broadcast()

    assert (receipt["offline"], receipt["offlineFailed"]) == (5, 1)
    assert shelter.machines.notifications(receipt["id"]).users == dict.fromkeys(shelter.users() - {"u3"}, 1)


def test_message_that_cannot_be_recorded_is_not_sent(shelter: Shelter) -> None:
    with pytest.raises(AssertionError, match="ThrottlingException"):
        shelter.broadcast(failures={"record": ALWAYS})

    assert (shelter.proxy.posts, shelter.machines.calls["record"]) == ([], 4)


def test_fan_out_that_fails_twice_reaches_every_user_once(shelter: Shelter) -> None:
    receipt = shelter.broadcast(failures={"fanout": [0, 1]})

    assert (_outcomes(receipt), receipt["unreached"]) == ((6, 0, 0), [])
    assert set(shelter.proxy.taken.values()) == {1}


def test_fan_out_that_dies_before_notifying_finds_the_gone_connections_again(shelter: Shelter) -> None:
    shelter.proxy.reset(Script({name: [GONE] for name in shelter.connections[:2]}, otherwise=TAKEN))

    receipt = shelter.broadcast(failures={"page": [0]})

    assert (_outcomes(receipt), receipt["offline"]) == ((4, 2, 0), 2)
    assert shelter.machines.notifications(receipt["id"]).users == {"u0": 1, "u1": 1}
    assert len(shelter.machines.rows()) == 4


def test_fan_out_and_sns_failing_for_good_are_in_the_receipt(shelter: Shelter) -> None:
    receipt = shelter.broadcast(failures={"fanout": ALWAYS, "publish": ALWAYS})

    assert (receipt["audience"], receipt["unreached"]) == (0, [{"scope": "shelter", "value": "north"}])


# ---- the race with $connect


@pytest.mark.parametrize("naive", [True, False], ids=["naive-delete", "as-it-is"])
def test_client_that_was_posted_to_during_its_handshake_gets_the_next_message(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, naive: bool
) -> None:
    """`$connect` has stored the row, but API Gateway opens the socket only after the first broadcast.

    Deleting the row on 410 would leave a connected client that receives nothing.
    """
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    if naive:
        monkeypatch.setattr("functions.shared.posting.recipients.HANDSHAKE_SECONDS", 0)
    opening = machines.connect("u0", "resident", "north", age=1)
    proxy.reset(Script({opening: [GONE]}))
    first = machines.broadcast({"shelters": ["north"]})
    proxy.reset()

    second = machines.broadcast({"shelters": ["north"]})

    assert (_outcomes(first), first["offline"]) == ((0, 1, 0) if naive else (0, 0, 1), 1)
    assert machines.resumed("u0", "resident", "north") == [first["id"], second["id"]]
    assert (second["delivered"], proxy.taken[opening]) == ((0, 0) if naive else (1, 1))


def test_handshake_that_ends_within_the_retries_loses_nothing(proxy: FaultProxy) -> None:
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    opening = machines.connect("u0", "resident", "north", age=0)
    proxy.reset(Script({opening: [GONE, GONE, TAKEN]}))

    receipt = machines.broadcast({"shelters": ["north"]})

    assert (_outcomes(receipt), receipt["retries"], receipt["offline"]) == ((1, 0, 0), 2, 0)
    assert opening in machines.rows()


@pytest.mark.parametrize("ahead", [9, -29])
def test_rows_are_deleted_whatever_the_senders_clock(proxy: FaultProxy, ahead: float) -> None:
    """Deliver measures the age of a connection by its own clock, not by the sender's message id."""
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    opening = machines.connect("u0", "resident", "north", age=1)
    closed = machines.connect("u1", "resident", "north", age=15)
    proxy.reset(Script(otherwise=GONE))

    receipt = machines.broadcast({"shelters": ["north"]}, id=uuid7(time.time() + ahead, urandom(10)))

    assert _outcomes(receipt) == (0, 1, 1)
    assert list(machines.rows()) == [opening]
    assert machines.reported == {opening: "failed", closed: "gone"}


# ---- a 410 for a live connection


def test_spurious_410s_delete_no_row_of_a_live_connection(proxy: FaultProxy, rng: random.Random) -> None:
    machines = Machines(proxy.endpoint, page_size=100, batch_size=50)
    connections = [machines.connect(f"u{n}", "resident", "north") for n in range(300)]
    spurious = set(rng.sample(connections, 3))
    proxy.reset(Script({name: [GONE, TAKEN] for name in spurious}))

    receipt = machines.broadcast({"shelters": ["north"]})

    assert (_outcomes(receipt), receipt["retries"], receipt["offline"]) == ((300, 0, 0), 3, 0)
    assert set(machines.rows()) == set(connections)
    assert set(proxy.taken.values()) == {1}


# ---- invalid rows


def test_invalid_rows_fail_alone_and_their_users_are_notified(shelter: Shelter) -> None:
    rows = shelter.machines.rows()
    row = {**rows[shelter.connections[0]]}
    odd: dict[str, Json] = {
        "no-time": {"connectedAt": None},
        "number": {"connectedAt": 1795421402},
        "words": {"connectedAt": "yesterday"},
        "nameless": {"userId": None},
    }
    for name, change in odd.items():
        changed = {**row, "connectionId": name, "userId": f"user of {name}", **change}
        shelter.machines.dynamodb.add("connections", {k: v for k, v in changed.items() if v is not None})

    receipt = shelter.broadcast()

    assert (_outcomes(receipt), receipt["offline"], receipt["unreached"]) == ((6, 0, 4), 3, [])
    published = shelter.machines.notifications(receipt["id"])
    assert published.users == dict.fromkeys((f"user of {name}" for name in ("no-time", "number", "words")), 1)
    assert set(odd) <= set(shelter.machines.rows())
    assert set(shelter.proxy.taken) == set(shelter.connections)


@pytest.mark.parametrize("failures", [{"deliver": ALWAYS}, {"offline": ALWAYS}], ids=str)
def test_batch_of_invalid_rows_affects_nothing_whatever_fails(proxy: FaultProxy, failures: Failures) -> None:
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    nameless = {"connectionId": "nameless", "shelterId": "north", "ttl": int(time.time()) + 600}
    machines.dynamodb.add("connections", nameless)

    receipt = machines.broadcast({"shelters": ["north"]}, failures=failures)

    assert (_outcomes(receipt), receipt["offline"], receipt["offlineFailed"]) == ((0, 0, 1), 0, 0)
    assert machines.published == []
