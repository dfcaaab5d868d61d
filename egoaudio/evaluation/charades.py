"""The official Charades protocol: the scores of videos and of frames, and their average precision. NumPy only.

In: the scores of clips, (num_clips, num_actions); actions are the classes of the annotation (157; never no_action).
Classification: a video's scores are its clips', pooled; its labels are all its annotated actions, whatever their times.
Localization: 25 frames per video, at j/25 of its length for j = 0..24; an action is active in a frame if start <= time
<= end, both inclusive (a reversed instance is never active). A frame's scores are those of the clips that contain it.

Both follow ``Charades_v1_classify.m`` and ``Charades_v1_localize.m`` (Sigurdsson et al., vuchallenge.org): rows rank by
descending score, equal scores in the order of the annotation file; the average precision of an action is the mean of
the precision at each of its rows. A video or frame without scores ranks last, and its actions count as missed; in
classification so does a video without actions (the script drops its id). Two things differ: the scripts return NaN if
any action never occurs, while here, as in all our means, such actions are left out; and the scripts take a video's
length from the CSV, while ours is that of the sound, so that frames and clips agree.
"""

import numpy as np

from egoaudio.config.train import POOLS
from egoaudio.errors import EvaluationError
from egoaudio.evaluation.metrics import check, mean_over_classes, ranked

FRAMES_PER_VIDEO = 25


# ------------------------------------------------------------------------------------------- average precision


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the official average precision of each action.

    Parameters
    ----------
    scores : array (num_rows, num_actions)
        Of videos or frames in the order of the annotation file; minus infinity in a row without scores.
    labels : array (num_rows, num_actions)

    Returns
    -------
    array (num_actions,) of float64
        NaN for an action without rows.
    """
    scores, labels = check(scores, labels)
    result = np.full(scores.shape[1], np.nan)
    for column, (_, positive, _, _) in enumerate(ranked(scores, labels)):
        if positive.any():
            result[column] = np.mean(np.cumsum(positive)[positive] / (np.flatnonzero(positive) + 1))
    return result


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the official average precision averaged over the actions that occur."""
    return mean_over_classes(average_precision(scores, labels))


def chance_average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the official average precision of each action, averaged over every order of rows with equal scores.

    For the prior, whose scores are the same in every row: the script itself would rank them by the order of the
    annotation file, which is arbitrary. (On the Charades-Ego test videos: 7.1 %.)
    """
    scores, labels = check(scores, labels)
    result = np.full(scores.shape[1], np.nan)
    for column, (_, positive, first, last) in enumerate(ranked(scores, labels)):
        if positive.any():
            found = np.r_[0, np.cumsum(positive)]
            before, size = found[first], last - first + 1
            among = found[last + 1] - before  # positives of the tie
            place = np.arange(len(positive)) - first
            # The rank is positive with probability among / size; the tie's other positives are then spread evenly.
            expected = before + 1 + (among - 1) * place / np.maximum(size - 1, 1)
            result[column] = np.sum(among / size * expected / (np.arange(len(positive)) + 1)) / positive.sum()
    return result


# ------------------------------------------------------------------------------------------------ videos, frames


def pool_videos(scores: np.ndarray, clip_video: np.ndarray, num_videos: int, pool: str) -> np.ndarray:
    """Return the scores of videos from those of their clips.

    Parameters
    ----------
    scores : array (num_clips, num_actions)
    clip_video : array (num_clips,) of int
        The video of each clip, 0 to ``num_videos`` - 1; in any order.
    pool : str
        ``max`` or ``mean``.

    Returns
    -------
    array (num_videos, num_actions) of float32
        Minus infinity for a video without clips. Float32, so that nine digits in a submission lose nothing.

    Examples
    --------
    >>> scores = np.array([[0.25, 0.5], [0.75, 0.0], [0.5, 0.5]])
    >>> pool_videos(scores, np.array([0, 0, 2]), 3, "max").tolist()
    [[0.75, 0.5], [-inf, -inf], [0.5, 0.5]]
    """
    order = np.argsort(clip_video, kind="stable")
    present, starts = np.unique(clip_video[order], return_index=True)
    result = np.full((num_videos, scores.shape[1]), -np.inf, np.float32)
    if pool not in POOLS:
        raise EvaluationError(f"`pool={pool!r}`: expected {' or '.join(POOLS)}")
    if pool == "max":
        result[present] = np.maximum.reduceat(scores[order], starts)
    else:
        result[present] = (
            np.add.reduceat(scores[order], starts, dtype=np.float64) / np.diff(np.r_[starts, len(order)])[:, None]
        )
    return result


def drop_empty_videos(video_scores: np.ndarray, video_labels: np.ndarray) -> np.ndarray:
    """Return the scores with minus infinity for videos without actions, which the script ranks last."""
    return np.where(video_labels.any(axis=1, keepdims=True), video_scores, -np.inf).astype(np.float32)


def frame_seconds(video_seconds: np.ndarray) -> np.ndarray:
    """Return the times of the official frames, float64 (num_videos, 25), of videos of these lengths."""
    return np.arange(FRAMES_PER_VIDEO) / FRAMES_PER_VIDEO * np.asarray(video_seconds, np.float64)[:, None]


def frame_labels(video_seconds: np.ndarray, instances: np.ndarray, num_actions: int) -> np.ndarray:
    """Return which actions are active in the official frames.

    Parameters
    ----------
    video_seconds : array (num_videos,)
        Length of each video.
    instances : structured array
        ``video`` (an index into ``video_seconds``), ``class_index``, ``start_seconds``, ``stop_seconds``, as annotated.

    Returns
    -------
    array (num_videos * 25, num_actions) of bool
        The 25 frames of the first video, then those of the next.
    """
    times = frame_seconds(video_seconds)
    active = np.zeros((*times.shape, num_actions), bool)
    at = times[instances["video"]]  # (num_instances, 25)
    which, frame = np.nonzero((instances["start_seconds"][:, None] <= at) & (at <= instances["stop_seconds"][:, None]))
    active[instances["video"][which], frame, instances["class_index"][which]] = True
    return active.reshape(-1, num_actions)


def frame_scores(
    scores: np.ndarray,
    clip_video: np.ndarray,
    clip_start_seconds: np.ndarray,
    clip_stop_seconds: np.ndarray,
    video_seconds: np.ndarray,
    pool: str,
) -> np.ndarray:
    """Return the scores of the official frames: those of the clips that contain them, else of the nearest clip.

    Parameters
    ----------
    scores : array (num_clips, num_actions)
    clip_video, clip_start_seconds, clip_stop_seconds : array (num_clips,)
        As in ``pool_videos``; a clip is ``[start, stop)``.
    pool : str
        ``max`` or ``mean``, over the clips that contain a frame.

    Returns
    -------
    array (num_videos * 25, num_actions) of float32
        In the order of ``frame_labels``; minus infinity for a video without clips.
    """
    times = frame_seconds(video_seconds)
    order = np.argsort(clip_video, kind="stable")
    bounds = np.searchsorted(clip_video[order], np.arange(len(times) + 1))
    clips, frames = [], []
    for video in range(len(times)):
        rows = order[bounds[video] : bounds[video + 1]]
        if not len(rows):
            continue
        time = times[video][:, None]
        start, stop = clip_start_seconds[rows], clip_stop_seconds[rows]
        inside = (start <= time) & (time < stop)  # (25, clips)
        distance = np.maximum(start - time, time - stop)
        nearest = np.arange(len(rows)) == distance.argmin(axis=1)[:, None]
        frame, clip = np.nonzero(np.where(inside.any(axis=1, keepdims=True), inside, nearest))
        frames.append(video * FRAMES_PER_VIDEO + frame)
        clips.append(rows[clip])
    if not clips:
        return np.full((times.size, scores.shape[1]), -np.inf, np.float32)
    return pool_videos(scores[np.concatenate(clips)], np.concatenate(frames), times.size, pool)
