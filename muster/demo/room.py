"""The demo's connected clients, and what it does with them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from muster.broadcaster import Broadcaster, Execution, MessageType
from muster.demo.report import Delivery, Missed
from muster.demo.script import Step, is_addressed
from muster.listeners import ARRIVAL_SECONDS, Listeners, Timing, wait_for_receipt
from muster.outputs import Outputs


class Room:
    """The connected clients, and what the demo does with them.

    `problems` names what is wrong with a receipt or with the SQS queue.
    """

    def __init__(self, outputs: Outputs, listeners: Listeners) -> None:
        self._outputs = outputs
        self._listeners = listeners
        self._broadcaster = Broadcaster.from_outputs(outputs)
        self.problems: list[str] = []

    async def perform(self, step: Step) -> Delivery:
        """Send a broadcast; wait for its receipt, and for its arrival at every addressed client."""
        addressed = [listener for listener in self._listeners.all if is_addressed(listener.user, step.target)]
        payload = {"text": f"{step.type} to {step.scope}"}
        started = time.perf_counter()
        if step.sender is None:
            execution = await self._start(step.type, step.target, payload, step.shelter_id)
        else:
            message = {"action": step.type, "target": step.target, "payload": payload}
            about = {"shelterId": step.shelter_id} if step.shelter_id else {}
            ack = await self._listeners.of(step.sender).send(message | about)
            execution = self._broadcaster.execution(ack["execution"])
        receipt = await wait_for_receipt(self._broadcaster, execution)
        name = f"{step.type} to {step.scope} by {step.via}"
        self._listeners.expect(receipt.id, name, addressed)
        expected = (len(addressed), len(addressed), 0, 0, 0)
        if (receipt.audience, receipt.delivered, receipt.gone, receipt.failed, receipt.offline) != expected:
            self.problems.append(
                f"{name}: the receipt counts {receipt.to_dict()}, not {len(addressed)} delivered"
            )
        await self._listeners.arrivals(receipt.id, addressed)
        latencies = [
            listener.received[receipt.id] - started
            for listener in addressed
            if receipt.id in listener.received
        ]
        return Delivery(
            via=step.via,
            type=step.type,
            scope=step.scope,
            audience=len(addressed),
            delivered=len(latencies),
            timing=Timing.of(latencies) if latencies else None,
            receipt=receipt.to_dict(),
        )

    async def miss_and_resume(self) -> Missed:
        """Close a client, send to its user, read the notification from SQS, reconnect and resume."""
        listener = self._listeners.all[-1]
        user_id = listener.user.user_id
        await listener.close()
        await self._wait_until_unknown(user_id)
        name = "alert to a user who is offline"
        execution = await self._start("alert", {"users": [user_id]}, {"text": name}, None)
        receipt = await wait_for_receipt(self._broadcaster, execution)
        self._listeners.expect(receipt.id, name, [listener])
        if (receipt.delivered, receipt.offline) != (0, 1):
            self.problems.append(f"{name}: the receipt counts {receipt.to_dict()}, not one notified user")
        notification = await self._notification(receipt.id)
        if notification is None:
            self.problems.append(f"{name}: no notification about it reached the SQS queue")
        started = time.perf_counter()
        await self._listeners.open(listener)
        await self._listeners.arrivals(receipt.id, [listener])
        return Missed(
            user_id=user_id,
            message_id=receipt.id,
            notification=notification,
            resumed=receipt.id in listener.received,
            resumed_after_ms=round(1000 * (time.perf_counter() - started), 1),
        )

    async def _start(
        self, kind: MessageType, target: Mapping[str, Any], payload: Mapping[str, Any], shelter_id: str | None
    ) -> Execution:
        sender = {"service": "muster-demo"}
        return await asyncio.to_thread(
            self._broadcaster.start, kind, target, payload, shelter_id=shelter_id, sender=sender
        )

    async def _wait_until_unknown(self, user_id: str) -> None:
        """Wait until the table has no connection of a user: a closing connection may still accept a post."""
        table = self._outputs.resource("dynamodb").Table(self._outputs.connections_table)
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline:
            known = await asyncio.to_thread(
                table.query,
                IndexName="UserIndex",
                KeyConditionExpression="userId = :user",
                ExpressionAttributeValues={":user": user_id},
            )
            if not known["Items"]:
                return
            await asyncio.sleep(0.05)

    async def _notification(self, identifier: str) -> dict[str, Any] | None:
        """Read the notification about a broadcast from the SQS queue, and delete what was read."""
        sqs = self._outputs.client("sqs")
        url = self._outputs.offline_queue_url
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline:
            answer = await asyncio.to_thread(
                sqs.receive_message, QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for entry in answer.get("Messages", ()):
                sqs.delete_message(QueueUrl=url, ReceiptHandle=entry["ReceiptHandle"])
                notification: dict[str, Any] = json.loads(json.loads(entry["Body"])["Message"])
                if notification["message"]["id"] == identifier:
                    return notification
        return None
