"""Which classes can be heard, and what scores reach that say nothing about the clips. Numpy only.

Most actions of a video make no sound. Random scores, too, have an average precision for them, and for classes of few
clips one that is high by luck; so a mean over all classes hides what a model hears. A class counts as audible when it
has enough clips in enough videos, and the interval of its average precision lies above the prior's. In simulations (splits
of 30 and 60 videos, 130 silent classes, scores that vary by video) none passed in eight draws; one or two a draw did
where a class in one video was enough, or where the difference to the prior was resampled.

The classes are chosen by the clips that they are reported on. So their mean is flattered: a class near the bar counts
where it was lucky. The validation split would be the honest place, but is a fourth of the size, and most classes of 30
videos are in too few of them. Two models are compared on the classes of one of them, or on all.
"""

import numpy as np

from egoaudio.evaluation.metrics import check, ranked

ENOUGH_VIDEOS, ENOUGH_CLIPS = 3, 10
# Asked of a class that takes part in the choice of the best epoch: videos and clips, less where few classes have that.
_RUNGS = ((ENOUGH_VIDEOS, ENOUGH_CLIPS), (2, 5), (1, 1))
_FEWEST_CLASSES = 3
_NUM_SHIFTS = 32


def has_enough(
    labels: np.ndarray, video: np.ndarray, num_videos: int = ENOUGH_VIDEOS, num_clips: int = ENOUGH_CLIPS
) -> np.ndarray:
    """Return which classes are on in at least so many videos and clips, bool (num_classes,).

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
    """Return the classes by which the best epoch is chosen, bool (num_classes,): those whose precision is not mere luck.

    They are on in at least 3 videos and 10 clips; where that leaves fewer than 3 classes, in 2 videos and 5 clips, or
    in any clip at all. Parameters as in ``has_enough``.
    """
    positives = np.asarray(labels).any(axis=0)
    for num_videos, num_clips in _RUNGS:
        enough = has_enough(labels, video, num_videos, num_clips)
        if enough.sum() >= min(_FEWEST_CLASSES, positives.sum()):
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
    """Return the average precision of each class when the scores of other clips are held against the labels.

    All scores are moved on by a number of clips, so that none meets its own video: a clip's scores then say nothing
    about the labels they meet, but hang together in time as before, and so do the labels. What scores reach like
    this, real ones have to exceed.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
    labels : array (num_clips, num_classes)
    video : array of int (num_clips,)
        The clips of a video stand beside each other.

    Returns
    -------
    float64 array (num_shifts, num_classes)
        NaN for a class without positives; no row where one video is half of the clips.
    """
    scores, labels = check(scores, labels)
    longest = int(np.bincount(video).max())
    # From the longest video's length on, none meets itself, neither at the end nor at the beginning.
    shifts = np.unique(np.linspace(longest, len(labels) - longest, _NUM_SHIFTS).astype(np.int64))
    if longest > len(labels) - longest:
        return np.empty((0, labels.shape[1]))
    result = np.full((len(shifts), labels.shape[1]), np.nan)
    for column, (order, positive, _, last) in enumerate(ranked(scores, labels)):
        if positive.any():
            rank = np.argsort(order)
            for place, shift in enumerate(shifts):
                ranks = np.sort(
                    rank[(np.flatnonzero(labels[:, column]) - shift) % len(labels)]
                )  # of the moved positives
                at = last[ranks]
                result[place, column] = np.mean(np.searchsorted(ranks, at, side="right") / (at + 1))
    return result
