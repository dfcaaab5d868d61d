"""Scores that depend on nothing but the clip: the network always computes as many clips at once.

In: features (n, T, F) of any number of clips. Out: scores float32 (n, C). Which algorithm a library takes, and so the
last bits of a result, follows from the shape of what it is given; here the shape is always the same, with zeros where
clips are missing, so that a clip's scores are the same beside any others (``tests/models/test_steady_scorer.py``).
Memory is not searched for while it runs, as a smaller batch would be another shape: its size follows from the model.
"""

import numpy as np
import torch

from egoaudio.errors import ResourceError
from egoaudio.models.micro_batch import MicroBatches
from egoaudio.models.scorer import LARGEST_TO_PEAK

MOST_CLIPS = 64
BATCH_BYTES = 1 << 30  # what a forward pass of the batch may seem to need


class SteadyScorer(MicroBatches):
    """Computes scores in batches of one size.

    Parameters
    ----------
    model : torch.nn.Module
        On ``device``, in evaluation mode.
    feature_shape : tuple of int
        (T, F) of what the network sees.
    label_mode : str
        The model's: ``multi`` (sigmoid) or ``single`` (softmax).
    device : torch.device
    amp_dtype : torch.dtype or None
        Type of autocast; None computes in float32.
    batch_size : int or None
        Clips at once; None takes the largest power of two up to 64 whose forward pass seems to need 1 GiB or less.

    Attributes
    ----------
    batch_size : int
    feature_shape : tuple of int
    """

    def __init__(self, model, feature_shape, label_mode, *, device, amp_dtype=None, batch_size=None):
        super().__init__(model, device, batch_size, amp_dtype, log=lambda line: None)
        self.feature_shape, self.label_mode = tuple(feature_shape), label_mode
        self.batch_size = self._choose_size() if batch_size is None else batch_size
        self._batch = torch.zeros((self.batch_size, *self.feature_shape))

    def _choose_size(self):
        """Return how many clips fit into ``BATCH_BYTES``: by what the model keeps of one clip and of two, not by what is free."""
        measured = []
        for num_clips in (1, 2):
            found, failure = self.attempt(
                self._measure, torch.zeros((num_clips, *self.feature_shape), device=self.device)
            )
            if failure is not None:
                self.release()
                return 1
            measured.append(found)
        size = MOST_CLIPS
        while size > 1 and self.needed(*measured, size) > BATCH_BYTES:
            size //= 2
        return size

    def needed(self, one, two, size):
        """Return the bytes that ``size`` clips seem to need without gradients."""
        return LARGEST_TO_PEAK * (one.largest + (size - 1) * (two.largest - one.largest))

    def __call__(self, features):
        """Return scores, float32 (n, C), of features (n, T, F) with n at most ``batch_size``.

        Raises
        ------
        ResourceError
            When memory runs out.
        """
        self._batch[: len(features)] = torch.from_numpy(features)
        self._batch[len(features) :] = 0
        scores, failure = self.attempt(self._score)
        if failure is not None:
            self.release()
            hint = f"give `batch_size={self.batch_size // 2}`, or score" if self.batch_size > 1 else "score"
            raise ResourceError(
                f"out of memory with {self.batch_size} clips at once ({failure}): {hint} on a device with more memory"
            )
        return scores[: len(features)]

    @torch.inference_mode()
    def _score(self):
        """Return the scores of the whole batch, float32 (batch_size, C)."""
        with self.autocast():
            logits = self.model(self._batch.to(self.device)).float()
        return np.ascontiguousarray(
            (logits.sigmoid() if self.label_mode == "multi" else logits.softmax(dim=1)).cpu().numpy()
        )
