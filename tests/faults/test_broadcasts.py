"""Whole broadcasts, through the real state machines and code, while everything they call fails in turn."""

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
from tests.support.machines import ALWAYS, CALLS, Json, Machines, Trouble
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
"""Connections in a page, and in a batch."""

TARGETS = st.just({"all": True}) | st.fixed_dictionaries(
    {},
    optional={
        scope: st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=3)
        for scope, names in {"roles": ROLES, "shelters": ["north", "south"], "users": NAMES}.items()
    },
).filter(bool)

TROUBLES = st.dictionaries(
    st.sampled_from(list(CALLS)),
    st.sets(st.integers(0, 4), min_size=1, max_size=4) | st.just(ALWAYS),
    min_size=1,
    max_size=3,
)


@dataclass(frozen=True)
class Person:
    """Somebody who may be told: the same role and shelter on each of their connections."""

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
    """People connect and vanish, their connections fail in ever new ways, and broadcasts go out meanwhile."""

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

    @rule(audience=TARGETS, offline=POLICIES, sizes=SIZES, trouble=TROUBLES)
    def broadcast_in_trouble(
        self, audience: Json, offline: str, sizes: tuple[int, int], trouble: dict[str, Any]
    ) -> None:
        # A record that fails four times in a row is another story: nothing is sent, and the execution fails.
        bearable = {what: calls for what, calls in trouble.items() if what != "record" or len(calls) < 4}
        self._broadcast(audience, offline, bearable, sizes)

    # ----

    def _connect(self, person: Person, fate: list[Act], young: bool) -> None:
        # An age below 0 stays that of a handshake, however long the example takes.
        connection_id = self.machines.connect(
            person.user_id, person.role, person.shelter_id, age=-3600 if young else 600
        )
        self.owner[connection_id] = person
        if young:
            self.young.add(connection_id)
        self._fate(connection_id, fate)

    def _fate(self, connection_id: str, fate: list[Act]) -> None:
        self.fates[connection_id] = fate

    def _broadcast(self, target: Json, offline: str, trouble: Trouble, sizes: tuple[int, int]) -> None:
        self.machines.size(*sizes)
        before = self._live()
        strangers = [Person(name, "", None) for name in NAMES[len(self.people) :]]
        meant = [who for who in self.people if who.meant_by(target)]
        meant += [who for who in strangers if who.user_id in target.get("users", ())]
        audience = [name for name in before if self.owner[name] in meant]
        self.proxy.reset(Script(self.fates))

        receipt = self.machines.broadcast(target, offline=offline, trouble=trouble)

        told = self.machines.told(receipt["id"])
        reported = {name: self.machines.reported.get(name, "failed") for name in audience}
        reached = {self.owner[name] for name, outcome in reported.items() if outcome == "delivered"}

        # Whatever happened, the message waits for everybody who is meant, and the receipt adds up.
        self.said.append((receipt["id"], target))
        for person in self.people:
            waiting = self.machines.resumed(person.user_id, person.role, person.shelter_id)
            assert waiting == [
                identifier for identifier, meant_for in self.said if person.meant_by(meant_for)
            ]
        assert set(self.machines.reported) <= set(audience)
        if offline != "never" and "publish" not in trouble:
            assert sorted(map(str, told.partitions)) == sorted(map(str, receipt["unreached"]))
        if not receipt["unreached"]:
            counts = {kind: list(reported.values()).count(kind) for kind in ("delivered", "gone", "failed")}
            assert {kind: receipt[kind] for kind in counts} == counts
            assert receipt["audience"] == len(audience)

        # What is reported is what the last post to each was answered.
        for name, outcome in self.machines.reported.items():
            assert outcome == outcome_of(self.proxy.posts_to(name), name in self.young)

        # SNS: never about somebody who got it, and nobody twice but by an Offline that died of it.
        if "handed_over" not in trouble:
            assert max(told.users.values(), default=0) <= 1
        assert not {person.user_id for person in reached} & set(told.users)
        # Those of a role, a shelter or all who hold no connection are nobody's recipients: they resume.
        recipients = {self.owner[name].user_id for name in audience} | set(target.get("users", ()))
        unreached = recipients - {person.user_id for person in reached}
        expected = unreached if offline != "never" else set()
        if not trouble:
            assert set(told.users) == expected
            assert (receipt["offline"], receipt["offlineFailed"]) == (len(expected), 0)
            assert (told.floor, receipt["unreached"], told.whole) == (set(), [], offline == "always")
            gone = {name for name, outcome in reported.items() if outcome == "gone"}
            assert set(before) - set(self._live()) == (gone if offline != "never" else set())
        else:
            lost = {
                person.user_id
                for person in meant
                if person.user_id in expected - set(told.users) - told.floor
                and not any(person.lies_in(partition) for partition in receipt["unreached"])
            }
            # Users whom nothing could be told about are counted, as long as SNS is what fails.
            assert len(lost) <= receipt["offlineFailed"], lost

    def _live(self) -> list[str]:
        return [name for name, row in self.machines.rows().items() if row["ttl"] > 1]


def test_nobody_is_lost_whatever_fails(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
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
            phases=[Phase.generate],  # to shrink an example takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- one thing at a time, with the receipt that is promised for it


@dataclass(frozen=True)
class Crowd:
    """Six residents of a shelter with one connection each: two batches of three, one page."""

    machines: Machines
    proxy: FaultProxy
    connections: list[str]

    def users(self) -> set[str]:
        return {f"u{n}" for n in range(6)}

    def tell(self, **request: Any) -> Json:
        """Broadcast to the shelter; the message is in the queue for everybody, whatever comes of it."""
        receipt = self.machines.broadcast({"shelters": ["north"]}, **request)
        assert receipt["id"] in self.machines.resumed("u0", "resident", "north")
        return receipt


@pytest.fixture
def crowd(proxy: FaultProxy) -> Crowd:
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    return Crowd(machines, proxy, [machines.connect(f"u{n}", "resident", "north") for n in range(6)])


def _outcomes(receipt: Json) -> tuple[int, int, int]:
    return receipt["delivered"], receipt["gone"], receipt["failed"]


def test_query_that_is_throttled_for_a_moment_costs_nobody_anything(crowd: Crowd) -> None:
    receipt = crowd.tell(trouble={"query": [0, 1, 2]})

    assert _outcomes(receipt) == (6, 0, 0)
    assert (receipt["unreached"], receipt["pages"]) == ([], 1)
    assert set(crowd.proxy.taken.values()) == {1}
    assert crowd.machines.calls["query"] == 4


def test_query_that_stays_throttled_leaves_the_partition_to_sns(crowd: Crowd) -> None:
    receipt = crowd.tell(trouble={"query": ALWAYS})

    partition = {"scope": "shelter", "value": "north"}
    assert (receipt["audience"], receipt["unreached"]) == (0, [partition])
    told = crowd.machines.told(receipt["id"])
    assert (told.partitions, told.users, crowd.proxy.posts) == ([partition], {}, [])


def test_later_page_that_stays_throttled_keeps_what_was_delivered(crowd: Crowd) -> None:
    crowd.machines.size(4, 3)

    receipt = crowd.tell(trouble={"query": range(1, 1000)})

    partition = {"scope": "shelter", "value": "north"}
    assert (_outcomes(receipt), receipt["pages"]) == ((4, 0, 0), 1)
    assert receipt["unreached"] == crowd.machines.told(receipt["id"]).partitions == [partition]
    assert crowd.machines.counted == {"PartitionsUnreached": 1}
    assert set(crowd.proxy.taken.values()) == {1}


def test_row_that_cannot_be_deleted_costs_a_410_next_time_and_nothing_else(crowd: Crowd) -> None:
    gone = crowd.connections[2]
    crowd.proxy.reset(Script({gone: [GONE]}))

    for trouble, rows in ({"forget": ALWAYS}, 6), ({}, 5):
        receipt = crowd.tell(trouble=trouble)

        assert (_outcomes(receipt), receipt["offline"]) == ((5, 1, 0), 1)
        assert crowd.machines.told(receipt["id"]).users == {"u2": 1}
        assert len(crowd.machines.rows()) == rows


def test_deliver_killed_after_posting_posts_again_and_counts_once(crowd: Crowd) -> None:
    receipt = crowd.tell(trouble={"delivered": [0]})

    assert (_outcomes(receipt), receipt["offline"]) == ((6, 0, 0), 0)
    # One batch had it twice, with the same id, which its clients drop.
    assert sorted(crowd.proxy.taken.values()) == [1, 1, 1, 2, 2, 2]
    assert len({seen.body for seen in crowd.proxy.posts}) == 1


def test_deliver_killed_every_time_is_handed_over_though_some_may_have_it(crowd: Crowd) -> None:
    receipt = crowd.tell(trouble={"delivered": ALWAYS})

    assert (_outcomes(receipt), receipt["offline"]) == ((0, 0, 6), 6)
    assert crowd.machines.told(receipt["id"]).users == dict.fromkeys(crowd.users(), 1)
    assert set(crowd.proxy.taken.values()) == {3}


def test_deliver_out_of_time_reports_what_is_left(crowd: Crowd) -> None:
    crowd.machines.post_seconds = 2.0
    crowd.proxy.reset(Script({name: [SILENT] for name in crowd.connections[:2]}))

    receipt = crowd.tell()

    assert (_outcomes(receipt), receipt["offline"]) == ((4, 0, 2), 2)
    assert crowd.machines.told(receipt["id"]).users == {"u0": 1, "u1": 1}


def test_offline_killed_after_publishing_publishes_again_and_counts_once(crowd: Crowd) -> None:
    crowd.proxy.reset(Script(otherwise=GONE))

    receipt = crowd.tell(trouble={"handed_over": [0]})

    assert (_outcomes(receipt), receipt["offline"]) == ((0, 6, 0), 6)
    assert crowd.machines.told(receipt["id"]).users == dict.fromkeys(crowd.users(), 2)


def test_offline_killed_before_publishing_is_made_up_for_by_its_retry(crowd: Crowd) -> None:
    """The users were claimed by the invocation that died."""
    crowd.proxy.reset(Script(otherwise=GONE))

    receipt = crowd.tell(trouble={"hand_over": [0]})

    assert (receipt["offline"], receipt["offlineFailed"]) == (6, 0)
    assert crowd.machines.told(receipt["id"]).users == dict.fromkeys(crowd.users(), 1)


def test_sns_refusing_the_batches_is_made_up_for_by_the_floor(crowd: Crowd) -> None:
    crowd.proxy.reset(Script(otherwise=GONE))

    receipt = crowd.tell(trouble={"hand_over": ALWAYS})

    assert (receipt["offline"], receipt["offlineFailed"]) == (6, 0)
    assert crowd.machines.told(receipt["id"]).floor == crowd.users()


def test_sns_refusing_everything_is_in_the_receipt(crowd: Crowd) -> None:
    crowd.proxy.reset(Script(otherwise=GONE))

    receipt = crowd.tell(trouble={"hand_over": ALWAYS, "publish": ALWAYS}, offline="always")

    assert (_outcomes(receipt), receipt["offline"], receipt["offlineFailed"]) == ((0, 6, 0), 0, 6)
    assert receipt["notified"] is False
    # The six users of the page, and one for the whole target.
    assert crowd.machines.counted == {"OfflineFailed": 6 + 1}


def test_a_broadcast_whose_troubles_cannot_be_counted_ends_with_its_receipt(crowd: Crowd) -> None:
    crowd.proxy.reset(Script(otherwise=GONE))

    receipt = crowd.tell(
        trouble={"hand_over": ALWAYS, "publish": ALWAYS, "measure": ALWAYS}, offline="always"
    )

    assert (receipt["offlineFailed"], receipt["notified"]) == (6, False)
    assert crowd.machines.counted == {}


def test_sns_refusing_some_users_counts_them(crowd: Crowd) -> None:
    crowd.proxy.reset(Script(otherwise=GONE))
    crowd.machines.sns.refuse = lambda call, entry: '"u3"' in entry["Message"]

    receipt = crowd.tell()

    assert (receipt["offline"], receipt["offlineFailed"]) == (5, 1)
    assert crowd.machines.told(receipt["id"]).users == dict.fromkeys(crowd.users() - {"u3"}, 1)


def test_message_that_cannot_be_recorded_is_not_sent(crowd: Crowd) -> None:
    with pytest.raises(AssertionError, match="ThrottlingException"):
        crowd.tell(trouble={"record": ALWAYS})

    assert (crowd.proxy.posts, crowd.machines.calls["record"]) == ([], 4)


def test_fan_out_that_fails_twice_reaches_everybody_once(crowd: Crowd) -> None:
    receipt = crowd.tell(trouble={"fanout": [0, 1]})

    assert (_outcomes(receipt), receipt["unreached"]) == ((6, 0, 0), [])
    assert set(crowd.proxy.taken.values()) == {1}


def test_fan_out_that_dies_before_it_hands_a_page_over_finds_the_gone_again(crowd: Crowd) -> None:
    crowd.proxy.reset(Script({name: [GONE] for name in crowd.connections[:2]}, otherwise=TAKEN))

    receipt = crowd.tell(trouble={"page": [0]})

    assert (_outcomes(receipt), receipt["offline"]) == ((4, 2, 0), 2)
    assert crowd.machines.told(receipt["id"]).users == {"u0": 1, "u1": 1}
    assert len(crowd.machines.rows()) == 4


def test_fan_out_that_fails_for_good_and_sns_too_is_in_the_receipt(crowd: Crowd) -> None:
    receipt = crowd.tell(trouble={"fanout": ALWAYS, "publish": ALWAYS})

    assert (receipt["audience"], receipt["unreached"]) == (0, [{"scope": "shelter", "value": "north"}])


# ---- the race around $connect


@pytest.mark.parametrize("naive", [True, False], ids=["naive-delete", "as-it-is"])
def test_client_told_in_the_middle_of_its_handshake_is_not_deaf_afterwards(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, naive: bool
) -> None:
    """`$connect` has stored the row; API Gateway opens the socket after the first broadcast came and went.

    To delete the row on 410, as if there were no handshake, leaves a client that is connected and deaf.
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


def test_handshake_that_ends_within_the_retries_costs_nothing(proxy: FaultProxy) -> None:
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    opening = machines.connect("u0", "resident", "north", age=0)
    proxy.reset(Script({opening: [GONE, GONE, TAKEN]}))

    receipt = machines.broadcast({"shelters": ["north"]})

    assert (_outcomes(receipt), receipt["retries"], receipt["offline"]) == ((1, 0, 0), 2, 0)
    assert opening in machines.rows()


@pytest.mark.parametrize("ahead", [9, -29])
def test_clock_of_the_sender_decides_about_no_row(proxy: FaultProxy, ahead: float) -> None:
    """A sender makes the message's id; a handshake is judged by the time of who posts."""
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    opening = machines.connect("u0", "resident", "north", age=1)
    closed = machines.connect("u1", "resident", "north", age=15)
    proxy.reset(Script(otherwise=GONE))

    receipt = machines.broadcast({"shelters": ["north"]}, id=uuid7(time.time() + ahead, urandom(10)))

    assert _outcomes(receipt) == (0, 1, 1)
    assert list(machines.rows()) == [opening]
    assert machines.reported == {opening: "failed", closed: "gone"}


# ---- a 410 for a live connection


def test_spurious_410_in_a_hundred_posts_costs_no_live_client_its_row(
    proxy: FaultProxy, rng: random.Random
) -> None:
    machines = Machines(proxy.endpoint, page_size=100, batch_size=50)
    connections = [machines.connect(f"u{n}", "resident", "north") for n in range(300)]
    spurious = set(rng.sample(connections, 3))
    proxy.reset(Script({name: [GONE, TAKEN] for name in spurious}))

    receipt = machines.broadcast({"shelters": ["north"]})

    assert (_outcomes(receipt), receipt["retries"], receipt["offline"]) == ((300, 0, 0), 3, 0)
    assert set(machines.rows()) == set(connections)
    assert set(proxy.taken.values()) == {1}


# ---- rows that $connect did not write


def test_unreadable_rows_fail_alone_and_their_users_are_handed_over(crowd: Crowd) -> None:
    rows = crowd.machines.rows()
    row = {**rows[crowd.connections[0]]}
    odd: dict[str, Json] = {
        "no-time": {"connectedAt": None},
        "number": {"connectedAt": 1795421402},
        "words": {"connectedAt": "yesterday"},
        "nameless": {"userId": None},
    }
    for name, change in odd.items():
        changed = {**row, "connectionId": name, "userId": f"user of {name}", **change}
        crowd.machines.dynamodb.add("connections", {k: v for k, v in changed.items() if v is not None})

    receipt = crowd.tell()

    assert (_outcomes(receipt), receipt["offline"], receipt["unreached"]) == ((6, 0, 4), 3, [])
    told = crowd.machines.told(receipt["id"])
    assert told.users == dict.fromkeys((f"user of {name}" for name in ("no-time", "number", "words")), 1)
    assert set(odd) <= set(crowd.machines.rows())
    assert set(crowd.proxy.taken) == set(crowd.connections)


@pytest.mark.parametrize("trouble", [{"deliver": ALWAYS}, {"offline": ALWAYS}], ids=str)
def test_unreadable_rows_alone_in_their_batch_harm_nothing_whatever_fails(
    proxy: FaultProxy, trouble: Trouble
) -> None:
    machines = Machines(proxy.endpoint, page_size=7, batch_size=3)
    nameless = {"connectionId": "nameless", "shelterId": "north", "ttl": int(time.time()) + 600}
    machines.dynamodb.add("connections", nameless)

    receipt = machines.broadcast({"shelters": ["north"]}, trouble=trouble)

    assert (_outcomes(receipt), receipt["offline"], receipt["offlineFailed"]) == ((0, 0, 1), 0, 0)
    assert machines.published == []
