"""Scores of a recording's clips -> segments: from when to when each class is heard. NumPy only.

In: scores (n, C) of clips in order of time. Out: rows of ``SEGMENT_DTYPE``. Evaluation judges the segments that
prediction writes. In this order:

- a clip's scores are averaged with those of its neighbours (``smoothing``);
- a clip stands for the sound that is nearer to its centre than to any other clip's: overlapping clips are divided in
  the middle of what they share. Where sound is missing between two clips, a segment ends;
- a segment begins with a clip whose score reaches the class's onset, and ends before the next clip whose score is below
  its offset, which is lower: a score that wavers around one threshold would make many short segments;
- segments of a class with at most ``merge_gap_seconds`` between them become one, then those shorter than
  ``min_seconds`` go.

Source: the onset and offset of pyannote.audio's ``Binarize``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from egoaudio.config.predict import SegmentConfig
from egoaudio.evaluation.calibration import Calibration
from egoaudio.evaluation.smoothing import smooth

SEGMENT_DTYPE = np.dtype(
    [
        ("class_index", "<i4"),
        ("start_seconds", "<f8"),
        ("stop_seconds", "<f8"),
        ("score", "<f4"),
        ("mean_score", "<f4"),
    ]
)
DEFAULT_THRESHOLD = 0.5  # of a model that was not validated
_ROUNDING_SECONDS = 1e-6  # sums of times may differ by less than this


@dataclass(frozen=True, eq=False)
class SegmentRules:
    """How scores become segments."""

    onset: np.ndarray
    """float64 (C,): of the smoothed scores, not calibrated; infinity for a class that is never predicted."""
    offset: np.ndarray
    """float64 (C,), at most the onset."""
    calibration: Calibration
    """From those scores to the probabilities that segments carry."""
    smooth_clips: int = 0
    """Over how many neighbouring clips on each side scores are averaged."""
    min_seconds: float = 0.0
    merge_gap_seconds: float = 0.0

    def find(self, scores: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the segments of a recording, by start, then class.

        Parameters
        ----------
        scores : float32 array (n, C)
            Of each clip alone; NaN for a clip without sound.
        starts, stops : float64 array (n,)
            In seconds, in order of time.

        Returns
        -------
        array of SEGMENT_DTYPE
        """
        usable = ~np.isnan(scores).any(axis=1)
        smoothed = smooth_scores(scores, self.smooth_clips)
        return self.find_smoothed(smoothed[usable], starts[usable], stops[usable])

    def find_smoothed(self, scores: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the segments of scores (n, C) that are averaged over neighbours already, none of them NaN."""
        columns = np.flatnonzero((scores >= self.onset).any(axis=0))
        if not len(columns):
            return np.zeros(0, SEGMENT_DTYPE)
        begins, ends, follows = share_time(starts, stops)
        # All classes as one line of clips, one class after the other: a class begins with a clip that follows none.
        line, follows = np.ascontiguousarray(scores[:, columns].T), np.tile(follows, len(columns))
        first, last = _runs(line, self.onset[columns, None], self.offset[columns, None], follows)
        segments = self._merged(
            first, last, columns, begins, ends, self.calibration.apply(scores)[:, columns].T.ravel()
        )
        return segments[np.lexsort((segments["class_index"], segments["start_seconds"]))]

    def _merged(
        self,
        first: np.ndarray,
        last: np.ndarray,
        columns: np.ndarray,
        begins: np.ndarray,
        ends: np.ndarray,
        values: np.ndarray,
    ) -> np.ndarray:
        """Return the segments from the first and last clip of each in the line, merged, without the short ones."""
        place, first_clip = np.divmod(first, len(begins))
        last_clip = last % len(begins)
        gaps = begins[first_clip[1:]] - ends[last_clip[:-1]]
        apart = (place[1:] != place[:-1]) | (gaps > self.merge_gap_seconds + _ROUNDING_SECONDS)
        heads = np.flatnonzero(np.concatenate(([True], apart)))
        tails = np.concatenate((heads[1:] - 1, [len(last) - 1]))
        ranges = np.stack((first, last + 1), axis=1).ravel()  # reduceat takes every other piece for a gap
        values = np.append(values, 0)
        sums, peaks = (
            function.reduceat(values, ranges, dtype=kind)[::2]
            for function, kind in ((np.add, np.float64), (np.maximum, np.float32))
        )
        segments = np.zeros(len(heads), SEGMENT_DTYPE)
        segments["class_index"] = columns[place[heads]]
        segments["start_seconds"] = begins[first_clip[heads]]
        segments["stop_seconds"] = ends[last_clip[tails]]
        segments["score"] = np.maximum.reduceat(peaks, heads)
        segments["mean_score"] = np.add.reduceat(sums, heads) / np.add.reduceat(last - first + 1, heads)
        lengths = segments["stop_seconds"] - segments["start_seconds"]
        return segments[lengths >= self.min_seconds - _ROUNDING_SECONDS]


def make_rules(
    config: SegmentConfig,
    thresholds: np.ndarray | None,
    num_classes: int,
    smooth_clips: int,
    calibration: Calibration | None = None,
) -> SegmentRules:
    """Return the rules that a configuration asks for.

    Parameters
    ----------
    config : SegmentConfig
        Its ``threshold`` is a probability.
    thresholds : array (C,), optional
        From the validation split, of scores averaged over neighbours.
    num_classes : int
    smooth_clips : int
    calibration : Calibration, optional
        From the validation split; scores are taken for probabilities without.
    """
    calibration = Calibration.none(num_classes) if calibration is None else calibration
    if config.threshold is None and thresholds is not None:
        onset = np.asarray(thresholds, np.float64)
        claimed = np.isfinite(onset)
        probability = calibration.apply(np.where(claimed, onset, 1.0)).astype(np.float64)
    else:
        probability = np.full(num_classes, DEFAULT_THRESHOLD if config.threshold is None else config.threshold)
        onset, claimed = calibration.invert(probability), np.ones(num_classes, bool)
    offset = np.minimum(calibration.invert(config.offset_ratio * probability), onset)
    offset = np.where(claimed, offset, np.inf)
    return SegmentRules(onset, offset, calibration, smooth_clips, config.min_seconds, config.merge_gap_seconds)


def rules_of(contents: Mapping[str, Any], config: SegmentConfig, smooth_clips: int) -> SegmentRules:
    """Return the rules of a configuration for a checkpoint's scores, averaged over ``smooth_clips`` neighbours."""
    thresholds = None if contents["thresholds"] is None else np.array(contents["thresholds"], np.float64)
    num_classes = len(contents["class_ids"])
    return make_rules(config, thresholds, num_classes, smooth_clips, Calibration.from_plain(contents["calibration"]))


def smooth_scores(scores: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Return the scores (n, C) of one recording averaged over neighbouring clips; NaN stays NaN, and does not count."""
    usable = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if len(usable) == len(scores):
        return smooth(scores, usable, np.zeros(len(usable), np.int64), num_neighbours)
    result = np.full(scores.shape, np.nan, np.float32)
    result[usable] = smooth(scores[usable], usable, np.zeros(len(usable), np.int64), num_neighbours)
    return result


def share_time(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return from when to when each clip speaks, and whether it follows the clip before it without a gap."""
    follows = np.r_[False, starts[1:] <= stops[:-1] + _ROUNDING_SECONDS]
    middles = (starts[1:] + stops[:-1]) / 2
    begins, ends = np.array(starts, np.float64), np.array(stops, np.float64)
    begins[1:][follows[1:]] = middles[follows[1:]]
    ends[:-1][follows[1:]] = middles[follows[1:]]
    return begins, ends, follows


def _runs(
    line: np.ndarray, onset: np.ndarray, offset: np.ndarray, follows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last clip of each segment before anything is merged, as places in the line.

    Parameters
    ----------
    line : array (num_columns, n)
    onset, offset : array (num_columns, 1)
    follows : array of bool (num_columns * n,)
    """
    on, starts = (line >= offset).ravel(), (line >= onset).ravel()  # the onset is never below the offset
    before = np.concatenate(([False], on[:-1])) & follows
    stretch = np.cumsum(on & ~before)  # of clips that are not below the offset
    reached = np.flatnonzero(starts)
    first = reached[np.concatenate(([True], np.diff(stretch[reached]) > 0))]
    after = np.concatenate((on[1:] & follows[1:], [False]))
    last = np.flatnonzero(on & ~after)
    return first, last[np.searchsorted(last, first)]
