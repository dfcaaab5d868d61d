"""Ctrl-C and SIGTERM: no signal is lost.

A command runs inside ``listening``; the signal then raises ``Interrupted`` wherever the program is. Python drops what
is raised while it runs a finaliser or a weak reference's callback (seen in one of two stops of a build), so long loops
call ``check``, which raises it again. Where a signal has to wait until something is saved, the block runs inside
``DeferredSignals``. Outside ``listening``, in a program that calls the library, handlers stay as they are: Ctrl-C then
raises ``KeyboardInterrupt`` at once.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asks the program to stop; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
        return 128 + self.number


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_received: list[int] = []  # the signal that came, if any
_listeners: list[bool] = []  # one entry while a command is listening
_holders: list[bool] = []  # one for each block of ``held``


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise ``Interrupted`` while the block runs."""
    _received.clear()
    unraisable, sys.unraisablehook = sys.unraisablehook, _stay_quiet
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    _listeners.append(True)
    try:
        yield
    finally:
        _listeners.pop()
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def check() -> None:
    """Raise ``Interrupted`` if a signal has come and what it raised was lost."""
    if _received:
        raise Interrupted(_received[0])


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have a signal wait for the end of the block, which must not be left in the middle; an exception goes first."""
    _holders.append(True)
    try:
        yield
    finally:
        _holders.pop()
    if not _holders:
        check()


def _stay_quiet(unraisable: Any) -> None:
    """Print what Python drops, except ``Interrupted``, which ``check`` raises again."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _handle(number: int, _frame: Any) -> None:
    _received.append(number)
    if not _holders:
        raise Interrupted(number)


_STOPPING = b"\nstopping as soon as this batch is done and saved; a second Ctrl-C stops at once\n"


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the one that started it, ``parent``, ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class DeferredSignals:
    """Ctrl-C and SIGTERM wait while the block runs, if a command is ``listening``; a second one does not.

    With ``quiet`` nobody is told that the signal waits.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.received: int | None = None
        self._quiet = quiet
        self._former: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "DeferredSignals":
        if _listeners and threading.current_thread() is threading.main_thread():  # no other can handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        if os.getpid() != self._process:
            # A loader process that was forked in the block. Ctrl-C reaches it, too, but its batch is still awaited.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
        elif not self._quiet:
            with contextlib.suppress(OSError):  # a terminal that is gone
                os.write(2, _STOPPING)  # not sys.stderr: it may be in the middle of a line of its own
        self.received = number

    def deliver(self) -> None:
        """Let the signal do what it would have done at once, if there was one."""
        if self.received is not None:
            signal.raise_signal(self.received)
