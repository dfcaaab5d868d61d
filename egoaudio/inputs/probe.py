"""Measure how much sound a media file holds, from its packets; they are decoded only if they contradict the container.

In: a path. Out: a ``Recording``. A length counts only if the packets confirm it, and it is that of what ``Decoder``
yields, to a few samples. Takes 1.2 ms for 30 s of AAC beside 480p H.264.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.container

from egoaudio.errors import MediaError, Status
from egoaudio.inputs.containers import FAULTS, Part, ReadError, open_media, packets, time_base
from egoaudio.inputs.frames import RAW, in_seconds, packet_seconds_of, placed
from egoaudio.inputs.ogg import guessed_seconds, links
from egoaudio.inputs.silence import time_line
from egoaudio.inputs.timestamps import JITTER_SECONDS, TimeLine, look_ahead
from egoaudio.inputs.tracks import choose_track
from egoaudio.system.files import StrPath

_DISAGREEMENT_SECONDS = 0.1  # a container's claim and its packets may differ by less than this


@dataclass(frozen=True)
class Recording:
    """What a media file's audio track holds, as its packets say."""

    status: Status
    """OK, NO_AUDIO or UNREADABLE."""
    error: str = ""
    """Why the status is not OK."""
    sample_rate: int = 0
    """Of the source, in Hz."""
    channels: int = 0
    """Of the source."""
    duration_seconds: float = 0.0
    """From the recording's time zero to the end of its last packet; what ``Decoder`` yields, to a few samples."""


def probe(path: StrPath, audio_track: int | None = None, compensate_delay: bool = False) -> Recording:
    """Measure an audio track of a media file; bad media give a status and its reason, never an exception.

    Parameters
    ----------
    path : str or os.PathLike
    audio_track, compensate_delay
        As for ``Decoder``.

    Returns
    -------
    Recording
    """
    found: list[Recording | None] = []
    fault: MediaError | None = None
    parts = links(path)
    for part in parts:
        try:
            found.append(_probe_part(path, part, audio_track, compensate_delay))
        except ReadError as error:
            return Recording(Status.UNREADABLE, _reason(error, path))
        except MediaError as error:
            fault = fault or error
            found.append(None)
    good = [recording for recording in found if recording]
    if not good:
        return Recording(Status.UNREADABLE, _reason(fault, path))
    if len(found) == 1 or good[0].status != Status.OK:
        return good[0]
    seconds = 0.0
    for number, recording in enumerate(found):
        seconds += recording.duration_seconds if recording else guessed_seconds(parts, number, seconds)
    return Recording(Status.OK, "", good[0].sample_rate, good[0].channels, seconds)


def _reason(error: MediaError | None, path: StrPath) -> str:
    """Return an error's words without the path before them."""
    return str(error).removeprefix(f"{path}: ")


def _probe_part(path: StrPath, part: Part | None, audio_track: int | None, compensate_delay: bool) -> Recording:
    """Return the Recording of a file, or of one link of a chained one."""
    with open_media(path, part) as container:
        if not container.streams.audio:
            return Recording(Status.NO_AUDIO, "it has no audio track")
        stream = choose_track(container, path, audio_track, part)
        context = stream.codec_context
        # Packets of a fixed length need no coarse clock; of others only the timestamps are exact.
        line = time_line(container, stream, path, part, compensate_delay, JITTER_SECONDS if context.frame_size else 0.0)
        seconds = _measure(container, stream, line)
        if not _agrees(seconds, container, stream, line):  # rare: only decoding tells
            seconds = _measure_decoded(path, part, audio_track, compensate_delay)
        return Recording(Status.OK, "", context.sample_rate, context.layout.nb_channels, seconds)


def _measure(container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine) -> float:
    """Return the duration of ``stream`` in seconds, from its packets."""
    tick, packet_seconds, place = float(time_base(stream)), packet_seconds_of(stream), line.place
    stated = _from_index(container, stream) or _from_packets(container, stream, line)
    for (timestamp, seconds), upcoming in look_ahead(_timed(stated, packet_seconds, tick)):
        place(timestamp, seconds, upcoming)
    return line.end


def _timed(
    stated: Iterable[tuple[int | None, Any]], packet_seconds: Callable[[Any], float], tick: float
) -> Iterator[tuple[float | None, float]]:
    """Yield ``(timestamp, seconds)`` for packets ``(timestamp, duration)`` in ticks."""
    seconds = 0.0
    for (timestamp, ticks), (following, _) in itertools.pairwise(itertools.chain(stated, [(None, 0)])):
        if not ticks and timestamp is not None and following is not None:  # the container does not state it
            ticks = following - timestamp
        seconds = packet_seconds(ticks) or seconds
        yield in_seconds(timestamp, tick), seconds


def _agrees(seconds: float, container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine) -> bool:
    """Return whether a measured duration is what the container states, where its statement can be relied on."""
    if not seconds > 0 or container.format.name in RAW or line.wander > JITTER_SECONDS:
        return False
    if stream.duration is not None:
        start = max(0.0, (stream.start_time or 0) * float(time_base(stream)) - line.time_zero)
        return abs(seconds - start - stream.duration * time_base(stream)) < _DISAGREEMENT_SECONDS
    # Of a container without lengths for its tracks: the longest one's.
    return container.duration is None or seconds < container.duration / av.time_base + _DISAGREEMENT_SECONDS


def _measure_decoded(path: StrPath, part: Part | None, audio_track: int | None, compensate_delay: bool) -> float:
    """Return the duration of a file's audio track in seconds, from what decodes."""
    with open_media(path, part) as container:
        stream, end = choose_track(container, path, audio_track, part), 0.0
        line = time_line(container, stream, path, part, compensate_delay)
        for frame, _, padding in placed(container, stream, line):
            if not isinstance(frame, Exception):
                end = line.end - padding / frame.sample_rate
    if not end > 0:
        raise MediaError(f"{path}: its audio track holds no sound that can be decoded; was the file cut off?")
    return max(end, line.lost_until)


def _from_packets(
    container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine
) -> Iterator[tuple[int | None, Any]]:
    """Yield ``(timestamp, duration)`` in ticks of every packet with sound."""
    context = stream.codec_context
    for packet in packets(container, stream, line):
        if not packet.is_discard:
            ticks: Any = packet.duration
            if context.frame_size and packet.has_sidedata("skip_samples"):
                padding = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[4:8], "little")
                if 0 < padding < context.frame_size:  # the last packet's
                    ticks = (context.frame_size - padding) / context.sample_rate / time_base(stream)
            yield packet.pts, ticks


def _from_index(
    container: av.container.InputContainer, stream: av.AudioStream
) -> Iterable[tuple[int | None, Any]] | None:
    """Return what ``_from_packets`` yields from a complete MP4 index, in a fifth of the time; None where there is none.

    The index must not claim more than the file holds; the last packet is read for its duration.
    """
    index, size = stream.index_entries, container.size
    if not container.format.name.startswith("mov,") or not 0 < len(index) == stream.frames <= size:
        return None
    starts, payload = [], 0
    for entry in index:
        payload += entry.size
        if entry.pos + entry.size > size or payload > size:
            return None
        starts.append(entry.timestamp)
    try:
        container.seek(starts[-1], stream=stream, any_frame=True)
        last = [packet for packet in itertools.islice(container.demux(stream), 8) if packet.size][-1:]
        if last and last[0].pts == starts[-1]:
            return zip(starts, itertools.chain(map(operator.sub, starts[1:], starts), [last[0].duration]), strict=True)
        container.seek(starts[0], stream=stream, any_frame=True)
    except FAULTS:
        pass
    return None
