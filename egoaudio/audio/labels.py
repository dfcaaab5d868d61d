"""Which classes are active in each clip, of many recordings at once: annotated instances against placed clips.

In: ``Clips`` and the instances of each recording. Out: multi-hot labels.

Conventions: comparisons are exact and between whole samples, and no rounding decides a label (``clips``). Times with
up to six decimals are whole microseconds, which fit in 64 bits; of any other, Python's fractions are used. A class is
active where it overlaps the clip by more than ``min_overlap_seconds`` (FORMAT.md).
"""

from fractions import Fraction
from math import ceil, floor

import numpy as np

from egoaudio.audio.clips import Clips, exact
from egoaudio.config.build import ClipConfig

_MICRO = 10**6
_LARGEST_SECONDS = 1.1e7  # a little more than an annotation may say
_MOST = 2**62


def label_clips(
    clips: Clips, instances: np.ndarray, bounds: np.ndarray, num_classes: int, config: ClipConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of each clip.

    A class is active in a clip when one of its instances, cut at the recording's end, overlaps the clip's real samples
    by more than ``min_overlap_seconds``. A reversed instance (it ends before it starts) labels no clip.

    Parameters
    ----------
    clips : Clips
        Of the recordings.
    instances : structured ndarray, ``videos.INSTANCE_COLUMNS``
        Of the first recording, then of the second, ...; within one in any order.
    bounds : ndarray of int64, shape (num_recordings + 1,)
        The instances of recording ``r`` are the rows ``bounds[r]`` to ``bounds[r + 1]``.
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
    recording = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    kept = instances["start_seconds"] <= instances["stop_seconds"]
    instances, recording = instances[kept], recording[kept]
    starts, stops, rate = instances["start_seconds"], instances["stop_seconds"], clips.sample_rate
    least_seconds = exact(config.min_overlap_seconds)
    ends = clips.recording_samples[recording]
    # min(stop, clip's stop) - max(start, clip's start) > least, pair by pair and in whole samples
    last_stop = _whole_samples(starts, least_seconds, rate, up=False)  # clips that stop here or before are too early
    cut = np.minimum(
        _whole_samples(stops, -least_seconds, rate, up=True), ends - floor(least_seconds * rate)
    )  # clips that start here or later are too late
    long_enough = _differ_by_more(starts, stops, least_seconds) & (last_stop < ends)
    first = np.searchsorted(clips.grid, last_stop - clips.clip_samples, side="right")
    last = np.searchsorted(clips.grid, cut, side="left")
    counts = np.diff(clips.first)[recording]
    labels = np.zeros((clips.num_clips, num_classes), np.uint8)
    offsets = clips.first[recording]
    rows = zip(
        (offsets + np.minimum(first, counts))[long_enough].tolist(),
        (offsets + np.minimum(last, counts))[long_enough].tolist(),
        instances["class_index"][long_enough].tolist(),
        strict=True,
    )
    for begin, stop, class_index in rows:
        labels[begin:stop, class_index] = 1
    labels[clips.num_samples <= floor(least_seconds * rate)] = 0
    labelled = np.ones(clips.num_clips, np.uint8)
    if config.no_action != "none":
        labels[:, -1] = ~labels[:, :-1].any(axis=1)
    if config.no_action == "interior":
        annotated_end = np.zeros(len(bounds) - 1, np.int64)
        np.maximum.at(annotated_end, recording, np.minimum(_whole_samples(stops, Fraction(0), rate, up=True), ends))
        labelled[clips.starts >= np.repeat(annotated_end, np.diff(clips.first))] = 0
        labels[labelled == 0] = 0
    return labels, labelled


def label_videos(instances: np.ndarray, bounds: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the classes of whole videos, uint8 (num_videos, num_classes): times are ignored, reversed ones count."""
    labels = np.zeros((len(bounds) - 1, num_classes), np.uint8)
    labels[np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)), instances["class_index"]] = 1
    return labels


def _whole_samples(seconds: np.ndarray, plus: Fraction, sample_rate: int, up: bool) -> np.ndarray:
    """Return ``(seconds + plus) * sample_rate`` rounded down, or up, exactly, int64."""
    rounded = ceil if up else floor
    micros, plain = _micros(seconds)
    more, below = (plus * _MICRO).numerator, (plus * _MICRO).denominator
    if (_LARGEST_SECONDS * _MICRO * below + abs(more)) * sample_rate > _MOST:
        plain, more, below = np.zeros(len(seconds), bool), 0, 1
    samples = (micros * below + more) * sample_rate
    samples = -(-samples // (below * _MICRO)) if up else samples // (below * _MICRO)
    for number in np.flatnonzero(~plain).tolist():
        value = rounded((exact(seconds[number].item()) + plus) * sample_rate)
        samples[number] = min(max(value, -_MOST), _MOST)
    return samples


def _differ_by_more(starts: np.ndarray, stops: np.ndarray, least_seconds: Fraction) -> np.ndarray:
    """Return whether each ``stop - start > least_seconds``, exactly."""
    (start, plain), (stop, also) = _micros(starts), _micros(stops)
    more = stop - start > floor(least_seconds * _MICRO)
    for number in np.flatnonzero(~(plain & also)).tolist():
        more[number] = exact(stops[number].item()) - exact(starts[number].item()) > least_seconds
    return more


def _micros(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return times in whole microseconds, int64, and where that is exact.

    A number of 15 digits or fewer is the only one of so few that its float can stand for, so it is what ``str`` shows.
    """
    near = np.abs(seconds) < _LARGEST_SECONDS
    micros = np.rint(np.where(near, seconds, 0) * _MICRO).astype(np.int64)
    return micros, near & (micros / _MICRO == seconds)
