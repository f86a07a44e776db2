import pytest

from tests.support.functions import shorten_timeouts


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout of a post is 0.1 s, and the other timeouts are shorter in proportion."""
    shorten_timeouts(monkeypatch, 0.1)
