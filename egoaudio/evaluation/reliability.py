"""Whether scores are probabilities: of the clips with score 0.7 for a class, seven in ten should have it. NumPy only.

In: scores (num_clips, num_classes) from 0 to 1 and labels. Out: a ``Reliability``: scores in bins of equal width over
all classes, with the mean score, the share of positives and the count of each, and the expected calibration error, the
mean distance of the two weighted by the counts.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.evaluation.metrics import check, ratio

NUM_BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Scores in bins; the arrays are (num_bins,)."""

    mean_score: np.ndarray
    """NaN for an empty bin."""
    share_true: np.ndarray
    """NaN for an empty bin."""
    count: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of score and share, weighted by the counts; NaN if there are no scores."""
        distance = np.nan_to_num(np.abs(self.mean_score - self.share_true))
        return float(ratio((distance * self.count).sum(), self.count.sum()))


def reliability(scores: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Return the reliability of scores, all classes together.

    Parameters
    ----------
    scores : float array (num_clips, num_classes)
        From 0 to 1; a bin is ``[start, stop)``, and 1 belongs to the last one.
    labels : array (num_clips, num_classes)
        0 or 1.
    num_bins : int

    Examples
    --------
    >>> import numpy as np
    >>> found = reliability(np.array([[0.9], [0.9], [0.1], [0.1]]), np.array([[1], [0], [0], [0]]))
    >>> round(found.expected_calibration_error, 3)
    0.25
    """
    scores, labels = check(scores, labels)
    bins = np.minimum((scores.ravel().astype(np.float64) * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    total = np.bincount(bins, scores.ravel(), minlength=num_bins)
    true = np.bincount(bins, labels.ravel(), minlength=num_bins)
    return Reliability(ratio(total, count), ratio(true, count), count)
