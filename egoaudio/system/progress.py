"""Show the progress of work: a bar on a terminal, a plain line every ten seconds elsewhere.

Work is counted in clips; ``progress.advance(clips, seconds)`` adds some and the seconds of sound they hold, from which
clips per second, times real time and the time left are computed. Everything goes to standard error, so that a
command's output can be piped.
"""

import io
import sys
import time
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from egoaudio.system import terminal

_LINE_SECONDS = 10.0
_Self = TypeVar("_Self", bound="Progress")


class Progress:
    """Count clips, or whatever ``unit`` says, up to ``total``; use as a context manager. If ``quiet``, show nothing."""

    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(
        self, total: int, what: str, stream: TextIO | None = None, unit: str = "", quiet: bool = False
    ) -> None:
        self.total, self.what, self.unit, self.quiet = total, what, unit, quiet
        self.stream = terminal.Careful(stream or sys.stderr or io.StringIO())  # None where standard error is closed
        self.done: float = 0
        self.sound_seconds, self.failures = 0.0, 0
        self._said: float = 0
        self.started = self._last_line = time.monotonic()
        self._bar: Any = None
        if _is_terminal(self.stream) and not quiet:
            # tqdm's own rate is a moving average; the postfix has that of the whole run, as the summary does.
            self._bar = tqdm(total=total, desc=what, file=self.stream, bar_format=self.form, dynamic_ncols=True)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._said:
            self._line()

    def advance(self, clips: float, sound_seconds: float = 0.0, failures: int = 0) -> None:
        """Add what has been done; draw if it is time."""
        self.done += clips
        self.sound_seconds += sound_seconds
        self.failures += failures
        if self._bar is not None:
            self._bar.set_postfix_str(self._speed(), refresh=False)
            self._bar.update(clips)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._line()

    def write(self, line: str) -> None:
        """Show a line above the bar, or between the lines."""
        if self._bar is not None:
            self._bar.write(terminal.shown(line), file=self.stream)
        elif not self.quiet:
            terminal.write(self.stream, line + "\n")

    def _line(self) -> None:
        self._last_line, self._said = time.monotonic(), self.done
        elapsed = self._last_line - self.started
        left = (self.total - self.done) * elapsed / self.done if self.done else float("nan")
        share = self.done / self.total if self.total else 1.0
        eta = f", {left:.0f} s left" if left > 0 else ""
        self.write(f"{self.what} {share:4.0%}  {self._counts()}{self._speed()}{eta}")

    def _counts(self) -> str:
        return f"{self.done:,}/{self.total:,}  "

    def _speed(self) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        return f"{rate(self.done, elapsed)} {self.unit}".rstrip() + f"/s{self._asides(elapsed)}"

    def _asides(self, elapsed: float) -> str:
        real_time = f", {self.sound_seconds / elapsed:,.0f}x real time" if self.sound_seconds else ""
        failures = f", {self.failures} failed" if self.failures else ""
        return real_time + failures


def _is_terminal(stream: "TextIO | terminal.Careful") -> bool:
    try:
        return bool(stream.isatty())
    except ValueError:  # it is closed
        return False


def rate(count: float, seconds: float) -> str:
    """Return how many per second, as text: whole numbers, or two digits below ten."""
    value = count / seconds
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
