"""What a prediction says while it runs: how far it is, in the bytes of the recordings, and how fast it hears."""

import threading
import time
from collections.abc import Mapping
from typing import TextIO

from egoaudio.system.progress import Progress


class PredictionProgress(Progress):
    """The bar, or the lines, of a prediction; may be told from several threads.

    Parameters
    ----------
    sizes : mapping of int to int
        How much of the work each recording is, by number: the bytes of its file.
    hop_seconds : float
        Sound that a clip adds to those before it.
    """

    form = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"

    def __init__(self, sizes: Mapping[int, int], hop_seconds: float, stream: TextIO | None = None) -> None:
        super().__init__(max(1, sum(sizes.values())), "predict", stream)
        self._sizes, self._hop_seconds = sizes, hop_seconds
        self._lock = threading.Lock()
        self._begun: dict[int, float] = {}  # {number: how much of it is done}
        self.num_finished = 0

    def scored(self, number: int, some: int, all_clips: int) -> None:
        """Count clips of a recording that were scored just now."""
        with self._lock:
            before = self._begun.get(number, 0.0)
            most = max(0, self._sizes[number] - 1)  # the rest is for ``finish``, so that the last line counts all
            after = min(before + self._sizes[number] * some / all_clips, most)
            self._begun[number] = after
            self.advance(after - before, some * self._hop_seconds)

    def finish(self, number: int, failed: bool = False) -> None:
        """Count a recording that is done."""
        with self._lock:
            self.num_finished += 1
            self.advance(self._sizes[number] - self._begun.pop(number, 0.0), failures=failed)

    def _counts(self) -> str:
        return ""

    def _speed(self) -> str:
        asides = self._asides(max(time.monotonic() - self.started, 1e-9))
        return f"{self.num_finished:,} of {len(self._sizes):,} recordings{asides}"
