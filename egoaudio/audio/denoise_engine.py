"""The engine of ``denoise``: spectral gating of rows of sound, in place, in buffers that are reused.

In: rows (rows, samples) of sound with margins as a ``Layout`` says; out: the same rows, gated. A *frame* is 1,024
samples, every 256; a *sub-block* at most 12 frames, a *block* at most 8 sub-blocks. Arrays are (rows, frames, bins).
Source: noisereduce 3.0.3 (https://github.com/timsainb/noisereduce), whose results these equal.

1 s at 16 kHz takes 0.5 ms, with noisereduce 19: frames of padding only are summed in closed form; the mean over time, a
one-pole filter forward and back, is two small matrix products; the mask is smoothed by shifted additions; blocks fit in
the second-level cache; buffers are reused. What each of these gains: ``benchmarks/README.md``.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import as_strided

from egoaudio.errors import ConfigurationError, EgoAudioError

N_FFT = 1024
HOP = 256
OVERLAP = N_FFT // HOP  # frames that contain a sample
NUM_BINS = N_FFT // 2 + 1
SUB_BLOCK_FRAMES = 12
BLOCK_SUB_BLOCKS = 8

MASK_SMOOTH_HZ = 500
MASK_SMOOTH_MS = 50
OVERLAP_GAIN = 1.5  # sum of the squared Hann windows over a sample
CACHE_LINE = 64  # bytes
SAFE_PEAKS = (1e-9, 1e9)  # rows with peaks outside are scaled, so that no float32 product under- or overflows


class Workspace:
    """Named buffers that are reused and grow when needed; their contents are arbitrary."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Return the buffer ``name`` as an array of this shape, aligned to a cache line; valid until the next call."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._buffers or len(self._buffers[name]) < num_bytes:
            self._buffers.pop(name, None)  # first, so that the old one is freed before the new one is made
            fresh = np.empty(num_bytes + CACHE_LINE, np.uint8)
            self._buffers[name] = fresh[-fresh.ctypes.data % CACHE_LINE :]
        return self._buffers[name][:num_bytes].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Layout:
    """The frames of a padded chunk that contain a sample, and their places."""

    num_samples: int
    num_frames: int
    """Frames that contain at least one sample; the others are silent."""
    silent_before: int
    """Frames of the padding before them."""
    silent_after: int
    """Frames of the padding after them."""
    lead: int
    """Samples from the start of the first frame to the first sample."""
    start: int
    stop: int
    """The samples [start, stop) are wanted; the others are their neighbours."""

    @property
    def room(self) -> int:
        """Samples of a row, from the start of the first frame to the end of the last."""
        return HOP * (self.num_frames + OVERLAP - 1)

    @property
    def inside(self) -> slice:
        """Place of the wanted samples in a row."""
        return slice(self.lead + self.start, self.lead + self.stop)


def lay_out(num_samples: int, offset: int, padded: int, start: int = 0, stop: int | None = None) -> Layout:
    """Return the Layout of samples that begin at ``offset`` in a padded chunk of ``padded`` samples.

    scipy.signal.stft, which noisereduce calls, adds another half a frame of zeros on both sides: its frame t contains
    the padded chunk's samples [256 t - 512, 256 t + 512), t up to padded // 256.
    """
    half = N_FFT // 2
    last_frame = padded // HOP
    first = max(0, (offset - half) // HOP + 1)
    last = min(last_frame, -(-(offset + num_samples + half) // HOP) - 1)
    return Layout(
        num_samples=num_samples,
        num_frames=last - first + 1,
        silent_before=first,
        silent_after=last_frame - last,
        lead=offset - (HOP * first - half),
        start=start,
        stop=num_samples if stop is None else stop,
    )


def smoothing_widths(sample_rate: int) -> tuple[int, int]:
    """Return over how many bins and frames on each side the mask is smoothed; ConfigurationError if over none."""
    num_bins = int(MASK_SMOOTH_HZ / (sample_rate / (N_FFT / 2)))
    num_frames = int(MASK_SMOOTH_MS / ((HOP / sample_rate) * 1000))
    if num_bins < 1 or num_frames < 1:
        raise ConfigurationError(
            f"`sample_rate={sample_rate}` cannot be denoised: spectral gating works from 5120 to 256000 Hz; "
            "give such a rate, or `denoise.mode='none'`"
        )
    return num_bins, num_frames


class Gater:
    """Steps and buffers for rows of one layout: spectrum, mask (by mode, in the child), smoothing, back to samples.

    Parameters
    ----------
    layout : Layout
    sample_rate : int
    num_rows : int
        Rows at once, at most.
    workspace : Workspace
        Where the buffers come from; only one gater may use it at a time.
    """

    mask_unit = 1.0
    """Factor by which the values of the mask are to be multiplied."""
    frame_type: type[np.floating[Any]] = np.float32
    thresholds: np.ndarray | None = None
    """What ``learn`` found: amplitudes (count, NUM_BINS) below which there is noise, in the mode that has them."""

    def __init__(self, layout: Layout, sample_rate: int, num_rows: int, workspace: Workspace) -> None:
        self.layout = layout
        self.sample_rate = sample_rate
        self.workspace = workspace
        self.bin_width, self.frame_width = smoothing_widths(sample_rate)
        self.sub_frames = -(-layout.num_frames // -(-layout.num_frames // SUB_BLOCK_FRAMES))
        sub_blocks = -(-layout.num_frames // self.sub_frames)
        most = -(-sub_blocks // -(-sub_blocks // BLOCK_SUB_BLOCKS))
        block = most * self.sub_frames
        self.sub_blocks = [min(most, sub_blocks - first) for first in range(0, sub_blocks, most)]
        """Sub-blocks of each block; the last one may reach beyond the layout's frames."""
        self.starts = range(0, layout.num_frames, block)
        """First frame of each block."""
        self.wide = NUM_BINS + self.bin_width  # a frame of the mask, after zeros that also end the frame before
        tall = max(block + 2 * self.frame_width, most * (self.sub_frames + 2))
        self.store = workspace.array("store", (len(self.starts), num_rows, tall, NUM_BINS))
        """For each block first the input of the mask, then the mask, smoothed over bins, with its neighbours' edges."""
        self.values = workspace.array("values", (num_rows, block, NUM_BINS))
        self.mask = workspace.array("mask", (num_rows * block * self.wide + 2 * self.bin_width,))
        self.mask.fill(0)
        length = num_rows * max(block * self.wide, tall * NUM_BINS) + 2 * self.wide + (self.frame_width + 1) * NUM_BINS
        floats = max(3 * length, num_rows * block * N_FFT * (np.dtype(self.frame_type).itemsize // 4))
        transient = workspace.array("transient", (floats + floats % 2,))
        # Never needed at the same time, so they share memory, and its place in the cache.
        self.windowed = transient.view(self.frame_type)
        self.scratch = transient[: 3 * length].reshape(3, length)
        norm = OVERLAP_GAIN * ((self.bin_width + 1) * (self.frame_width + 1)) ** 2
        self.synthesis = (hann(N_FFT) * (self.mask_unit / norm)).astype(np.float32).reshape(OVERLAP, HOP)

    def gate(self, rows: np.ndarray, noise: np.ndarray | None) -> None:
        """Gate ``rows`` in place, after learning from ``noise``.

        Parameters
        ----------
        rows : float32 (count, layout.room)
            Sound with zeros before and after it; outside the wanted samples, values are arbitrary afterwards.
        noise : float32 (count, n) or None
            What to learn the noise from, in the mode that does; None to keep ``thresholds`` as they are.

        Raises
        ------
        EgoAudioError
            For samples that are NaN or infinite.
        """
        peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        if not np.isfinite(peaks).all():
            raise EgoAudioError("cannot denoise sound that holds NaN or infinity: replace these samples first")
        if noise is not None:
            self.learn(noise)
        if not peaks.any():
            return
        scale = np.ones((len(rows), 1), np.float32)
        scaled = peaks.min() < SAFE_PEAKS[0] or peaks.max() > SAFE_PEAKS[1]
        if scaled:
            scale = np.ldexp(scale, np.clip(-np.frexp(peaks)[1], -120, 120)[:, None])
            rows *= scale
        spectra = self.fill_masks(rows, scale)
        self._share_edges(len(rows))
        hops = rows.reshape(len(rows), -1, HOP)  # the first three, before the wanted samples, keep some of the sound
        for number, spectrum in enumerate(spectra):
            start = HOP * self.starts[number]
            if (
                start < self.layout.inside.stop
                and start + HOP * (spectrum.shape[1] + OVERLAP - 1) > self.layout.inside.start
            ):
                self._add_sound(number, spectrum, hops)
        if scaled:
            rows /= scale

    def learn(self, noise: np.ndarray) -> None:
        """Set ``thresholds`` from ``noise`` (count, n), in the mode that has them."""

    def fill_masks(self, rows: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
        """Put every block's mask, smoothed over bins, into ``smooth(number, count)``; return the blocks' spectra."""
        raise NotImplementedError

    def take_frames(self, rows: np.ndarray, number: int, window: np.ndarray) -> np.ndarray:
        """Return the windowed frames of a block, (count, frames, N_FFT), as many as the layout has there."""
        first = self.starts[number]
        num_frames = min(self.sub_blocks[number] * self.sub_frames, self.layout.num_frames - first)
        windowed = self.windowed[: len(rows) * num_frames * N_FFT].reshape(len(rows), num_frames, N_FFT)
        return np.multiply(overlapping(rows[:, HOP * first :], num_frames, N_FFT, HOP), window, out=windowed)

    def mask_of(self, count: int, num_frames: int) -> np.ndarray:
        """Return the place of a mask (count, num_frames, NUM_BINS) for ``smooth_over_bins``."""
        return self.mask[: count * num_frames * self.wide].reshape(count, num_frames, self.wide)[:, :, self.bin_width :]

    def smooth(self, number: int, count: int) -> np.ndarray:
        """Return the place of a block's smoothed mask: (count, frame_width + frames + frame_width, NUM_BINS)."""
        return self.store[number, :count, : self.sub_blocks[number] * self.sub_frames + 2 * self.frame_width]

    def smooth_over_bins(self, out: np.ndarray) -> None:
        """Smooth the mask over bins into ``out`` (count, num_frames, NUM_BINS)."""
        count, num_frames, _ = out.shape
        size = count * num_frames * self.wide
        sides = _triangle(self.mask, self.scratch, self.bin_width + 1, 1, size)
        left, right = (side[:size].reshape(count, num_frames, self.wide)[:, :, :NUM_BINS] for side in sides)
        np.add(left, right, out=out)

    def mask_outside(self, count: int) -> np.ndarray | int:
        """Return the mask, smoothed over bins, of the silent frames before and after, (count, 1, NUM_BINS) or 0."""
        return 0

    def _share_edges(self, count: int) -> None:
        """Copy into every block's mask the frames of its neighbours that smoothing over time needs."""
        width = self.frame_width
        blocks = [self.smooth(number, count) for number in range(len(self.starts))]
        outside = self.mask_outside(count)
        blocks[0][:, :width] = outside if self.layout.silent_before else 0
        blocks[-1][:, -width:] = outside if self.layout.silent_after else 0
        for block, following in zip(blocks, blocks[1:], strict=False):
            num_frames = min(width, following.shape[1] - 2 * width)
            block[:, -width:] = 0
            block[:, block.shape[1] - width : block.shape[1] - width + num_frames] = following[
                :, width : width + num_frames
            ]
            following[:, :width] = block[:, -2 * width : -width]

    def _add_sound(self, number: int, spectrum: np.ndarray, hops: np.ndarray) -> None:
        """Smooth a block's mask over time, apply it, and add its frames to ``hops`` (count, hops, HOP)."""
        count, num_frames, _ = spectrum.shape
        smooth = self.smooth(number, count)
        tall = smooth.shape[1]
        if count > 1 and not smooth.flags.c_contiguous:
            smooth = np.ascontiguousarray(smooth)
        size = count * tall * NUM_BINS
        sides = _triangle(
            smooth.reshape(-1), self.scratch, self.frame_width + 1, NUM_BINS, size - 2 * self.frame_width * NUM_BINS
        )
        gain = self.values[:count, :num_frames]
        left, right = (side[:size].reshape(count, tall, NUM_BINS)[:, :num_frames] for side in sides)
        np.add(left, right, out=gain)
        np.multiply(spectrum, gain, out=spectrum)
        frames = scipy.fft.irfft(spectrum, n=N_FFT, overwrite_x=True).reshape(count, num_frames, OVERLAP, HOP)
        first = self.starts[number]
        *others, last = range(OVERLAP)
        # Nothing has been added to these hops yet.
        np.multiply(frames[:, :, last], self.synthesis[last], out=hops[:, first + last : first + last + num_frames])
        part = self.windowed.view(np.float32)[: count * num_frames * HOP].reshape(count, num_frames, HOP)
        for hop in others:
            hops[:, first + hop : first + hop + num_frames] += np.multiply(
                frames[:, :, hop], self.synthesis[hop], out=part
            )


@functools.lru_cache(maxsize=8)
def hann(size: int) -> np.ndarray:
    """Return the periodic Hann window, float64 (size,), which must not be changed."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def overlapping(rows: np.ndarray, num_frames: int, size: int, hop: int) -> np.ndarray:
    """Return the first overlapping frames of ``rows`` (count, n) as a view (count, num_frames, size)."""
    row, item = rows.strides
    return as_strided(rows, (len(rows), num_frames, size), (row, hop * item, item), writeable=False)


@functools.lru_cache(maxsize=64)
def _additions(width: int) -> tuple[tuple[int, int, int, int, int], ...]:
    """Return the shifted additions that smooth with a triangle of ``2 * width - 1`` weights 1, 2 ... width ... 2, 1.

    The triangle is two boxes of ``width`` ones; a box of 17 is one of 16 and a shifted source, and a box of 16 is four
    doublings: 10 passes over the array instead of 33. An addition is (target, left, right, shift, extra): target[i] =
    left[i] + right[i + shift], needed for ``extra`` more elements than the result. Register 0 is the source.
    """
    additions = []
    source = 0
    for boxes_after in (1, 0):
        power, size, covered = source, 1, 0
        total: int | None = None
        while True:
            if width & size:
                if total is None:
                    total, covered = power, size
                else:
                    target = min({1, 2, 3} - {power, total})
                    additions.append(
                        (target, total, power, covered, width - covered - size + boxes_after * (width - 1))
                    )
                    total, covered = target, covered + size
            if 2 * size > width:
                break
            target = min({1, 2, 3} - {power, total})
            additions.append((target, power, power, size, width - 2 * size + boxes_after * (width - 1)))
            power, size = target, 2 * size
        assert total is not None  # width has a highest bit
        source = total
    return tuple(additions)


def _triangle(
    source: np.ndarray, scratch: np.ndarray, width: int, step: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth ``source`` (at least size + 2 * (width - 1) * step,), but for the last addition; return its operands."""
    registers = [source, *scratch]
    *additions, (_, left, right, shift, _) = _additions(width)
    for target, first, second, lag, extra in additions:
        length = size + extra * step
        np.add(
            registers[first][:length],
            registers[second][lag * step : lag * step + length],
            out=registers[target][:length],
        )
    return registers[left], registers[right][shift * step :]
