"""Rows that come from the workers -> the scores of each recording; the network runs in a thread of the parent.

``Batches`` fills the network's batches with clips of whichever recordings there are, so that many short ones take no
longer than one long one. ``Scoring`` feeds it with what a ``Receiver`` has: recordings come and go, each with its
``Windows``, and leave as a ``Scores``. What does not fill a batch is scored when nothing else has come for a while, and
at the end.
"""

import threading
import time
from collections.abc import Callable

import numpy as np

from egoaudio.models.steady_scorer import SteadyScorer
from egoaudio.prediction.channel import Begun, Block, Ended, Receiver
from egoaudio.prediction.windows import WindowPlan, Windows

_LINGER_SECONDS = 2.0  # clips that fill no batch wait so long for others
_LOOK_SECONDS = 0.02  # between two looks at whether to stop, and whether the clips that wait are the last ones


class Scores:
    """The scores of one recording, as far as they are there."""

    def __init__(self, number: int, num_clips: int, num_classes: int) -> None:
        self.number = number
        """The recording's."""
        self.values = np.full((num_clips, num_classes), np.nan, np.float32)
        """float32 (n, C); NaN for a clip that is not scored."""
        self.num_waiting = 0
        """Clips that are in a batch which has not run yet."""


class Batches:
    """Fills batches with clips of any recordings, and runs the network on each that is full.

    Parameters
    ----------
    scorer : SteadyScorer
    scored : callable
        Is given a ``Scores`` and how many of its clips were scored just now.
    """

    def __init__(self, scorer: SteadyScorer, scored: Callable[[Scores, int], None]) -> None:
        self._scorer, self._scored = scorer, scored
        self._features = np.empty((scorer.batch_size, *scorer.feature_shape), np.float32)
        self._owners: list[tuple[Scores, np.ndarray]] = []
        self._filled = 0

    @property
    def is_empty(self) -> bool:
        """Whether no clip waits."""
        return not self._filled

    def add(self, scores: Scores, clips: np.ndarray, windows: np.ndarray) -> None:
        """Take the windows (m, T, F) of some clips (m,) of a recording."""
        scores.num_waiting += len(clips)
        while len(clips):
            count = min(len(clips), len(self._features) - self._filled)
            self._features[self._filled : self._filled + count] = windows[:count]
            self._owners.append((scores, clips[:count]))
            self._filled += count
            clips, windows = clips[count:], windows[count:]
            if self._filled == len(self._features):
                self.run()

    def run(self) -> None:
        """Score the clips that wait."""
        if self.is_empty:
            return
        values = self._scorer(self._features[: self._filled])
        owners, self._owners, self._filled = self._owners, [], 0
        done = 0
        for scores, clips in owners:
            scores.values[clips] = values[done : done + len(clips)]
            scores.num_waiting -= len(clips)
            done += len(clips)
            self._scored(scores, len(clips))


class _Recording:
    """A recording whose rows are coming."""

    def __init__(self, begun: Begun, plan: WindowPlan, num_classes: int) -> None:
        self.windows = Windows(plan, begun.num_clips)
        self.scores = Scores(begun.recording, begun.num_clips, num_classes)
        self.has_ended = False


class Scoring:
    """Scores whatever a receiver has, in a thread; a context manager.

    Parameters
    ----------
    receiver : Receiver
        Is closed with this.
    scorer : SteadyScorer
    plan : WindowPlan
    num_classes : int
    advance : callable
        Is told, in the thread, of which recording how many clips were scored, and of how many: ``advance(number, some,
        all)``.
    """

    def __init__(
        self,
        receiver: Receiver,
        scorer: SteadyScorer,
        plan: WindowPlan,
        num_classes: int,
        advance: Callable[[int, int, int], None] = lambda number, some, all: None,
    ) -> None:
        self._receiver, self._plan, self._num_classes, self._advance = receiver, plan, num_classes, advance
        self._batches = Batches(scorer, self._count)
        self._recordings: dict[bytes, _Recording] = {}  # by attempt
        self._finished: dict[bytes, Scores] = {}
        self._changed = threading.Condition()
        self._stopping = self._hurrying = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="egoaudio-scoring", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self._receiver.close()
        self._thread.join()

    def check(self) -> None:
        """Raise what the thread has failed with, if it has."""
        if self._failure is not None:
            raise self._failure

    def take(self, attempt: bytes, wait: bool = False) -> np.ndarray | None:
        """Return the scores (n, C) of a recording and forget it; None where they are not there yet.

        Parameters
        ----------
        attempt : bytes
            Of the worker that has sent all of its rows.
        wait : bool
            Wait for them, and score what fills no batch at once.
        """
        with self._changed:
            self._hurrying = wait
            while wait and attempt not in self._finished and self._failure is None:
                self._changed.wait(_LOOK_SECONDS)
            self.check()
            scores = self._finished.pop(attempt, None)
            return None if scores is None else scores.values

    def _run(self) -> None:
        try:
            waiting_since = time.monotonic()
            while not self._stopping:
                message = self._receiver.get(_LOOK_SECONDS)
                if message is not None:
                    empty = self._batches.is_empty
                    self._handle(message)
                    if empty:
                        waiting_since = time.monotonic()
                elif self._hurrying or time.monotonic() - waiting_since > _LINGER_SECONDS:
                    self._batches.run()
                    self._release()
        except BaseException as error:
            self._receiver.close()  # the workers stop waiting for room, and the parent for them
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _handle(self, message: Begun | Block | Ended) -> None:
        if isinstance(message, Begun):
            self._begin(message)
            return
        recording = self._recordings.get(message.attempt)
        if recording is None:
            return
        if isinstance(message, Block):
            self._batches.add(recording.scores, *recording.windows.add(message.usable, message.rows))
        elif message.whole:
            recording.has_ended = True
        else:
            del self._recordings[message.attempt]
        self._release()

    def _begin(self, begun: Begun) -> None:
        """Take up a recording; what an earlier try of it has left is of no use."""
        with self._changed:
            for attempt in [key for key, scores in self._finished.items() if scores.number == begun.recording]:
                del self._finished[attempt]
        for attempt in [key for key, other in self._recordings.items() if other.scores.number == begun.recording]:
            del self._recordings[attempt]
        self._recordings[begun.attempt] = _Recording(begun, self._plan, self._num_classes)

    def _release(self) -> None:
        """Hand out the recordings of which nothing is missing any more."""
        done = [
            attempt
            for attempt, recording in self._recordings.items()
            if recording.has_ended and not recording.scores.num_waiting
        ]
        if done:
            with self._changed:
                for attempt in done:
                    self._finished[attempt] = self._recordings.pop(attempt).scores
                self._changed.notify_all()

    def _count(self, scores: Scores, count: int) -> None:
        self._advance(scores.number, count, len(scores.values))
