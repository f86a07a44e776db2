"""Each check of `muster verify` that connects or broadcasts fails on a deployment that breaks its promise."""

import asyncio

import pytest

from muster import listeners
from muster.client import HandshakeRefused
from muster.verify import CHECKS, Consent, Row, account, limits
from muster.verify.check import carry_out
from tests.support.fake_world import FakeListeners, World

ROLES = {"Environment": {"Variables": {"ROLES": '{"admin": {"actions": ["alert"]}}'}}, "Timeout": 30}

EVERYTHING = Consent(scopes=frozenset({"all", "role"}), slow=True)

BROKEN = [
    ("query", "no token in the query"),
    ("header", "no header"),
    ("subprotocol", "no subprotocol"),
    ("refused-tokens", "always 403"),
    ("refused-tokens", "expired tokens pass"),
    ("refused-users", "anybody is admitted"),
    ("replies", "no replies"),
    ("replies", "no errors"),
    ("replies", "wrong roll-over"),
    ("replies", "wrong idle time"),
    ("route-names", "route names break"),
    ("large-frame", "large frames pass"),
    ("large-frame", "wrong close code"),
    ("index", "slow index"),
    ("users", "one client gets nothing"),
    ("users", "receipts are short"),
    ("shelter", "shelters are empty"),
    ("connection-ids", "ids with = get nothing"),
    ("repeated-name", "names start twice"),
    ("repeated-name", "names are not bound"),
    ("client-sends", "anybody may send"),
    ("client-sends", "client ids start twice"),
    ("client-sends", "client ids are not bound"),
    ("client-sends", "anything is accepted"),
    ("client-sends", "one client gets nothing"),
    ("largest", "small messages only"),
    ("largest", "no limit of messages"),
    ("largest", "messages are cut"),
    ("resume", "nothing is kept"),
    ("hard-close", "cuts are not noticed"),
    ("fallback", "wrong reasons"),
    ("long-run", "nested runs lose posts"),
    ("latency", "slow broadcasts"),
    ("latency", "slow handshakes"),
    ("scopes", "one client gets nothing"),
    ("nobody-else", "everybody gets everything"),
    ("idle", "idle sockets stay"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "ARRIVAL_SECONDS", 0.05)
    monkeypatch.setattr(limits, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0)


def try_out(world: World, *names: str) -> list[Row]:
    """Carry out checks of these names, after those that they need."""
    world.answers["lambda.get_function_configuration"] = ROLES
    rows: list[Row] = []

    async def run() -> None:
        for check in CHECKS:
            if check.name in names:
                rows.append(await carry_out(check, world, rows))

    asyncio.run(run())
    return rows


ALL = [check.name for check in CHECKS[len(account.CHECKS) :]]


def test_a_deployment_that_keeps_every_promise_gets_no_failed_row() -> None:
    # The pongs contain the real idle time, which no test waits for.
    rows = try_out(World(consent=EVERYTHING), *(name for name in ALL if name not in ("idle", "replies")))
    assert [row for row in rows if row.result != "held"] == []
    assert len(rows) == len(ALL) - 2


def test_replies_with_every_field_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 600)
    (row,) = try_out(World(), "replies")
    assert row.result == "held"


@pytest.mark.parametrize(("name", "fault"), BROKEN, ids=[f"{name}: {fault}" for name, fault in BROKEN])
def test_a_broken_promise_fails_its_row(monkeypatch: pytest.MonkeyPatch, name: str, fault: str) -> None:
    if name == "replies":
        monkeypatch.setattr(limits, "IDLE_SECONDS", 600)
    world = World(fault, consent=EVERYTHING)
    first = [] if fault == "no header" else ["header"]
    if name == "nobody-else":
        rows = try_out(world, *first, "clients", "users", name)
    else:
        rows = try_out(world, *first, "clients", name)
    (row,) = (row for row in rows if row.name == name)
    assert row.result == "failed", row
    assert row.detail
    assert row.fix


def test_every_check_has_a_way_to_fail() -> None:
    assert set(ALL) - {name for name, _ in BROKEN} == {"clients"}


class RefusedListeners(FakeListeners):
    """Clients whose handshakes are refused."""

    async def __aenter__(self) -> "RefusedListeners":
        raise HandshakeRefused(401)


def test_a_refused_handshake_fails_the_check_clients() -> None:
    world = World()
    world.listeners = RefusedListeners(world)
    (row,) = try_out(world, "clients")
    assert row.result == "failed"
    assert "401" in row.detail


def test_a_resume_in_another_order_fails_the_row() -> None:
    rows = try_out(World("wrong order"), "header", "resume")
    assert rows[-1].result == "failed"


def test_posts_that_fail_do_not_count_as_a_closed_connection() -> None:
    rows = try_out(World("cuts are not noticed", "posts fail"), "header", "hard-close")
    assert rows[-1].result == "failed"
    assert "fail" in rows[-1].detail


def test_ids_without_an_equals_sign_are_unknown() -> None:
    rows = try_out(World("plain ids"), "clients", "connection-ids")
    assert rows[-1].result == "unknown"


def test_a_nested_run_that_is_too_short_is_unknown() -> None:
    rows = try_out(World("nested runs are short"), "header", "long-run")
    assert rows[-1].result == "unknown"


def test_the_fallback_is_not_checked_when_others_would_be_notified() -> None:
    world = World("somebody listens")
    rows = try_out(world, "header", "fallback")
    assert rows[-1].result == "unknown"
    assert rows[-1].detail == "Not checked: the notifications would also reach sqs town-offline."
    assert world.receipts == {}


def test_the_fallback_is_checked_with_consent() -> None:
    world = World("somebody listens", consent=Consent(subscribers=True))
    assert try_out(world, "header", "fallback")[-1].result == "held"


@pytest.mark.parametrize(("local", "result"), [(True, "failed"), (False, "unknown")])
def test_notifications_that_do_not_arrive_in_time(
    monkeypatch: pytest.MonkeyPatch, local: bool, result: str
) -> None:
    """On AWS the filter policy of the run's new subscription may not be applied yet."""
    monkeypatch.setattr(World, "local", local)
    rows = try_out(World("SNS is silent"), "header", "fallback")
    assert rows[-1].result == result
    assert "0 " in rows[-1].detail


def test_the_fallback_is_measured_once_the_filter_policy_is_applied() -> None:
    world = World()
    world.unread = limits.WARM_UPS - 1
    assert try_out(world, "header", "fallback")[-1].result == "held"
    assert len(world.receipts) == limits.WARM_UPS + 1
    assert f"3 to {limits.WARM_UPS + 2} notifications" in (_fallback_fix() or "")


def _fallback_fix() -> str | None:
    return try_out(World("somebody listens"), "header", "fallback")[-1].fix


def test_a_connection_that_is_not_in_the_index_fails_the_fallback() -> None:
    row = try_out(World("slow index"), "header", "fallback")[-1]
    assert row.result == "failed"
    assert "not in the index" in row.detail


@pytest.mark.parametrize(
    ("sender", "result"),
    [
        ({"service": "the city"}, "held"),
        ({"service": "muster-verify-another-run"}, "held"),
        (None, "failed"),
    ],
)
def test_an_unexpected_message_counts_if_the_run_sent_it(sender: dict[str, str] | None, result: str) -> None:
    world = World()
    rows = try_out(world, "clients")
    listener = world.listeners.all[0]
    for own in (world.sender, {"userId": world.users.sender.user_id, "role": "admin"}):
        listener.received["stray"], listener.senders["stray"] = 1.0, sender or own
        row = asyncio.run(carry_out(next(c for c in CHECKS if c.name == "nobody-else"), world, rows))
        assert row.result == result


def test_a_broadcast_to_the_role_of_the_run_reaches_its_clients_too() -> None:
    world = World(consent=EVERYTHING)
    world.role = "admin"
    world.roles = dict.fromkeys(world.roles, "admin")
    rows = try_out(world, "header", "clients", "scopes", "nobody-else")
    assert [row.result for row in rows] == ["held"] * 4, rows


def test_a_check_is_skipped_when_one_that_it_needs_fails() -> None:
    rows = try_out(World("no header"), "header", "resume")
    assert [row.result for row in rows] == ["failed", "unknown"]
    assert "header" in rows[1].detail


def test_an_idle_connection_that_is_closed_too_early_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 600)
    assert try_out(World(consent=EVERYTHING), "header", "idle")[-1].result == "failed"


def test_an_idle_connection_that_is_closed_in_time_passes() -> None:
    assert try_out(World(consent=EVERYTHING), "header", "idle")[-1].result == "held"
