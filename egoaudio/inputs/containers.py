"""Open media files safely, and read the packets of their first audio track.

In: a path. Out: a PyAV container and stream, and packets. Files may be hostile. FFmpeg gets an open regular file and no
protocol at all, so nothing inside a file can name another file or an address; only the containers listed here are recognised,
and only audio decoders run. Read errors are passed over; what a header claims is checked.

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
from egoaudio.inputs.timestamps import time_zero

# Containers of sound that need no second file. Left out on purpose: hls, dash, concat, image2, sdp, imf and the like, which
# open what they name, and tty, which takes any text for a film.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,dv,rm,gxf,wtv,nsv,swf,"
    "mp3,aac,latm,ac3,eac3,dts,truehd,flac,wav,w64,aiff,caf,au,amr,wv,tta,ape,mpc,mpc8,voc,oma"
)
FAULTS = (av.FFmpegError, OSError, EOFError, ValueError, LookupError, ArithmeticError, MemoryError)  # what PyAV raises for bad bytes

SOURCE_RATES_HZ = range(1000, 768001)  # outside these a header lies, and resampling would cost memory
_READ_FAULTS = 100  # read errors in a row before the rest of a file is given up
_PAYLOAD_FACTOR = 4  # packets that add up to more than this many times the file's size are read over and over: a bomb


class _File(io.FileIO):
    """A file whose ``seek`` answers a damaged index with a negative number, as C does: PyAV would print an exception."""

    def seek(self, offset, whence=os.SEEK_SET):
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1


@contextlib.contextmanager
def open_media(path):
    """Open a media file for reading; yield its container and close it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError(f"{path}: not a regular file but a folder, pipe, socket or device")
        # By number, so that its name decides nothing; without blocking, since it might be a pipe by now.
        file = _File(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be opened: {reason(error)}") from error
    options = {"protocol_whitelist": "none", "format_whitelist": _CONTAINERS, "codec_whitelist": _audio_decoders()}
    with file:
        try:
            if os.fstat(file.fileno()).st_size == 0:
                raise MediaError(f"{path}: the file is empty (0 bytes)")
            container = av.open(file, container_options=options, metadata_errors="replace")
        except FAULTS as error:
            raise MediaError(f"{path}: not a media file, or cut off before its index ({reason(error)})") from error
        with container:
            yield container


@functools.cache
def _audio_decoders():
    """Return the names of all audio decoders; with no others FFmpeg opens four times faster and has less to be attacked."""
    names = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # it only encodes
            if av.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def first_track(container, path):
    """Return the first audio stream, ready to decode, with all others switched off."""
    stream = container.streams.audio[0]
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all  # not even read from disk
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path}: there is no decoder for its audio track")
    channels = context.layout.nb_channels
    if context.sample_rate not in SOURCE_RATES_HZ or not channels or not stream.time_base:
        raise MediaError(f"{path}: its audio track claims {channels} channels at {context.sample_rate} Hz, in units of {stream.time_base} s")
    context.thread_count = 1
    return stream


def begin_seconds(container):
    """Return the timestamp at which the recording begins, in seconds."""
    # MP3 is no stream, but counts the encoder's delay, which is cut off, as time.
    is_arbitrary = container.format.flags & av.format.Flags.ts_discont.value or container.format.name == "mp3"
    return time_zero((container.start_time or 0) / av.time_base, is_arbitrary)


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


def reason(error):
    """Return an error's own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
