"""Recordings as time lines: where each class is predicted and annotated, and the scores behind it.

In: a file of scores, and an egoaudio file that may have the same recordings annotated. Out: ``Timeline``s. The page
finds segments by the rules of ``evaluation.segments``, on the same scores, so that those it shows at first are those of
segments.csv.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from egoaudio.errors import Status, StoreError
from egoaudio.evaluation.calibration import EDGE, Calibration
from egoaudio.evaluation.segments import SegmentRules, share_time, smooth_scores
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.prediction.output import harmless_path
from egoaudio.reporting import names
from egoaudio.system.terminal import harmless

_MOST_TRACKS = 40
_WORTH_SHOWING = 0.1  # a probability
_SAME_SECONDS = 1e-7
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, *(60 * step for step in (1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 1440)))
_MOST_STEPS = 6  # of an axis


@dataclass(frozen=True)
class Segment:
    """From when to when a class is heard."""

    start_seconds: float
    stop_seconds: float
    score: float
    """Its peak, a probability."""


@dataclass(frozen=True)
class Track:
    """A class in a recording."""

    column: int
    title: str
    segments: tuple[Segment, ...]
    truth: tuple[tuple[float, float], ...]
    """From when to when it is annotated, in seconds."""


@dataclass(frozen=True)
class Timeline:
    """A recording that was scored."""

    video: int
    """Row of ``/videos`` of the file of scores."""
    name: str
    duration_seconds: float
    tracks: tuple[Track, ...]
    """In the order in which they are heard first; then the others, the likeliest first."""
    num_left_out: int
    """Classes without a track, as their scores are low throughout."""
    is_annotated: bool
    best_seconds: float
    """Where a class is likeliest."""
    data: Mapping[str, Any]
    """For the page's script: the file, the clips' times, and the scores of the tracks."""

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round times on the axis: where, in per cent of the length, and what stands there."""
        length = self.duration_seconds
        step = next((step for step in _STEPS if length / step <= _MOST_STEPS), length)
        times = [step * number for number in range(int(length / step + 1e-9) + 1)]
        return [(round(100 * time / length, 3), _clock(time, length)) for time in times]

    @property
    def num_segments(self) -> int:
        """How many segments there are in its tracks."""
        return sum(len(track.segments) for track in self.tracks)


def read_rules(scores: ScoresFile) -> SegmentRules:
    """Return the rules by which segments.csv was made of a file of scores.

    Raises
    ------
    StoreError
        They are none: the file is damaged.
    """
    table = scores.class_table
    lengths = [scores.config.get(name, 0) for name in ("min_seconds", "merge_gap_seconds")]
    numbers = all(isinstance(value, (int, float)) and np.isfinite(value) for value in lengths)
    lines = np.isfinite(table["slope"]) & (table["slope"] > 0) & np.isfinite(table["intercept"])
    if not numbers or not lines.all() or not (table["offset"] <= table["onset"]).all():
        raise StoreError(
            f"{scores.path}: its thresholds, calibration or options are none; the file is damaged or not ours"
        )
    changes = (table["slope"] != 1).any() or (table["intercept"] != 0).any()
    calibration = Calibration(table["slope"], table["intercept"], "platt" if changes else "none")
    return SegmentRules(
        table["onset"],
        table["offset"],
        calibration,
        scores.smooth_clips,
        float(lengths[0]),
        float(lengths[1]),
    )


def describe_rules(scores: ScoresFile) -> dict[str, Any]:
    """Return what the page's script needs of the rules and the classes."""
    rules, table = read_rules(scores), scores.class_table
    ratio = scores.config.get("offset_ratio", 1)
    return {
        "edge": EDGE,
        "offset_ratio": float(ratio) if isinstance(ratio, (int, float)) and 0 <= ratio <= 1 else 1.0,
        "min_seconds": rules.min_seconds,
        "merge_gap_seconds": rules.merge_gap_seconds,
        "calibrated": rules.calibration.method != "none",
        "checkpoint": harmless_path(scores.checkpoint),
        "classes": [
            {
                "id": harmless(row["class_id"].decode("utf-8", errors="replace")),
                "name": harmless(row["name"].decode("utf-8", errors="replace")),
                # JSON has no infinity: null is the onset of a class that is never claimed.
                "onset": float(row["onset"]) if np.isfinite(row["onset"]) else None,
                "offset": float(row["offset"]) if np.isfinite(row["offset"]) else None,
                "slope": float(row["slope"]),
                "intercept": float(row["intercept"]),
            }
            for row in table
        ],
    }


class TimelineMaker:
    """Makes the time lines of a file of scores.

    Parameters
    ----------
    scores : ScoresFile
    file : EgoAudioFile or None
        Where the same recordings may be annotated.
    """

    def __init__(self, scores: ScoresFile, file: EgoAudioFile | None) -> None:
        self._scores, self._file, self._rules = scores, file, read_rules(scores)
        self._titles = names.class_names(scores.class_table)
        self._names = names.column(scores.video_table, "video_id")
        self._same: dict[int, int] = {}  # rows of /videos of the file, by those of the scores
        if file is not None:
            self._same = _same_recordings(scores, file)
            ours = {raw: column for column, raw in enumerate(scores.class_table["class_id"].tolist())}
            self._columns = np.array([ours.get(raw, -1) for raw in file.class_table["class_id"].tolist()], np.int64)
            order = np.argsort(file.instances["video"], kind="stable")
            self._instances = file.instances[order]

    def make(self, video: int) -> Timeline | None:
        """Return the time line of a recording; None where it has no scores.

        Raises
        ------
        StoreError
            Its times or scores are none: the file is damaged.
        """
        rows = self._scores.rows_of(video)
        clips, scores = self._scores.clip_table[rows], np.array(self._scores.scores[rows])
        usable = ~np.isnan(scores).any(axis=1)
        if not usable.any():
            return None
        starts, stops = clips["start_seconds"], clips["stop_seconds"]
        row = self._scores.video_table[video]
        _require_times(self._scores.path, self._names[video], starts, stops, float(row["duration_seconds"]))
        if not ((scores[usable] >= 0) & (scores[usable] <= 1)).all():
            raise StoreError(
                f"{self._scores.path}: scores of {self._names[video]} are not within 0 and 1; the file is damaged or "
                "not ours"
            )
        smoothed = smooth_scores(scores, self._rules.smooth_clips)[usable]
        found = self._rules.find_smoothed(smoothed, starts[usable], stops[usable])
        begins, ends, follows = share_time(starts[usable], stops[usable])
        truth = self._truth(video)
        probabilities = self._rules.calibration.apply(smoothed)
        peaks = probabilities.max(axis=0)
        heard: dict[int, float] = {}  # from when on, by class
        for one in found:
            heard.setdefault(int(one["class_index"]), float(one["start_seconds"]))
        worth = [
            k
            for k in np.argsort(-peaks, kind="stable").tolist()
            if k in heard or k in truth or peaks[k] >= _WORTH_SHOWING
        ]
        shown = sorted(worth, key=lambda k: k not in heard)[:_MOST_TRACKS]  # those with segments before all others
        shown.sort(key=lambda k: heard.get(k, np.inf))
        tracks = tuple(
            Track(
                k,
                self._titles[k],
                tuple(
                    Segment(float(one["start_seconds"]), float(one["stop_seconds"]), float(one["score"]))
                    for one in found[found["class_index"] == k]
                ),
                tuple(truth.get(k, ())),
            )
            for k in shown
        )
        duration = max(float(row["duration_seconds"]), float(stops.max()), _SAME_SECONDS)
        data = {
            "file": harmless_path(row["file"].decode("utf-8", errors="replace")),
            "duration": duration,
            "times": _times(begins, ends, follows),
            "columns": shown,
            "scores": encode(smoothed[:, shown].T.astype("<f4")),
        }
        best = float(begins[probabilities.max(axis=1).argmax()])
        left_out = len(self._titles) - len(shown)
        return Timeline(video, self._names[video], duration, tracks, left_out, video in self._same, best, data)

    def _truth(self, video: int) -> dict[int, list[tuple[float, float]]]:
        """Return where each class is annotated in a recording, ``{column: [(start, stop), ...]}``."""
        truth: dict[int, list[tuple[float, float]]] = {}
        if video in self._same:
            first, last = np.searchsorted(self._instances["video"], [self._same[video], self._same[video] + 1])
            for one in self._instances[first:last]:
                inside = 0 <= one["class_index"] < len(self._columns)
                column = int(self._columns[one["class_index"]]) if inside else -1
                if column >= 0 and one["stop_seconds"] > one["start_seconds"]:
                    truth.setdefault(column, []).append((float(one["start_seconds"]), float(one["stop_seconds"])))
        return truth


def _require_times(path: str, name: str, starts: np.ndarray, stops: np.ndarray, duration: float) -> None:
    """Refuse times of clips that are no numbers, or not in order."""
    ends = np.r_[starts, stops, duration]
    if not np.isfinite(ends).all() or ends.min() < 0 or not (np.diff(starts) >= 0).all() or not (stops > starts).all():
        raise StoreError(f"{path}: the times of {name} are not in order; the file is damaged or not ours")


def _same_recordings(scores: ScoresFile, file: EgoAudioFile) -> dict[int, int]:
    """Return which videos of a file the scored recordings are: by their fingerprints, else by their ids."""
    prints = {raw.tobytes(): number for number, raw in enumerate(file.fingerprints) if raw.any()}
    ids = {raw: number for number, raw in enumerate(file.video_table["video_id"].tolist())}
    same = {}
    for video, (own, raw) in enumerate(zip(scores.fingerprints, scores.video_table["video_id"].tolist(), strict=True)):
        known = prints.get(own.tobytes()) if own.any() else None
        if known is None and scores.source:
            known = ids.get(raw)
        if known is not None and scores.video_table["status"][video] == Status.OK:
            same[video] = known
    return same


def _clock(seconds: float, length: float) -> str:
    """Return a time on an axis of a length: seconds, minutes, or hours and minutes."""
    if length < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if length < 3600 else f"{minutes // 60}:{minutes % 60:02d} h"


def _times(begins: np.ndarray, ends: np.ndarray, follows: np.ndarray) -> dict[str, Any]:
    """Return from when to when each clip speaks, in few characters where clips follow each other at one distance."""
    step = (begins[-1] - begins[0]) / (len(begins) - 1) if len(begins) > 1 else 0.0
    even = begins[0] + step * np.arange(len(begins))
    if follows[1:].all() and np.abs(even - begins).max() < _SAME_SECONDS and (ends[:-1] == begins[1:]).all():
        return {"count": len(begins), "first": float(begins[0]), "step": float(step), "last": float(ends[-1])}
    return {
        "begins": encode(begins.astype("<f8")),
        "ends": encode(ends.astype("<f8")),
        "follows": encode(follows.astype("u1")),
    }


def encode(values: np.ndarray) -> str:
    """Return an array's bytes as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
