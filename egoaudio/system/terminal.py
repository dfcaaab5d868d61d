"""Text for people: nothing in it can drive a terminal, and whoever stops reading it stops nothing else.

``say`` prints a line, ``write`` is for those who hold a stream; both pass every text through ``printable``, for names of files, ids and
classes come from anywhere. A command runs inside ``streams``: closed descriptors are opened (else the first file that is opened becomes
standard error, and what a library says there lands in it), and a reader that is gone (``| head``) costs what it does not read.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from egoaudio.errors import ResourceError


def printable(text: str) -> str:
    """Return a text without what would drive a terminal, be invisible, or have no encoding: each such character becomes ``?``."""
    return (
        text
        if text.isprintable()
        else "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
    )


def one_line(text: str) -> str:
    """Return a text likewise, in one line: a name with a line feed would pass for two."""
    return printable(text).replace("\n", "?").replace("\t", "?")


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Make standard input, output and error usable while the block runs, and what was said there arrive.

    Raises
    ------
    ResourceError
        Standard output could not be written: its disk is full, say. A reader that is gone is no error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free; workers need it as much
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (open(os.devnull, "w") if stream is None else stream for stream in before)  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in (sys.stderr, sys.stdout):
            write(stream, "")


def say(text: object = "", err: bool = False) -> None:
    """Print a line, or several, to standard output or error."""
    write(sys.stderr if err else sys.stdout, f"{text}\n")


def write(stream: "TextIO | Careful", text: str) -> None:
    """Write to a stream and see that it arrives, as long as somebody reads it.

    Raises
    ------
    ResourceError
        Standard output could not be written for another reason than that its reader is gone.
    """
    try:
        stream.write(printable(text))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        _discard(stream)
        if stream is sys.stdout and isinstance(error, OSError) and error.errno != errno.EPIPE:
            raise ResourceError(f"standard output cannot be written: {error.strerror}") from error


class Careful:
    """A stream for a library: written to as ``write`` does, otherwise as it is."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        """Write; a reader that is gone is no error."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return _discard(self._stream)

    def flush(self):
        """Flush likewise."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _discard(self._stream)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _discard(stream):
    """Have what is still to be written to a stream, by whomever, go nowhere: Python would complain at its exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
