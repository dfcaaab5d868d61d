"""Decode an audio track of a media file to mono samples on the recording's time line.

In: a path. Out: blocks of float32 samples in [-1, 1] at the wanted rate. Sample n plays n / sample_rate seconds into
the video. Gaps are zeros, and a damaged packet becomes such a gap.

30 s of AAC beside 480p H.264 take 20 ms; resampled frame by frame they would take 50 (``benchmarks/README.md``).
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import av
import av.container
import av.filter
import numpy as np

from egoaudio.errors import MediaError
from egoaudio.inputs.containers import FAULTS, Part, ReadError, open_media, reason
from egoaudio.inputs.frames import placed
from egoaudio.inputs.ogg import guessed_seconds, links
from egoaudio.inputs.silence import time_line
from egoaudio.inputs.timestamps import TimeLine
from egoaudio.inputs.tracks import choose_track
from egoaudio.system.files import StrPath

BLOCK_SAMPLES = 65536
"""Most samples in a block."""
_SILENT_PEAK = 1e-4  # -80 dB: digital silence of 16 bits, with or without dither
_FAINT_PEAK = 0.01  # -40 dB: in a recording as quiet as this the channels may cancel out
_CANCELLED = 30  # if they do, a channel is more than this many times as loud as their mean
_CHANNELS_SECONDS = 600.0  # of sound in which that is looked for
_PORTION_VALUES = 32768  # samples times channels that are resampled at a time: they fit in the cache


class Decoder:
    """Decode an audio track of a file: iterating yields float32 blocks ``(n,)``, mono, n <= 65,536, in [-1, 1].

    The blocks follow one another without a gap on the recording's time line. Memory is bounded for any length; leaving
    the loop early closes the file. The attributes below hold after the loop.

    Parameters
    ----------
    path : str or os.PathLike
    sample_rate : int
        Of the blocks, in Hz; the source is resampled with an anti-aliasing filter. Its channels are averaged.
    audio_track : int, optional
        Which track, counted from 0 among the audio tracks; if not given, of those that decode the one marked as the
        default, else the first.
    compensate_delay : bool
        Whether to move the sound earlier by the delay of its codec where the container does not state it.

    Attributes
    ----------
    num_samples : int
        Samples so far.
    lost_samples : int
        How many of them are zeros in place of sound that is missing or could not be decoded (damaged packets, gaps,
        NaN), or would be if jumps of the clock were obeyed.
    gap_samples : int
        How many of the lost ones lie where the track has no packets at all: paused, or muted.
    clock_jumps : int
        Jumps of the timestamps that nothing confirms, so that the sound was joined there.
    bad_parts : int
        Parts of the file, such as links of a chained Ogg file, that could not be read.
    peak, rms : float
        Of all samples, in [0, 1]; ``peak_db`` and ``rms_db`` are the same in dB, -200 at least.
    is_silent : bool
        Whether the mix is silent: a muted track, or digital silence.
    cancels_out : bool
        Whether it is silent because the channels, which are not, are each other's negatives.

    Raises
    ------
    MediaError
        While iterating: the file cannot be opened or read, has no audio track, or not one packet of it decodes.
    """

    def __init__(
        self, path: StrPath, sample_rate: int, audio_track: int | None = None, compensate_delay: bool = False
    ) -> None:
        self.path = path
        self.sample_rate = sample_rate
        self._settings = audio_track, compensate_delay
        self._reset()

    def _reset(self) -> None:
        self.num_samples = self.lost_samples = self.gap_samples = self.clock_jumps = self.bad_parts = 0
        self.peak = self._energy = 0.0
        self.cancels_out = False
        self._first = 0  # sample of the part that is being decoded

    @property
    def rms(self) -> float:
        """Root of the mean square of all samples."""
        return math.sqrt(self._energy / self.num_samples) if self.num_samples else 0.0

    @property
    def peak_db(self) -> float:
        """The peak in dB relative to full scale, at least -200."""
        return 20 * math.log10(max(self.peak, 1e-10))

    @property
    def rms_db(self) -> float:
        """The root of the mean square in dB relative to full scale, at least -200."""
        return 20 * math.log10(max(self.rms, 1e-10))

    @property
    def is_silent(self) -> bool:
        """Whether the mix is silent."""
        return self.peak < _SILENT_PEAK

    def __iter__(self) -> Iterator[np.ndarray]:
        self._reset()
        parts, failed = links(self.path), 0
        fault: MediaError | None = None
        for number, part in enumerate(parts):
            self._first = self.num_samples
            try:
                yield from self._decode_part(part)
            except ReadError:
                raise
            except MediaError as error:
                fault = fault or error
                failed += 1
                if number:
                    seconds = guessed_seconds(parts, number, self._first / self.sample_rate)
                    yield from self._fill(seconds, lost=True)
        if fault is not None and failed == len(parts):
            raise fault
        self.bad_parts += failed
        self.lost_samples = min(self.lost_samples, self.num_samples)
        if self.peak < _FAINT_PEAK:  # rare: look at its channels
            self.cancels_out = self._loudest_channel(parts[0]) > _CANCELLED * max(self.peak, _SILENT_PEAK)

    def _loudest_channel(self, part: Part | None) -> float:
        """Return the peak of any channel at the beginning of the recording."""
        audio_track, compensate_delay = self._settings
        peak, seconds = 0.0, 0.0
        with open_media(self.path, part) as container:
            stream = choose_track(container, self.path, audio_track, part)
            if stream.codec_context.layout.nb_channels < 2:
                return 0.0
            for frame, *_ in placed(container, stream, time_line(container, stream, self.path, part, compensate_delay)):
                if isinstance(frame, Exception):
                    continue
                samples = frame.to_ndarray()
                scale = 1.0 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
                middle = scale if samples.dtype.kind == "u" else 0.0
                peak = max(peak, float(np.abs(samples - middle).max(initial=0.0)) / scale)
                seconds += frame.samples / frame.sample_rate
                if seconds > _CHANNELS_SECONDS:
                    break
        return peak

    def _decode_part(self, part: Part | None) -> Iterator[np.ndarray]:
        """Yield the blocks of a file, or of a part of one that is a file by itself."""
        audio_track, compensate_delay = self._settings
        with open_media(self.path, part) as container:
            stream = choose_track(container, self.path, audio_track, part)
            line = time_line(container, stream, self.path, part, compensate_delay)
            try:
                yield from self._decode(container, stream, line)
            except FAULTS as error:
                raise MediaError(f"{self.path}: its sound cannot be mixed or resampled ({reason(error)})") from error
        self.clock_jumps += line.overruled
        self.bad_parts += line.is_cut_off
        self.lost_samples += round(line.closed_seconds * self.sample_rate)

    def _decode(
        self, container: av.container.InputContainer, stream: av.AudioStream, line: TimeLine
    ) -> Iterator[np.ndarray]:
        """Yield the blocks of ``stream``."""
        run: _Run | None = None
        fault: Exception | None = None
        padding = 0
        for frame, offset, at_end in placed(container, stream, line):
            padding = at_end
            if isinstance(frame, Exception):
                fault = frame
                continue
            surplus = round(-offset * frame.sample_rate) if offset < 0 else 0
            if surplus >= frame.samples:
                continue
            if run is None or offset or not run.fits(frame):
                if run is not None:
                    yield from self._emit(run.finish())
                # The gap begins where packets did not decode; in the rest of it there are no packets at all.
                yield from self._fill(min(line.lost_until, line.start), lost=True)
                yield from self._fill(
                    line.start,
                    lost=fault is not None or self.num_samples > self._first,
                    is_gap=self.num_samples > self._first,
                )
                run = _Run(frame, self.sample_rate)
            run.write(frame, surplus)
            if run.is_full:
                yield from self._emit(run.read())
        if run is None:
            raise MediaError(f"{self.path}: no sound in it can be decoded" + (f" ({reason(fault)})" if fault else ""))
        yield from self._emit(run.finish(padding))
        yield from self._fill(line.lost_until, lost=True)

    def _fill(self, until_seconds: float, lost: bool, is_gap: bool = False) -> Iterator[np.ndarray]:
        """Yield zeros up to a place on the time line of the part."""
        missing = max(0, self._first + round(until_seconds * self.sample_rate) - self.num_samples)
        if lost:
            self.lost_samples += missing
        if is_gap:
            self.gap_samples += missing
        for start in range(0, missing, BLOCK_SAMPLES):
            yield from self._emit([np.zeros(min(BLOCK_SAMPLES, missing - start), np.float32)])

    def _emit(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the blocks, cut to size, clipped, with zeros in place of NaN and infinity; update the levels."""
        for samples in blocks:
            low, high = samples.min(initial=0), samples.max(initial=0)
            if not (low >= -1 and high <= 1):  # false for NaN
                wrong = ~np.isfinite(samples)
                self.lost_samples += int(np.count_nonzero(wrong))
                samples = np.where(wrong, np.float32(0), samples).clip(-1, 1)
                low, high = samples.min(), samples.max()
            self.peak = max(self.peak, -float(low), float(high))
            self._energy += float(np.dot(samples, samples))
            for start in range(0, len(samples), BLOCK_SAMPLES):
                block = samples[start : start + BLOCK_SAMPLES]
                self.num_samples += len(block)
                yield block


class _Run:
    """Sound of one rate, layout and sample format, without a gap: averaged to mono and resampled by FFmpeg's filters.

    Frames are collected first: a filter graph costs more per call than per sample. The graph has one thread; the one
    inside ``av.AudioResampler`` starts a thread for every core.
    """

    def __init__(self, frame: av.AudioFrame, sample_rate: int) -> None:
        channels = frame.layout.nb_channels
        self._kind = frame.sample_rate, channels, frame.format.name
        self._portion = max(256, _PORTION_VALUES // channels)
        self._fifo = av.AudioFifo()
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        source = {
            "sample_rate": str(frame.sample_rate),
            "sample_fmt": frame.format.name,
            "channel_layout": frame.layout.name,
        }
        chain = [
            self._graph.add("abuffer", time_base=f"1/{frame.sample_rate}", **source),
            self._graph.add("aformat", sample_fmts="fltp"),
            # "<": the gains add up to 1
            self._graph.add("pan", "mono|c0<" + "+".join(f"c{channel}" for channel in range(channels))),
            self._graph.add("aresample", sample_rate=str(sample_rate)),
            self._graph.add("abuffersink"),
        ]
        self._graph.link_nodes(*chain)
        self._graph.configure()
        self._source, self._sink = chain[0], chain[-1]

    def fits(self, frame: av.AudioFrame) -> bool:
        """Return whether ``frame`` can follow what was written."""
        return self._kind == (frame.sample_rate, frame.layout.nb_channels, frame.format.name)

    def write(self, frame: av.AudioFrame, surplus: int) -> None:
        """Add a frame, without its first ``surplus`` samples (only at the start of a run)."""
        frame.pts = None  # the queue would refuse timestamps with any jitter
        self._fifo.write(frame)
        if surplus:
            self._fifo.read(surplus)

    @property
    def is_full(self) -> bool:
        """Whether there is a portion to ``read``, beside the one that ``finish`` may cut."""
        return self._fifo.samples >= 2 * self._portion

    def read(self) -> Iterator[np.ndarray]:
        """Yield the complete portions, resampled."""
        while self.is_full:
            yield from self._filter(self._fifo.read(self._portion))

    def finish(self, padding: int = 0) -> Iterator[np.ndarray]:
        """Yield the rest but for its last ``padding`` samples, and end the run."""
        rest = self._fifo.samples - padding
        if rest > 0:
            yield from self._filter(self._fifo.read(rest))
        yield from self._filter(None)

    def _filter(self, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
        """Put a frame, or None to end, through the graph; yield what comes out, float32 ``(n,)``."""
        self._source.push(frame)
        try:
            while True:
                resampled: Any = self._sink.pull()
                yield resampled.to_ndarray()[0]
                if frame is not None:  # one in, one out; asking again would cost an exception
                    return
        except (av.BlockingIOError, av.EOFError):  # it wants more, or it is done
            return
