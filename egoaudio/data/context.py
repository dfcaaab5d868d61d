"""A clip's neighbours in time: the rows of the file that are joined with it, and silence where there is none.

In: an open file, the name of a feature array, K. Out: the window of each row, int64 (b, 2 * K + 1): the rows of the
file that follow each other in time without gap or overlap, the clip's own in the middle, -1 for silence.

Conventions: the rows of a video are in order of time, ``hop_seconds`` apart, each with ``row_seconds`` of sound around
its clip. Silence stands before a video's first row, after its last one, and for a row without data; it is what the
file's own parameters make of a clip of zeros. An unlabelled row has sound and is used. Where rows overlap
(``hop_seconds`` shorter than a row), silence also stands for the sound before the first row that fits into the window.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from egoaudio.audio import clips
from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json
from egoaudio.errors import TrainingError
from egoaudio.hdf5.reader import EgoAudioFile


def joined_shape(row_shape: Sequence[int], context_clips: int) -> tuple[int, ...]:
    """Return the shape of a clip joined with its neighbours, ((2 * K + 1) * T, F), from a row's (T, F)."""
    return (int(row_shape[0]) * (2 * context_clips + 1), *(int(size) for size in row_shape[1:]))


def row_seconds(file: EgoAudioFile, feature: str) -> float:
    """Return how many seconds of sound a row holds: the build's context, or the clip's length without one.

    A row of ``waveform`` holds the clip alone.
    """
    context_seconds = file.config.get("context_seconds")
    return file.clip_seconds if feature == "waveform" or context_seconds is None else float(context_seconds)


class Context:
    """The windows of the rows of one feature array.

    Parameters
    ----------
    file : EgoAudioFile
    feature : str
        Name of the array.
    context_clips : int
        K, neighbours on each side; at least 1.

    Attributes
    ----------
    silence : float32 array (T, F)
        Replaces a row that does not exist; the values that the file would store.

    Raises
    ------
    TrainingError
        When the file's rows cannot be joined: they overlap, leave gaps, or the values of silence are not known.

    """

    def __init__(self, file: EgoAudioFile, feature: str, context_clips: int) -> None:
        self._offsets = _rows_apart(file, feature, context_clips) * np.arange(-context_clips, context_clips + 1)
        self.silence = _silent_row(file, feature)
        self._video, self._usable = file.clip_table["video"], file.usable

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """Return the window of each row, int64 (b, 2 * K + 1), for rows (b,) that hold data."""
        around = rows[:, None] + self._offsets
        inside = (around >= 0) & (around < len(self._usable))
        around = np.where(inside, around, rows[:, None])
        present = inside & self._usable[around] & (self._video[around] == self._video[rows][:, None])
        return np.where(present, around, -1)


def hops_in(length_seconds: float, hop_seconds: float) -> int | None:
    """Return how many hops make a length, exactly; None where no whole number does."""
    hops = Fraction(str(length_seconds)) / Fraction(str(hop_seconds))
    return int(hops) if hops.denominator == 1 else None


def silent_row(config: BuildConfig, feature: str, row_shape: Sequence[int], dtype: np.dtype, place: str) -> np.ndarray:
    """Return the row of digital silence, float32 (T, F), computed and rounded as a file's own are.

    Parameters
    ----------
    config : BuildConfig
        The configuration that makes the rows.
    feature : str
    row_shape : sequence of int
        (T, F).
    dtype : numpy.dtype
        In which the rows are stored.
    place : str
        What holds them, for the error.

    Raises
    ------
    TrainingError
        When the configuration makes other rows than these.
    """
    features = replace(config.features, features=(feature,), dtype="float32", waveform_dtype=None)
    config = replace(config, features=features)
    _, num_samples = clips.count_samples(config.clips, config.sample_rate)
    extractor = FeatureExtractor(config.features, config.sample_rate, num_samples)
    silence = extractor(np.zeros((1, num_samples), np.float32))[feature][0]
    if silence.shape != tuple(row_shape):
        # Happens where a waveform is cut to its clip; one value in all frames and bins fits any shape.
        if silence.min() != silence.max():
            raise TrainingError(
                f"{place}: rows of {feature} are {tuple(row_shape)}, but its configuration makes {silence.shape}, "
                "so the values of silence are not known: give `context_clips=0`, or build again"
            )
        silence = np.full(row_shape, silence.min())
    return silence.astype(dtype).astype(np.float32)


def _rows_apart(file: EgoAudioFile, feature: str, context_clips: int) -> int:
    """Return after how many rows the sound of a row continues; 1 where clips follow each other."""
    length, hop = row_seconds(file, feature), file.hop_seconds
    apart = hops_in(length, hop)
    if apart is None:
        what = "leave gaps" if length < hop else "overlap, none beginning where another ends"
        raise TrainingError(
            f"`context_clips={context_clips}`: rows of {feature} in {file.path} hold {length:g} s of sound every "
            f"{hop:g} s and {what}: give `context_clips=0`, or build with `hop_seconds={length:g}` or a whole "
            "fraction of it"
        )
    return apart


def _silent_row(file: EgoAudioFile, feature: str) -> np.ndarray:
    """Return the row that silence is in a file."""
    array = file[feature]
    config = replace(from_json(BuildConfig, json.dumps(file.config)), sample_rate=file.sample_rate)
    return silent_row(config, feature, array.shape[1:], array.dtype, file.path)
