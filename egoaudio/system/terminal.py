"""Text for people: nothing in it can drive a terminal, and a reader that stops reading stops nothing else.

``say`` prints a line, ``write`` takes a stream; both pass every text through ``shown``, as file names, ids and classes
come from anywhere. A command runs inside ``streams``: closed descriptors are opened (otherwise the first file that is
opened becomes standard error, and what a library prints ends up in it), and where the reader is gone (``| head``) the
output is discarded. Inside ``spelling`` texts also pass through a function of the command: flags replace parameters.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from egoaudio.errors import ResourceError

_spellings: list[Callable[[str], str]] = []  # one entry for each block inside ``spelling``


@contextlib.contextmanager
def spelling(spell: Callable[[str], str]) -> Iterator[None]:
    """Pass every text that is shown in this process through ``spell`` while the block runs."""
    _spellings.append(spell)
    try:
        yield
    finally:
        _spellings.pop()


def shown(text: str) -> str:
    """Return a text as a terminal gets it: spelled as the command has it, and printable."""
    for spell in _spellings:
        text = spell(text)
    return printable(text)


def printable(text: str) -> str:
    """Return a text with ``?`` for each character that would drive a terminal, be invisible, or have no encoding."""
    return (
        text
        if text.isprintable()
        else "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
    )


def one_line(text: str) -> str:
    """Return a printable text in one line: a name with a line feed would look like two."""
    return printable(text).replace("\n", "?").replace("\t", "?")


def harmless(text: str) -> str:
    """Return a text in one line that no spreadsheet runs: one that would be a formula begins with an apostrophe."""
    text = one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Make standard input, output and error usable while the block runs, and flush them at its end.

    Raises
    ------
    ResourceError
        Standard output could not be written: its disk is full, say. A reader that is gone is no error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(nowhere, True)  # workers need it as much
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_nowhere() if stream is None else stream for stream in before)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in (sys.stderr, sys.stdout):
            write(stream, "")


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # stays open as long as the process


def say(text: object = "", err: bool = False) -> None:
    """Print a line, or several, to standard output or error."""
    write(sys.stderr if err else sys.stdout, f"{text}\n")


def write(stream: "TextIO | Careful", text: str) -> None:
    """Write to a stream and flush it, as long as somebody reads it.

    Raises
    ------
    ResourceError
        Standard output could not be written for another reason than that its reader is gone.
    """
    try:
        stream.write(shown(text))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        _discard(stream)
        if stream is sys.stdout and isinstance(error, OSError) and error.errno != errno.EPIPE:
            raise ResourceError(f"standard output cannot be written: {error.strerror}") from error


def describe_bytes(num_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> describe_bytes(999), describe_bytes(25_120_000_000)
    ('999 bytes', '25.1 GB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} TB"


def describe_duration(seconds: float) -> str:
    """Return a duration in words.

    >>> describe_duration(9.87), describe_duration(754), describe_duration(7500)
    ('9.9 s', '12 min 34 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


class Careful:
    """A stream for a library: a reader that is gone is no error in ``write`` and ``flush``; the rest is unchanged."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int | None:
        """Write; discard the output where the reader is gone."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            _discard(self._stream)
            return None

    def flush(self) -> None:
        """Flush likewise."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: "TextIO | Careful") -> None:
    """Send what is still buffered in a stream, by whomever, nowhere: Python would complain at its exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
