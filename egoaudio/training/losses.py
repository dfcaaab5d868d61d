"""The losses, as sums over clips that are divided by a normaliser of the whole batch.

With class weights, the mean over a micro-batch is not a share of the mean over the batch; a sum divided by the whole
batch's normaliser is, so the gradients of the micro-batches add up to the batch's, up to rounding.

In: logits float (b, C), labels float (b, C) in [0, 1] (mixup makes them soft).
"""

import numpy as np
import torch
from torch.nn import functional

from egoaudio.errors import EvaluationError

# Asymmetric loss as published for many labels per row (Ridnik et al., ICCV 2021: gamma- 4, gamma+ 0, margin 0.05).
GAMMA_NEGATIVE = 4
MARGIN = 0.05


class Loss:
    """Binary cross-entropy on sigmoids (``multi``) or cross-entropy on a softmax (``single``), weighted by class.

    ``loss.sum(logits, labels) / loss.normaliser(labels)`` equals torch's ``BCEWithLogitsLoss(weight)`` for ``multi``
    and ``CrossEntropyLoss(weight, label_smoothing=label_smoothing)`` on class indices for ``single``.

    Parameters
    ----------
    label_mode : str
        ``multi`` or ``single``.
    class_weights : array of float (C,) or None
        Weight of each class; None weighs all classes equally.
    device : torch.device or str
        Where logits and labels are.
    kind : str
        ``bce``, or for ``multi`` also ``asymmetric``: with p the probability minus 0.05, at least 0, a negative costs
        -p^4 log(1 - p). The many negatives that the model is fairly sure of thus weigh next to nothing.
    label_smoothing : float
        For ``multi``, the labels become this value and 1 minus it; for ``single``, this share of the label is spread
        over all classes.
    """

    def __init__(
        self,
        label_mode: str,
        class_weights: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        kind: str = "bce",
        label_smoothing: float = 0.0,
    ) -> None:
        if label_mode not in ("multi", "single"):
            raise ValueError(f"label_mode {label_mode!r}: expected multi or single")
        if kind not in ("bce", "asymmetric") or (kind, label_mode) == ("asymmetric", "single"):
            raise ValueError(f"kind {kind!r} with label_mode {label_mode!r}: expected bce, or asymmetric with multi")
        self.label_mode = label_mode
        self.class_weights = (
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32, device=device)
        )
        self.kind = kind
        self.label_smoothing = label_smoothing

    def sum(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over the clips, a scalar tensor.

        Raises
        ------
        EvaluationError
            When the shapes differ: torch would broadcast some of them.
        """
        if logits.shape != labels.shape or logits.ndim != 2:
            raise EvaluationError(
                f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (num_clips, num_classes) of "
                "both"
            )
        logits = logits.float()
        labels = self._smoothed(labels)
        if self.label_mode == "single":
            return -(functional.log_softmax(logits, dim=1) * self._weighted(labels)).sum()
        if self.kind == "asymmetric":
            return self._weighted(_asymmetric(logits, labels)).sum()
        return functional.binary_cross_entropy_with_logits(logits, labels, weight=self.class_weights, reduction="sum")

    def normaliser(self, labels: torch.Tensor) -> float:
        """Return the divisor of the sum over the whole batch: the sum of its parts' divisors, 0 if no label weighs."""
        if self.label_mode == "multi":
            return float(labels.numel())
        return float(self._weighted(labels).sum())

    def divisor(self, labels: torch.Tensor) -> torch.Tensor | float:
        """Return the divisor of the sum of one batch where the labels are, not yet read; 1 if no label weighs."""
        if self.label_mode == "multi":
            return float(labels.numel()) or 1.0
        weight = self._weighted(labels).sum()
        return weight.masked_fill(weight == 0, 1.0)

    def mean(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a whole batch, a scalar tensor; 0 for one in which no label weighs."""
        return self.sum(logits, labels) / self.divisor(labels)

    def _smoothed(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the labels after label smoothing."""
        if not self.label_smoothing:
            return labels
        if self.label_mode == "multi":
            return labels + self.label_smoothing * (1 - 2 * labels)
        return labels + self.label_smoothing * (labels.mean(dim=1, keepdim=True) - labels)  # with the same sum

    def _weighted(self, values: torch.Tensor) -> torch.Tensor:
        """Return values (b, C) times the class weights."""
        return values if self.class_weights is None else values * self.class_weights


def _asymmetric(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the asymmetric loss of each label, (b, C)."""
    shifted = (logits.sigmoid() - MARGIN).clamp(min=0)  # at most 0.95: its logarithm below is finite
    return -labels * functional.logsigmoid(logits) - (1 - labels) * shifted**GAMMA_NEGATIVE * torch.log1p(-shifted)
