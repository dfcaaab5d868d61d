"""Which clips a recording yields, and the samples of each.

``plan_clips`` places the clips on a recording's samples, ``place_clips`` on those of many recordings at once, and
``cut`` takes the clips out of a stream of blocks, a few at a time, however long the recording is.

Conventions: ranges are half-open, ``[start, stop)``. A number of seconds ``x`` means the decimal number that Python
shows for it, ``Fraction(str(x))``: 0.1 is a tenth and not 0.1000000000000000055, so nothing drifts and an instance
that ends where a clip starts does not touch it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor

import numpy as np

from egoaudio.config.build import ClipConfig
from egoaudio.errors import ConfigurationError

MOST_SAMPLES = 2**31 - 1  # the most that /clips can count (i4); far more than memory can hold
_GROUP_SAMPLES = 2**18  # 1 MiB of float32, 16 clips of 1 s at 16 kHz: their spectrogram is 4 MiB and stays in the cache


@dataclass(frozen=True, eq=False)  # comparing arrays gives arrays
class ClipPlan:
    """The clips of one recording, in order of time."""

    starts: np.ndarray
    """int64 (num_clips,): first sample of each clip; never decreasing."""
    num_samples: np.ndarray
    """int32 (num_clips,): real samples of each clip, at most ``clip_samples``."""
    clip_samples: int
    """Samples in a clip."""
    context_samples: int
    """Samples around the clip's centre from which the features are taken; at least ``clip_samples``."""
    sample_rate: int
    """Samples a second."""
    recording_samples: int
    """Samples of the recording; beyond them is silence."""

    def __post_init__(self) -> None:
        """Check that the two arrays match and the context covers the clip."""
        assert self.starts.shape == self.num_samples.shape == (len(self.starts),)
        assert self.starts.dtype == np.int64 and self.num_samples.dtype == np.int32
        assert 0 < self.clip_samples <= self.context_samples

    @property
    def num_clips(self) -> int:
        """Number of clips."""
        return len(self.starts)

    @property
    def start_seconds(self) -> np.ndarray:
        """Where each clip starts, float64 (num_clips,)."""
        return self.starts / self.sample_rate

    @property
    def stop_seconds(self) -> np.ndarray:
        """Where each clip's real samples stop, float64 (num_clips,)."""
        return (self.starts + self.num_samples) / self.sample_rate

    @property
    def margin_samples(self) -> int:
        """Samples of context before the clip in its window."""
        return (self.context_samples - self.clip_samples) // 2


def count_samples(config: ClipConfig, sample_rate: int) -> tuple[int, int]:
    """Return ``(clip_samples, context_samples)``, what every plan of this configuration has.

    A length that is not a whole number of samples (0.1 s at 11,025 Hz) is rounded up, so that consecutive clips leave
    no sample out.

    Raises
    ------
    ConfigurationError
        When the lengths or the hop make no clips at this sample rate.
    """
    hop = config.step_seconds
    if exact(hop) * sample_rate < 1:
        raise ConfigurationError(
            f"`hop_seconds={hop:g}` is less than one sample at {sample_rate} Hz: give at least {1 / sample_rate:g}"
        )
    clip_samples = ceil(exact(config.clip_seconds) * sample_rate)
    context_samples = (
        clip_samples if config.context_seconds is None else ceil(exact(config.context_seconds) * sample_rate)
    )
    if context_samples > MOST_SAMPLES:
        raise ConfigurationError(
            f"`clip_seconds={config.clip_seconds:g}` or `context_seconds` is {context_samples:.3g} samples at "
            f"{sample_rate} Hz: expected at most {MOST_SAMPLES}; did you give milliseconds?"
        )
    return clip_samples, context_samples


def plan_clips(recording_samples: int, config: ClipConfig, sample_rate: int) -> ClipPlan:
    """Place the clips on a recording.

    Clip ``i`` starts at ``round(i * hop_seconds * sample_rate)``. The last clip is the first one that reaches the
    recording's end; if less than half of it has sound, it is dropped.

    Parameters
    ----------
    recording_samples : int
        Samples of the recording at ``sample_rate``; 0 gives no clips.
    config : ClipConfig
        Lengths in seconds.
    sample_rate : int
        Samples a second after resampling.

    Returns
    -------
    ClipPlan

    Raises
    ------
    ConfigurationError
        As ``count_samples``.
    """
    placed = place_clips(np.array([recording_samples]), config, sample_rate)
    _, context_samples = count_samples(config, sample_rate)
    return ClipPlan(
        placed.starts, placed.num_samples, placed.clip_samples, context_samples, sample_rate, recording_samples
    )


@dataclass(frozen=True, eq=False)
class Clips:
    """The clips of many recordings, one after the other."""

    recording_samples: np.ndarray
    """int64 (num_recordings,): samples of each."""
    first: np.ndarray
    """int64 (num_recordings + 1,): the clips of recording ``r`` are ``first[r]`` to ``first[r + 1]``."""
    grid: np.ndarray
    """int64: where the clips of a recording start, as many as the longest has, and more; the same for all."""
    clip_samples: int
    sample_rate: int

    @property
    def num_clips(self) -> int:
        """Number of clips of all recordings."""
        return int(self.first[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """First sample of each clip in its recording, int64 (num_clips,)."""
        return self.grid[np.arange(self.num_clips) - np.repeat(self.first[:-1], np.diff(self.first))]

    @cached_property
    def num_samples(self) -> np.ndarray:
        """Real samples of each clip, int32 (num_clips,)."""
        ends = np.repeat(self.recording_samples, np.diff(self.first))
        return np.minimum(ends - self.starts, self.clip_samples).astype(np.int32)


def place_clips(recording_samples: np.ndarray, config: ClipConfig, sample_rate: int) -> Clips:
    """Place the clips on recordings of so many samples each, as ``plan_clips`` does on one."""
    clip_samples, _ = count_samples(config, sample_rate)
    recording_samples = np.asarray(recording_samples, np.int64)
    hop = exact(config.step_seconds) * sample_rate
    last_full = np.maximum(recording_samples - clip_samples, 0)  # a clip that starts here or later reaches the end
    grid = _multiples(hop, floor(last_full.max(initial=0).item() / hop) + 3)
    last = np.searchsorted(grid, last_full)
    kept = 2 * (recording_samples - grid[last]) >= clip_samples  # else the last one is dropped
    first = np.concatenate([[0], np.cumsum(last + kept)])
    return Clips(recording_samples, first, grid, clip_samples, sample_rate)


def cut(blocks: Iterable[np.ndarray], plan: ClipPlan) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Take the clips, with their context, out of a stream of samples.

    Holds only a group of windows and the blocks that the next one still needs, and reads the stream to its end. Each
    window is zero where the recording has no samples: before its start, beyond ``recording_samples``, and beyond what
    arrived. Exactly ``plan.num_clips`` windows are yielded, in order, even when the stream ends early.

    Parameters
    ----------
    blocks : iterable of float32 ndarrays, each of shape (n,)
        The recording from its first sample on, in pieces of any size. A block must not change after it was yielded.
    plan : ClipPlan

    Yields
    ------
    first_clip : int
        Index of the group's first clip.
    windows : ndarray of float32, shape (k, context_samples)
        Consecutive clips; the caller may overwrite them.
    arrived : ndarray of int32, shape (k,)
        Real samples of each clip: ``plan.num_samples``, or fewer (0: no sound there) if the stream ended early.
    """
    stream = _Stream(blocks, plan.recording_samples)
    group = max(1, _GROUP_SAMPLES // plan.context_samples)
    for first in range(0, plan.num_clips, group):
        starts = plan.starts[first : first + group]
        windows = np.empty((len(starts), plan.context_samples), np.float32)
        for window, start in zip(windows, (starts - plan.margin_samples).tolist(), strict=True):
            stream.read(start, window)
        arrived = np.clip(stream.position - starts, 0, plan.num_samples[first : first + group]).astype(np.int32)
        yield first, windows, arrived
    for _ in stream.blocks:  # the decoder knows its totals (lost samples) only at its end
        pass


def take_clips(windows: np.ndarray, plan: ClipPlan) -> np.ndarray:
    """Return the clips without their context, a view (k, clip_samples) of windows (k, context_samples)."""
    return windows[:, plan.margin_samples : plan.margin_samples + plan.clip_samples]


class _Stream:
    """Reads ranges of samples, with starts that never decrease, out of consecutive blocks."""

    def __init__(self, blocks: Iterable[np.ndarray], num_samples: int) -> None:
        self.blocks = iter(blocks)
        self.num_samples = num_samples  # of the recording; any beyond are not part of it
        self.position = 0  # samples that have arrived
        self._held: list[tuple[int, np.ndarray]] = []  # (first sample, block) of those that may still be needed

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` with the samples from ``start`` on, zero where there are none."""
        stop = min(start + len(out), self.num_samples)
        self._held = [(first, block) for first, block in self._held if first + len(block) > start]
        while self.position < stop:
            block = next(self.blocks, None)
            if block is None:
                break
            if self.position + len(block) > start:
                self._held.append((self.position, block))
            self.position += len(block)
        filled = 0  # samples of out that are final
        for first, block in self._held:
            begin, end = max(first, start), min(first + len(block), stop)
            if begin < end:
                out[filled : begin - start] = 0
                out[begin - start : end - start] = block[begin - first : end - first]
                filled = end - start
        out[filled:] = 0


def exact(seconds: float) -> Fraction:
    """Return the decimal number that a float stands for: 0.1 gives 1/10."""
    return Fraction(str(seconds))


def _multiples(step: Fraction, count: int) -> np.ndarray:
    """Return ``round(i * step)`` for i below ``count``, exactly, as int64 (count,); ties go to the even number."""
    top, bottom = step.numerator, step.denominator
    fits = 2 * count * max(top, bottom) < 2**62
    products = np.arange(count, dtype=np.int64 if fits else object) * top
    whole, rest = products // bottom, products % bottom
    up = (2 * rest > bottom) | ((2 * rest == bottom) & (whole % 2 == 1))
    return (whole + up).astype(np.int64)
