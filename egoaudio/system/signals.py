"""Ctrl-C and SIGTERM, heard for certain.

A command runs inside ``listening``; the signal then raises ``Interrupted`` wherever the program is. Python drops what is raised
while it runs a finaliser or a weak reference's callback (seen in one of two stops of a build), so long loops call
``check``, which raises it again.
"""

import contextlib
import signal
import sys


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asks the program to stop; ``number`` is the signal's."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    @property
    def exit_code(self):
        """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
        return 128 + self.number


_heard = []  # the signal that came, if one has


@contextlib.contextmanager
def listening():
    """Have SIGINT and SIGTERM raise ``Interrupted`` while the block runs."""
    _heard.clear()
    unraisable, sys.unraisablehook = sys.unraisablehook, _stay_quiet
    before = {number: signal.signal(number, _hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard.clear()


def check():
    """Raise ``Interrupted`` if a signal has come and what it raised was lost."""
    if _heard:
        raise Interrupted(_heard[0])


def _stay_quiet(unraisable):
    """Print what Python drops, but not our own exception, which ``check`` raises again."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _hear(number, _frame):
    _heard.append(number)
    raise Interrupted(number)
