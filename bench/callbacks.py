"""A stub of the `@connections` endpoint for whole broadcasts. It counts posts and enforces a quota.

`python -m bench.callbacks RATE BURST` prints its port and serves on 127.0.0.1 until it is terminated. A POST
gets 200, or 429 when the token bucket is empty. RATE is in posts per second; 0 means no quota. A GET returns
the counts as JSON.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True)
class Counted:
    """Posts accepted (`taken`), answered 429 (`refused`), and seconds between the first and last accepted."""

    taken: int
    refused: int
    seconds: float


class Callbacks:
    """A stub in another process."""

    def __init__(self, port: int) -> None:
        """Address the stub on this port."""
        self.endpoint = f"http://127.0.0.1:{port}/live"

    def counted(self) -> Counted:
        """Return the counts since the last call."""
        with urllib.request.urlopen(self.endpoint, timeout=10) as answer:
            return Counted(**json.load(answer))


@contextlib.contextmanager
def running(rate: float = 0, burst: float = 0) -> Iterator[Callbacks]:
    """Run a stub during the `with` block."""
    command = [sys.executable, "-m", "bench.callbacks", str(rate), str(burst)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout
        yield Callbacks(int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait()
        assert process.stdout
        process.stdout.close()


class _Quota:
    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, time.monotonic()
        self.reset()

    def reset(self) -> None:
        self.taken = self.refused = 0
        self.first = self.last = 0.0

    def take(self) -> bool:
        now = time.monotonic()
        if self._rate:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens < 1:
                self.refused += 1
                return False
            self._tokens -= 1
        self.first = self.first or now
        self.last = now
        self.taken += 1
        return True


class _Connection(asyncio.Protocol):
    def __init__(self, quota: _Quota) -> None:
        self._quota = quota
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
            length = _LENGTH.search(self._received, 0, end)
            total = end + (int(length[1]) if length else 0)
            if len(self._received) < total:
                return
            is_post = self._received.startswith(b"POST")
            self._received = self._received[total:]
            self._transport.write((_TAKEN if self._quota.take() else _REFUSED) if is_post else self._report())

    def _report(self) -> bytes:
        quota = self._quota
        counted = {"taken": quota.taken, "refused": quota.refused, "seconds": quota.last - quota.first}
        quota.reset()
        body = json.dumps(counted).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def _serve(rate: float, burst: float) -> None:
    quota = _Quota(rate, burst)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(quota), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
