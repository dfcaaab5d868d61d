"""Where on a recording's time line sound belongs: timestamps, none of which is trusted alone.

In: the timestamp and length of each piece of sound, in seconds, in the order of the file. Out: the silence before it, or how
much of its head to drop. Small wandering is let be (a step of a sample is a click). Gaps and overlaps are obeyed when the
next timestamp confirms them. A jump that cannot be (more silence than the packets bear out, or far back) moves the clock
instead, and a clock that is often wrong is not asked any more; sound then simply goes on. So no timestamp can make hours
of silence, and none can make sound disappear.

Times are seconds after the recording's time zero. The limits were chosen on real files: an Ogg file of a phone whose
timestamps jump back and forth at every frame, MPEG files with single slips of a frame, Vorbis with slips of 10 ms.
"""

JITTER_SECONDS = 0.02  # timestamps may wander by less than this before they are obeyed: less than a lost AAC or MP3 frame
_EXACT_SECONDS = 1e-4  # at the start and after a fault they are obeyed to this
_OVERLAP_SECONDS = 1.0  # a clock that jumps back further was reset; it does not mean that the sound comes twice
_SILENCE_SECONDS = 60.0  # gaps may add up to this much more than the sound that packets hold
_PACKET_SECONDS = 1.0  # a lost packet of unknown length lasts until the next one, but no longer than this
_SLIPS = 10  # wrong timestamps, beside a tenth of all, after which the clock is not asked any more


class TimeLine:
    """Places sounds one after another.

    Parameters
    ----------
    time_zero : float
        The timestamp at which the recording begins.
    jitter : float
        How far timestamps may wander before they are obeyed.
    """

    def __init__(self, time_zero, jitter=JITTER_SECONDS):
        self.start = 0.0  # of what was placed last
        self.end = 0.0  # of all that was placed
        self.lost_until = 0.0  # where packets that did not decode end
        self._held = self._silence = self._dropped = 0.0  # seconds in all packets so far, of gaps, of overlaps
        self._stamps = self._slips = 0  # timestamps so far, and those that were wrong
        self._shift = self._former_shift = -time_zero  # from clock to time line, now and before the last jump
        self._jitter = jitter
        self._exact = True

    def place(self, timestamp, seconds, following):
        """Place a sound; return the seconds of silence before it, negative for how much of its head to drop.

        ``timestamp`` and ``following``, the timestamp of what comes next, may be None.
        """
        if timestamp is not None and not self._exact and abs(timestamp + self._shift - self.end) < self._jitter:  # nearly always
            self._held += seconds
            self._stamps += 1
            self.start = self.end
            self.end += seconds
            return 0.0
        offset = self._offset(timestamp, seconds, following)
        self._held += seconds
        self._silence += max(0.0, offset)
        self._dropped += min(max(0.0, -offset), seconds)
        self._exact = offset + seconds <= 0  # what is dropped whole does not decide where the next one goes
        self.start = self.end + max(0.0, offset)
        self.end += max(0.0, offset + seconds)
        return offset

    def lose(self, timestamp, seconds, following):
        """Place what could not be decoded: it stays silent, and the next timestamp is obeyed exactly."""
        if not seconds and timestamp is not None and following is not None:  # a damaged packet may not say
            seconds = min(max(0.0, following - timestamp), _PACKET_SECONDS)
        offset = self._offset(timestamp, seconds, following)
        self.lost_until = max(self.lost_until, self.end + offset + seconds)
        self._held += seconds
        self._exact = True

    def slip(self):
        """Take note that the clock counts something as sound that is none."""
        self._slips += 1

    def _offset(self, timestamp, seconds, following):
        """Return where a sound lies after the end so far, in seconds."""
        onward = max(0.0, self.lost_until - self.end)
        if timestamp is None or self._slips > _SLIPS + 0.1 * self._stamps:
            return onward
        self._stamps += 1
        offset = timestamp + self._shift - self.end
        slack = _EXACT_SECONDS if self._exact else self._jitter
        if abs(offset) < slack:
            return 0.0
        if abs(timestamp + self._former_shift - self.end) < slack:  # the clock is back from an excursion
            self._shift, self._former_shift = self._former_shift, self._shift
            return 0.0
        if following is not None and not self._confirms(offset, following - timestamp - seconds):
            self._slips += 1
            return onward
        if self._is_believable(offset):
            return offset
        self._slips += 1
        self._shift, self._former_shift = self.end + onward - timestamp, self._shift
        return onward

    def _confirms(self, offset, gap):
        """Return whether a jump by ``offset`` goes on after it, with ``gap`` seconds until the next sound: a slip is taken back."""
        return gap > -JITTER_SECONDS and (offset > 0 or gap < JITTER_SECONDS)

    def _is_believable(self, offset):
        """Return whether what the packets hold bears out a jump by ``offset`` seconds."""
        if offset < 0:
            return offset >= -_OVERLAP_SECONDS and self._dropped - offset <= _OVERLAP_SECONDS + 0.1 * self._held
        return self._silence + offset <= self._held + _SILENCE_SECONDS


def time_zero(start_time, is_arbitrary):
    """Return the timestamp of the moment at which a recording begins.

    Parameters
    ----------
    start_time : float
        The container's earliest timestamp, in seconds.
    is_arbitrary : bool
        Whether its clock starts anywhere, as in MPEG streams. Others start at 0, where a later first timestamp is silence,
        unless it is too late for that: then the file was cut out of a longer one.
    """
    return start_time if is_arbitrary or start_time > _SILENCE_SECONDS else 0.0
