"""Open media files safely, and read the packets of one of their tracks.

In: a path. Out: a PyAV container, and packets. Files may be hostile. FFmpeg gets an open regular file and no protocol at all,
so nothing inside a file can name another file or an address; only the containers listed here are recognised, and only audio
decoders run. Damage is passed over; what the disk cannot read is an error of the whole file, never its end.

Reading through Python costs 0.4 ms for 30 s beside 18 MB of video. FFmpeg's own ``fd`` protocol reads whole files: it takes
descriptors for a network and buffers up to 16 MB.
"""

import contextlib
import functools
import io
import os
import stat

import av

from egoaudio.errors import MediaError

# Containers of sound that need no second file. Left out on purpose: hls, dash, concat, image2, sdp, imf and the like, which
# open what they name, and tty, which takes any text for a film.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,dv,rm,gxf,wtv,nsv,swf,"
    "mp3,aac,latm,ac3,eac3,dts,truehd,flac,wav,w64,aiff,caf,au,amr,wv,tta,ape,mpc,mpc8,voc,oma"
)
FAULTS = (
    av.FFmpegError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
)  # what PyAV raises for bad bytes
_FURTHER = {
    "probesize": str(64_000_000),
    "analyzeduration": str(600_000_000),
}  # bytes, which are held meanwhile, and microseconds
_ADDS_TRACKS = ("mpeg", "flv", "nsv", "wtv")  # tracks appear in these with their first packet
_READ_FAULTS = 100  # read errors in a row before the rest of a file is given up
_PAYLOAD_FACTOR = 4  # packets that add up to more than this many times the file's size are read over and over: a bomb


class ReadError(MediaError):
    """The disk or the network did not give a file's bytes: what else is wrong with it cannot be known."""


class _File(io.FileIO):
    """A file whose ``seek`` answers a damaged index with a negative number, as C does: PyAV would print an exception."""

    def seek(self, offset, whence=os.SEEK_SET):
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1


class _Reader:
    """What FFmpeg reads a file, or a part of it, through; it keeps the first read error, which FFmpeg takes for the file's end."""

    def __init__(self, file, start, stop):
        self._read, self._seek, self._tell = file.read, file.seek, file.tell
        self._start, self._stop = start, stop
        self.fault = None
        self.fault_at = 0
        if start == 0 and stop is None:
            self.seek, self.tell = file.seek, file.tell
        else:
            file.seek(start)

    def read(self, size):
        """Return up to ``size`` bytes."""
        try:
            return self._read(size if self._stop is None else max(0, min(size, self._stop - self._tell())))
        except OSError as error:
            if self.fault is None:
                self.fault, self.fault_at = error, self._tell()
            raise

    def seek(self, offset, whence=os.SEEK_SET):
        """Go to a place in the part."""
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._tell(), os.SEEK_END: self._stop}[whence]
        place = base + offset
        return -1 if place < self._start else self._seek(place) - self._start

    def tell(self):
        """Return the place in the part."""
        return self._tell() - self._start


@contextlib.contextmanager
def open_media(path, part=None):
    """Open a media file for reading; yield its container and close it.

    Parameters
    ----------
    path : str or os.PathLike
    part : tuple of int, optional
        First byte, and the one after the last, of a part of the file that is a file by itself.

    Raises
    ------
    MediaError
        It cannot be opened; or, after all that was done with it, reading it failed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError(f"{path}: not a regular file but a folder, pipe, socket or device")
        # By number, so that its name decides nothing; without blocking, since it might be a pipe by now.
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
            raise _unreadable(path, reader) from error
        if reader.fault is not None:
            raise _unreadable(path, reader)


def _opened(path, reader):
    """Return the container; where a track's first packet has not been seen, after reading further."""
    options = {"protocol_whitelist": "none", "format_whitelist": _CONTAINERS, "codec_whitelist": _audio_decoders()}
    try:
        container = av.open(reader, container_options=options, metadata_errors="replace")
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
            container = av.open(reader, container_options={**options, **_FURTHER}, metadata_errors="replace")
        return container
    except FAULTS as error:
        raise MediaError(f"{path}: not a media file, or cut off before its index ({reason(error)})") from error


def _is_unseen(track, format):
    """Return whether FFmpeg has not come to any packet of a track, so that its rate is unknown."""
    context = track.codec_context
    return bool(format.flags & av.format.Flags.ts_discont.value) and (context is None or not context.sample_rate)


def _unreadable(path, reader):
    """Return the error for a file that could not be read to its end."""
    return ReadError(
        f"{path}: reading it failed after {reader.fault_at:,} bytes: {reason(reader.fault)}; is the disk or the network sound?"
    )


@functools.cache
def _audio_decoders():
    """Return the names of all audio decoders; with no others FFmpeg opens four times faster and has less to be attacked."""
    names = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # it only encodes
            if av.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def packets(container, stream, line):
    """Yield the packets of ``stream`` that hold something, over read errors.

    The end is believed when nothing comes after it: a packet that claims to reach beyond the file looks like one. Ogg files can
    hold thousands of empty packets, which FFmpeg counts as sound: the time line is told of each.
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


def packets_of_others(container, index):
    """Yield the timestamp, in seconds, of every packet of sound or picture that does not belong to the stream at ``index``."""
    others = [
        stream
        for stream in container.streams
        if stream.index != index and stream.type in ("audio", "video") and stream.time_base
    ]
    container.streams[index].discard = av.stream.Discard.all
    ticks = {stream.index: float(stream.time_base) for stream in others}
    payload = _PAYLOAD_FACTOR * container.size
    with contextlib.suppress(*FAULTS):
        for packet in container.demux(others):
            payload -= packet.size
            if payload < 0:
                return
            if packet.size and packet.pts is not None:
                yield packet.pts * ticks[packet.stream_index]


def reason(error):
    """Return an error's own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
