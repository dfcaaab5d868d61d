"""Scores -> probabilities, by ``probability = sigmoid(slope * logit(score) + intercept)``. NumPy only.

One temperature T for all classes is the slope 1 / T and no intercept; Platt's scaling is a line for each class. Slopes
are above 0, so the ranking of the scores stays the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

EDGE = 1e-7  # scores are clipped to this distance from 0 and 1, whose logits are infinite


@dataclass(frozen=True, eq=False)
class Calibration:
    """A line for each class."""

    slope: np.ndarray
    """float64 (C,), above 0."""
    intercept: np.ndarray
    """float64 (C,)."""
    method: str = "none"
    """``temperature``, ``platt``, or ``none`` if scores are not changed."""

    @classmethod
    def none(cls, num_classes: int) -> "Calibration":
        """Return the calibration that changes nothing."""
        return cls(np.ones(num_classes), np.zeros(num_classes))

    @classmethod
    def from_plain(cls, values: Mapping[str, Any] | None) -> "Calibration | None":
        """Return the calibration that ``to_plain`` gave, as a checkpoint holds it; None for None."""
        if values is None:
            return None
        return cls(np.array(values["slope"], np.float64), np.array(values["intercept"], np.float64), values["method"])

    def to_plain(self) -> dict[str, Any]:
        """Return the calibration as numbers and lists."""
        return {"method": self.method, "slope": self.slope.tolist(), "intercept": self.intercept.tolist()}

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (..., C), of scores (..., C); NaN stays NaN."""
        if self.method == "none":
            return scores
        return sigmoid(self.slope * logit(scores) + self.intercept).astype(np.float32)

    def invert(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the scores, float64 (..., C), that have these probabilities; what is beyond 0 and 1 stays as it is."""
        probabilities = np.asarray(probabilities, np.float64)
        if self.method == "none":
            return probabilities
        inside = (probabilities > 0) & (probabilities < 1)
        found = sigmoid((logit(np.where(inside, probabilities, 0.5)) - self.intercept) / self.slope)
        return np.where(inside, found, probabilities)


def logit(scores: np.ndarray) -> np.ndarray:
    """Return the logits of scores, float64."""
    scores = np.clip(np.asarray(scores, np.float64), EDGE, 1 - EDGE)
    return np.log(scores) - np.log1p(-scores)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return ``1 / (1 + exp(-logits))``, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
