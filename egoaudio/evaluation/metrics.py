"""Metrics of multi-label scores. NumPy only.

In: ``scores`` (num_rows, num_classes), higher is likelier, and ``labels`` of the same shape, 0 or 1, any number of
active classes in a row. Out: a number, or one per class. All but ``f1`` and ``best_thresholds`` depend only on the
order of the scores, so logits and probabilities give the same. A class for which a metric is not defined (no positives;
for the AUC also no negatives) is NaN in a per-class result and left out of the mean.

Ties: classes with equal scores rank by their index (top-k); rows with equal scores share one threshold (average
precision, AUC, F1), so the order of the rows never matters.
Source: scikit-learn's average_precision_score, roc_auc_score and f1_score, against which these are tested; the set of
metrics is that of EPIC-SOUNDS (Huh et al., 2023). The official Charades rules differ: see ``charades``.
"""

from collections.abc import Iterator

import numpy as np

from egoaudio.errors import EvaluationError

_ROWS_AT_ONCE = 1 << 16  # bounds the sorted copies of top-k; a row is a clip


def check(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``scores`` as floats and ``labels`` as booleans, after checking both.

    Parameters
    ----------
    scores : array (num_rows, num_classes)
        Minus infinity is allowed: the row ranks last (the official rule for a video without scores).
    labels : array (num_rows, num_classes)
        0 or 1.

    Raises
    ------
    EvaluationError
        If the shapes differ, there are no rows, a label is not 0 or 1, or a score is NaN or plus infinity.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        hint = "; is one of them transposed?" if scores.ndim == 2 and scores.shape == labels.shape[::-1] else ""
        if labels.ndim == 1 and scores.ndim == 2 and len(labels) == len(scores):
            hint = "; are the labels class numbers? expected a column per class, 0 or 1"
        raise EvaluationError(
            f"scores {scores.shape} and labels {labels.shape}: expected (num_rows, num_classes) of both{hint}"
        )
    if not scores.size:
        raise EvaluationError(f"scores {scores.shape}: nothing to evaluate; expected at least one row and one class")
    if labels.dtype != bool:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise EvaluationError(
                f"label {labels[row, column]} in row {row}, class {column}: expected 0 or 1; were scores and labels "
                "swapped?"
            )
        labels = labels == 1
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    bad = np.isnan(scores) | (scores == np.inf)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise EvaluationError(
            f"score {scores[row, column]} in row {row}, class {column} ({bad.sum()} of {scores.size} scores are not "
            "numbers): has the training diverged? Try a lower learning rate, or `clip_gradient=1`"
        )
    return scores, labels


def mean_over_classes(per_class: np.ndarray) -> float:
    """Return the mean over the classes that are not NaN; NaN if all are."""
    defined = per_class[~np.isnan(per_class)]
    return float(defined.mean()) if len(defined) else float("nan")


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Return ``numerators / denominators``, float64, NaN where the denominator is 0."""
    result = np.full(np.broadcast(numerators, denominators).shape, np.nan)
    np.divide(numerators, denominators, out=result, where=np.asarray(denominators) != 0)
    return result


# -------------------------------------------------------------------------------------------------------- top-k


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return whether one of the ``k`` highest scores of each row belongs to an active class.

    Returns
    -------
    array (num_rows,) of float64
        1, 0, or NaN for a row without an active class, in which nothing could be hit.
    """
    scores, labels = check(scores, labels)
    hits = np.empty(len(scores))
    for start in range(0, len(scores), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        if k == 1:
            best = scores[rows].argmax(axis=1)[:, None]
        else:
            best = np.argsort(-scores[rows], axis=1, kind="stable")[:, :k]
        hits[rows] = np.take_along_axis(labels[rows], best, axis=1).any(axis=1)
    hits[~labels.any(axis=1)] = np.nan
    return hits


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the share of rows with a hit among their ``k`` highest scores, of the rows with an active class.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.5, 0.4]])
    >>> labels = np.array([[1, 0, 0], [0, 0, 1]])
    >>> top_k_accuracy(scores, labels, 1), top_k_accuracy(scores, labels, 2)
    (0.5, 1.0)
    """
    return mean_over_classes(top_k_hits(scores, labels, k))


def class_hits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which active classes are found when each row predicts as many classes as are active in it.

    Returns
    -------
    array (num_rows, num_classes) of bool
        True where the class is active and among the row's m highest scores, m being the number of its active classes.
    """
    scores, labels = check(scores, labels)
    hits = np.empty_like(labels)
    for start in range(0, len(scores), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        order = np.argsort(-scores[rows], axis=1, kind="stable")
        named = np.arange(scores.shape[1]) < labels[rows].sum(axis=1, keepdims=True)
        chosen = np.empty_like(named)
        np.put_along_axis(chosen, order, named, axis=1)
        hits[rows] = chosen & labels[rows]
    return hits


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of each class (see ``class_hits``) averaged over the classes that occur.

    With one class per row this is the usual mean of the recalls (EPIC-SOUNDS, scikit-learn's balanced_accuracy_score);
    with several, perfect scores still give 1, and always predicting the commonest class gains nothing for the others.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])  # always the first class
    >>> labels = np.array([[1, 0], [1, 0], [0, 1]])
    >>> mean_class_accuracy(scores, labels)
    0.5
    """
    _, labels = check(scores, labels)
    return mean_over_classes(ratio(class_hits(scores, labels).sum(axis=0), labels.sum(axis=0)))


# ------------------------------------------------------------------------------------------------------ ranking


def ranked(scores: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the ranking of the rows by descending score, for each class.

    Yields
    ------
    order : array (num_rows,) of int
        Rows, best first; equal scores in the order of the rows.
    positive : array (num_rows,) of bool
        The labels in that order.
    first, last : array (num_rows,) of int
        The first and last rank of the tie to which each rank belongs; both the rank itself without a tie.
    """
    for class_scores, class_labels in zip(np.ascontiguousarray(scores.T), np.ascontiguousarray(labels.T), strict=True):
        order = np.argsort(-class_scores, kind="stable")
        positive, sorted_scores = class_labels[order], class_scores[order]
        starts = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
        sizes = np.diff(np.r_[starts, len(order)])
        yield order, positive, np.repeat(starts, sizes), np.repeat(starts + sizes - 1, sizes)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, as scikit-learn's average_precision_score.

    Returns
    -------
    array (num_classes,) of float64
        The mean over the positives of the precision at their score; NaN for a class without positives.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.1, 0.5], [0.3, 0.5]])
    >>> labels = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    >>> average_precision(scores, labels).tolist()  # a constant scores the share of its positives
    [0.75, 0.25]
    """
    scores, labels = check(scores, labels)
    result = np.full(scores.shape[1], np.nan)
    for column, (_, positive, _, last) in enumerate(ranked(scores, labels)):
        found = np.cumsum(positive)
        at = last[positive]
        if len(at):
            result[column] = np.mean(found[at] / (at + 1))
    return result


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the average precision averaged over the classes with positives (macro mAP)."""
    return mean_over_classes(average_precision(scores, labels))


def area_under_roc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the area under each class's ROC curve, as scikit-learn's roc_auc_score; ties count half.

    Returns
    -------
    array (num_classes,) of float64
        NaN for a class without positives or without negatives.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.1, 0.5], [0.3, 0.5]])
    >>> labels = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    >>> area_under_roc(scores, labels).tolist()
    [0.5, 0.5]
    """
    scores, labels = check(scores, labels)
    result = np.full(scores.shape[1], np.nan)
    for column, (_, positive, first, last) in enumerate(ranked(scores, labels)):
        negatives = np.r_[0, np.cumsum(~positive)]  # [r]: among the best r rows
        pairs = positive.sum() * negatives[-1]
        if pairs:
            lost = negatives[first[positive]] + negatives[last[positive] + 1]
            result[column] = 1 - lost.sum() / (2 * pairs)
    return result


def mean_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve averaged over the classes that have both positives and negatives (mAUC)."""
    return mean_over_classes(area_under_roc(scores, labels))


# ------------------------------------------------------------------------------------------------- F1, thresholds


def best_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the threshold with the highest F1 for each class: a class is predicted where ``scores >= threshold``.

    Among equally good thresholds the highest is returned (the fewest predictions). Choose thresholds on the validation
    split, never on the rows that are reported.

    Returns
    -------
    array (num_classes,) of float64
        Infinity for a class without positives, which is then never predicted.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.4], [0.6, 0.3], [0.2, 0.2]])
    >>> labels = np.array([[1, 0], [1, 0], [0, 0]])
    >>> best_thresholds(scores, labels).tolist()
    [0.6, inf]
    """
    scores, labels = check(scores, labels)
    result = np.full(scores.shape[1], np.inf)
    for column, (order, positive, _, last) in enumerate(ranked(scores, labels)):
        if positive.any():
            ends = np.flatnonzero(last == np.arange(len(last)))  # a threshold includes a whole tie or none of it
            f1_if_cut = 2 * np.cumsum(positive)[ends] / (ends + 1 + positive.sum())
            result[column] = scores[order[ends[f1_if_cut.argmax()]], column]
    return result


def f1(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the F1 of each class, predicted where its score is at least its threshold.

    Parameters
    ----------
    thresholds : array (num_classes,)
        Such as those of ``best_thresholds``.

    Returns
    -------
    array (num_classes,) of float64
        NaN for a class without positives.

    Raises
    ------
    EvaluationError
        As ``check``, or if there is not one threshold per class.

    Examples
    --------
    >>> scores, labels = np.array([[0.9], [0.6], [0.2]]), np.array([[1], [0], [0]])
    >>> f1(scores, labels, [0.5]).round(3).tolist()  # one of two predictions is right
    [0.667]
    """
    scores, labels = check(scores, labels)
    thresholds = np.asarray(thresholds)
    if thresholds.shape != scores.shape[1:]:
        raise EvaluationError(f"thresholds {thresholds.shape} for scores {scores.shape}: expected one per class")
    predicted = scores >= thresholds
    positives = labels.sum(axis=0)
    result = 2 * (predicted & labels).sum(axis=0) / np.maximum(predicted.sum(axis=0) + positives, 1)
    return np.where(positives > 0, result, np.nan)


def macro_f1(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> float:
    """Return the F1 averaged over the classes with positives."""
    return mean_over_classes(f1(scores, labels, thresholds))
