"""The core of the Python client plays the scripts that every client must pass."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from muster.client import REPLY_TIMEOUT_SECONDS, Inbox, Refused, Session

FOLDER = Path(__file__).parents[3] / "clients" / "conformance"
SCHEMA = FOLDER / "script.schema.json"
SCRIPTS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json") if path != SCHEMA}


class Player:
    """Plays a script against the core, and reports what the core does after each step."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.start(None)

    def start(self, position: str | None) -> None:
        self.inbox = Inbox(position)
        self.open: dict[str, Session] = {}
        self.served: Session | None = None
        self.reported: set[tuple[str, str]] = set()

    def play(self, step: dict[str, Any]) -> dict[str, Any]:
        name, frame = step.get("on", ""), step.get("frame", {})
        session = self.open.get(name)
        outcome: dict[str, Any] = {}
        match step["does"]:
            case "open":
                self.open[name] = self.inbox.open(self.now)
            case "lose":
                del self.open[name]
                self.reported = {(what, lost) for what, lost in self.reported if lost != name}
            case "post":
                self.inbox.post(frame)
            case "reply":
                assert session
                try:
                    session.answered(frame, self.now)
                except Refused as refusal:
                    outcome["ends"] = refusal.code
            case "no-reply":
                assert session
                self.now += REPLY_TIMEOUT_SECONDS
                session.unanswered(self.now)
            case "renew":
                assert session
                session.renewed(self.now)
            case "wait":
                self.now += step["seconds"]
            case "restart":
                self.start(self.inbox.position)
        self.inbox.advance(self.now)
        return {key: value for key, value in (outcome | self.outcome()).items() if value}

    def outcome(self) -> dict[str, Any]:
        closes = []
        if self.inbox.serving is not self.served:
            closes = [name for name, session in self.open.items() if session is self.served]
            self.served = self.inbox.serving
        replaces = [name for name, session in self.open.items() if session.must_be_replaced(self.now)]
        loses = [name for name, session in self.open.items() if session.lost]
        requests = {
            name: session.request(self.now) for name, session in self.open.items() if name not in replaces
        }
        yielded = list(iter(self.inbox.take, None))
        return {
            "sends": [{"on": name, **request} for name, request in requests.items() if request],
            "yields": [message["id"] for message in yielded],
            "late": [message["id"] for message in yielded if message.get("late")],
            "closes": closes,
            "replaces": self.new("replaces", replaces),
            "loses": self.new("loses", loses),
            "position": self.inbox.position,
        }

    def new(self, what: str, names: list[str]) -> list[str]:
        found = [name for name in names if (what, name) not in self.reported]
        self.reported |= {(what, name) for name in found}
        return found


INPUTS = {"does", "on", "frame", "seconds"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_core_passes(name: str) -> None:
    player = Player()
    position: dict[str, str] = {}
    for number, step in enumerate(SCRIPTS[name]["steps"]):
        expected = position | {key: value for key, value in step.items() if key not in INPUTS}
        position = {key: value for key, value in expected.items() if key == "position"}
        assert player.play(step) == expected, f"step {number}: {step}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_follows_the_schema(name: str) -> None:
    jsonschema.validate(SCRIPTS[name], json.loads(SCHEMA.read_text()))


def test_the_readme_lists_every_script() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert [name for name in SCRIPTS if f"`{name}`" not in readme] == []
