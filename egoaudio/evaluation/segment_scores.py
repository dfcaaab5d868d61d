"""The segments that prediction would make of a split, as numbers: F1 of three kinds, beside the prior, with intervals.

In: scores averaged over neighbouring clips, a ``GroundTruth`` and ``SegmentRules``. Out: scores by the names of
``segment_metrics.KINDS``. A class is an action; ``no_action`` has no times. Videos without sound count, their actions
as missed.
"""

import numpy as np

from egoaudio.evaluation import bootstrap, segment_metrics
from egoaudio.evaluation.ground_truth import GroundTruth
from egoaudio.evaluation.results import Score
from egoaudio.evaluation.segment_metrics import Counts
from egoaudio.evaluation.segments import SEGMENT_DTYPE, SegmentRules


def evaluate_segments(
    scores: np.ndarray, truth: GroundTruth, rules: SegmentRules, prior: np.ndarray | None, weights: np.ndarray
) -> tuple[dict[str, Score], dict[str, Counts]]:
    """Return the F1 of a split's segments.

    Parameters
    ----------
    scores : float32 array (n, C)
        Of ``truth.rows``, averaged over neighbouring clips.
    truth : GroundTruth
        With instances.
    rules : SegmentRules
    prior : array (C,), optional
        Class frequencies of the training split: a class that occurs there is claimed from start to end of every video.
    weights : array (V, num_resamples)
        From ``bootstrap.draw_weights``.

    Returns
    -------
    scores : dict of name to Score
    counts : dict of name to Counts
        What each is made of, by video and action.
    """
    assert truth.instances is not None
    lengths = truth.video_seconds.tolist()
    ordered = truth.instances[np.argsort(truth.instances["video"], kind="stable")]
    of_video = _split(ordered, ordered["video"], len(lengths))
    true = [segment_metrics.true_events(*pair) for pair in zip(of_video, lengths, strict=True)]
    annotated = np.flatnonzero(truth.labelled)
    annotated = annotated[np.lexsort((truth.start_seconds[annotated], truth.clip_video[annotated]))]
    clips = _split(annotated, truth.clip_video[annotated], len(lengths))
    found = [
        rules.find_smoothed(scores[rows], truth.start_seconds[rows], truth.stop_seconds[rows]) if len(rows) else _NONE
        for rows in clips
    ]
    found = [segments[segments["class_index"] < truth.num_actions] for segments in found]
    counts = segment_metrics.count_all(true, found, lengths, truth.num_actions)
    guesses = {}
    if prior is not None:
        occurring = np.flatnonzero(prior[: truth.num_actions] > 0)
        guessed = [_whole_video(truth, rows, occurring) for rows in clips]
        guesses = {
            name: segment_metrics.mean_f1(values)
            for name, values in segment_metrics.count_all(true, guessed, lengths, truth.num_actions).items()
        }
    results = {}
    for name, values in counts.items():
        value, ends = segment_metrics.mean_f1(values), (np.nan, np.nan)
        if weights.shape[1]:
            ends = bootstrap.interval(values.resampled(weights), value)
        results[name] = Score(value, *ends, guesses.get(name, np.nan))
    return results, counts


_NONE = np.zeros(0, SEGMENT_DTYPE)


def _split(values: np.ndarray, video: np.ndarray, num_videos: int) -> list[np.ndarray]:
    """Return the values of each video; ``video`` is that of each value, ascending."""
    return np.split(values, np.searchsorted(video, np.arange(1, num_videos)))


def _whole_video(truth: GroundTruth, clips: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return a segment of each class from the first of a video's clips to the last."""
    segments = np.zeros(len(classes) if len(clips) else 0, SEGMENT_DTYPE)
    if len(clips):
        segments["class_index"] = classes
        segments["start_seconds"] = truth.start_seconds[clips[0]]
        segments["stop_seconds"] = truth.stop_seconds[clips[-1]]
    return segments
