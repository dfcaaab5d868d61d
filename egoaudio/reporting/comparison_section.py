"""Several runs side by side: each score, and by how much each run differs from the first one.

In: the scores of the runs and their evaluations. Out: a ``ComparisonSection``. Differences are paired, so there is one
only where two runs were scored on the same clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egoaudio.evaluation.comparison import Comparison, Difference, compare
from egoaudio.evaluation.evaluate import SplitScores
from egoaudio.evaluation.results import TITLES, Evaluation, Score
from egoaudio.reporting import names

_MOST_CLASSES = 1000


@dataclass(frozen=True)
class ScoreRow:
    """A metric of every run."""

    title: str
    scores: tuple[Score | None, ...]
    differences: tuple[Difference | None, ...]
    """To the first run: one less than there are runs."""


@dataclass(frozen=True)
class ClassRow:
    """The average precision of a class in every run."""

    title: str
    num_clips: int
    precisions: tuple[float, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class ComparisonSection:
    """All that is said of several runs."""

    runs: tuple[str, ...]
    scores: tuple[ScoreRow, ...]
    classes: tuple[ClassRow, ...]
    """The largest difference first; empty where the runs know other classes."""
    notes: tuple[str, ...]


def describe(
    runs: Sequence[str], scored: Sequence[SplitScores], evaluations: Sequence[Evaluation], num_resamples: int
) -> ComparisonSection:
    """Return what a page says of several runs.

    Parameters
    ----------
    runs : sequence of str
        What they are called.
    scored, evaluations
        Of each run.
    num_resamples : int
        Of the bootstrap.
    """
    comparisons: list[Comparison | None] = []
    notes = []
    for name, each, evaluation in zip(runs[1:], scored[1:], evaluations[1:], strict=True):
        if _are_of_the_same(scored[0], each):
            pair = (scored[0].smoothed, each.smoothed), (evaluations[0], evaluation)
            comparisons.append(compare(scored[0].truth, *pair, num_resamples))
        else:
            comparisons.append(None)
            notes.append(f"{name} was judged on other clips than {runs[0]}, so there is no difference between the two.")
    rows = tuple(
        ScoreRow(
            title,
            tuple(evaluation.scores.get(key) for evaluation in evaluations),
            tuple(None if each is None else each.scores.get(key) for each in comparisons),
        )
        for key, title in TITLES.items()
        if any(key in evaluation.scores for evaluation in evaluations)
    )
    return ComparisonSection(tuple(runs), rows, _classes(scored, evaluations, comparisons), tuple(notes))


def _are_of_the_same(first: SplitScores, second: SplitScores) -> bool:
    """Return whether two runs were scored on the same clips of the same classes."""
    return first.truth.class_ids == second.truth.class_ids and np.array_equal(first.truth.rows, second.truth.rows)


def _classes(
    scored: Sequence[SplitScores], evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison | None]
) -> tuple[ClassRow, ...]:
    """Return the classes with a clip, those with the largest difference first."""
    first = scored[0].truth
    if any(each.truth.class_ids != first.class_ids for each in scored):
        return ()
    precisions = np.array([evaluation.per_class["average_precision"] for evaluation in evaluations], np.float64)
    spread = np.nan_to_num(np.abs(precisions - precisions[0]).max(axis=0))
    rows = []
    for k in np.argsort(-spread, kind="stable"):
        if not np.isnan(precisions[:, k]).all():
            title = names.class_title(first.class_ids[k], first.class_names[k])
            differences = tuple(None if each is None else each.per_class[k] for each in comparisons)
            counts = int(evaluations[0].per_class["num_clips"][k])
            rows.append(ClassRow(title, counts, tuple(precisions[:, k].tolist()), differences))
    return tuple(rows[:_MOST_CLASSES])
