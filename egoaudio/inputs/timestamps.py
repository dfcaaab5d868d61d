"""Place sound on a recording's time line, by timestamps of which none is trusted alone.

In: the timestamp and duration of each piece of sound, in seconds, in the order of the file, and the pieces that follow.
Out: the silence before it, or how much of its start to drop. Clocks wander, those of streams by the time a packet took
to arrive, and a step of one sample is a click: nothing moves until the following timestamps have left the place that
the sound so far gives them, by more than they wander. Then it moves to their median. A silence longer than the packets
account for needs a witness: the container's length, or another track (``silence``). A jump without a witness moves the
clock instead, which is counted, and a clock that is often wrong is ignored: sound then follows on without a gap. So no
timestamp can make hours of silence, and none can make sound disappear.

Times are seconds after the recording's time zero. The limits were chosen on real files: an Ogg file of a phone whose
timestamps jump back and forth at every frame, MPEG files with single slips of a frame, Vorbis with slips of 10 ms.
"""

import operator
import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

JITTER_SECONDS = 0.02  # timestamps that wander by less are not obeyed: less than a lost AAC or MP3 frame
_EXACT_SECONDS = 1e-4  # at the start and after a fault they are obeyed to this precision
_OVERLAP_SECONDS = 1.0  # a clock that jumps back further was reset; the sound does not occur twice
_SILENCE_SECONDS = 60.0  # without a witness, gaps may add up to this much more than the sound that packets hold
_PACKET_SECONDS = 1.0  # a lost packet of unknown length lasts until the next one, but no longer than this
_SLIPS = 10  # wrong timestamps, in addition to a tenth of all, after which the clock is ignored
_AHEAD = 16  # sounds to look ahead; a delay of a network is over by then
_AHEAD_SECONDS = 2.0  # at most this much sound is kept for that, if it is more than
_AT_LEAST = 3  # sounds
_FURTHER_SECONDS = 4.0  # to look ahead if a timestamp is off: those of several packets together wander as one
_MOST_FETCHED = 500  # sounds
_SAMPLED = 64  # of the timestamps within that
_WIDTH = 2.5  # how much wider a clock wanders than its third largest disorder
_STEPS = 8  # how much wider than its third largest step down: arrival times go down by a packet at a time
_FORGET = 0.99  # factor of the expected wander each time that timestamps do not show it
_WANDER_SECONDS = 0.5  # a clock that is off by more does not wander: it jumps


class Evidence(Protocol):
    """What shows, besides the timestamps, that a recording continues through a silence; see ``silence.Witness``."""

    reset_seconds: float
    """A longer jump is a new clock unless it is confirmed."""

    def bears_out(self, start: float, stop: float) -> bool:
        """Return whether the recording lasts from ``start`` to ``stop``, in seconds on its time line."""


class Ahead(deque[Any]):
    """The next sounds, tuples ``(..., timestamp, seconds)``; ``drifts`` fetches more of them.

    Parameters
    ----------
    sounds : iterable of tuple
        What comes after them.
    """

    def __init__(self, sounds: Iterable[Any] = ()) -> None:
        super().__init__()
        self._sounds = iter(sounds)

    @property
    def timestamp(self) -> float | None:
        """Of the first one; None if there is none."""
        return self[0][-2] if self else None

    def drifts(self, end: float) -> list[float]:
        """Return how much later each of them comes than if all followed on from ``end``, within the next seconds."""
        stop = end + _FURTHER_SECONDS
        drifts: list[float] = []
        for *_, timestamp, seconds in self:
            if timestamp is not None:
                drifts.append(timestamp - end)
            end += seconds
        while end < stop and len(self) < _MOST_FETCHED:
            sound = next(self._sounds, None)
            if sound is None:
                break
            self.append(sound)
            if sound[-2] is not None:
                drifts.append(sound[-2] - end)
            end += sound[-1]
        return drifts


def look_ahead(sounds: Iterable[Any]) -> Iterator[tuple[Any, Ahead]]:
    """Yield ``(sound, upcoming)`` for tuples ``(..., timestamp, seconds)``; ``upcoming`` is an ``Ahead``."""
    sounds = iter(sounds)
    upcoming = Ahead(sounds)
    for sound in sounds:
        upcoming.append(sound)
        count = len(upcoming)
        if count > _AHEAD:
            yield upcoming.popleft(), upcoming
            while len(upcoming) > _AHEAD:  # ``drifts`` fetched more
                yield upcoming.popleft(), upcoming
        elif count > _AT_LEAST and count * sound[-1] > _AHEAD_SECONDS:
            yield upcoming.popleft(), upcoming
    while upcoming:
        yield upcoming.popleft(), upcoming


class TimeLine:
    """Place sounds one after another.

    Parameters
    ----------
    time_zero : float
        The timestamp at which the recording begins.
    jitter : float
        How far timestamps may wander before they are obeyed.
    witness : Evidence, optional
        Asked about silence that is longer than usual.
    """

    def __init__(self, time_zero: float, jitter: float = JITTER_SECONDS, witness: Evidence | None = None) -> None:
        self.start = 0.0  # of what was placed last
        self.end = 0.0  # of all that was placed
        self.lost_until = 0.0  # where packets that did not decode end
        self.overruled = 0  # jumps of the clock that were not obeyed
        self.wander = 0.0  # by how much the timestamps have gone up and down
        self.is_cut_off = False  # whether the file holds more, which cannot be read
        self.closed_seconds = 0.0  # silence that those jumps would have been
        self._held = self._silence = self._dropped = 0.0  # seconds in all packets so far, of gaps, of overlaps
        self._stamps = self._slips = 0  # timestamps so far, and those that were wrong
        self._shift = self._former_shift = -time_zero  # from clock to time line, now and before the last jump
        self._jitter = jitter
        self._counts_nothing = False
        self._exact = True
        self._witness = witness
        self.time_zero = time_zero

    def place(self, timestamp: float | None, seconds: float, upcoming: Ahead) -> float:
        """Place a sound; return the seconds of silence before it, negative for how much of its start to drop.

        ``timestamp`` may be None. ``upcoming`` are the next sounds, as ``look_ahead`` gives them.
        """
        # Nearly always:
        if timestamp is not None and not self._exact and abs(timestamp + self._shift - self.end) < self._jitter:
            self._held += seconds
            self._stamps += 1
            self.start = self.end
            self.end += seconds
            return 0.0
        offset = self._offset(timestamp, seconds, upcoming)
        self._held += seconds
        self._silence += max(0.0, offset)
        self._dropped += min(max(0.0, -offset), seconds)
        self._exact = (
            offset + seconds <= 0
        )  # a sound that is dropped entirely does not determine the place of the next one
        self.start = self.end + max(0.0, offset)
        self.end += max(0.0, offset + seconds)
        return offset

    def lose(self, timestamp: float | None, seconds: float, upcoming: Ahead) -> None:
        """Place what could not be decoded: it stays silent, and the next timestamp is obeyed exactly."""
        following = upcoming.timestamp
        if not seconds and timestamp is not None and following is not None:  # a damaged packet may not state it
            seconds = min(max(0.0, following - timestamp), _PACKET_SECONDS)
        offset = self._offset(timestamp, seconds, upcoming)
        self.lost_until = max(self.lost_until, self.end + offset + seconds)
        self._held += seconds
        self._exact = True

    def cut_off(self) -> None:
        """Note that there is more in the file, which cannot be read."""
        self.is_cut_off = True

    def slip(self) -> None:
        """Note that the clock counts an empty packet as sound."""
        self._slips += 1
        self._counts_nothing = True

    def _offset(self, timestamp: float | None, seconds: float, upcoming: Ahead) -> float:
        """Return where a sound lies after the end so far, in seconds."""
        onward = max(0.0, self.lost_until - self.end)
        if timestamp is None:
            return onward
        if self._slips > _SLIPS + 0.1 * self._stamps:
            self._disregard(timestamp, seconds, upcoming, onward)
            return onward
        self._stamps += 1
        offset = timestamp + self._shift - self.end
        slack = _EXACT_SECONDS if self._exact else self._jitter
        if not self._held:
            drifts = self._drifts(timestamp + seconds, upcoming)
            middle = statistics.median([0.0, *drifts])
            wanders = self.wander > JITTER_SECONDS and abs(middle) > JITTER_SECONDS / 2
            if wanders and offset >= 0:  # start in the middle of where it will wander
                return self._obey(max(0.0, offset + middle), timestamp, onward, len(drifts))
        if abs(offset) < slack:
            return 0.0
        if abs(timestamp + self._former_shift - self.end) < slack:  # the clock is back from an excursion
            self._shift, self._former_shift = self._former_shift, self._shift
            return 0.0
        if abs(offset) < JITTER_SECONDS and self.wander < JITTER_SECONDS:
            return offset
        drifts = self._drifts(timestamp + seconds, upcoming)
        if abs(offset - onward) < self.wander:
            return onward
        tolerance = max(JITTER_SECONDS, self.wander)
        contrary = sum(drift < -tolerance if offset > 0 else abs(drift) > tolerance for drift in drifts)
        if contrary > len(drifts) // 8:
            self._slips += 1
            return onward
        if self.wander > JITTER_SECONDS:
            offset += statistics.median([0.0, *drifts])
        return self._obey(offset, timestamp, onward, len(drifts))

    def _obey(self, offset: float, timestamp: float, onward: float, num_following: int) -> float:
        """Return ``offset`` if it is credible; else move the clock, so that the sound follows on, and count that."""
        if self._is_credible(offset, num_following):
            return offset
        self._slips += 1
        self._overrule(offset, timestamp, onward)
        return onward

    def _overrule(self, offset: float, timestamp: float, onward: float) -> None:
        """Move the clock, so that the sound follows on, and count that."""
        self.overruled += 1
        self.closed_seconds += max(0.0, offset - onward)
        self._shift, self._former_shift = self.end + onward - timestamp, self._shift

    def _disregard(self, timestamp: float, seconds: float, upcoming: Ahead, onward: float) -> None:
        """Count a jump of a clock that is ignored, if the following timestamps jump with it."""
        offset = timestamp + self._shift - self.end
        if abs(offset - onward) > _OVERLAP_SECONDS and not self._counts_nothing:
            drifts = upcoming.drifts(timestamp + seconds)[:_AHEAD]
            if drifts and sum(abs(drift) > _WANDER_SECONDS for drift in drifts) <= len(drifts) // 8:
                self._overrule(offset, timestamp, onward)

    def _drifts(self, end: float, upcoming: Ahead) -> list[float]:
        """Return how much later each next sound comes than if all followed on from ``end``; update the wander."""
        drifts = upcoming.drifts(end)
        wander = _wander_of(drifts[:: 1 + len(drifts) // _SAMPLED])
        self.wander = max(wander, self.wander if len(drifts) < _AHEAD // 2 else _FORGET * self.wander)
        return drifts[:_AHEAD]

    def _is_credible(self, offset: float, num_following: int) -> bool:
        """Return whether a jump by ``offset`` seconds is confirmed by what the packets hold, or by a witness."""
        if offset < 0:
            return offset >= -_OVERLAP_SECONDS and self._dropped - offset <= _OVERLAP_SECONDS + 0.1 * self._held
        is_usual = self._silence + offset <= self._held + _SILENCE_SECONDS
        if is_usual and (self._witness is None or offset <= self._witness.reset_seconds or not self._held):
            return True
        if self._witness is None or (offset > _PACKET_SECONDS and num_following < 2):  # one timestamp may be anything
            return False
        return self._witness.bears_out(self.end, self.end + offset)


def _wander_of(drifts: list[float]) -> float:
    """Return by how much timestamps go up and down.

    Gaps only make them later, so they stay in order; a clock that is set back makes one step down, a slip two. In a
    wandering clock even the third largest disorder is not 0, nor the third largest step down.
    """
    if len(drifts) < 4:
        return 0.0
    out_of_order = sorted(map(abs, map(operator.sub, drifts, sorted(drifts))))[-3]
    step_down = sorted(map(operator.sub, drifts[:-1], drifts[1:]))[-3]
    return max(0.0, min(_WIDTH * out_of_order, _STEPS * step_down, _WANDER_SECONDS))
