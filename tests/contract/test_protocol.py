"""docs/protocol.md shows every action as in the schemas, and its transcripts are compared strictly."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.schemas import SCHEMAS, conforming
from tests.support.transcripts import PAGE, Step, differences, transcripts

TRANSCRIPTS = {transcript.title: transcript for transcript in transcripts(PAGE.read_text())}
ACTIONS = sorted(
    path.name.removeprefix("client-").removesuffix(".schema.json").replace("-", "_")
    for path in SCHEMAS.glob("client-*.schema.json")
)
RECEIVED = [
    pytest.param(step.frame, id=f"{title}-{number}")
    for title, transcript in TRANSCRIPTS.items()
    for number, step in enumerate(transcript.steps)
    if step.mark == "<"
]


def _frames(title: str, mark: str) -> list[Any]:
    return [step.frame for step in TRANSCRIPTS[title].steps if step.mark == mark]


def test_every_action_has_a_transcript() -> None:
    assert sorted(TRANSCRIPTS) == ACTIONS


@pytest.mark.parametrize("action", ACTIONS)
def test_transcript_shows_the_action_accepted_and_rejected(action: str) -> None:
    asked = {frame["id"] for frame in _frames(action, ">") if frame["action"] == action}
    replies = [frame for frame in _frames(action, "<") if frame.get("replyTo") in asked]

    assert {frame["type"] == "error" for frame in replies} == {True, False}


@pytest.mark.parametrize("action", ACTIONS)
def test_every_reply_is_to_the_last_sent_frame(action: str) -> None:
    sent = None
    for step in TRANSCRIPTS[action].steps:
        if step.mark == ">":
            sent = step.frame["id"]
        elif step.mark == "<":
            assert step.frame.get("replyTo", sent) == sent


@pytest.mark.parametrize("title", TRANSCRIPTS)
def test_frames_follow_their_schemas_unless_rejected_as_malformed(title: str) -> None:
    malformed = {frame["replyTo"] for frame in _frames(title, "<") if frame.get("code") == "invalid_message"}
    for frame in _frames(title, ">"):
        if frame["id"] not in malformed:
            conforming(f"client-{frame['action'].replace('_', '-')}", frame)
    for frame in _frames(title, "<"):
        conforming("envelope" if "payload" in frame else f"server-{frame['type']}", frame)


def _changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every copy of a JSON value with one field or item removed, added or changed."""
    if isinstance(value, dict):
        yield "extra field", {**value, "extra": 1}
        for name, item in value.items():
            yield f"without {name}", {key: kept for key, kept in value.items() if key != name}
            for what, other in _changed(item):
                yield f"{name}: {what}", {**value, name: other}
    elif isinstance(value, list):
        yield "extra item", [*value, None]
        for number, item in enumerate(value):
            for what, other in _changed(item):
                yield f"{number}: {what}", [*value[:number], other, *value[number + 1 :]]
    else:
        yield "another value", "another" if isinstance(value, str) else "7"
        yield "null" if value is not None else "false", None if value is not None else False


class TestComparison:
    @pytest.mark.parametrize("frame", RECEIVED)
    def test_equal_frames_do_not_differ(self, frame: Any) -> None:
        assert list(differences(frame, copy.deepcopy(frame), {})) == []

    @pytest.mark.parametrize("frame", RECEIVED)
    def test_finds_each_missing_extra_or_changed_value(self, frame: Any) -> None:
        same = [what for what, changed in _changed(frame) if not list(differences(frame, changed, {}))]

        assert same == []

    def test_numbers_and_booleans_are_literal_and_of_their_type(self) -> None:
        for page, wire in ((600, 601), (1, True), (0, False), (1, 1.0)):
            assert list(differences({"a": page}, {"a": wire}, {})) != []

    def test_times_and_execution_names_match_any_other(self) -> None:
        page = {"at": "2026-11-25T08:00:00.000Z", "execution": "0" * 64}
        wire = {"at": "2027-01-02T03:04:05.678Z", "execution": "f" * 64}

        assert list(differences(page, wire, {})) == []

    def test_message_id_always_matches_the_same_id(self) -> None:
        first, second, real, other = (f"019ad2f4-6c1d-7a3b-9f10-00000000000{n}" for n in range(4))
        ids: dict[str, str] = {}

        assert list(differences({"id": first}, {"id": real}, ids)) == []
        assert list(differences({"id": first}, {"id": real}, ids)) == []
        assert list(differences({"id": first}, {"id": other}, ids)) != []
        assert list(differences({"id": second}, {"id": real}, ids)) != []
        assert ids == {first: real}


def test_frame_may_be_wrapped_and_a_line_without_a_mark_is_an_error() -> None:
    (transcript,) = transcripts('### ping\n```text\n# ben:\n< {"a":\n   1}\n```\n')
    assert transcript.title == "ping"
    assert transcript.steps == (Step("#", "ben:"), Step("<", '{"a":   1}'))
    assert transcript.steps[1].frame == {"a": 1}

    with pytest.raises(AssertionError, match="not a line of a transcript"):
        transcripts('```\n{"a": 1}\n```\n')
