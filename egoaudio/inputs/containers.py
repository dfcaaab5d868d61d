"""Open media files safely, and read the packets of one of their tracks.

In: a path. Out: a PyAV container, and packets. Files may be hostile. FFmpeg gets an open regular file and no protocol
at all, so nothing inside a file can name another file or an address; only the containers listed here are recognised,
and only audio decoders run. Damaged packets are skipped; what the disk cannot read is an error of the whole file, never
its end.

Files are read through Python, which costs 0.4 ms for 30 s beside 18 MB of video: FFmpeg's own ``fd`` protocol treats
descriptors as a network and reads whole files, with up to 16 MB buffered.
"""

import contextlib
import functools
import io
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.container

from egoaudio.errors import MediaError
from egoaudio.inputs.timestamps import TimeLine
from egoaudio.system.files import StrPath

# Containers of sound that need no second file. Left out on purpose: hls, dash, concat, image2, sdp, imf and the like,
# which open what they name, and tty, which takes any text for a film.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,dv,rm,gxf,wtv,nsv,swf,"
    "mp3,aac,latm,ac3,eac3,dts,truehd,flac,wav,w64,aiff,caf,au,amr,wv,tta,ape,mpc,mpc8,voc,oma"
)
Part = tuple[int, int]
"""First byte, and the one after the last, of a part of a file that is a file by itself."""
FAULTS = (av.FFmpegError, OSError, EOFError, ValueError, LookupError, ArithmeticError, MemoryError)
"""What PyAV raises for bad bytes."""
# How far FFmpeg looks for a track's first packet: bytes, which are buffered meanwhile, and microseconds.
_FURTHER = {"probesize": str(64_000_000), "analyzeduration": str(600_000_000)}
_ADDS_TRACKS = ("mpeg", "flv", "nsv", "wtv")  # tracks appear in these with their first packet
_READ_FAULTS = 100  # read errors in a row after which the rest of a file is skipped
_PAYLOAD_FACTOR = 4  # times the file's size: packets that add up to more are read over and over, by a hostile file


class ReadError(MediaError):
    """The disk or the network failed to deliver a file's bytes: whether the file itself is sound is unknown."""


class _File(io.FileIO):
    """A file whose ``seek`` to a place that does not exist returns -1, as in C: PyAV would print an exception."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1


class _Reader:
    """What FFmpeg reads a file, or a part of it, through; keeps the first read error, which FFmpeg ignores."""

    def __init__(self, file: _File, start: int, stop: int | None) -> None:
        self._read, self._seek, self._tell = file.read, file.seek, file.tell
        self._start, self._stop = start, stop
        self.fault: OSError | None = None
        self.fault_at = 0
        if start == 0 and stop is None:
            self.seek, self.tell = file.seek, file.tell  # type: ignore[method-assign]  # faster
        else:
            file.seek(start)

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        try:
            return self._read(size if self._stop is None else max(0, min(size, self._stop - self._tell())))
        except OSError as error:
            if self.fault is None:
                self.fault, self.fault_at = error, self._tell()
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the part."""
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._tell(), os.SEEK_END: self._stop or 0}[whence]
        place = base + offset
        return -1 if place < self._start else self._seek(place) - self._start

    def tell(self) -> int:
        """Return the place in the part."""
        return self._tell() - self._start


@contextlib.contextmanager
def open_media(path: StrPath, part: Part | None = None) -> Iterator[av.container.InputContainer]:
    """Open a media file for reading; yield its container and close it.

    Parameters
    ----------
    path : str or os.PathLike
    part : tuple of int, optional
        First byte, and the one after the last, of a part of the file that is a file by itself.

    Raises
    ------
    MediaError
        It cannot be opened; or, at the end of the block, reading it has failed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError(f"{path}: not a regular file but a folder, pipe, socket or device")
        # By descriptor, so that its name has no effect; without blocking, as it might be a pipe by now.
        file = _File(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be opened: {reason(error)}") from error
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise MediaError(f"{path}: the file is empty (0 bytes)")
        reader = _Reader(file, *(part or (0, None)))
        try:
            with _opened(path, reader) as container:
                yield container
        except MediaError as error:
            if reader.fault is None:
                raise
            raise ReadError(_describe_fault(path, reader, reader.fault)) from error
        if reader.fault is not None:
            raise ReadError(_describe_fault(path, reader, reader.fault))


def time_base(stream: "av.stream.Stream") -> Fraction:
    """Return the unit of a stream's timestamps in seconds; 0 where its header has none."""
    return stream.time_base or Fraction(0)


def _opened(path: StrPath, reader: _Reader) -> av.container.InputContainer:
    """Return the container; where FFmpeg has not found a track's first packet, after reading further."""
    options = {"protocol_whitelist": "none", "format_whitelist": _CONTAINERS, "codec_whitelist": _audio_decoders()}
    try:
        container = av.open(reader, "r", container_options=options, metadata_errors="replace")
        tracks = container.streams.audio
        is_nameless = container.format.name == "mpegts" and any(
            stream.type in ("data", "unknown") for stream in container.streams
        )
        if (
            not tracks
            and (is_nameless or container.format.name in _ADDS_TRACKS)
            or any(_is_unseen(track, container.format) for track in tracks)
        ):
            container.close()
            reader.seek(0)
            container = av.open(reader, "r", container_options={**options, **_FURTHER}, metadata_errors="replace")
        return container
    except FAULTS as error:
        raise MediaError(f"{path}: not a media file, or cut off before its index ({reason(error)})") from error


def _is_unseen(track: av.AudioStream, format: av.ContainerFormat) -> bool:
    """Return whether FFmpeg has not found any packet of a track, so that its rate is unknown."""
    context = track.codec_context
    return has_jumps(format) and (context is None or not context.sample_rate)


def has_jumps(format: av.ContainerFormat) -> bool:
    """Return whether the timestamps of a format may restart, as those of broadcasts do."""
    flag: Any = av.format.Flags.ts_discont.value  # which PyAV's hints take for a member
    return bool(format.flags & flag)


def _describe_fault(path: StrPath, reader: _Reader, fault: OSError) -> str:
    """Return why a file could not be read to its end."""
    return (
        f"{path}: reading it failed after {reader.fault_at:,} bytes: {reason(fault)}; is the disk or the network sound?"
    )


@functools.cache
def _audio_decoders() -> str:
    """Return the names of all audio decoders; without others FFmpeg opens four times faster and is less exposed."""
    names = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # it only encodes
            if av.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def packets(container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine) -> "Iterator[av.Packet]":
    """Yield the packets of ``stream`` that are not empty, reading on after errors.

    An end of the file counts only if nothing follows it: a packet that claims to reach beyond the file looks like one.
    Ogg files can hold thousands of empty packets, which FFmpeg counts as sound: the time line is told of each.
    """
    faults, payload, found = 0, _PAYLOAD_FACTOR * container.size, True
    while found and faults < _READ_FAULTS and payload > 0:
        found = False
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    line.slip()
                    continue
                found, faults = True, 0
                payload -= packet.size
                yield packet
                if payload < 0:
                    break
        except FAULTS:
            found, faults = True, faults + 1
    if found:
        line.cut_off()


def packets_of_others(container: av.container.InputContainer, index: int) -> Iterator[float]:
    """Yield the timestamps, in seconds, of all packets of sound or pictures outside the stream at ``index``."""
    others = [
        stream
        for stream in container.streams
        if stream.index != index and stream.type in ("audio", "video") and stream.time_base
    ]
    container.streams[index].discard = av.stream.Discard.all
    ticks = {stream.index: float(time_base(stream)) for stream in others}
    payload = _PAYLOAD_FACTOR * container.size
    with contextlib.suppress(*FAULTS):
        for packet in container.demux(others):
            payload -= packet.size
            if payload < 0:
                return
            if packet.size and packet.pts is not None:
                yield packet.pts * ticks[packet.stream_index]


def reason(error: Exception) -> str:
    """Return an error's own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
