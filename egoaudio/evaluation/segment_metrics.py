"""Segments compared with annotated actions: F1 by events, by intersection, and by seconds. NumPy and SciPy.

In: the true and the found segments of each video, both with ``class_index``, ``start_seconds``, ``stop_seconds``. Out:
counts of each video and class, (V, C), from which come F1, its mean over the classes that occur, and an interval over
videos.

- *events*: a true action is found by a segment of its class that starts within 0.5 s of it, and ends within 0.5 s, or
  half of the action's length where that is more; each of either finds one of the other (a maximum matching).
- *intersection*: a segment is right if at least half of it lies in true actions of its class, and a true action is
  found if right segments cover at least half of it. More lenient than events where one action is found as two, or
  where annotators disagree.
- *seconds*: in each whole second a class is active or not, in the annotation and in the segments.

True actions of one class that overlap or touch are merged, as they cannot be told apart by ear.

Source: sed_eval (Mesaros et al., Metrics for polyphonic sound event detection, 2016) for events and seconds, psds_eval
(Bilen et al., A framework for the robust evaluation of sound event detection, 2020) for intersection; the tests hold
these to both libraries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from egoaudio.evaluation import bootstrap, metrics
from egoaudio.evaluation.metrics import ratio

COLLAR_SECONDS = 0.5
COLLAR_SHARE = 0.5  # of an action's length, for its end
OVERLAP_SHARE = 0.5
CELL_SECONDS = 1.0
KINDS = ("event_f1", "intersection_f1", "segment_f1")
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Counts:
    """What F1 is made of, for each video and class: arrays (V, C)."""

    hits: np.ndarray
    true: np.ndarray
    """What is to be found."""
    claims: np.ndarray
    """Hits, and what is claimed and wrong."""

    def f1(self) -> np.ndarray:
        """Return the F1 of each class over all videos, float64 (C,); NaN for a class with nothing to find."""
        hits, true, claims = (values.sum(axis=0) for values in (self.hits, self.true, self.claims))
        return np.where(true > 0, ratio(2 * hits, true + claims), np.nan)

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """Return the mean F1 of each resample of the videos, (num_resamples,)."""
        videos = np.arange(len(self.true))
        return bootstrap.resample_ratio(2 * self.hits, self.true + self.claims, videos, weights, needed=self.true)


def count_all(
    true: Sequence[np.ndarray], found: Sequence[np.ndarray], lengths: Sequence[float], num_classes: int
) -> dict[str, Counts]:
    """Return the ``Counts`` of each kind of F1.

    Parameters
    ----------
    true, found : sequence of structured arrays, one a video
        Actions, from ``true_events``, and segments.
    lengths : sequence of float
        Of each video, in seconds.
    num_classes : int

    Returns
    -------
    dict of name of ``KINDS`` to Counts
    """
    tables = {name: np.zeros((3, len(true), num_classes), np.float32) for name in KINDS}
    for video, (events, segments, length) in enumerate(zip(true, found, lengths, strict=True)):
        tables["event_f1"][:, video] = count_events(events, segments, num_classes)
        tables["intersection_f1"][:, video] = count_intersections(events, segments, num_classes)
        tables["segment_f1"][:, video] = count_seconds(events, segments, length, num_classes)
    return {name: Counts(*table) for name, table in tables.items()}


def mean_f1(counts: Counts) -> float:
    """Return the F1 averaged over the classes with something to find."""
    return metrics.mean_over_classes(counts.f1())


def true_events(instances: np.ndarray, length_seconds: float) -> np.ndarray:
    """Return the annotated instances of one video as actions that can be found.

    They are cut at the end of the sound; those that are reversed, or beyond it, are left out, and those of one class
    that overlap or touch are one.

    Parameters
    ----------
    instances : structured array
    length_seconds : float
        Of the video's sound.

    Returns
    -------
    structured array
        Of the same type, by class and start.
    """
    events = instances.copy()
    events["stop_seconds"] = np.minimum(events["stop_seconds"], length_seconds)
    events = events[events["start_seconds"] < events["stop_seconds"]]
    events = events[np.lexsort((events["start_seconds"], events["class_index"]))]
    kept: list[int] = []
    for row in range(len(events)):
        last = kept[-1] if kept else -1
        if kept and events["class_index"][last] == events["class_index"][row]:
            if events["start_seconds"][row] <= events["stop_seconds"][last]:
                events["stop_seconds"][last] = max(events["stop_seconds"][last], events["stop_seconds"][row])
                continue
        kept.append(row)
    return events[kept]


def _per_class(events: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(events["class_index"], minlength=num_classes)


def count_events(true: np.ndarray, found: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, true and claims of one video, (C,) each, by events."""
    starts, stops = true["start_seconds"][:, None], true["stop_seconds"][:, None]
    collars = np.maximum(COLLAR_SECONDS, COLLAR_SHARE * (stops - starts))
    match = (
        (true["class_index"][:, None] == found["class_index"])
        & (np.abs(starts - found["start_seconds"]) <= COLLAR_SECONDS + _ROUNDING)
        & (np.abs(stops - found["stop_seconds"]) <= collars + _ROUNDING)
    )
    hits = np.zeros(0, np.int64)
    if match.any():
        hits = np.flatnonzero(maximum_bipartite_matching(csr_matrix(match), perm_type="column") >= 0)
    return _per_class(true[hits], num_classes), _per_class(true, num_classes), _per_class(found, num_classes)


def count_intersections(
    true: np.ndarray, found: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, true and claims of one video, (C,) each, by intersection."""
    shared = np.minimum(true["stop_seconds"][:, None], found["stop_seconds"])
    shared = shared - np.maximum(true["start_seconds"][:, None], found["start_seconds"])
    shared = np.where(true["class_index"][:, None] == found["class_index"], np.maximum(shared, 0), 0)
    lengths = found["stop_seconds"] - found["start_seconds"]
    right = shared.sum(axis=0) >= OVERLAP_SHARE * lengths - _ROUNDING
    covered = shared[:, right].sum(axis=1)
    hit = covered >= OVERLAP_SHARE * (true["stop_seconds"] - true["start_seconds"]) - _ROUNDING
    hits = _per_class(true[hit], num_classes)
    return hits, _per_class(true, num_classes), hits + _per_class(found[~right], num_classes)


def count_seconds(
    true: np.ndarray, found: np.ndarray, length_seconds: float, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, true and claims of one video, (C,) each, by whole seconds."""
    num_cells = math.ceil(length_seconds / CELL_SECONDS - _ROUNDING)
    on, claimed = (_cells(events, num_cells, num_classes) for events in (true, found))
    return (on & claimed).sum(axis=0), on.sum(axis=0), claimed.sum(axis=0)


def _cells(events: np.ndarray, num_cells: int, num_classes: int) -> np.ndarray:
    """Return in which seconds each class is on, bool (num_cells, C)."""
    cells = np.zeros((num_cells, num_classes), bool)
    first = np.floor(events["start_seconds"] / CELL_SECONDS + _ROUNDING).astype(np.int64)
    stop = np.ceil(events["stop_seconds"] / CELL_SECONDS - _ROUNDING).astype(np.int64)
    for column, begin, end in zip(events["class_index"].tolist(), first.tolist(), stop.tolist(), strict=True):
        cells[begin:end, column] = True
    return cells
