"""The clips of a run that are worth hearing: each class's best, missed and false alarms; doubtful labels.

In: scores (num_clips, num_classes), labels, and the rows and videos of the clips. Out: ``ScoredClip``s. Clips of one
class are of different videos, as far as there are enough.

A label may be wrong where a model that hears the class contradicts it with confidence: a clip without the label that is
scored as those with it usually are, though no clip beside it has the label (which would be a matter of where an action
begins); and a clip with the label that is scored no higher than those without it. Source: the thresholds of Northcutt
et al., Confident Learning, 2021.
"""

from dataclasses import dataclass

import numpy as np

_MOST_OTHERS = 3  # of the highest scores that are told beside the class's own
_WORTH_TELLING = 0.05  # a score
_MOST_DOUBTS = 24  # of each kind
_MOST_OF_A_CLASS = 4  # of those


@dataclass(frozen=True)
class ScoredClip:
    """A clip and what a model says of it."""

    row: int
    """Of ``/clips``."""
    column: int
    """The class that it is shown for."""
    score: float
    """Of that class."""
    others: tuple[tuple[int, float], ...]
    """The highest scores of other classes, ``(column, score)``."""


@dataclass(frozen=True)
class NotableClips:
    """Clips of one class."""

    best: tuple[ScoredClip, ...]
    """With the class, the highest scores first."""
    missed: tuple[ScoredClip, ...]
    """With the class, the lowest scores first."""
    false_alarms: tuple[ScoredClip, ...]
    """Without it, the highest scores first."""


class ScoredClips:
    """The labelled clips of a split with their scores.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
    labels : array (num_clips, num_classes)
    rows, video : array of int (num_clips,)
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray, rows: np.ndarray, video: np.ndarray) -> None:
        self.scores, self.labels = np.asarray(scores), np.asarray(labels) == 1
        self._rows, self._video = rows, video

    def notable(self, column: int, most: int) -> NotableClips:
        """Return the clips of a class that are worth hearing, so many of each kind."""
        on, scores = self.labels[:, column], self.scores[:, column]
        with_it, without = np.flatnonzero(on), np.flatnonzero(~on)
        return NotableClips(
            self._first(with_it[np.argsort(-scores[with_it], kind="stable")], column, most),
            self._first(with_it[np.argsort(scores[with_it], kind="stable")], column, most),
            self._first(without[np.argsort(-scores[without], kind="stable")], column, most),
        )

    def _first(self, places: np.ndarray, column: int, most: int) -> tuple[ScoredClip, ...]:
        """Return the first clips, one a video as long as there are others."""
        chosen: list[int] = []
        rest: list[int] = []
        seen = set()
        for place in places[: 50 * most]:
            video = int(self._video[place])
            (rest if video in seen else chosen).append(int(place))
            seen.add(video)
        order = {int(place): number for number, place in enumerate(places)}
        picked = sorted((chosen + rest)[:most], key=order.__getitem__)
        return tuple(self._clip(place, column) for place in picked)

    def _clip(self, place: int, column: int) -> ScoredClip:
        scores = self.scores[place]
        best = np.argsort(-scores, kind="stable")[: _MOST_OTHERS + 1]
        others = [(int(k), float(scores[k])) for k in best if k != column and scores[k] >= _WORTH_TELLING]
        return ScoredClip(int(self._rows[place]), column, float(scores[column]), tuple(others[:_MOST_OTHERS]))

    def missing_labels(self, columns: np.ndarray) -> tuple[ScoredClip, ...]:
        """Return clips that probably have a class of these without being labelled so, the surest first."""
        beside = self._beside()
        found = []
        for column in columns:
            on, scores = self.labels[:, column], self.scores[:, column]
            if on.any():
                places = np.flatnonzero(~on & ~beside[:, column] & (scores >= scores[on].mean()))
                places = places[np.argsort(-scores[places], kind="stable")][:_MOST_OF_A_CLASS]
                found += [(float(scores[place]), int(place), int(column)) for place in places]
        return self._surest(found)

    def empty_labels(self, columns: np.ndarray) -> tuple[ScoredClip, ...]:
        """Return clips labelled with a class of these that probably cannot be heard in them, the surest first."""
        found = []
        for column in columns:
            on, scores = self.labels[:, column], self.scores[:, column]
            if on.any() and not on.all():
                usual = scores[on].mean()
                places = np.flatnonzero(on & (scores <= scores[~on].mean()))
                places = places[np.argsort(scores[places], kind="stable")][:_MOST_OF_A_CLASS]
                found += [(float(usual - scores[place]), int(place), int(column)) for place in places]
        return self._surest(found)

    def _surest(self, found: list[tuple[float, int, int]]) -> tuple[ScoredClip, ...]:
        found.sort(key=lambda each: (-each[0], each[1], each[2]))
        return tuple(self._clip(place, column) for _, place, column in found[:_MOST_DOUBTS])

    def _beside(self) -> np.ndarray:
        """Return whether a clip beside one in its video has each label, bool (num_clips, num_classes)."""
        order = np.argsort(self._rows, kind="stable")
        rows, video, labels = self._rows[order], self._video[order], self.labels[order]
        together = (np.diff(rows) == 1) & (video[1:] == video[:-1])
        beside = np.zeros_like(labels)
        beside[1:] |= labels[:-1] & together[:, None]
        beside[:-1] |= labels[1:] & together[:, None]
        result = np.empty_like(beside)
        result[order] = beside
        return result
