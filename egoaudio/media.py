"""Find the media files, measure them, and decode their first audio track: the only room that uses PyAV.

In: a folder and video ids (``find_files``), or one file (``probe``, ``Decoder``). Out: paths; a ``Recording``;
blocks of mono float32 samples in [-1, 1] at the asked rate. Sound lies on the file's own clock: sample n is what is
heard n / sample_rate seconds into the video. Gaps are zeros, what comes twice is dropped, a bad packet costs that
packet; no length is believed that the packets do not bear out, and memory does not grow with it.

Files may be hostile. FFmpeg gets an open descriptor of a regular file and the ``fd`` protocol alone, so nothing inside
a file can name another file or an address; only the containers listed here are recognised, and only audio decoders run.

Source: FFmpeg's handling of timestamps, https://ffmpeg.org/ffmpeg.html (-copyts, -dts_delta_threshold), and facts
measured on real recordings. 30 s of AAC 44.1 kHz beside 480p H.264: 0.7 ms to open (2.5 with the video decoder), 5 to
demux, 16 to decode, 22 with mixing and resampling. Tried without gain: reading through a Python file object, other
block sizes; frame by frame resampling costs 30 ms more, mixing in NumPy 2.
"""

import contextlib
import functools
import math
import os
import pathlib
import stat
import warnings
from dataclasses import dataclass

import av
import av.filter
import numpy as np

from egoaudio.errors import MediaError, Status

MEDIA_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".flv", ".wmv", ".asf",
    ".ogv", ".mxf", ".m4a", ".aac", ".mp3", ".mp2", ".wav", ".w64", ".flac", ".ogg", ".oga", ".opus", ".wma", ".ac3", ".aif", ".aiff", ".caf", ".au", ".amr",
)  # fmt: skip

# Containers of sound that need no second file. Left out on purpose: hls, dash, concat, image2, sdp, imf and the like, which
# open what they name, and tty, which reads any text as a film.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,dv,rm,gxf,wtv,nsv,swf,"
    "mp3,aac,latm,ac3,eac3,dts,truehd,flac,wav,w64,aiff,caf,au,amr,wv,tta,ape,mpc,mpc8,voc,oma"
)
_FAULTS = (av.FFmpegError, OSError, EOFError, ValueError, ArithmeticError, MemoryError)  # what PyAV raises for bad bytes

BLOCK_SAMPLES = 65536  # most samples in a block
_PORTION_VALUES = 32768  # samples times channels that are mixed and resampled at a time: 16,384 stereo samples stay in the cache
_SOURCE_RATES_HZ = range(1000, 768001)  # outside these a header lies, and resampling would cost memory
_JITTER_SECONDS = 0.02  # timestamps may wander by this much before they are obeyed: less than a lost AAC or MP3 frame
_EXACT_SECONDS = 1e-4  # at the start and after a fault they are obeyed to this
_OVERLAP_SECONDS = 1.0  # a clock that jumps back further was reset; it does not mean that sound comes twice
_SILENCE_SECONDS = 60.0  # gaps may add up to this much more than the sound that packets hold, beyond that the clock is broken
_PACKET_SAMPLES = 65536  # no packet of a compressed codec holds more (FLAC's largest block)
_DEMUX_RETRIES = 100  # read errors in a row before the rest of a file is given up


@dataclass(frozen=True)
class Recording:
    """What a media file's first audio track holds, as a pass over its packets found it."""

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


def probe(path):
    """Measure the first audio track of a media file; bad media give a status and its reason, never an exception.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    Recording
    """
    try:
        with _open(path) as container:
            if not container.streams.audio:
                return Recording(Status.NO_AUDIO, "it has no audio track")
            stream = _first_track(container, path)
            seconds = _measure(container, stream)
            if not seconds > 0:
                raise MediaError(f"{path}: its audio track holds no sound; the file is empty or cut off")
            context = stream.codec_context
            return Recording(Status.OK, "", context.sample_rate, context.layout.nb_channels, seconds)
    except MediaError as error:
        return Recording(Status.UNREADABLE, str(error).removeprefix(f"{path}: "))


class Decoder:
    """Decode the first audio track of a file: iterating yields float32 blocks ``(n,)``, mono, n <= 65,536, in [-1, 1].

    The blocks follow one another without a gap on the recording's time line. Memory is bounded for any length; leaving
    the loop early closes the file. After the loop ``num_samples`` says how many samples came, and ``lost_samples`` how
    many of them are zeros that stand for sound that could not be decoded (bad packets, gaps, NaN).

    Parameters
    ----------
    path : str or os.PathLike
    sample_rate : int
        Of the blocks, in Hz; the source is resampled with an anti-aliasing filter. Channels are averaged.

    Raises
    ------
    MediaError
        While iterating: the file cannot be opened, has no audio track, or not one packet of it decodes.
    """

    def __init__(self, path, sample_rate):
        self.path = path
        self.sample_rate = sample_rate
        self.num_samples = 0
        self.lost_samples = 0

    def __iter__(self):
        self.num_samples = self.lost_samples = 0
        with _open(self.path) as container:
            if not container.streams.audio:
                raise MediaError(f"{self.path}: it has no audio track")
            stream = _first_track(container, self.path)
            yield from self._decode(container, stream)

    def _decode(self, container, stream):
        """Yield the blocks of ``stream``."""
        decode, tick = stream.codec_context.decode, float(stream.time_base)
        line = _TimeLine(_time_zero(container, stream))
        run, fault = None, None
        for packet in _packets(container, stream):
            try:
                frames = decode(packet)
            except _FAULTS as error:
                frames, fault = (), error
                line.lose(_seconds(packet.pts, tick), _packet_seconds(packet, stream, tick))
            for frame in frames:
                rate, num_samples = frame.sample_rate, frame.samples
                if rate not in _SOURCE_RATES_HZ or not num_samples:
                    fault = fault or MediaError(f"a frame of {num_samples} samples at {rate} Hz")
                    line.lose(_seconds(frame.pts, tick), 0.0)
                    continue
                offset = line.place(_seconds(frame.pts, tick), num_samples / rate)
                surplus = round(-offset * rate) if offset < 0 else 0
                if surplus >= num_samples:
                    continue
                if run is None or offset or not run.fits(frame):
                    if run is not None:
                        yield from self._emit(run.finish())
                    yield from self._fill(line.start, lost=fault is not None or self.num_samples > 0)
                    run = _Run(frame, self.sample_rate)
                run.write(frame, surplus)
                if run.is_full:
                    yield from self._emit(run.read())
        if run is None:
            raise MediaError(f"{self.path}: no sound in it can be decoded" + (f" ({_reason(fault)})" if fault else ""))
        yield from self._emit(run.finish())
        yield from self._fill(line.lost_until, lost=True)

    def _fill(self, until_seconds, lost):
        """Yield zeros up to a place on the time line."""
        missing = max(0, round(until_seconds * self.sample_rate) - self.num_samples)
        if lost:
            self.lost_samples += missing
        for start in range(0, missing, BLOCK_SAMPLES):
            yield from self._emit([np.zeros(min(BLOCK_SAMPLES, missing - start), np.float32)])

    def _emit(self, blocks):
        """Yield the blocks, cut to size, clipped, with zeros for what is no number."""
        for samples in blocks:
            if not math.isfinite(np.add.reduce(samples)):
                wrong = ~np.isfinite(samples)
                self.lost_samples += int(np.count_nonzero(wrong))
                samples = np.where(wrong, np.float32(0), samples)
            np.clip(samples, -1.0, 1.0, out=samples)
            for start in range(0, len(samples), BLOCK_SAMPLES):
                block = samples[start : start + BLOCK_SAMPLES]
                self.num_samples += len(block)
                yield block


class _TimeLine:
    """Where sound belongs: timestamps against what came before, with no trust in any one of them.

    Times are seconds after the recording's time zero. Small wandering is let be, gaps and overlaps are obeyed, and a jump
    that cannot be (more silence than the packets bear out, or far back) moves the clock instead, so that sound goes on.
    """

    def __init__(self, time_zero):
        self.start = 0.0  # of what was placed last
        self.end = 0.0  # of all that was placed
        self.lost_until = 0.0  # where packets that did not decode end
        self._held = 0.0  # seconds in all packets so far
        self._silence = 0.0  # seconds of gaps
        self._shift = self._former_shift = -time_zero  # clock to time line, now and before the last jump
        self._exact = True

    def place(self, timestamp, seconds):
        """Place sound; return the seconds of silence before it, negative for how much of its head to drop."""
        offset = self._offset(timestamp)
        self._held += seconds
        self._exact = False
        if offset > 0:
            self._silence += offset
        self.start = self.end + max(0.0, offset)
        self.end += max(offset + seconds, 0.0)
        return offset

    def lose(self, timestamp, seconds):
        """Place what could not be decoded: it stays silent, and the next timestamp is obeyed exactly."""
        offset = self._offset(timestamp)
        self.lost_until = max(self.lost_until, self.end + offset + seconds)
        self._held += seconds
        self._exact = True

    def _offset(self, timestamp):
        """Return where ``timestamp`` lies after the end so far, in seconds."""
        if timestamp is None:
            return max(0.0, self.lost_until - self.end)
        offset = timestamp + self._shift - self.end
        if abs(offset) < (_EXACT_SECONDS if self._exact else _JITTER_SECONDS):
            return 0.0
        if self._is_believable(offset):
            return offset
        former = timestamp + self._former_shift - self.end
        self._shift, self._former_shift = self._former_shift, self._shift
        if abs(former) < _OVERLAP_SECONDS and self._is_believable(former):  # the clock came back from an excursion
            return former if abs(former) >= _JITTER_SECONDS else 0.0
        self._shift = self.end - timestamp
        return 0.0

    def _is_believable(self, offset):
        return -_OVERLAP_SECONDS <= offset and self._silence + offset <= self._held + _SILENCE_SECONDS


class _Run:
    """Sound of one rate, layout and sample format, without a gap: averaged to mono and resampled by FFmpeg's filters.

    Frames are collected first: a filter graph costs more per call than per sample. The graph has one thread; the one
    inside ``av.AudioResampler`` starts a thread per core.
    """

    def __init__(self, frame, sample_rate):
        channels = frame.layout.nb_channels
        self._kind = frame.sample_rate, channels, frame.format.name
        self._portion = max(256, _PORTION_VALUES // channels)
        self._fifo = av.AudioFifo()
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        chain = [
            self._graph.add(
                "abuffer", sample_rate=str(frame.sample_rate), sample_fmt=frame.format.name, channel_layout=frame.layout.name,
                time_base=f"1/{frame.sample_rate}",
            ),
            self._graph.add("aformat", sample_fmts="fltp"),
            self._graph.add("pan", "mono|c0<" + "+".join(f"c{channel}" for channel in range(channels))),  # "<": gains that add up to 1
            self._graph.add("aresample", sample_rate=str(sample_rate)),
            self._graph.add("abuffersink"),
        ]  # fmt: skip
        self._graph.link_nodes(*chain)
        self._graph.configure()
        self._source, self._sink = chain[0], chain[-1]

    def fits(self, frame):
        """Return whether ``frame`` can follow what was written."""
        return self._kind == (frame.sample_rate, frame.layout.nb_channels, frame.format.name)

    def write(self, frame, surplus):
        """Take a frame, without its first ``surplus`` samples (only at the start of a run)."""
        frame.pts = None  # the queue would insist on timestamps without any jitter
        self._fifo.write(frame)
        if surplus:
            self._fifo.read(surplus)

    @property
    def is_full(self):
        """Whether there is a portion to ``read``."""
        return self._fifo.samples >= self._portion

    def read(self):
        """Yield the resampled portions that are complete."""
        while self.is_full:
            yield from self._filter(self._fifo.read(self._portion))

    def finish(self):
        """Yield the rest; the run is then over."""
        rest = self._fifo.read()
        if rest is not None:
            yield from self._filter(rest)
        yield from self._filter(None)

    def _filter(self, frame):
        self._source.push(frame)
        while True:
            try:
                mono = self._sink.pull()
            except (av.BlockingIOError, av.EOFError):  # it wants more, or it is done
                return
            yield mono.to_ndarray()[0]


def find_files(video_ids, root, follow_links=False):
    """Find each video's file: its id with a media extension, or the id itself where it has one, anywhere under ``root``.

    Ids are only compared with the names of files that are there, so no id reaches outside ``root``.

    Parameters
    ----------
    video_ids : iterable of str
    root : str or os.PathLike
    follow_links : bool
        Whether symbolic links may lead out of ``root``.

    Returns
    -------
    dict of str to pathlib.Path
        In the order of ``video_ids``; those without a file are left out.

    Raises
    ------
    MediaError
        ``root`` is no folder, a video has two files, or a link that is needed leaves ``root``.
    """
    video_ids = dict.fromkeys(video_ids)
    inside = os.path.realpath(root)
    found, odd, refused = {}, {}, []  # id -> real path -> path, for files and for what only has the name of one
    if not os.path.isdir(root):
        raise MediaError(f"--videos {root}: no such folder")
    for entry in _walk(root, inside, follow_links, refused):
        stem, extension = os.path.splitext(entry.name)
        if extension.lower() not in MEDIA_EXTENSIONS:
            continue
        names = (entry.name,) if os.path.splitext(stem)[1].lower() in MEDIA_EXTENSIONS else (entry.name, stem)
        for video_id in names:
            if video_id in video_ids:
                real = os.path.realpath(entry.path)
                if not (follow_links or _is_inside(real, inside)):
                    raise MediaError(f"video {video_id!r}: {entry.path} is a symbolic link out of --videos, to {real}; --follow-links would allow it")
                where = found if os.path.isfile(real) else odd
                if where is found or os.path.exists(real):
                    where.setdefault(video_id, {}).setdefault(real, entry.path)
    for video_id, paths in found.items():
        if len(paths) > 1:
            first, second = sorted(paths.values())[:2]
            raise MediaError(f"video {video_id!r} has two files, {first} and {second}: remove or rename one")
    if refused and any(video_id not in found for video_id in video_ids):
        raise MediaError(f"{refused[0]}: this symbolic link leads out of --videos, and videos are missing; allow it with --follow-links, or remove it")
    found = {**odd, **found}
    return {video_id: pathlib.Path(min(found[video_id].values())) for video_id in video_ids if video_id in found}


def _walk(root, inside, follow_links, refused):
    """Yield every directory entry under ``root``; links to folders that leave it go to ``refused``. Loops end."""
    folders, seen = [os.fspath(root)], {inside}
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            warnings.warn(f"{folder}: not searched for videos: {error.strerror}", stacklevel=3)
            continue
        for entry in entries:
            yield entry
            if not entry.is_dir():
                continue
            real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            if not entry.is_symlink():
                folders.append(entry.path)
            elif not follow_links and not _is_inside(real, inside):
                refused.append(entry.path)
            elif follow_links and real not in seen:
                seen.add(real)
                folders.append(entry.path)


def _is_inside(real, inside):
    return real == inside or real.startswith(os.path.join(inside, ""))


@contextlib.contextmanager
def _open(path):
    """Open a media file for reading; yield its container and close it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError(f"{path}: not a regular file (a folder, pipe, socket or device)")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: it might be a pipe by now
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    options = {"protocol_whitelist": "fd", "fd": str(descriptor), "format_whitelist": _CONTAINERS, "codec_whitelist": _audio_decoders()}
    try:
        if os.fstat(descriptor).st_size == 0:
            raise MediaError(f"{path}: the file is empty (0 bytes)")
        container = av.open("fd:", container_options=options, metadata_errors="replace")
    except _FAULTS as error:
        raise MediaError(f"{path}: not a media file, or cut off before its index ({_reason(error)})") from error
    finally:
        os.close(descriptor)  # FFmpeg has its own copy
    with container:
        yield container


@functools.cache
def _audio_decoders():
    """Return the names of all audio decoders: with no others, FFmpeg opens four times faster and has less to be attacked."""
    names = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # it only encodes
            if av.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def _first_track(container, path):
    """Return the first audio stream, ready to decode, with all others switched off."""
    stream = container.streams.audio[0]
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all  # not even read from disk
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path}: there is no decoder for its audio track")
    channels = context.layout.nb_channels
    if context.sample_rate not in _SOURCE_RATES_HZ or not channels:
        raise MediaError(f"{path}: its audio track claims {channels} channels at {context.sample_rate} Hz")
    context.thread_count = 1
    return stream


def _time_zero(container, stream):
    """Return the timestamp, in seconds, of the moment at which the recording begins."""
    start = (container.start_time or 0) / av.time_base
    discontinuous = container.format.flags & av.format.Flags.ts_discont.value
    # MPEG streams start at any time. MP3 counts the encoder's delay, which is cut off, as time. A start beyond what could be
    # a gap means that the file was cut from a longer one.
    if discontinuous or container.format.name == "mp3" or start > _SILENCE_SECONDS:
        return start
    return 0.0


def _packets(container, stream):
    """Yield the packets of ``stream`` and an empty one at the end, over read errors."""
    faults = 0
    while faults < _DEMUX_RETRIES:
        try:
            for packet in container.demux(stream):
                faults = 0
                yield packet
            return
        except _FAULTS:
            faults += 1
    yield av.Packet()


def _seconds(timestamp, tick):
    return None if timestamp is None else timestamp * tick


def _packet_seconds(packet, stream, tick):
    """Return how much sound a packet holds: what it claims, within what one of its codec can."""
    context = stream.codec_context
    most = 2 * context.frame_size or _PACKET_SAMPLES  # twice: AAC's SBR doubles the rate
    return max(0.0, min((packet.duration or 0) * tick, most / context.sample_rate))


def _measure(container, stream):
    """Return the duration of ``stream`` in seconds, from its packets."""
    tick = float(stream.time_base)
    line = _TimeLine(_time_zero(container, stream))
    for packet in _packets(container, stream):
        if packet.size and not packet.is_discard:
            line.place(_seconds(packet.pts, tick), _packet_seconds(packet, stream, tick))
    return line.end


def _reason(error):
    """Return an error's own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
