"""The losses, as sums that can be cut: sum over clips, divided by a normaliser of the whole batch.

A mean over a slice is not a share of the mean over the batch when class weights differ between slices; a sum
divided by the batch's own normaliser is, so the slices' gradients add up to the batch's to rounding.

In: logits float (batch, num_classes), labels float (batch, num_classes) in [0, 1] (mixup makes them soft).
"""

import torch
from torch.nn import functional


class Loss:
    """Binary cross-entropy on sigmoids (``multi``) or cross-entropy on a softmax (``single``), weighted by class.

    ``loss.sum(logits, labels) / loss.normaliser(labels)`` equals torch's ``BCEWithLogitsLoss(weight)`` for ``multi``
    and ``CrossEntropyLoss(weight)`` on class indices for ``single``.

    Parameters
    ----------
    label_mode : str
        ``multi`` or ``single``.
    class_weights : array of float (num_classes,) or None
        Weight of each class; None weighs all alike.
    device : torch.device or str
        Where logits and labels are.
    """

    def __init__(self, label_mode, class_weights=None, device="cpu"):
        if label_mode not in ("multi", "single"):
            raise ValueError(f"label_mode {label_mode!r}: expected multi or single")
        self.label_mode = label_mode
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32, device=device)

    def sum(self, logits, labels):
        """Return the loss summed over the clips, a scalar tensor."""
        logits = logits.float()
        if self.label_mode == "multi":
            return functional.binary_cross_entropy_with_logits(logits, labels, weight=self.class_weights, reduction="sum")
        return -(functional.log_softmax(logits, dim=1) * self._weighted(labels)).sum()

    def normaliser(self, labels):
        """Return what the sum over the whole batch is divided by, a float; 1 for a batch in which nothing counts."""
        if self.label_mode == "multi":
            return float(labels.numel())
        return float(self._weighted(labels).sum()) or 1.0

    def mean(self, logits, labels):
        """Return the loss of a whole batch, a scalar tensor."""
        return self.sum(logits, labels) / self.normaliser(labels)

    def _weighted(self, labels):
        """Return the labels times the class weights."""
        return labels if self.class_weights is None else labels * self.class_weights
