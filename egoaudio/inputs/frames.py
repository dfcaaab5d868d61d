"""Decode packets to frames, and place each frame on the recording's time line.

In: an open container, its audio stream and a ``TimeLine``. Out: frames in the order of the file, each with the seconds
of silence before it; in place of what did not decode, the exception. Timestamps are seconds on the container's clock.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import av
import av.container

from egoaudio.errors import MediaError
from egoaudio.inputs.containers import FAULTS, packets, time_base
from egoaudio.inputs.timestamps import TimeLine, look_ahead
from egoaudio.inputs.tracks import SOURCE_RATES_HZ

RAW = ("aac", "latm", "ac3", "eac3", "dts", "truehd", "mp3")
"""Formats without timestamps: FFmpeg computes them from the number of packets at the first one's rate."""
Frame = av.AudioFrame | Exception
"""What a packet decodes to: sound, or the reason why it does not."""
_PACKET_SAMPLES = 65536  # no packet of a compressed codec holds more (FLAC's largest block)


def placed(
    container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine
) -> Iterator[tuple[Frame, float, int]]:
    """Place all sounds on ``line``; yield ``(frame, seconds of silence before it, samples of padding at its end)``.

    Where something did not decode, the exception takes the frame's place. Only the last frame can have padding.
    """
    states_padding = container.format.name not in RAW
    for (frame, timestamp, seconds), upcoming in look_ahead(_sounds(container, stream, line)):
        if isinstance(frame, Exception):
            line.lose(timestamp, seconds, upcoming)
            yield frame, 0.0, 0
        else:
            padding = 0 if upcoming or not states_padding else _padding(frame, stream)
            yield frame, line.place(timestamp, seconds, upcoming), padding


def _sounds(
    container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine
) -> Iterator[tuple[Frame, float | None, float]]:
    """Yield ``(frame, timestamp, seconds)``, with an exception in the frame's place where something did not decode."""
    decode, packet_seconds = stream.codec_context.decode, packet_seconds_of(stream)
    tick: float | None = float(time_base(stream))
    is_raw = container.format.name in RAW
    for packet in itertools.chain(packets(container, stream, line), [av.Packet()]):  # an empty one drains the decoder
        try:
            frames = decode(packet)
        except FAULTS as error:
            if packet.size:
                yield error, in_seconds(packet.pts, tick), packet_seconds(packet.duration)
            continue
        for frame in frames:
            timestamp, rate = frame.pts, frame.sample_rate
            if rate not in SOURCE_RATES_HZ:
                yield MediaError(f"a frame at {rate} Hz"), in_seconds(timestamp, tick), packet_seconds(packet.duration)
            elif frame.samples:
                yield frame, in_seconds(timestamp, tick), frame.samples / rate
                if is_raw:  # only the first timestamp is true
                    tick = None


def packet_seconds_of(stream: av.AudioStream) -> Callable[[Any], float]:
    """Return the function from a packet's stated duration in ticks, None if there is none, to its seconds of sound.

    They are no more than a packet of its codec can hold, and free of rounding where that is a fixed length.
    """
    rate, tick = stream.codec_context.sample_rate, float(time_base(stream))
    whole = stream.codec_context.frame_size / rate
    most = 2 * whole or _PACKET_SAMPLES / rate  # twice: AAC's SBR doubles the rate

    def seconds(ticks: Any) -> float:
        stated = (ticks or 0) * tick
        return whole if whole and abs(stated - whole) <= tick else max(0.0, min(stated, most))

    return seconds


def _padding(frame: av.AudioFrame, stream: av.AudioStream) -> int:
    """Return how many samples at the end of a track's last frame are padding, as its container states."""
    samples_per_tick = time_base(stream) * frame.sample_rate
    stated = (frame.duration or 0) * samples_per_tick
    return max(0, frame.samples - round(stated)) if stated > 0 and samples_per_tick <= 1 else 0


def in_seconds(timestamp: int | None, tick: float | None) -> float | None:
    """Return a timestamp in seconds; None where there is none, or no clock."""
    return None if timestamp is None or tick is None else timestamp * tick
