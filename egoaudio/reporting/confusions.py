"""Which classes are taken for which: where the class with the highest score is not on, what is. NumPy only.

In: scores (num_clips, num_classes), labels, and the classes' names. Out: ``Confusion``s, the most frequent first, and a
matrix. A clip with several classes counts once for each of them, as none tells which one was misheard.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.reporting.charts import Matrix

_MOST = 30
_MOST_IN_MATRIX = 40


@dataclass(frozen=True)
class Confusion:
    """A class that is on, and another that is not and has the highest score."""

    true: str
    taken_for: str
    num_clips: int
    share: float
    """Of the clips with the true class."""


def find_confusions(
    scores: np.ndarray, labels: np.ndarray, names: list[str]
) -> tuple[tuple[Confusion, ...], Matrix | None]:
    """Return what is taken for what.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
    labels : array (num_clips, num_classes)
        0 or 1.
    names : list of str
    """
    labels = np.asarray(labels) == 1
    counts = count_confusions(scores, labels)
    totals = labels.sum(axis=0)
    places = np.argwhere(counts > 0)
    places = places[np.argsort(-counts[places[:, 0], places[:, 1]], kind="stable")][:_MOST]
    found = tuple(
        Confusion(names[true], names[taken], int(counts[true, taken]), float(counts[true, taken] / totals[true]))
        for true, taken in places
    )
    wrong = counts.sum(axis=0) + counts.sum(axis=1)
    involved = np.argsort(-wrong, kind="stable")[: min(_MOST_IN_MATRIX, np.count_nonzero(wrong))]
    shown = [int(k) for k in sorted(involved, key=lambda k: (-totals[k], k))]
    if not shown:
        return found, None
    share = counts[np.ix_(shown, shown)] / np.maximum(totals[shown], 1)[:, None]
    cells = tuple((int(row), int(column), float(share[row, column])) for row, column in np.argwhere(share > 0))
    return found, Matrix(tuple(names[k] for k in shown), cells)


def count_confusions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return in how many clips a class is on and another, which is not, has the highest score, int64 (C, C).

    Rows are the classes that are on.
    """
    highest = np.asarray(scores).argmax(axis=1)
    wrong = ~labels[np.arange(len(labels)), highest]
    counts = np.zeros((labels.shape[1],) * 2, np.int64)
    clips, true = np.nonzero(labels[wrong])
    np.add.at(counts, (true, highest[wrong][clips]), 1)
    return counts
