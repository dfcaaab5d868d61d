"""Choose the audio track of a media file, and the moment at which its recording begins.

In: an open container. Out: the stream, with all others switched off; time zero, which is the container's start over all
its tracks, as in ffmpeg and in players. What a header claims about a track is checked.

Source for the delays: what each codec's transform needs before its first sample, and for MP3 and MP2 what LAME and
ffmpeg add; measured in ``benchmarks/alignment.py``.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import av
import av.container

from egoaudio.errors import MediaError
from egoaudio.inputs.containers import FAULTS, Part, open_media, time_base
from egoaudio.system.files import StrPath

SOURCE_RATES_HZ = range(1000, 768001)  # outside these a header is false, and resampling would take memory
_WITH_DECODING_TIMES = ("mov,", "mpeg")  # formats that state the order in which pictures are decoded
_FIRST_PACKETS = 50  # among which is the first of every track
_TRIAL_PACKETS = 200  # if none of these decodes, none does
# Samples before the first one of the sound, where the container does not state them.
_DELAY_SAMPLES = {
    "aac": 1024,
    "mp3": 1105,
    "mp3float": 1105,
    "mp2": 481,
    "mp2float": 481,
    "ac3": 256,
    "eac3": 256,
    "dca": 512,
    "wmav1": 2048,
    "wmav2": 2048,
}


def choose_track(
    container: av.container.InputContainer, path: StrPath, number: int | None = None, part: Part | None = None
) -> av.AudioStream:
    """Return the audio stream to decode, with all others switched off.

    Parameters
    ----------
    container : av.container.InputContainer
    path : str or os.PathLike
    number : int, optional
        Which one, counted from 0 among the audio tracks as in ffmpeg's ``0:a:1``. If not given, of those that decode
        the one marked as the default, else the first.
    part : tuple of int, optional
        As for ``open_media``.

    Raises
    ------
    MediaError
        There is no audio track, not this one, or none that can be decoded.
    """
    tracks = container.streams.audio
    if not tracks:
        raise MediaError(f"{path}: it has no audio track")
    if number is not None:
        if not 0 <= number < len(tracks):
            raise MediaError(f"{path}: there is no `audio_track={number}`: it has {len(tracks)}, numbered from 0")
        tracks = tracks[number : number + 1]
    usable = [track for track in tracks if not _defect(track)]
    if not usable:
        raise MediaError(f"{path}: {_defect(tracks[0])}")
    if len(usable) > 1:
        usable.sort(key=lambda track: not track.disposition & av.stream.Disposition.default)
        stream = next((track for track in usable if _decodes(path, track.index, part)), usable[0])
    else:
        stream = usable[0]
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all  # not even read from disk
    stream.codec_context.thread_count = 1
    return stream


def _defect(track: av.AudioStream) -> str:
    """Return why a track cannot be decoded, judging by its header; empty where it can."""
    context = track.codec_context
    if context is None:
        return "there is no decoder for its audio track"
    channels = context.layout.nb_channels
    if context.sample_rate not in SOURCE_RATES_HZ or not channels or not track.time_base:
        return (
            f"its audio track claims {channels} channels at {context.sample_rate} Hz, in units of {track.time_base} s"
        )
    return ""


def _decodes(path: StrPath, index: int, part: Part | None) -> bool:
    """Return whether anything at the beginning of a track decodes."""
    with open_media(path, part) as container:
        stream: Any = container.streams[index]
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        packets = itertools.islice(container.demux(stream), _TRIAL_PACKETS)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return False
                if stream.codec_context.decode(packet):
                    return True
            except FAULTS:
                continue


def begin_seconds(container: av.container.InputContainer, path: StrPath, part: Part | None = None) -> float:
    """Return the timestamp at which the recording begins, in seconds."""
    start = (container.start_time or 0) / av.time_base
    is_doubtful = (
        container.start_time is None  # pictures for so long that FFmpeg has met no sound, and it does not decode them
        or (start and not container.format.name.startswith(_WITH_DECODING_TIMES))
        or container.format.name == "nut"
    )
    if is_doubtful and container.streams.video:
        tracks = [
            float(track.start_time * time_base(track))
            for track in container.streams.audio
            if track.start_time is not None
        ]
        start = min([*tracks, *_first_pictures(path, part)], default=start)
    return start


def _first_pictures(path: StrPath, part: Part | None) -> Iterator[float]:
    """Yield the timestamps of the first pictures, in seconds; FFmpeg would need their decoder to know their start."""
    with open_media(path, part) as container, contextlib.suppress(*FAULTS):
        for packet in itertools.islice(container.demux(), _FIRST_PACKETS):
            if packet.size and packet.pts is not None and packet.stream.type == "video":
                yield float(packet.pts * packet.time_base)


def delay_seconds(path: StrPath, stream: av.AudioStream, part: Part | None = None) -> float:
    """Return how late a track's sound is because its container does not state the delay of its encoder.

    It is 0 where the container states one, and where the codec's delay depends on the encoder's settings.
    """
    context = stream.codec_context
    samples = _DELAY_SAMPLES.get(context.name, 0)
    if not samples or (context.name == "aac" and context.profile not in ("LC", None)):
        return 0.0
    with open_media(path, part) as container:
        track = container.streams[stream.index]
        for packet in itertools.islice(container.demux(track), 1):
            if packet.has_sidedata("skip_samples"):
                return 0.0
    return samples / context.sample_rate
