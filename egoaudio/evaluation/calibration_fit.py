"""Fit a calibration, and choose its method, on the validation split. NumPy only.

In: scores (n, C) of the validation clips, labels, and the video of each. Out: a ``Calibration``. One temperature is a
single number for all classes; Platt's scaling has two per class, for classes with enough clips. The likelihood of
videos that neither was fitted on decides which of the two is used.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (temperature); Platt, Probabilistic outputs for
support vector machines, 1999 (smoothed targets), and Lin et al., A note on Platt's probabilistic outputs,
2007 (Newton's method).
"""

import numpy as np

from egoaudio.evaluation.calibration import Calibration, logit, sigmoid

NUM_FOLDS = 3
FEWEST_CLIPS = 5  # with a class, and without it, for the class to have a line of its own
SLOPES = 0.05, 20.0  # a slope beyond these is due to chance, or to scores that are all equal
_ITERATIONS = 50
_STEP_TOLERANCE = 1e-6


def fit(scores: np.ndarray, labels: np.ndarray, video: np.ndarray) -> Calibration:
    """Return the calibration with the best likelihood on videos that it was not fitted on.

    Parameters
    ----------
    scores : float array (n, C)
        From 0 to 1, averaged over neighbouring clips as those that it will be applied to.
    labels : array (n, C)
        0 or 1.
    video : array of int (n,)
        Of each clip.
    """
    logits, labels = logit(scores), np.asarray(labels) == 1
    if not labels.any() or labels.all():
        return Calibration.none(scores.shape[1])
    fold = np.unique(video, return_inverse=True)[1] % NUM_FOLDS
    losses = np.zeros(2)
    for number in range(NUM_FOLDS):
        held = fold == number
        if not held.any() or not labels[~held].any():
            continue
        for way, (slope, intercept) in enumerate(_both(logits[~held], labels[~held])):
            losses[way] += _loss(slope * logits[held] + intercept, labels[held])
    method = "platt" if losses[1] < losses[0] else "temperature"
    slope, intercept = _both(logits, labels)[method == "platt"]
    return Calibration(slope, intercept, method)


def _both(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return slope and intercept of each class, with one temperature and with Platt's scaling."""
    num_classes = logits.shape[1]
    shared = np.full(num_classes, _temperature_slope(logits, labels))
    slope, intercept = _platt(logits, labels)
    positives = labels.sum(axis=0)
    own = (positives >= FEWEST_CLIPS) & (len(labels) - positives >= FEWEST_CLIPS)
    own &= np.isfinite(slope) & np.isfinite(intercept) & (slope >= SLOPES[0]) & (slope <= SLOPES[1])
    return (shared, np.zeros(num_classes)), (np.where(own, slope, shared), np.where(own, intercept, 0.0))


def _temperature_slope(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the slope with the least loss: the loss is convex in it, so Newton's steps within an interval find it."""
    low, high = SLOPES
    slope = 1.0
    for _ in range(_ITERATIONS):
        probabilities = sigmoid(slope * logits)
        gradient = float(((probabilities - labels) * logits).sum())
        if gradient > 0:
            high = slope
        else:
            low = slope
        curvature = float((probabilities * (1 - probabilities) * logits**2).sum())
        following = slope - gradient / curvature if curvature > 0 else (low + high) / 2
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - slope) < _STEP_TOLERANCE:
            break
        slope = following
    return slope


def _platt(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and intercept (C,) of each class with the least loss, by damped Newton steps."""
    positives = labels.sum(axis=0)
    negatives = len(labels) - positives
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, intercept = np.ones(logits.shape[1]), np.zeros(logits.shape[1])
    loss = _class_losses(slope * logits + intercept, targets)
    for _ in range(_ITERATIONS):
        probabilities = sigmoid(slope * logits + intercept)
        rest, weight = probabilities - targets, probabilities * (1 - probabilities)
        gradients = (rest * logits).sum(axis=0), rest.sum(axis=0)
        a, b, c = (weight * logits**2).sum(axis=0) + 1e-9, (weight * logits).sum(axis=0), weight.sum(axis=0) + 1e-9
        determinant = a * c - b * b
        step = (c * gradients[0] - b * gradients[1]) / determinant, (a * gradients[1] - b * gradients[0]) / determinant
        size = np.ones_like(slope)
        for _ in range(10):  # a class whose loss would rise takes half the step
            tried = slope - size * step[0], intercept - size * step[1]
            losses = _class_losses(tried[0] * logits + tried[1], targets)
            worse = ~(losses <= loss)
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        size = np.where(worse, 0.0, size)
        slope, intercept = slope - size * step[0], intercept - size * step[1]
        loss = np.where(worse, loss, losses)
        if max(np.abs(size * step[0]).max(), np.abs(size * step[1]).max()) < _STEP_TOLERANCE:
            break
    return slope, intercept


def _class_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the cross entropy of each class, summed over the clips, (C,)."""
    return (np.logaddexp(0, logits) - targets * logits).sum(axis=0)


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(_class_losses(logits, labels).sum())
