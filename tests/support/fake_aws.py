"""AWS services that answer from memory, behind real boto3 clients.

Only the HTTP call of the clients is replaced, so parameters are validated, pages are followed and errors are
raised as with AWS. A subclass answers an operation with the method of its name, which takes the parameters of
the call, and returns the response or raises `Refusal`.
"""

import copy
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import boto3

from tests.support.expressions import Expressions, Item

_SESSION: Any = boto3.Session(region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test")

Call = tuple[str, dict[str, Any]]


class Refusal(Exception):
    """Raised by an operation to respond with an error code."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code)
        self.answer = {"Error": {"Code": code, "Message": message or code}}


class Service:
    """An AWS service: its client, and all calls it got. Calls are answered one at a time."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.failing: set[str] = set()
        """Operations that respond with an InternalServerError."""
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext
        """A context that every operation enters, so that a test can control the order of threads."""
        self._lock = threading.Lock()
        self.client: Any = _SESSION.client(self.name)
        self.client.meta.events.register("before-parameter-build", self._note)
        self.client.meta.events.register("before-call", self._call)

    def called(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of every call of an operation, oldest first."""
        return [parameters for name, parameters in self.calls if name == operation]

    def _note(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["sent"] = copy.deepcopy(params)

    def _call(self, model: Any, context: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        parameters = context["sent"]
        with self.turn(), self._lock:
            self.calls.append((model.name, parameters))
            try:
                if model.name in self.failing:
                    raise Refusal("InternalServerError", "the disk of host 10.0.0.7 is full")
                return SimpleNamespace(status_code=200), getattr(self, model.name)(**parameters) or {}
            except Refusal as refusal:
                return SimpleNamespace(status_code=400), refusal.answer


class DynamoDB(Service):
    """Tables of items. Conditions, filters, projections and updates are evaluated as written.

    It rejects what DynamoDB rejects: reserved words in expressions, unused expression names and values, sets
    with duplicates, and range keys over 1,024 bytes.
    """

    name = "dynamodb"

    KEYS: ClassVar = {
        "connections": ["connectionId"],
        "users": ["userId"],
        "messages": ["audience", "messageId"],
    }
    INDEXES: ClassVar = {
        "AllIndex": "shard",
        "RoleIndex": "roleShard",
        "ShelterIndex": "shelterId",
        "UserIndex": "userId",
    }
    BATCH_KEYS = 100

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, dict[tuple[str, ...], Item]] = {}
        self.empty()
        self.page_size = 1_000_000
        """The most rows that a query examines in one call, instead of DynamoDB's limit of 1 MB."""
        self.batch_get_answers = self.BATCH_KEYS
        """The most keys that a BatchGetItem processes; it returns the others as unprocessed."""

    def empty(self) -> None:
        """Delete all rows and calls, which is faster than a new client for each example of a test."""
        self.tables = {name: {} for name in self.KEYS}
        self.calls.clear()

    def add(self, table: str, *items: Mapping[str, Any]) -> None:
        """Store items given as plain values."""
        for item in items:
            typed = {name: _typed(value) for name, value in item.items()}
            self.tables[table][self._key(table, typed)] = typed

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every item of a table as plain values."""
        return [{name: _plain(value) for name, value in item.items()} for item in self.tables[table].values()]

    def GetItem(self, TableName: str, Key: Item, ConsistentRead: bool = False) -> dict[str, Any]:
        item = self.tables[TableName].get(self._key(TableName, Key))
        return {"Item": copy.deepcopy(item)} if item else {}

    def PutItem(self, TableName: str, Item: Item, **given: Any) -> None:
        expressions = Expressions(given, Refusal)
        item = self.tables[TableName].get(self._key(TableName, Item), {})
        if "ConditionExpression" in given and not expressions.matches(given["ConditionExpression"], item):
            raise Refusal("ConditionalCheckFailedException")
        self.tables[TableName][self._key(TableName, Item)] = Item

    def DeleteItem(self, TableName: str, Key: Item, **given: Any) -> None:
        expressions = Expressions(given, Refusal)
        item = self.tables[TableName].get(self._key(TableName, Key), {})
        if "ConditionExpression" in given and not expressions.matches(given["ConditionExpression"], item):
            raise Refusal("ConditionalCheckFailedException")
        expressions.refuse_unused()
        self.tables[TableName].pop(self._key(TableName, Key), None)

    def UpdateItem(self, TableName: str, Key: Item, **given: Any) -> dict[str, Any]:
        expressions = Expressions(given, Refusal)
        item = copy.deepcopy(self.tables[TableName].get(self._key(TableName, Key), {}))
        if "ConditionExpression" in given and not expressions.matches(given["ConditionExpression"], item):
            raise Refusal("ConditionalCheckFailedException")
        item = expressions.updated(given["UpdateExpression"], {**Key, **item})
        expressions.refuse_unused()
        self.tables[TableName][self._key(TableName, Key)] = item
        return {"Attributes": copy.deepcopy(item)} if given.get("ReturnValues") == "ALL_NEW" else {}

    def Query(self, TableName: str, **given: Any) -> dict[str, Any]:
        expressions = Expressions(given, Refusal)
        for value in re.findall(r"messageId > (:\w+)", given["KeyConditionExpression"]):
            if len(given["ExpressionAttributeValues"][value]["S"].encode()) > 1024:
                raise Refusal("ValidationException", "range key over 1024 bytes")
        hash_key = self.INDEXES[given["IndexName"]] if "IndexName" in given else self.KEYS[TableName][0]
        key_condition = expressions.condition(given["KeyConditionExpression"])
        if hash_key not in key_condition.equal:
            raise Refusal("ValidationException", "the key condition misses the hash key")
        rows = sorted(
            (key, item)
            for key, item in self.tables[TableName].items()
            if hash_key in item and key_condition.matches(item)
        )
        if start := given.get("ExclusiveStartKey"):
            rows = [row for row in rows if row[0] > self._key(TableName, start)]
        limit = min(given.get("Limit", self.page_size), self.page_size)
        examined, rest = rows[:limit], rows[limit:]
        found = [item for _, item in examined]
        if "FilterExpression" in given:
            keep = expressions.condition(given["FilterExpression"])
            found = [item for item in found if keep.matches(item)]
        found = [expressions.projected(given.get("ProjectionExpression"), item) for item in found]
        expressions.refuse_unused()
        answer: dict[str, Any] = {"Items": found, "Count": len(found), "ScannedCount": len(examined)}
        # As in DynamoDB, a page that ends exactly at the last row still has a LastEvaluatedKey.
        if rest or (examined and len(examined) == limit):
            last = examined[-1][1]
            answer["LastEvaluatedKey"] = {name: last[name] for name in {*self.KEYS[TableName], hash_key}}
        return answer

    def BatchGetItem(self, RequestItems: dict[str, Any]) -> dict[str, Any]:
        ((table, request),) = RequestItems.items()
        expressions = Expressions(request, Refusal)
        keys = request["Keys"]
        if len(keys) > self.BATCH_KEYS or len({self._key(table, key) for key in keys}) < len(keys):
            raise Refusal("ValidationException", "too many keys, or one twice")
        items = [self.tables[table].get(self._key(table, key)) for key in keys[: self.batch_get_answers]]
        found = [expressions.projected(request["ProjectionExpression"], item) for item in items if item]
        rest = keys[self.batch_get_answers :]
        return {
            "Responses": {table: found},
            "UnprocessedKeys": {table: {**request, "Keys": rest}} if rest else {},
        }

    def _key(self, table: str, item: Item) -> tuple[str, ...]:
        return tuple(item[name]["S"] for name in self.KEYS[table])


class SecretsManager(Service):
    """One secret for all names, as text or bytes."""

    name = "secretsmanager"

    def __init__(self, secret: str | bytes) -> None:
        super().__init__()
        self.secret = secret

    def GetSecretValue(self, SecretId: str) -> dict[str, Any]:
        return {"SecretString" if isinstance(self.secret, str) else "SecretBinary": self.secret}


class StepFunctions(Service):
    """Executions by name, as a STANDARD state machine keeps them."""

    name = "stepfunctions"

    def __init__(self) -> None:
        super().__init__()
        self.executions: dict[str, str] = {}
        self.status = "RUNNING"

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The input of every execution that was started, oldest first."""
        return [json.loads(text) for text in self.executions.values()]

    def StartExecution(self, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
            raise Refusal("InvalidName")
        arn = stateMachineArn.replace(":stateMachine:", ":execution:") + f":{name}"
        if self.executions.setdefault(arn, input) != input:
            raise Refusal("ExecutionAlreadyExists")
        return {"executionArn": arn}

    def DescribeExecution(self, executionArn: str) -> dict[str, Any]:
        if executionArn not in self.executions:
            raise Refusal("ExecutionDoesNotExist")
        return {"input": self.executions[executionArn], "status": self.status}


class Sns(Service):
    """A topic that accepts batches, except the entries that a test refuses."""

    name = "sns"

    def __init__(self) -> None:
        super().__init__()
        self.published: list[dict[str, Any]] = []
        self.refuse: Callable[[int, dict[str, Any]], bool] = lambda call, entry: False
        """Whether the entry is refused in the call of this number (from 1)."""

    @property
    def users(self) -> list[str]:
        """The user of every message published, oldest first."""
        return [json.loads(entry["Message"])["userId"] for entry in self.published]

    def PublishBatch(self, TopicArn: str, PublishBatchRequestEntries: list[dict[str, Any]]) -> dict[str, Any]:
        entries = PublishBatchRequestEntries
        if len(entries) > 10 or len({entry["Id"] for entry in entries}) < len(entries):
            raise Refusal("TooManyEntriesInBatchRequest")
        if sum(_sns_size(entry) for entry in entries) > 256 * 1024:
            raise Refusal("BatchRequestTooLong")
        number = len(self.called("PublishBatch"))
        refused = [entry for entry in entries if self.refuse(number, entry)]
        taken = [entry for entry in entries if entry not in refused]
        self.published += taken
        return {
            "Successful": [{"Id": entry["Id"], "MessageId": "m"} for entry in taken],
            "Failed": [
                {"Id": entry["Id"], "Code": "InternalError", "SenderFault": False} for entry in refused
            ],
        }


class ConnectionsApi(Service):
    """The `@connections` callbacks as boto3 calls them."""

    name = "apigatewaymanagementapi"

    def __init__(self) -> None:
        super().__init__()
        self.gone = False

    def PostToConnection(self, ConnectionId: str, Data: bytes) -> None:
        if self.gone:
            raise Refusal("GoneException")

    def DeleteConnection(self, ConnectionId: str) -> None:
        if self.gone:
            raise Refusal("GoneException")


def _sns_size(entry: dict[str, Any]) -> int:
    attributes: Iterable[tuple[str, Any]] = entry.get("MessageAttributes", {}).items()
    parts = [entry["Message"], *(name + at["DataType"] + at["StringValue"] for name, at in attributes)]
    return sum(len(part.encode()) for part in parts)


def _typed(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case set():
            return {"SS": sorted(value)}
    return {"S": value}


def _plain(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    match kind:
        case "N":
            return int(content)
        case "SS":
            return set(content)
    return content
