"""Scores averaged over neighbouring clips. NumPy only.

In: scores (num_clips, num_classes) of clips, their rows in the file and their videos. Out: for each clip the mean over
itself and up to K clips before and after it in the same video. Sounds last longer than a clip, and the errors of
neighbouring clips differ, so the mean ranks better than each clip alone.

Neighbours are adjacent rows of the file, which stores a video's clips in order of time. A neighbour without a score (it
has no sound, or belongs to another split) is left out of the mean, as are positions before the video's first clip and
after its last.
"""

from collections.abc import Sequence

import numpy as np

from egoaudio.evaluation import metrics
from egoaudio.evaluation.ground_truth import GroundTruth

CANDIDATES = (0, 1, 2, 3)  # neighbours on each side to choose from, on the validation split


def smooth(scores: np.ndarray, rows: np.ndarray, video: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Return the scores averaged over each clip and its neighbours.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
    rows : array of int (num_clips,)
        Rows of the file, each once, in any order.
    video : array of int (num_clips,)
        Any number that identifies the clip's video.
    num_neighbours : int
        K, on each side; 0 returns ``scores`` itself.

    Returns
    -------
    float32 array (num_clips, num_classes)

    Examples
    --------
    >>> scores = np.array([[0.0], [0.5], [1.0], [9.0]], np.float32)
    >>> smooth(scores, rows=np.arange(4), video=np.array([0, 0, 0, 1]), num_neighbours=1)[:, 0].tolist()
    [0.25, 0.5, 0.75, 9.0]
    """
    if num_neighbours == 0:
        return scores
    order = np.argsort(rows, kind="stable")
    rows, video, values = rows[order], video[order], scores[order]
    total, count = values.astype(np.float32, copy=True), np.ones(len(rows), np.float32)
    for distance in range(1, min(num_neighbours, _longest(rows, video)) + 1):
        after = np.minimum(np.searchsorted(rows, rows + distance), len(rows) - 1)  # the place of that neighbour
        there = np.flatnonzero((rows[after] == rows + distance) & (video[after] == video))
        after = after[there]
        total[there] += values[after]  # no clip twice in either, as rows are distinct
        total[after] += values[there]
        count[there] += 1
        count[after] += 1
    result = np.empty_like(total)
    result[order] = total / count[:, None]
    return result


def _longest(rows: np.ndarray, video: np.ndarray) -> int:
    """Return the largest distance between two rows, ascending, of one video."""
    _, first, inverse = np.unique(video, return_index=True, return_inverse=True)
    return int((rows - rows[first[inverse]]).max(initial=0))


def choose_neighbours(
    scores: np.ndarray, truth: GroundTruth, classes: np.ndarray, candidates: Sequence[int] = CANDIDATES
) -> int:
    """Return the number of neighbours with the best mean average precision on these clips; the smallest of equals.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
        Of ``truth.rows``, the validation split's.
    truth : GroundTruth
    classes : array of bool (num_classes,)
        The classes to average over.
    candidates : sequence of int
        Ascending.
    """
    labels = truth.labels[truth.labelled][:, classes]
    best, chosen = -np.inf, candidates[0]
    for num_neighbours in candidates:
        smoothed = smooth(scores[:, classes], truth.rows, truth.clip_video, num_neighbours)
        found = metrics.mean_average_precision(smoothed[truth.labelled], labels)
        if found > best:
            best, chosen = found, num_neighbours
    return chosen
