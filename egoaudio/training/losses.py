"""The losses, as sums that can be cut: sum over clips, divided by a normaliser of the whole batch.

A mean over a slice is not a share of the mean over the batch when class weights differ between slices; a sum
divided by the batch's own normaliser is, so the slices' gradients add up to the batch's to rounding.

In: logits float (batch, num_classes), labels float (batch, num_classes) in [0, 1] (mixup makes them soft).
"""

import torch
from torch.nn import functional

# Asymmetric loss as published for many labels a row (Ridnik et al., ICCV 2021: gamma- 4, gamma+ 0, margin 0.05).
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
    class_weights : array of float (num_classes,) or None
        Weight of each class; None weighs all alike.
    device : torch.device or str
        Where logits and labels are.
    kind : str
        ``bce``, or for ``multi`` also ``asymmetric``: with p the probability less 0.05, at least 0, a negative costs
        -p^4 log(1 - p). So the many negatives that the model is fairly sure of weigh next to nothing.
    label_smoothing : float
        For ``multi``, labels become 1 - this and this; for ``single``, this share of the label is spread over all classes.
    """

    def __init__(self, label_mode, class_weights=None, device="cpu", kind="bce", label_smoothing=0.0):
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

    def sum(self, logits, labels):
        """Return the loss summed over the clips, a scalar tensor."""
        logits = logits.float()
        labels = self._smoothed(labels)
        if self.label_mode == "single":
            return -(functional.log_softmax(logits, dim=1) * self._weighted(labels)).sum()
        if self.kind == "asymmetric":
            return self._weighted(_asymmetric(logits, labels)).sum()
        return functional.binary_cross_entropy_with_logits(logits, labels, weight=self.class_weights, reduction="sum")

    def normaliser(self, labels):
        """Return what the sum over the whole batch is divided by, a float; 1 for a batch in which nothing counts."""
        if self.label_mode == "multi":
            return float(labels.numel())
        return float(self._weighted(labels).sum()) or 1.0

    def mean(self, logits, labels):
        """Return the loss of a whole batch, a scalar tensor."""
        return self.sum(logits, labels) / self.normaliser(labels)

    def _smoothed(self, labels):
        """Return the labels that are trained towards."""
        if not self.label_smoothing:
            return labels
        if self.label_mode == "multi":
            return labels + self.label_smoothing * (1 - 2 * labels)
        return labels + self.label_smoothing * (labels.mean(dim=1, keepdim=True) - labels)  # their sum stays

    def _weighted(self, values):
        """Return values (batch, num_classes) times the class weights."""
        return values if self.class_weights is None else values * self.class_weights


def _asymmetric(logits, labels):
    """Return the asymmetric loss of each label, (batch, num_classes)."""
    shifted = (logits.sigmoid() - MARGIN).clamp(min=0)  # at most 0.95: its logarithm below is finite
    return -labels * functional.logsigmoid(logits) - (1 - labels) * shifted**GAMMA_NEGATIVE * torch.log1p(-shifted)
