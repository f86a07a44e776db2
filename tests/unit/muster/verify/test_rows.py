"""Rows, targets, filter policies and tokens of `muster verify`."""

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from muster.errors import MusterError
from muster.progress import Silent
from muster.verify import CHECKS, Broken, CannotTell, Check, Consent, Probe, Report, Row, UnsafeTarget, chosen
from muster.verify.check import carry_out
from muster.verify.filters import may_match
from muster.verify.offline_topic import notifications
from muster.verify.probe import roles_of
from muster.verify.targets import choose_users
from muster.verify.tokens import CommandTokens, SecretTokens
from tests.support.fake_world import ISSUER, SECRET, World


def ending(error: Exception | None) -> Callable[[Probe], Awaitable[str]]:
    async def run(probe: Probe) -> str:
        if error:
            raise error
        return "Seen."

    return run


def outcome(error: Exception | None) -> Row:
    return asyncio.run(carry_out(Check("one", "It works.", "here", ending(error)), World(), []))


def aws(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "secret"}}, "ListThings")


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "held"),
        (Broken("It is broken.", "Mend it."), "failed"),
        (MusterError("It failed.", fix="Try."), "failed"),
        (TimeoutError(), "failed"),
        (KeyError("counts"), "failed"),
        (CannotTell("No idea."), "unknown"),
        (aws("AccessDeniedException"), "unknown"),
        (aws("UnknownOperationException"), "unknown"),
        (EndpointConnectionError(endpoint_url="https://example.org"), "unknown"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_every_error_of_a_check_becomes_a_row(error: Exception | None, result: str) -> None:
    row = outcome(error)
    assert row.result == result
    assert "secret" not in row.detail


def test_a_call_of_the_library_without_permission_is_unknown() -> None:
    error = MusterError("The broadcast cannot be started: AccessDeniedException.", fix="Check them.")
    error.__cause__ = aws("AccessDeniedException")
    row = outcome(error)
    assert (row.result, row.detail) == ("unknown", "These credentials may not call ListThings.")


@pytest.mark.parametrize("code", ["ResourceNotFoundException", "StateMachineDoesNotExist", "NotFound"])
def test_a_missing_resource_fails_the_row(code: str) -> None:
    row = outcome(aws(code))
    assert row.result == "failed"
    assert "does not exist" in row.detail


def test_roles_that_may_not_be_decrypted_are_an_error_with_a_fix() -> None:
    with pytest.raises(MusterError, match="roles cannot be read") as error:
        roles_of({"Environment": {"Error": {"ErrorCode": "AccessDeniedException"}}})
    assert "kms:Decrypt" in (error.value.fix or "")


def test_a_cancellation_is_not_a_row() -> None:
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(carry_out(Check("one", "", "", ending_cancelled), World(), []))


async def ending_cancelled(probe: Probe) -> str:
    raise asyncio.CancelledError


def row(result: Any) -> Row:
    return Row("one", "", "", result, "", None, 0.0)


def test_a_report_fails_if_a_row_failed_or_something_is_left() -> None:
    assert Report("run", [row("held"), row("unknown"), row("failed")]).result == "failed"
    assert Report("run", [row("held")], left=["user x"]).result == "failed"
    assert Report("run", [row("held"), row("unknown")]).result == "unknown"
    assert Report("run", [row("held")]).result == "held"
    assert Report("run").result == "unknown"


def test_checks_that_need_a_consent_are_left_out_without_it() -> None:
    names = {check.name for check in chosen((), Consent())}
    assert {check.name for check in CHECKS} - names == {"scopes", "idle"}
    assert {c.name for c in chosen((), Consent(frozenset({"all"}), slow=True))} - names == {"scopes", "idle"}
    with pytest.raises(MusterError):
        chosen(["idle"], Consent())


def test_a_named_check_includes_those_it_needs_and_an_unknown_one_is_refused() -> None:
    assert [check.name for check in chosen(["users"], Consent())] == ["clients", "users"]
    assert [check.name for check in chosen(["index"], Consent())] == ["header", "clients", "index"]
    with pytest.raises(MusterError) as refusal:
        chosen(["nothing"], Consent())
    assert "users" in (refusal.value.fix or "")


def test_needs_name_earlier_checks() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for check in CHECKS:
        assert all(names.index(need) < names.index(check.name) for need in check.needs)


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"all": True},
        {"roles": ["muster-verify"]},
        {"users": ["responder-finn"]},
        {"shelters": ["shelter-north"]},
        {"unheard-of": ["x"]},
    ],
)
def test_a_target_beyond_the_run_is_refused(target: dict[str, Any]) -> None:
    with pytest.raises(UnsafeTarget):
        World().check_target(target)


def test_more_users_than_a_target_may_name_are_refused_before_an_execution_fails() -> None:
    world = World()
    with pytest.raises(UnsafeTarget):
        world.check_target({"users": [world.users.listeners[0].user_id] * 101})


def test_a_target_of_the_run_is_accepted_unless_it_also_names_others() -> None:
    world = World()
    own = {"users": [user.user_id for user in world.users.listeners], "shelters": [world.users.shelter]}
    world.check_target(own)
    with pytest.raises(UnsafeTarget):
        world.check_target(own | {"roles": ["resident"]})
    World(consent=Consent(frozenset({"all"}))).check_target({"all": True})
    with pytest.raises(UnsafeTarget):
        World(consent=Consent(frozenset({"all"}))).check_target({"roles": ["resident"]})


NOTE = {
    "attributes": {
        "type": "broadcast",
        "reason": "gone",
        "role": "muster-verify",
        "userId": "muster-verify-1",
    },
    "body": {"reason": "gone", "message": {"type": "broadcast"}, "userId": "muster-verify-1"},
}


@pytest.mark.parametrize(
    ("policy", "matches"),
    [
        ("", True),
        ("not json", True),
        ('{"role": ["first_responder"]}', False),
        ('{"role": ["first_responder", "muster-verify"]}', True),
        ('{"reason": ["gone"]}', True),
        ('{"reason": ["gone"], "role": ["resident"]}', False),
        ('{"type": ["alert"]}', False),
        ('{"shelterId": ["north"]}', False),
        ('{"shelterId": [{"exists": false}]}', True),
        ('{"shelterId": [{"exists": true}]}', False),
        ('{"role": [{"prefix": "muster"}]}', True),
        ('{"role": [{"prefix": "first"}]}', False),
        ('{"role": [{"suffix": "verify"}]}', True),
        ('{"role": [{"equals-ignore-case": "MUSTER-VERIFY"}]}', True),
        ('{"role": [{"anything-but": ["resident"]}]}', True),
        ('{"role": [{"anything-but": "muster-verify"}]}', False),
        ('{"userId": [{"anything-but": {"prefix": "muster-verify-"}}]}', False),
        ('{"shelterId": [{"anything-but": ["north"]}]}', False),
        ('{"role": [{"an-operator-of-2027": 1}]}', True),
        ('{"$or": [{"role": ["resident"]}, {"reason": ["gone"]}]}', True),
        ('{"$or": [{"role": ["resident"]}, {"reason": ["absent"]}]}', False),
    ],
)
def test_a_filter_policy_matches_as_sns_documents_and_when_in_doubt(policy: str, matches: bool) -> None:
    assert may_match({"FilterPolicy": policy}, NOTE) is matches


@pytest.mark.parametrize(
    ("policy", "matches"),
    [
        ('{"message": {"type": ["alert"]}}', False),
        ('{"message": {"type": ["broadcast"]}}', True),
        ('{"message": {"payload": {"text": ["x"]}}}', True),
        ('{"unknown": ["x"]}', True),
        ('{"reason": ["absent"]}', False),
    ],
)
def test_a_filter_on_an_unknown_property_of_the_body_matches(policy: str, matches: bool) -> None:
    scope = {"FilterPolicy": policy, "FilterPolicyScope": "MessageBody"}
    assert may_match(scope, NOTE) is matches


def test_filters_are_also_matched_with_the_notification_that_names_no_user() -> None:
    user = World().users.hard
    reasons = [note["attributes"]["reason"] for note in notifications(user, "resident", {})]
    assert reasons == ["gone", "failed", "absent", "unreached"]
    unreached = {"FilterPolicy": '{"reason": ["unreached"]}'}
    assert any(may_match(unreached, note) for note in notifications(user, "resident", {}))


def test_faulty_tokens_are_refused_and_the_valid_one_is_accepted() -> None:
    tokens = SecretTokens(ISSUER)
    options: dict[str, Any] = {"algorithms": ["HS256"], "audience": ISSUER.audience, "issuer": ISSUER.issuer}
    jwt.decode(tokens.issue("ann"), SECRET, **options)
    assert len(tokens.refused("ann")) == 5
    for token in tokens.refused("ann").values():
        with pytest.raises(jwt.InvalidTokenError):
            jwt.decode(token, SECRET, **options)


def command(folder: Path, source: str) -> str:
    script = folder / "print_token.py"
    script.write_text(
        f"import os, time, jwt\nexp = int(time.time()) + 1000\nuser = os.environ['MUSTER_USER_ID']\n{source}"
    )
    return f"'{sys.executable}' '{script}'"


def test_a_command_prints_the_tokens_and_may_choose_the_ids(tmp_path: Path) -> None:
    tokens = CommandTokens(
        command(tmp_path, f"print(jwt.encode({{'sub': 'x-' + user, 'exp': exp}}, '{SECRET}'))")
    )
    assert tokens.user("ann") == "x-ann"
    assert jwt.decode(tokens.issue("x-ann"), SECRET, algorithms=["HS256"])["sub"] == "x-ann"
    _malformed, changed = tokens.refused("x-ann").values()
    with pytest.raises(jwt.InvalidTokenError):
        jwt.decode(changed, SECRET, algorithms=["HS256"])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("print('hello')", "JWT"),
        (f"print(jwt.encode({{'exp': exp}}, '{SECRET}'))", "sub"),
        (f"print(jwt.encode({{'sub': user}}, '{SECRET}'))", "exp"),
        ("exit(7)", "status 7"),
    ],
)
def test_a_command_that_prints_no_token_is_an_error_with_a_fix(
    tmp_path: Path, source: str, problem: str
) -> None:
    with pytest.raises(MusterError, match=problem) as error:
        CommandTokens(command(tmp_path, source)).user("ann")
    assert error.value.fix


def test_a_command_that_prints_one_token_for_everybody_is_refused(tmp_path: Path) -> None:
    tokens = CommandTokens(command(tmp_path, f"print(jwt.encode({{'sub': 'ann', 'exp': exp}}, '{SECRET}'))"))
    tokens.user("ann")
    with pytest.raises(MusterError, match="second token"):
        tokens.user("bob")


def test_the_first_expiry_is_that_of_the_first_token_to_expire(tmp_path: Path) -> None:
    claims = "{'sub': user, 'exp': exp - 600 * (user == 'bob')}"
    tokens = CommandTokens(command(tmp_path, f"print(jwt.encode({claims}, '{SECRET}'))"))
    for user in ("ann", "bob", "cleo"):
        tokens.user(user)
    assert 300 < tokens.first_expiry() - time.time() < 400
    assert SecretTokens(ISSUER).first_expiry() - time.time() > 3000


def test_an_interrupt_waits_for_one_token_command_at_most() -> None:
    asked: list[str] = []
    first, go_on = threading.Event(), threading.Event()

    class Slow(SecretTokens):
        def user(self, suggested: str) -> str:
            asked.append(suggested)
            first.set()
            go_on.wait(10)
            return suggested

    async def interrupted() -> None:
        task = asyncio.create_task(choose_users(Slow(ISSUER), 20, Silent()))
        await asyncio.to_thread(first.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
        go_on.set()

    asyncio.run(interrupted())
    assert len(asked) == 1


def test_a_command_with_an_unclosed_quotation_mark_is_an_error() -> None:
    with pytest.raises(MusterError, match="quotation mark"):
        CommandTokens("print 'token")


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MusterError, match="could not be run"):
        CommandTokens(str(tmp_path / "nothing")).user("ann")
