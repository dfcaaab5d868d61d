"""Which classes can be heard, and the average precision of scores that are unrelated to the clips. NumPy only.

Most actions of a video make no sound. Random scores have an average precision for them, too, which for classes with few
clips is high by chance; a mean over all classes therefore hides what a model hears. A class counts as audible if it has
enough clips in enough videos and the interval of its average precision is above the prior. In simulations (splits of 30
and 60 videos, 130 silent classes, scores that vary by video) no silent class passed in eight draws; one or two per draw
did where a class in one video was enough, or where the difference to the prior was resampled.

The classes are chosen on the clips on which they are reported, so their mean is biased upwards: a class near the bound
counts if it was lucky. The validation split would be unbiased, but is a quarter of the size, and most classes of 30
videos are in too few of them. Compare two models on the audible classes of one of them, or on all classes.
"""

import math

import numpy as np

from egoaudio.evaluation.metrics import check, ranked

ENOUGH_VIDEOS, ENOUGH_CLIPS = 3, 10
# Videos and clips that a class needs to count in the choice of the best epoch; fewer where too few classes have those.
_REQUIREMENTS = ((ENOUGH_VIDEOS, ENOUGH_CLIPS), (2, 5), (1, 1))
_FEWEST_CLASSES, _PLENTY_OF_CLASSES = 3, 10
_NUM_SHIFTS = 32


def has_enough(
    labels: np.ndarray, video: np.ndarray, num_videos: int = ENOUGH_VIDEOS, num_clips: int = ENOUGH_CLIPS
) -> np.ndarray:
    """Return which classes are active in at least so many videos and clips, bool (num_classes,).

    Parameters
    ----------
    labels : array (num_clips, num_classes)
        0 or 1.
    video : array of int (num_clips,)
        From 0.
    """
    labels = np.asarray(labels) != 0
    order = np.argsort(video, kind="stable")
    starts = np.unique(video[order], return_index=True)[1]
    videos = np.logical_or.reduceat(labels[order], starts).sum(axis=0)
    return (videos >= num_videos) & (labels.sum(axis=0) >= num_clips)


def selection_classes(labels: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Return the classes by which the best epoch is chosen, bool (num_classes,): those whose precision is not chance.

    They are active in at least 3 videos and 10 clips; where that leaves less than half of the active classes (and fewer
    than 10), or fewer than 3, in 2 videos and 5 clips, or in any clip at all. A class that no clip lacks does not
    count, as any scores have a precision of 1 for it. Parameters as in ``has_enough``.

    Simulated scores of two models on real labels: the better one leads by 0.7 to 1.2 standard deviations, by 0.5 to 0.8
    without the half (4 videos, 13 classes that can all be heard, 3 with enough). Among 85 classes of which 11 can be
    heard, the 28 to 38 with enough give 1.9 to 2.1, half of all 1.8 to 2.1, all 1.5 to 1.7: 10 are plenty.
    """
    labels = np.asarray(labels) != 0
    varied = labels.any(axis=0) & ~labels.all(axis=0)
    positives = int(varied.sum())
    wanted = min(positives, max(_FEWEST_CLASSES, min(_PLENTY_OF_CLASSES, math.ceil(positives / 2))))
    for num_videos, num_clips in _REQUIREMENTS:
        enough = varied & has_enough(labels, video, num_videos, num_clips)
        if enough.sum() >= wanted:
            break
    return enough


def audible_classes(low: np.ndarray, labels: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Return which classes can be heard, bool (num_classes,).

    Parameters
    ----------
    low : array (num_classes,)
        The lower end of the interval of each class's average precision.
    labels, video
        As in ``has_enough``.
    """
    with np.errstate(invalid="ignore"):
        return has_enough(labels, video) & (low > np.mean(np.asarray(labels) != 0, axis=0))


def unrelated_precision(scores: np.ndarray, labels: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Return the average precision of each class when the labels are compared with the scores of other clips.

    All scores are shifted by a number of clips, so that none is compared with labels of its own video: scores and
    labels are then unrelated, but each is as correlated in time as before. A model that hears anything must exceed
    these values.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
    labels : array (num_clips, num_classes)
    video : array of int (num_clips,)
        The clips of a video are adjacent.

    Returns
    -------
    float64 array (num_shifts, num_classes)
        NaN for a class without positives; no rows if one video has half of the clips.
    """
    scores, labels = check(scores, labels)
    longest = int(np.bincount(video).max())
    # From the longest video's length on, no video is compared with itself, neither at the end nor at the beginning.
    shifts = np.unique(np.linspace(longest, len(labels) - longest, _NUM_SHIFTS).astype(np.int64))
    if longest > len(labels) - longest:
        return np.empty((0, labels.shape[1]))
    result = np.full((len(shifts), labels.shape[1]), np.nan)
    for column, (order, positive, _, last) in enumerate(ranked(scores, labels)):
        if positive.any():
            rank = np.argsort(order)
            for place, shift in enumerate(shifts):
                # Of the shifted positives.
                ranks = np.sort(rank[(np.flatnonzero(labels[:, column]) - shift) % len(labels)])
                at = last[ranks]
                result[place, column] = np.mean(np.searchsorted(ranks, at, side="right") / (at + 1))
    return result
