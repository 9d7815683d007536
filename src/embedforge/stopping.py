"""Ctrl-C and SIGTERM: one way to stop, whoever asks for it, the user or a cluster whose time is up.

SIGTERM raises `Terminated`, a KeyboardInterrupt, so that whatever cleans up after Ctrl-C does so after it
too. The exit code tells them apart, as shells have it: 128 and the signal's number.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def exit_code(stop: BaseException) -> int:
    """Return the exit code of a process that a signal stopped: 143 after SIGTERM, 130 after Ctrl-C.

    >>> exit_code(KeyboardInterrupt()), exit_code(Terminated())
    (130, 143)
    """
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def interrupt(number: int) -> KeyboardInterrupt:
    """Return what a signal raises."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def handle(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Let `handler` answer Ctrl-C and SIGTERM; return who did before, for `restore`.

    Only the main thread can: in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {int(number): signal.signal(number, handler) for number in SIGNALS}


def restore(before: Mapping[int, Any]) -> None:
    """Give the signals back to whom `handle` took them from."""
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM while the block runs; Ctrl-C stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        restore({signal.SIGTERM: before})
