"""What bears long silence out: the length that the container states, or the packets of its other tracks.

Timestamps alone cannot show that a recording goes on while its track says nothing: a damaged or hostile one claims hours. A
``Witness`` is asked when a track's packets leave out more than usual. In every case the file must be large enough: no
recording takes less than ``_BYTES_PER_SECOND``, whatever it says.
"""

import av

from egoaudio.errors import MediaError
from egoaudio.inputs.containers import open_media, packets_of_others
from egoaudio.inputs.timestamps import JITTER_SECONDS, TimeLine
from egoaudio.inputs.tracks import begin_seconds, delay_seconds

_BYTES_PER_SECOND = (
    50  # sparse recordings hold more: Opus at one packet every 400 ms of silence, a still picture in H.264
)
_RESET_SECONDS = 10.0  # in streams whose clock may start anew: where ffmpeg, too, takes a jump for that
_SLACK_SECONDS = 1.0  # lengths are rounded, and may leave the encoder's delay out


class Witness:
    """What one file says about its own length, besides the timestamps of its audio track.

    Parameters
    ----------
    path : str or os.PathLike
    container : av.container.InputContainer
        The open file.
    stream : av.AudioStream
        The track that is asked about.
    time_zero : float
        The timestamp at which the recording begins, in seconds.
    """

    def __init__(self, path, container, stream, time_zero):
        self._path, self._index, self._time_zero = path, stream.index, time_zero
        self._longest_seconds = container.size / _BYTES_PER_SECOND
        claimed = (container.duration or 0) / av.time_base
        self.claimed_seconds = claimed if claimed <= self._longest_seconds else 0.0  # a lie is worth nothing
        self._is_stream = bool(container.format.flags & av.format.Flags.ts_discont.value)
        self._has_others = any(other.type in ("audio", "video") and other is not stream for other in container.streams)
        self._seconds_of_others = None
        self.reset_seconds = _RESET_SECONDS if self._is_stream else float("inf")

    def bears_out(self, start, stop):
        """Return whether the recording lasts from ``start`` to ``stop``, seconds on its time line, silent as its track is."""
        if stop > self._longest_seconds:
            return False
        # The length of a stream is the difference of two timestamps, with all jumps between them; none comes before the first.
        is_doubtful = self._is_stream and start > 0 and stop - start > _RESET_SECONDS
        if stop <= self.claimed_seconds + _SLACK_SECONDS and not is_doubtful:
            return True
        return self._has_others and self._is_filled(start, stop)

    def _is_filled(self, start, stop):
        """Return whether other tracks have packets within that time."""
        if self._seconds_of_others is None:
            try:
                with open_media(self._path) as container:
                    found = packets_of_others(container, self._index)
                    self._seconds_of_others = sorted({int(timestamp - self._time_zero) for timestamp in found})
            except MediaError:
                self._seconds_of_others = []
        inside = [second for second in self._seconds_of_others if start + 1 < second < stop - 1]
        return len(inside) > 2 and inside[-1] > stop - max(3.0, 0.2 * (stop - start))


def time_line(container, stream, path, part=None, compensate_delay=False, jitter=JITTER_SECONDS):
    """Return the ``TimeLine`` of a track: time zero is its container's start, and its witness the rest of the file."""
    zero = begin_seconds(container, path, part)
    witness = Witness(path, container, stream, zero) if part is None else None
    return TimeLine(zero + (delay_seconds(path, stream, part) if compensate_delay else 0.0), jitter, witness)
