import time

from functions.shared.posting.recipients import Recipient


def test_the_handshake_ends_after_ten_seconds() -> None:
    now = time.time()
    assert Recipient("c", "u", now - 9.5).in_handshake()
    assert not Recipient("c", "u", now - 10).in_handshake()
