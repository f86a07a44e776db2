"""The users and shelters of the local stack. `muster up` writes them; the demo and the tests use them."""

from dataclasses import dataclass

from muster.outputs import Outputs


@dataclass(frozen=True)
class User:
    """A row of the users table."""

    user_id: str
    role: str
    shelter_id: str | None = None
    active: bool = True

    @property
    def email(self) -> str:
        """An address in the reserved domain example.org, which gets no mail (RFC 2606)."""
        return f"{self.user_id}@example.org"

    def item(self) -> dict[str, str | bool]:
        """Return the row for DynamoDB's resource API. Without a shelter, `shelterId` is absent."""
        item: dict[str, str | bool] = {
            "userId": self.user_id,
            "email": self.email,
            "role": self.role,
            "active": self.active,
        }
        if self.shelter_id is not None:
            item["shelterId"] = self.shelter_id
        return item


@dataclass(frozen=True)
class Shelter:
    """A row of the shelters table."""

    shelter_id: str
    name: str
    capacity: int
    status: str = "open"

    def item(self) -> dict[str, str | int]:
        """Return the row for DynamoDB's resource API."""
        return {
            "shelterId": self.shelter_id,
            "name": self.name,
            "capacity": self.capacity,
            "status": self.status,
        }


SHELTERS = (
    Shelter("shelter-north", "North Hall", capacity=240),
    Shelter("shelter-south", "South School", capacity=120),
)

USERS = (
    User("admin-ada", "admin"),
    User("admin-ben", "admin"),
    User("coordinator-cleo", "coordinator", "shelter-north"),
    User("coordinator-dan", "coordinator", "shelter-south"),
    User("operator-eva", "shelter_operator", "shelter-north"),
    User("operator-gia", "shelter_operator", "shelter-south"),
    User("responder-finn", "first_responder", "shelter-north"),
    User("responder-hugo", "first_responder", "shelter-south"),
    User("responder-iris", "first_responder"),
    User("resident-jon", "resident", "shelter-north"),
    User("resident-kim", "resident", "shelter-north"),
    User("resident-lea", "resident", "shelter-south"),
    User("resident-max", "resident"),
    User("resident-nia", "resident", "shelter-south", active=False),
)
"""At least two active users of each default role, in both shelters and in none, and one inactive user."""


def seed(outputs: Outputs) -> None:
    """Write USERS and SHELTERS to the tables. Repeatable: replaces rows of the same key, keeps others."""
    dynamodb = outputs.resource("dynamodb")
    for table, rows in ((outputs.users_table, USERS), (outputs.shelters_table, SHELTERS)):
        with dynamodb.Table(table).batch_writer() as batch:
            for row in rows:
                batch.put_item(Item=row.item())
