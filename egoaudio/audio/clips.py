"""Which clips a recording yields, which classes are active in each, and the samples of each.

``plan_clips`` places the clips on a recording's samples, ``label_clips`` compares the annotated instances with that
plan, and ``cut`` takes the clips out of a stream of blocks, a few at a time, however long the recording is.

Conventions: ranges are half-open, ``[start, stop)``. A number of seconds ``x`` means the decimal number that Python
shows for it, ``Fraction(str(x))``: 0.1 is a tenth and not 0.1000000000000000055, so nothing drifts and an instance
that ends where a clip starts does not touch it. Comparisons are between whole samples; no rounding decides a label.
A class is active where it overlaps the clip by more than ``min_overlap_seconds`` (FORMAT.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np

from egoaudio.config.build import ClipConfig
from egoaudio.errors import ConfigurationError
from egoaudio.inputs.annotations import Instance

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
    if _exact(hop) * sample_rate < 1:
        raise ConfigurationError(
            f"`hop_seconds={hop:g}` is less than one sample at {sample_rate} Hz: give at least {1 / sample_rate:g}"
        )
    clip_samples = ceil(_exact(config.clip_seconds) * sample_rate)
    context_samples = (
        clip_samples if config.context_seconds is None else ceil(_exact(config.context_seconds) * sample_rate)
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
    clip_samples, context_samples = count_samples(config, sample_rate)
    hop = _exact(config.step_seconds) * sample_rate
    last_full = max(recording_samples - clip_samples, 0)  # a clip that starts here or later reaches the end
    starts = _multiples(hop, floor(last_full / hop) + 3)
    starts = starts[: np.searchsorted(starts, last_full) + 1]
    starts = starts[2 * (recording_samples - starts) >= clip_samples]  # drops the last one, or none
    num_samples = np.minimum(recording_samples - starts, clip_samples).astype(np.int32)
    return ClipPlan(starts, num_samples, clip_samples, context_samples, sample_rate, recording_samples)


def label_clips(
    plan: ClipPlan, instances: Iterable[Instance], num_classes: int, config: ClipConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of each clip.

    A class is active in a clip when one of its instances, cut at the recording's end, overlaps the clip's real samples
    by more than ``min_overlap_seconds``. A reversed instance (it ends before it starts) labels no clip.

    Parameters
    ----------
    plan : ClipPlan
    instances : iterable of Instance
        In any order.
    num_classes : int
        Columns, of which the last one is ``no_action`` unless ``config.no_action`` is ``"none"``.
    config : ClipConfig

    Returns
    -------
    labels : ndarray of uint8, shape (num_clips, num_classes)
        1 where the class is active.
    labelled : ndarray of uint8, shape (num_clips,)
        0 where the annotation says nothing: with ``no_action="interior"``, clips that start at or after the last
        annotated end.
    """
    labels = np.zeros((plan.num_clips, num_classes), np.uint8)
    labelled = np.ones(plan.num_clips, np.uint8)
    stops = plan.starts + plan.num_samples
    least = _exact(config.min_overlap_seconds) * plan.sample_rate
    too_short = plan.num_samples <= floor(least)
    annotated_end = Fraction(0)
    for instance in instances:
        if instance.start_seconds > instance.stop_seconds:
            continue
        start = _exact(instance.start_seconds) * plan.sample_rate
        stop = min(_exact(instance.stop_seconds) * plan.sample_rate, Fraction(plan.recording_samples))
        annotated_end = max(annotated_end, stop)
        if stop - start > least:
            # min(stop, clip's stop) - max(start, clip's start) > least, pair by pair and in whole samples
            first = np.searchsorted(stops, floor(start + least), side="right")
            last = np.searchsorted(plan.starts, ceil(stop - least), side="left")
            labels[first:last, instance.class_index] = 1
    labels[too_short] = 0
    if config.no_action != "none":
        labels[:, -1] = ~labels[:, :-1].any(axis=1)
    if config.no_action == "interior":
        labelled[plan.starts >= ceil(annotated_end)] = 0
        labels[labelled == 0] = 0
    return labels, labelled


def label_video(instances: Iterable[Instance], num_classes: int) -> np.ndarray:
    """Return the classes of a whole video, uint8 (num_classes,): times are ignored, reversed instances count."""
    labels = np.zeros(num_classes, np.uint8)
    labels[[instance.class_index for instance in instances]] = 1
    return labels


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


def _exact(seconds: float) -> Fraction:
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
