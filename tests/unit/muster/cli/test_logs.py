"""`muster logs`: how log events are chosen and shown."""

import json
from typing import Any

import pytest
import typer
from botocore.exceptions import ClientError

from muster.cli import logs
from muster.errors import MusterError


def event(message: str, **more: Any) -> dict[str, Any]:
    return {"name": "connect", "timestamp": 1_790_000_000_123, "message": message, **more}


def shown(message: str) -> str:
    line = logs.describe(event(message))
    assert line is not None
    return line.plain


def test_line_has_time_function_level_message_and_fields() -> None:
    entry = {
        "level": "WARNING",
        "message": "refused",
        "reason": "user inactive",
        "status": 403,
        "service": "muster",
    }
    assert shown(json.dumps(entry)) == (
        "2026-09-21T14:13:20.123Z connect    WARNING  refused reason=user inactive status=403"
    )


def test_traceback_is_on_its_own_lines() -> None:
    entry = {"level": "ERROR", "message": "failed", "exception": "Traceback:\n  RuntimeError", "id": "m-1"}
    assert shown(json.dumps(entry)).endswith("failed id=m-1\n    Traceback:\n      RuntimeError")


def test_plain_text_is_shown_unchanged() -> None:
    assert shown("[/x] :secret:\n").endswith(" [/x] :secret:")


def test_event_of_an_execution_shows_type_and_details() -> None:
    line = shown(json.dumps({"type": "TaskFailed", "details": {"error": "X"}, "execution_arn": "arn:x"}))
    assert line.endswith('ERROR    TaskFailed details={"error": "X"} execution_arn=arn:x')


@pytest.mark.parametrize(
    "text", ["START RequestId: 1", "END RequestId: 1", "REPORT RequestId: 1 Duration: 1 ms"]
)
def test_lines_that_lambda_writes_about_each_call_are_left_out(text: str) -> None:
    assert logs.describe(event(text)) is None


def test_timeout_in_a_report_is_shown() -> None:
    assert "Status: timeout" in shown("REPORT RequestId: 1 Duration: 1 ms Status: timeout")


def test_control_characters_are_escaped() -> None:
    assert "\x1b" not in shown(json.dumps({"level": "INFO", "message": "\x1b[2J", "id": "\x1b]0;x\x07"}))
    assert "\x1b" not in shown("\x1b[2J")


def test_unknown_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(MusterError, match="no log group of conect") as caught:
        logs.choose({"connect": "/a", "fanout": "/b"}, ["conect"])
    assert caught.value.fix == "Name one of these: connect, fanout."


def test_all_groups_without_names() -> None:
    assert logs.choose({"connect": "/a", "fanout": "/b"}, []) == {"connect": "/a", "fanout": "/b"}


def test_outputs_without_log_groups() -> None:
    with pytest.raises(MusterError, match="no log groups"):
        logs.choose({}, [])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400)])
def test_age(text: str, seconds: int) -> None:
    assert logs.age(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "1.5h", "10 m", "9999999d"])
def test_invalid_age(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="number and a unit"):
        logs.age(text)


class Service:
    """CloudWatch Logs with these answers, one for each poll."""

    def __init__(self, *answers: list[dict[str, Any]] | str) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    def client(self, service: str) -> Any:
        return self

    def get_paginator(self, operation: str) -> Any:
        return self

    def paginate(self, **options: Any) -> list[dict[str, Any]]:
        self.asked.append(options["startTime"])
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise ClientError({"Error": {"Code": answer, "Message": "no"}}, "FilterLogEvents")
        return [{"events": [found]} for found in answer]


def found(key: str, timestamp: int) -> dict[str, Any]:
    return {"eventId": key, "logStreamName": "s", "timestamp": timestamp, "message": key}


def test_follow_yields_each_event_once_and_late_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0)
    monkeypatch.setattr("time.time", lambda: 1_000.0)
    first, late, second = found("a", 999_900), found("b", 999_800), found("c", 1_000_100)
    service: Any = Service([first], [late, first, second])
    events = logs.read(service, {"connect": "/a"}, 990_000, follow=True)
    assert [next(events)["eventId"] for _ in range(3)] == ["a", "b", "c"]


def test_groups_are_merged_by_time() -> None:
    service: Any = Service([found("late", 5), found("later", 9)], [found("early", 1)])
    events = logs.read(service, {"connect": "/a", "fanout": "/b"}, 0, follow=False)
    assert [(event["name"], event["eventId"]) for event in events] == [
        ("fanout", "early"),
        ("connect", "late"),
        ("connect", "later"),
    ]


@pytest.mark.parametrize(
    ("code", "fix"),
    [("ResourceNotFoundException", "--outputs"), ("AccessDeniedException", "logs:FilterLogEvents")],
)
def test_group_that_cannot_be_read_is_named_with_a_fix(code: str, fix: str) -> None:
    service: Any = Service(code)
    with pytest.raises(MusterError, match="log group /a") as caught:
        list(logs.read(service, {"connect": "/a"}, 0, follow=False))
    assert fix in str(caught.value.fix)


def test_follow_survives_a_failed_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0)
    monkeypatch.setattr("time.time", lambda: 1_000.0)
    service: Any = Service([found("a", 999_900)], "ThrottlingException", [found("b", 999_950)])
    events = logs.read(service, {"connect": "/a"}, 990_000, follow=True)
    assert [next(events)["eventId"] for _ in range(2)] == ["a", "b"]


def test_follow_ends_when_polls_keep_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0)
    service: Any = Service([found("a", 999_900)], *["ThrottlingException"] * (logs.FAILED_POLLS + 1))
    events = logs.read(service, {"connect": "/a"}, 990_000, follow=True)
    next(events)
    with pytest.raises(MusterError, match="read too often"):
        next(events)


@pytest.mark.parametrize(
    ("message", "noise"),
    [
        ("Subsegment ## handler discarded due to Lambda worker still initializing", True),
        (json.dumps({"_aws": {"Timestamp": 1}, "Delivered": 1}), True),
        (json.dumps({"level": "WARNING", "message": "refused"}), False),
        ("plain text", False),
    ],
)
def test_metrics_and_notes_of_x_ray_are_noise(message: str, noise: bool) -> None:
    assert logs.is_noise(event(message)) is noise
