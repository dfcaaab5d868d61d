"""What a prediction says of one recording, for people who program: DataFrames, and the likeliest classes.

In: a ``Scored`` recording, the classes and the ``SegmentRules``. Out: a ``Prediction``. Everything in it is computed
when it is asked for.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from egoaudio.errors import Status
from egoaudio.evaluation.segments import SegmentRules, smooth_scores
from egoaudio.prediction.recording import Scored

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Labelling:
    """What the scores of all recordings of a prediction have in common."""

    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    rules: SegmentRules
    checkpoint: str
    """The model's file."""


@dataclass(frozen=True)
class Segment:
    """Something that is heard for a while."""

    start_seconds: float
    stop_seconds: float
    class_index: int
    class_id: str
    name: str
    """Of the class."""
    score: float
    """The peak of the class's probability in it."""
    mean_score: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """One recording: its scores, and the segments in which something is heard."""

    scored: Scored
    labelling: Labelling

    @property
    def name(self) -> str:
        """A name that no other recording of the prediction has."""
        return str(self.scored.video["video_id"])

    @property
    def file(self) -> str:
        """The recording's file, as it was given."""
        return str(self.scored.video["file"])

    @property
    def status(self) -> Status:
        """``Status.OK``, or why there are no scores."""
        return self.scored.status

    @property
    def error(self) -> str:
        """The reason in words where the status is not OK."""
        return str(self.scored.video["error"])

    @property
    def duration_seconds(self) -> float:
        """Of the recording's sound."""
        return float(self.scored.video["duration_seconds"])

    @cached_property
    def segment_table(self) -> np.ndarray:
        """The segments as a structured array (``evaluation.segments.SEGMENT_DTYPE``), by start."""
        clips = self.scored.clips
        return self.labelling.rules.find(self.scored.scores, clips["start_seconds"], clips["stop_seconds"])

    @property
    def scores(self) -> "pandas.DataFrame":
        """A row a clip: ``start_seconds``, ``stop_seconds``, and each class's score by its id; NaN without sound."""
        return self._clip_frame(self.scored.scores)

    @property
    def probabilities(self) -> "pandas.DataFrame":
        """The same of scores averaged over neighbouring clips and calibrated: what segments are made of."""
        return self._clip_frame(self._probabilities())

    @property
    def segments(self) -> "pandas.DataFrame":
        """A row a segment.

        ``file``, ``start_seconds``, ``end_seconds``, ``class_id``, ``name``, ``score`` (its peak) and ``mean_score``.
        """
        import pandas  # 0.4 s

        table, labelling = self.segment_table, self.labelling
        return pandas.DataFrame(
            {
                # A file's name need not be UTF-8, and pandas' own type for texts refuses what is not.
                "file": pandas.Series([self.file] * len(table), dtype=object),
                "start_seconds": table["start_seconds"],
                "end_seconds": table["stop_seconds"],
                "class_id": [labelling.class_ids[index] for index in table["class_index"]],
                "name": [labelling.class_names[index] for index in table["class_index"]],
                "score": table["score"],
                "mean_score": table["mean_score"],
            }
        )

    def named_segments(self) -> list[Segment]:
        """Return the segments as objects, by start."""
        labelling = self.labelling
        return [
            Segment(
                float(row["start_seconds"]),
                float(row["stop_seconds"]),
                index,
                labelling.class_ids[index],
                labelling.class_names[index],
                float(row["score"]),
                float(row["mean_score"]),
            )
            for row, index in zip(self.segment_table, self.segment_table["class_index"].tolist(), strict=True)
        ]

    def top(self, count: int) -> list[tuple[str, float, float]]:
        """Return the likeliest classes, each with where it is likeliest: ``(name, probability, start_seconds)``."""
        values = self._probabilities()
        usable = np.flatnonzero(~np.isnan(values).any(axis=1))
        if not len(usable):
            return []
        where = usable[values[usable].argmax(axis=0)]
        peaks = values[where, np.arange(values.shape[1])]
        best = np.argsort(-peaks, kind="stable")[:count]
        starts = self.scored.clips["start_seconds"]
        return [(self.labelling.class_names[index], float(peaks[index]), float(starts[where[index]])) for index in best]

    def count_active(self) -> np.ndarray:
        """Return in how many clips each class's score reaches its onset, int64 (C,)."""
        rules, scores = self.labelling.rules, self.scored.scores
        return (smooth_scores(scores, rules.smooth_clips) >= rules.onset).sum(axis=0)

    def _probabilities(self) -> np.ndarray:
        """Return probabilities, float32 (n, C)."""
        rules = self.labelling.rules
        return rules.calibration.apply(smooth_scores(self.scored.scores, rules.smooth_clips))

    def _clip_frame(self, values: np.ndarray) -> "pandas.DataFrame":
        import pandas  # 0.4 s

        clips = self.scored.clips
        times = pandas.DataFrame({name: np.array(clips[name]) for name in ("start_seconds", "stop_seconds")})
        return pandas.concat([times, pandas.DataFrame(values, columns=list(self.labelling.class_ids))], axis=1)
