"""The last checks: broadcasts to real people, with consent, stray messages, and idle connections."""

from __future__ import annotations

import time

from muster.client import SETTLE_SECONDS
from muster.verify import limits
from muster.verify.broadcasts import broadcast, wait_until_indexed
from muster.verify.check import Check
from muster.verify.probe import Probe
from muster.verify.rows import Broken
from muster.verify.sources import DELIVER_LOG, DELIVERY


async def scopes(probe: Probe) -> str:
    """Broadcast to real people, after the operator confirmed their number."""
    done = []
    if "all" in probe.consent.scopes:
        receipt, _ = await broadcast(probe, "message to all", {"all": True}, probe.listeners.all, real=True)
        done.append(f"all: {receipt.delivered} of {receipt.audience} delivered")
    if "role" in probe.consent.scopes:
        role = min(probe.permissions)
        await probe.set_role(probe.users.sender, role)
        async with probe.socket(probe.tokens.issue(probe.users.sender.user_id)) as socket:
            await wait_until_indexed(probe, probe.users.sender, SETTLE_SECONDS)
            listeners = probe.listeners.all if role == probe.role else []
            receipt, _ = await broadcast(probe, f"message to {role}", {"roles": [role]}, listeners, real=True)
            await socket.message(receipt.id)
        done.append(f"role {role}: {receipt.delivered} of {receipt.audience} delivered")
    return "; ".join(done) + "."


async def nobody_else(probe: Probe) -> str:
    """Compare everything that the clients received with everything that was sent."""
    await probe.listeners.settle()
    if problems := probe.listeners.differences(own=probe.sent):
        raise Broken("; ".join(problems)[:1000], DELIVER_LOG)
    repeated = sum(listener.client.duplicates for listener in probe.listeners.all if listener.client)
    again = f" {repeated} arrived twice, which at-least-once delivery allows." if repeated else ""
    return f"No client got a message that was not for it.{again}"


async def idle(probe: Probe) -> str:
    """Send nothing on a connection until it is closed."""
    async with probe.socket(probe.tokens.issue(probe.users.away.user_id)) as socket:
        began = time.monotonic()
        try:
            await socket.close_code(limits.IDLE_SECONDS + 60)
        except TimeoutError:
            raise Broken(
                f"The connection was still open after {limits.IDLE_SECONDS + 60} idle seconds.",
                "Report it to Muster's maintainers: AWS documents ten minutes.",
            ) from None
        seconds = time.monotonic() - began
    if seconds < limits.IDLE_SECONDS - 60:
        raise Broken(f"It was closed after {seconds:.0f} idle seconds.", "Send pings more often.")
    return f"Closed after {seconds:.0f} idle seconds."


CHECKS = (
    Check("scopes", "Broadcasts to all and to a role arrive.", DELIVERY, scopes, needs=("clients",)),
    Check(
        "nobody-else",
        "No client gets a message that is not for it.",
        DELIVERY,
        nobody_else,
        needs=("clients",),
    ),
    Check(
        "idle",
        "A connection is closed after ten idle minutes.",
        "AWS: API Gateway WebSocket quotas",
        idle,
        needs=("header",),
    ),
)
