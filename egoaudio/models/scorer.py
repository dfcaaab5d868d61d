"""A model's scores for the clips of a loader, computed in micro-batches that fit into memory.

In: features (b, num_frames, num_bins). Out: logits (b, num_classes) from ``Scorer``; from ``score`` sigmoids of the
logits, or a softmax for a model trained with ``--label-mode single``.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from egoaudio.data.loader import Batch, Loader
from egoaudio.errors import TrainingError
from egoaudio.models.micro_batch import Activations, MicroBatches
from egoaudio.system.memory import free_memory

logger = logging.getLogger(__name__)

# A forward pass without gradients holds a few tensors at a time.
LARGEST_TO_PEAK = 10


class Scorer(MicroBatches):
    """Computes logits without gradients, in micro-batches that fit into memory, whose size it finds.

    Parameters
    ----------
    model : torch.nn.Module
        On ``device``; in evaluation mode during a call.
    device : torch.device
        Where the model is.
    micro_batch_size : int or None
        Clips on the device at once; None finds the size with the first batch.
    amp_dtype : torch.dtype or None
        Type of autocast; None computes in float32.
    log : callable
        Called with a line of text whenever the size changes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        device: torch.device | str,
        micro_batch_size: int | None = None,
        amp_dtype: torch.dtype | None = None,
        log: Callable[[str], object] = logger.info,
    ) -> None:
        super().__init__(model, device, micro_batch_size, amp_dtype, log)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (batch, num_classes) on the device, of features (batch, num_frames, num_bins).

        Raises
        ------
        TrainingError
            When one clip does not fit.
        """
        training = self.model.training
        self.model.eval()
        try:
            return self._logits(features)
        finally:
            self.model.train(training)

    def needed(self, one: Activations, two: Activations, size: int) -> float:
        """Return the bytes that ``size`` clips seem to need without gradients."""
        return LARGEST_TO_PEAK * (one.largest + (size - 1) * (two.largest - one.largest))

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits, halving the micro-batch until it fits into memory."""
        if self.micro_batch_size is None:
            self.micro_batch_size = self.first_size(features)
        while True:
            logits, failure = self.attempt(self._score, features)
            if logits is not None:
                return logits
            self.release()
            size = min(self.micro_batch_size, len(features))
            if size == 1:
                raise TrainingError(
                    f"out of memory: not even one clip can be scored ({failure}); "
                    f"{free_memory(self.device) / 2**20:,.0f} MB are free on {self.device}: end other programs, or use "
                    "a `device` with more memory"
                )
            self.micro_batch_size = math.ceil(size / 2)
            self.log(f"evaluation: {self.micro_batch_size} clips at a time, as memory ran out with {size}")

    @torch.inference_mode()
    def _score(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits, one micro-batch after the other."""
        with self.autocast():
            return torch.cat([self.model(part).float() for part in features.split(self.micro_batch_size)])


@dataclass(frozen=True, eq=False)
class Scored:
    """A model's scores of the clips of a loader."""

    scores: np.ndarray
    """float32 (n, C), from 0 to 1."""
    rows: np.ndarray
    """int64 (n,): rows of the file."""
    loss: float
    """Mean over the clips, as defined by the loss; NaN without one."""


class ClipLoss(Protocol):
    """A loss as a sum over clips and a divisor, such as ``training.losses.Loss``."""

    def sum(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over the clips, a scalar tensor."""

    def normaliser(self, labels: torch.Tensor) -> float:
        """Return the divisor of the sum, 0 if no label weighs."""

    def divisor(self, labels: torch.Tensor) -> torch.Tensor | float:
        """Return the divisor of the sum where the labels are, not yet read; 1 if no label weighs."""


def _require_finite(batch: Batch) -> None:
    """Raise TrainingError unless all features of a batch are finite."""
    bad = batch.rows[~torch.isfinite(batch.features).flatten(1).all(dim=1).cpu().numpy()]
    if len(bad):
        rows = ", ".join(str(row) for row in bad[:5].tolist())
        raise TrainingError(
            f"{len(bad)} clips of a batch hold values that are not finite (rows of the file: {rows}): check the file "
            "with egoaudio-inspect --verify"
        )


def score(
    scorer: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    label_mode: str,
    loss: ClipLoss | None = None,
    advance: Callable[[int], object] | None = None,
) -> Scored:
    """Run a model over all batches of a loader; in a group each rank over its share, and all get all scores.

    Parameters
    ----------
    scorer : callable
        Such as a ``Scorer``: features (b, T, F) to logits (b, C).
    loader : Loader
        Not for training, over a dataset with ``label_mode="multi"``, whatever the model's: every clip once.
    label_mode : str
        The model's: ``multi`` (sigmoid) or ``single`` (softmax).
    loss : Loss, optional
        To compute the mean loss as well.
    advance : callable, optional
        Called with the number of clips of each batch, and of as many of the other ranks.

    Raises
    ------
    TrainingError
        As the loader and the scorer.
    """
    parts: list[tuple[np.ndarray, np.ndarray, float, float]] = []
    told = 0
    for batch in loader.epoch(0):
        logits = scorer(batch.features)
        if not torch.isfinite(logits).all():
            _require_finite(batch)  # else it is the model's fault, and the evaluation of the scores says so
        total, count = 0.0, 0.0
        if loss is not None:
            total, count = float(loss.sum(logits, batch.labels)), loss.normaliser(batch.labels)
        scores = (logits.sigmoid() if label_mode == "multi" else logits.softmax(dim=1)).cpu().numpy()
        parts.append((scores, batch.rows, total, count))
        if advance is not None:
            # The other ranks have done as many batches.
            done = min(len(parts) * loader.group.size * loader.batch_size, len(loader.dataset))
            advance(done - told)
            told = done
    scored, rows, totals, counts = zip(*loader.group.in_turn(parts), strict=True)
    mean_loss = math.fsum(totals) / math.fsum(counts) if any(counts) else float("nan")
    return Scored(np.concatenate(scored), np.concatenate(rows), mean_loss)
