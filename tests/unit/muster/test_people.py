"""What a target names that is unknown, read from tables that tests hold in memory."""

from types import SimpleNamespace
from typing import Any

import pytest

from muster import people
from muster.outputs import Outputs
from tests.unit.muster.test_outputs import FLAT


class Tables:
    """A DynamoDB of one row a page."""

    def __init__(self, users: list[dict[str, Any]], shelters: list[str]) -> None:
        self.rows = {
            FLAT["users_table"]: users,
            FLAT["shelters_table"]: [{"shelterId": name} for name in shelters],
        }
        self.scanned = 0
        self.throttled: set[str] = set()

    def outputs(self) -> Any:
        return SimpleNamespace(**vars(Outputs.parse(FLAT, source="test")), resource=lambda _service: self)

    def Table(self, name: str) -> Any:
        def scan(ExclusiveStartKey: int = 0, **_options: Any) -> dict[str, Any]:
            self.scanned += 1
            rows = self.rows[name]
            more = {"LastEvaluatedKey": ExclusiveStartKey + 1} if ExclusiveStartKey + 1 < len(rows) else {}
            return {"Items": rows[ExclusiveStartKey : ExclusiveStartKey + 1], **more}

        return SimpleNamespace(scan=scan)

    def batch_get_item(self, RequestItems: dict[str, Any]) -> dict[str, Any]:
        ((table, request),) = RequestItems.items()
        assert len(request["Keys"]) <= 100
        unread = [key for key in request["Keys"] if self.throttled & set(key.values())]
        found = [
            row for row in self.rows[table] if any(key.items() <= row.items() for key in request["Keys"])
        ]
        return {"Responses": {table: found}, "UnprocessedKeys": {table: {"Keys": unread}} if unread else {}}


def user(number: int, role: str = "resident", *, active: bool = True, **more: str) -> dict[str, Any]:
    return {"userId": f"user-{number}", "role": role, "active": active, **more}


def test_a_role_without_active_users_is_named() -> None:
    tables = Tables([user(1, "admin", active=False), user(2)], [])
    target = {"roles": ["admin", "resident"]}
    assert people.unknown_in(tables.outputs(), target) == ["The role 'admin' has no active user."]


def test_a_shelter_is_known_from_its_table_or_from_a_user() -> None:
    tables = Tables([user(1), user(2, shelterId="south")], ["north"])
    target = {"shelters": ["north", "south", "nrth"]}
    assert people.unknown_in(tables.outputs(), target, "suoth") == [
        f"The shelter {name!r} is neither in the table muster-shelters nor that of a user."
        for name in ("nrth", "suoth")
    ]


def test_users_are_looked_up_a_hundred_at_a_time_and_no_page_is_scanned_for_them() -> None:
    tables = Tables([user(number) for number in range(250)], [])
    target = {"users": [*(f"user-{number}" for number in range(250)), "user-x"]}
    expected = ["The user 'user-x' is not in the table muster-users."]
    assert people.unknown_in(tables.outputs(), target) == expected
    assert tables.scanned == 0


def test_unprocessed_keys_are_not_reported_as_unknown() -> None:
    tables = Tables([], [])
    tables.throttled = {"ann"}
    assert people.unknown_in(tables.outputs(), {"users": ["ann"]}) == []


def test_reading_ends_with_the_last_role_found_and_reports_only_what_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = Tables([user(number) for number in range(5)], [])
    people.unknown_in(tables.outputs(), {"roles": ["resident"]})
    assert tables.scanned == 1
    monkeypatch.setattr(people, "SCANNED_PAGES", 3)
    assert people.unknown_in(tables.outputs(), {"roles": ["admin"], "shelters": ["x"]}) == []
    assert tables.scanned == 4


def test_the_target_all_reads_no_table() -> None:
    tables = Tables([user(1)], [])
    assert people.unknown_in(tables.outputs(), {"all": True}) == []
    assert tables.scanned == 0
