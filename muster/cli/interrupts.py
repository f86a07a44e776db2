"""Ctrl-C, `kill` and a closed terminal. All three end a command as KeyboardInterrupt."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TypeVar

from muster.cli.console import stderr

T = TypeVar("T")

Handler = Callable[[int, FrameType | None], Any]


def catch_signals(handler: Handler, names: Iterable[str]) -> dict[int, Any]:
    """Install `handler` for signals that exist here; return the replaced handlers.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Windows has no SIGHUP.
    """
    replaced = {}
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            replaced[number] = signal.signal(number, handler)
    return replaced


def raise_keyboard_interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal as Python handles Ctrl-C, so that commands clean up."""
    raise KeyboardInterrupt


class Interrupts:
    """Lets the first interrupt end the work, and ignores further ones while the command cleans up."""

    def __init__(self, cleaning: str) -> None:
        """`cleaning` describes the clean-up: "the stack is being removed"."""
        self._cleaning = cleaning
        self._ending = False
        self._cancel: Callable[[], object] | None = None
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._replaced = catch_signals(self._interrupt, ("SIGINT", "SIGTERM", "SIGHUP"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the work. An interrupt cancels it, so that it can close what it opened.

        After the work only the clean-up is left, so interrupts are ignored from then on.
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
            with suppress(OSError):  # the terminal may be closed
                stderr.print(f"Stopping already: {self._cleaning}.")
            return
        self._ending = True
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()
