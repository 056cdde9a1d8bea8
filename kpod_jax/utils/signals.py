"""SIGINT (Ctrl-C) and SIGTERM: they end a run so that the same command resumes it."""

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ADVICE = "Run the same command to resume."
# A launcher may deliver one Ctrl-C twice. Seconds after which another one is the user's.
_AGAIN = 1.0

Handler = Callable[[int, types.FrameType | None], object]


class Preempted(BaseException):
    """A request to end the run, which can be resumed. Not caught by `except Exception`."""

    signal = signal.SIGTERM

    @property
    def exit_code(self) -> int:
        """The exit code for "ended by this signal" in shells and schedulers."""
        return 128 + self.signal

    def __str__(self) -> str:
        """One line for the user; the argument, if any, says what was saved."""
        name = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[self.signal]
        return ": ".join([name, *map(str, self.args)]) + f". {_ADVICE}"


class Interrupted(Preempted, KeyboardInterrupt):
    """The same request by Ctrl-C."""

    signal = signal.SIGINT


def exit_on_interrupt() -> None:
    """Makes Ctrl-C end the process at once, with one line: while modules are imported.

    Modules in C++ do not survive an exception in the middle of their import. There is nothing to
    save at that time.
    """
    _handle(_exit, signal.SIGINT)


def raise_on(*numbers: signal.Signals) -> None:
    """Makes the first of these signals raise `Interrupted` or `Preempted` in the main thread."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        _handle_once_more()
        raise (Interrupted if number == signal.SIGINT else Preempted)

    _handle(handle, *numbers)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Lets a loop finish its step: inside the block, SIGINT and SIGTERM are only recorded.

    The block may raise `Preempted` to end the run; it becomes `Interrupted` after Ctrl-C. A signal
    that came after the last call of the yielded function raises at the end of the block.

    Yields:
      A function that returns whether there was a signal. It returns False in other threads, which
      get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    known = False

    def handle(number: int, frame: types.FrameType | None) -> None:
        received.append(number)
        _handle_once_more()

    def was_signalled() -> bool:
        nonlocal known
        known = bool(received)
        return known

    previous, ending = _handle(handle, *_SIGNALS), True
    try:
        yield was_signalled
        ending = bool(received) and not known
        if ending:
            raise Preempted
    except Preempted as error:
        if received[:1] == [signal.SIGINT]:
            raise Interrupted(*error.args) from None
        raise
    finally:
        for number, handler in previous.items():
            if not (received and ending and _is_ours(handler)):
                signal.signal(number, handler)


def _handle_once_more() -> None:
    """Ignores further signals, while the run ends, except a Ctrl-C of an impatient user."""
    first = time.monotonic()

    def handle(number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and time.monotonic() - first > _AGAIN:
            _exit(number, frame)

    _handle(handle, *(number for number in _SIGNALS if _is_ours(signal.getsignal(number))))


def _is_ours(handler: object) -> bool:
    return getattr(handler, "__module__", None) == __name__


def _handle(handler: Handler, *numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Sets a handler and returns the previous ones; signals that are ignored stay so (nohup)."""
    previous = {number: signal.getsignal(number) for number in numbers}
    handled = {n: old for n, old in previous.items() if old not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, handler)
    return handled


def _exit(number: int, frame: types.FrameType | None) -> None:
    """Ends the process without the clean-up that may have been interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"{Interrupted()}\n".encode())
    os._exit(128 + number)
