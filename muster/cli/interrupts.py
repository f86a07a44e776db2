"""Ctrl-C during work that has to clean up after itself."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from muster.cli.console import stderr

T = TypeVar("T")


class Interrupts:
    """Lets the first Ctrl-C, `kill` or closed terminal end the work, and no later one its cleaning up."""

    def __init__(self, cleaning: str) -> None:
        """`cleaning` says what is done after the first: "the stack is being removed"."""
        self._cleaning = cleaning
        self._ending = False
        self._cancel: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the work proper; an interrupt cancels it, so that it can close what it opened.

        After it only the cleaning up is left, so from then on interrupts are not heeded.
        """

        async def cancellable() -> T:
            task = asyncio.ensure_future(coroutine)
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
            try:
                return await task
            finally:
                self._ending = True

        try:
            return asyncio.run(cancellable())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._ending:
            with suppress(OSError):  # the terminal may be what has gone
                stderr.print(f"Stopping already: {self._cleaning}.")
            return
        self._ending = True
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()
