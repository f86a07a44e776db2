"""Checks with users who are offline, or whose connection was cut."""

from __future__ import annotations

import time
from typing import Any

from muster.client import SETTLE_SECONDS
from muster.local.seed import User
from muster.verify import limits
from muster.verify.broadcasts import TEXT, wait_until_indexed
from muster.verify.check import Check
from muster.verify.offline_topic import ReadReasons
from muster.verify.probe import Probe
from muster.verify.rows import Broken, CannotTell
from muster.verify.sources import DEFAULT_LOG, DELIVER_LOG, DELIVERY, OFFLINE_LOG

NOTIFICATION_SECONDS = 60.0
"""How long the notifications that are measured may take to the run's SQS queue."""


async def resume(probe: Probe) -> str:
    """Send to an offline user, who then reconnects and resumes."""
    user = probe.users.away
    target = {"users": [user.user_id]}
    async with probe.socket(probe.tokens.issue(user.user_id)) as socket:
        await wait_until_indexed(probe, user, SETTLE_SECONDS)
        before = await probe.receipt(await probe.start(target, {"text": TEXT}))
        await socket.message(before.id)
    await _gone_from_index(probe, user)
    missed = await probe.receipt(await probe.start(target, {"text": TEXT}))
    if missed.audience:
        raise CannotTell("The closed connection was still in the index when the message was sent.")
    brought: list[str] = []
    async with probe.socket(probe.tokens.issue(user.user_id)) as socket:
        request: dict[str, Any] = {"action": "resume", "after": before.id}
        while request:
            reply = await socket.ask(request)
            brought += [message["id"] for message in reply["messages"]]
            request = {"action": "resume", "cursor": reply["cursor"]} if reply["more"] else {}
    if missed.id not in brought:
        raise Broken("The resume did not return the missed message.", DEFAULT_LOG)
    if brought != sorted(brought):
        raise Broken("The resume returned messages that are not in the order of their ids.", DEFAULT_LOG)
    return "The first resume returned the missed message."


async def hard_close(probe: Probe) -> str:
    """Cut a connection, then send to its user."""
    user = probe.users.hard
    async with probe.socket(probe.tokens.issue(user.user_id)) as socket:
        await socket.ask({"action": "ping"})
        await wait_until_indexed(probe, user, SETTLE_SECONDS)
        socket.reset()
    began = time.monotonic()
    while True:
        receipt = await probe.receipt(await probe.start({"users": [user.user_id]}, {"text": TEXT}))
        seconds = time.monotonic() - began
        if not receipt.delivered and not receipt.failed:
            how = "posts to it answer 410" if receipt.audience else "its row was deleted"
            return f"Noticed after {seconds:.1f} s: {how}."
        if seconds > limits.CLOSE_SECONDS and receipt.failed:
            raise Broken(f"Posts to a connection that was cut {seconds:.0f} s ago fail.", DELIVER_LOG)
        if seconds > limits.CLOSE_SECONDS:
            raise Broken(
                f"A connection that was cut {seconds:.0f} s ago still counts as delivered.",
                "Such messages arrive only by resume: see docs/delivery.md.",
            )


async def fallback(probe: Probe) -> str:
    """Keep the row of a closed connection, send with `offline: fallback`, and read what SNS publishes."""
    hard, absent = probe.users.hard, probe.users.absent
    others = await probe.others_who_match([hard, absent])
    if others and not probe.consent.subscribers:
        raise CannotTell(
            f"Not checked: the notifications would also reach {'; '.join(others)}.",
            f"Add --notify-subscribers if these may get 3 to {limits.WARM_UPS + 2} notifications about users "
            "of the run.",
        )
    async with probe.socket(probe.tokens.issue(hard.user_id)) as socket:
        await socket.ask({"action": "ping"})
        rows = await wait_until_indexed(probe, hard, SETTLE_SECONDS)
        socket.reset()
    await _gone_from_index(probe, hard)
    # As if $disconnect had not been called, which is best effort on AWS. The row is older than any handshake.
    row = rows[0] | {"connectedAt": {"S": "2000-01-01T00:00:00.000Z"}}
    await probe.call("dynamodb", "put_item", TableName=probe.outputs.connections_table, Item=row)
    await probe.indexed(hard.user_id, 1, SETTLE_SECONDS)
    async with probe.subscribed_queue([hard, absent]) as read:
        await _first_notification(probe, read)
        target = {"users": [hard.user_id, absent.user_id]}
        execution = await probe.start(target, {"text": TEXT}, offline="fallback")
        receipt = await probe.receipt(execution)
        found = await read(receipt.id, 2, NOTIFICATION_SECONDS)
    counts = (receipt.audience, receipt.gone, receipt.offline, receipt.offline_failed)
    if counts != (1, 1, 2, 0):
        raise Broken(f"The receipt counts {receipt.to_dict()}.", OFFLINE_LOG)
    expected = {hard.user_id: "gone", absent.user_id: "absent"}
    if found.items() < expected.items():
        raise _late(probe, f"SNS accepted two notifications; {len(found)} reached the run's queue.")
    if found != expected:
        raise Broken(
            f"{len(found)} of two notifications reached the run's SQS queue, with the reasons "
            f"{', '.join(sorted(found.values())) or 'none'}; gone and absent were expected.",
            f"{OFFLINE_LOG} Then look at the topic's delivery failures.",
        )
    if await probe.connections_of(hard.user_id):
        raise Broken("The row of the closed connection was not deleted.", OFFLINE_LOG)
    return (
        "The user whose connection is gone and the one without any were published to SNS, with the reasons."
    )


async def _first_notification(probe: Probe, read: ReadReasons) -> None:
    """Send to the absent user until SNS applies the filter policy of the run's new subscription."""
    target = {"users": [probe.users.absent.user_id]}
    for _ in range(1 if probe.local else limits.WARM_UPS):
        receipt = await probe.receipt(await probe.start(target, {"text": TEXT}, offline="fallback"))
        if (receipt.offline, receipt.offline_failed) != (1, 0):
            raise Broken(f"The receipt counts {receipt.to_dict()}.", OFFLINE_LOG)
        if await read(receipt.id, 1, limits.WARM_UP_SECONDS):
            return
    raise _late(probe, "SNS accepted notifications, but 0 reached the run's new SQS queue in time.")


def _late(probe: Probe, seen: str) -> Broken | CannotTell:
    """Return the error for a notification that did not arrive. On AWS it proves nothing."""
    fix = "Look at the topic's delivery failures."
    if probe.local:
        return Broken(seen, fix)
    return CannotTell(
        seen,
        "SNS may take 15 minutes to apply a filter policy: run `muster verify --only fallback` again. If the "
        f"result stays the same: {fix}",
    )


async def _gone_from_index(probe: Probe, user: User) -> None:
    rows = await probe.indexed(user.user_id, 0, limits.CLOSE_SECONDS)
    for row in rows:
        # $disconnect is best effort on AWS.
        await probe.forget_connection(row["connectionId"]["S"])
    await probe.indexed(user.user_id, 0, SETTLE_SECONDS)


CHECKS = (
    Check("resume", "A resume returns missed messages.", DELIVERY, resume, needs=("header",)),
    Check(
        "hard-close",
        "A connection that was cut no longer counts as delivered.",
        "AWS: GoneException of PostToConnection",
        hard_close,
        needs=("header",),
    ),
    Check(
        "fallback", "Users who were not reached are published to SNS.", DELIVERY, fallback, needs=("header",)
    ),
)
