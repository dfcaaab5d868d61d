"""What confirms a long silence: the length that the container states, or the packets of its other tracks.

Timestamps alone cannot show that a recording continues while its audio track has no packets: a damaged or hostile file
claims hours. A ``Witness`` is asked when a track's packets leave out more than usual. In every case the file must be
large enough: no recording takes less than ``_BYTES_PER_SECOND``.
"""

import av
import av.container

from egoaudio.errors import MediaError
from egoaudio.inputs.containers import Part, has_jumps, open_media, packets_of_others
from egoaudio.inputs.timestamps import JITTER_SECONDS, TimeLine
from egoaudio.inputs.tracks import begin_seconds, delay_seconds
from egoaudio.system.files import StrPath

# Sparse recordings hold more: Opus with one packet every 400 ms of silence, a still picture in H.264.
_BYTES_PER_SECOND = 50
_RESET_SECONDS = 10.0  # in streams whose clock may restart: from here on ffmpeg, too, assumes that it did
_SLACK_SECONDS = 1.0  # lengths are rounded, and may exclude the encoder's delay


class Witness:
    """What a file says about its own length, besides the timestamps of its audio track.

    Parameters
    ----------
    path : str or os.PathLike
    container : av.container.InputContainer
        The open file.
    stream : av.AudioStream
        The track that is silent.
    time_zero : float
        The timestamp at which the recording begins, in seconds.
    """

    def __init__(
        self, path: StrPath, container: av.container.InputContainer, stream: av.AudioStream, time_zero: float
    ) -> None:
        self._path, self._index, self._time_zero = path, stream.index, time_zero
        self._longest_seconds = container.size / _BYTES_PER_SECOND
        claimed = (container.duration or 0) / av.time_base
        self.claimed_seconds = claimed if claimed <= self._longest_seconds else 0.0  # a false one counts for nothing
        self._is_stream = has_jumps(container.format)
        self._has_others = any(other.type in ("audio", "video") and other is not stream for other in container.streams)
        self._seconds_of_others: list[int] | None = None
        self.reset_seconds = _RESET_SECONDS if self._is_stream else float("inf")

    def bears_out(self, start: float, stop: float) -> bool:
        """Return whether the recording lasts from ``start`` to ``stop``, in seconds on its time line, though silent."""
        if stop > self._longest_seconds:
            return False
        # The length of a stream is the difference of two timestamps, including all jumps between them.
        is_doubtful = self._is_stream and start > 0 and stop - start > _RESET_SECONDS
        if stop <= self.claimed_seconds + _SLACK_SECONDS and not is_doubtful:
            return True
        return self._has_others and self._is_filled(start, stop)

    def _is_filled(self, start: float, stop: float) -> bool:
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


def time_line(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    path: StrPath,
    part: Part | None = None,
    compensate_delay: bool = False,
    jitter: float = JITTER_SECONDS,
) -> TimeLine:
    """Return the ``TimeLine`` of a track: time zero is its container's start, and its witness the rest of the file."""
    zero = begin_seconds(container, path, part)
    witness = Witness(path, container, stream, zero) if part is None else None
    return TimeLine(zero + (delay_seconds(path, stream, part) if compensate_delay else 0.0), jitter, witness)
