"""A clip's neighbours in time: which rows of the file are joined with it, and what stands where there is none.

In: an open file, the name of a feature array, K. Out: the window of each row, int64 (b, 2 * K + 1): the rows of the
file that follow each other in time without gap or overlap, the clip's own in the middle, -1 for silence.

Conventions: the rows of a video lie in order of time, ``hop_seconds`` apart, each with the sound of ``row_seconds`` around
its clip. Silence stands before a video's first row, after its last one, and for a row without data. It is what the file's
own parameters make of a clip of zeros. A row that nobody labelled has sound and counts. Where rows overlap (``hop_seconds``
shorter than a row), silence also stands for what a video's first hops hold before the first row that fits.
"""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np

from egoaudio.audio import clips
from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json
from egoaudio.errors import TrainingError


def joined_shape(row_shape, context_clips):
    """Return the shape of a clip joined with its neighbours, ((2 * K + 1) * T, F), from a row's (T, F)."""
    return (int(row_shape[0]) * (2 * context_clips + 1), *(int(size) for size in row_shape[1:]))


def row_seconds(file, feature):
    """Return how much sound a row of an array sees: the build's context if it has one, which a waveform is cut to the clip of."""
    context_seconds = file.config.get("context_seconds")
    return file.clip_seconds if feature == "waveform" or context_seconds is None else context_seconds


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
        What stands for a row that is not there, as the file would store it.

    Raises
    ------
    TrainingError
        When the file's rows cannot be joined: they overlap or leave gaps, or what silence is cannot be told.

    """

    def __init__(self, file, feature, context_clips):
        self._offsets = _rows_apart(file, feature, context_clips) * np.arange(-context_clips, context_clips + 1)
        self.silence = _silent_row(file, feature)
        self._video, self._usable = file.clip_table["video"], file.usable

    def windows(self, rows):
        """Return the window of each row, int64 (b, 2 * K + 1), for rows (b,) that hold data."""
        around = rows[:, None] + self._offsets
        inside = (around >= 0) & (around < len(self._usable))
        around = np.where(inside, around, rows[:, None])
        present = inside & self._usable[around] & (self._video[around] == self._video[rows][:, None])
        return np.where(present, around, -1)


def _rows_apart(file, feature, context_clips):
    """Return how many rows further the sound of a row is continued; 1 where clips follow each other."""
    length, hop = row_seconds(file, feature), file.hop_seconds
    apart = Fraction(str(length)) / Fraction(str(hop))
    if apart.denominator != 1:
        what = "leave gaps" if length < hop else "overlap, none beginning where another ends"
        raise TrainingError(
            f"--context-clips {context_clips}: rows of {feature} in {file.path} hold {length:g} s of sound every {hop:g} s and "
            f"{what}: give --context-clips 0, or build with --hop-seconds {length:g} or a whole fraction of it"
        )
    return int(apart)


def _silent_row(file, feature):
    """Return the row that digital silence makes, float32 (T, F), computed and rounded as the file's own are."""
    array = file[feature]
    config = from_json(BuildConfig, json.dumps(file.config))
    config = replace(config, features=replace(config.features, features=(feature,), dtype="float32"))
    _, num_samples = clips.count_samples(config.clips, file.sample_rate)
    extractor = FeatureExtractor(config.features, file.sample_rate, num_samples)
    silence = extractor(np.zeros((1, num_samples), np.float32))[feature][0]
    if silence.shape != array.shape[1:]:
        # Seen where a waveform is cut to its clip; one value in all frames and bins fits any shape.
        if silence.min() != silence.max():
            raise TrainingError(
                f"{file.path}: rows of {feature} are {array.shape[1:]}, and its configuration makes {silence.shape}, so that "
                "what silence is cannot be told: give --context-clips 0, or build again"
            )
        silence = np.full(array.shape[1:], silence.min())
    return silence.astype(array.dtype).astype(np.float32)
