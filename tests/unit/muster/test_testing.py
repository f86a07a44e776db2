"""What tests wait for, without a stack."""

import pytest

from muster.testing import NotReceived, _Mailbox


class Scripted(_Mailbox[str]):
    """Letters arrive one batch a look."""

    def __init__(self, *batches: list[str]) -> None:
        super().__init__("finn")
        self._batches = list(batches)

    def _fetch(self, seconds: float) -> list[str]:
        return self._batches.pop(0) if self._batches else []


def test_messages_that_do_not_match_stay_for_later_calls_in_order() -> None:
    box = Scripted(["a", "b"], ["c"])
    assert box.receive(lambda letter: letter == "c") == "c"
    assert [box.receive(), box.receive()] == ["a", "b"]


def test_a_missing_message_fails_the_test_and_counts_those_that_do_not_match() -> None:
    with pytest.raises(AssertionError, match=r"^No message reached finn within 0.05 s\.$"):
        Scripted().receive(timeout=0.05)
    with pytest.raises(NotReceived, match=r"within 0.05 s\. Messages that do not match: 2\.$"):
        Scripted(["a"], ["b"]).receive(lambda letter: letter == "c", timeout=0.05)
