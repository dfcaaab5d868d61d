"""Scores that depend only on the clip: the network always computes the same number of clips at once.

In: features (n, T, F) of any number of clips. Out: scores float32 (n, C). The algorithm that a library chooses, and so
the last bits of a result, depends on the shape of its input; here the shape is always the same, padded with zeros where
clips are missing. On a CPU a clip's place matters as well: matrix products compute the rows beyond the last whole block
otherwise, and vectorised functions the numbers beyond the last whole register. Such steps run clip by clip. So a clip's
scores depend neither on the other clips nor on its place (``tests/models/test_steady_scorer.py``). The size is not
reduced while it runs, as a smaller batch would be another shape: it follows from the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from egoaudio.errors import ResourceError
from egoaudio.models.micro_batch import Activations, MicroBatches
from egoaudio.models.scorer import LARGEST_TO_PEAK

MOST_CLIPS = {
    "cpu": 32
}  # 64 gain nothing there (cnn-small 1,840 clips/s on a core with either, ast 285), and few clips fill fewer
MOST_CLIPS_ON_A_GPU = 256
_REGISTER_BYTES = 64  # AVX-512's, and the alignment of PyTorch's tensors
BATCH_BYTES = 1 << 30  # the most that a forward pass of the batch may seem to need


class SteadyScorer(MicroBatches):
    """Computes scores in batches of one size.

    Parameters
    ----------
    model : torch.nn.Module
        On ``device``, in evaluation mode.
    feature_shape : tuple of int
        (T, F) of the network's input.
    label_mode : str
        The model's: ``multi`` (sigmoid) or ``single`` (softmax).
    device : torch.device
    amp_dtype : torch.dtype or None
        Type of autocast; None computes in float32.
    batch_size : int or None
        Clips at once; None takes the largest power of two up to 64 whose forward pass seems to need at most 1 GiB.

    Attributes
    ----------
    batch_size : int
    feature_shape : tuple of int
    """

    def __init__(
        self,
        model: torch.nn.Module,
        feature_shape: Sequence[int],
        label_mode: str,
        *,
        device: torch.device | str,
        amp_dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(model, device, batch_size, amp_dtype, log=lambda line: None)
        self.feature_shape, self.label_mode = tuple(feature_shape), label_mode
        self.batch_size = self._choose_size() if batch_size is None else batch_size
        self._batch = torch.zeros((self.batch_size, *self.feature_shape))

    def _choose_size(self) -> int:
        """Return how many clips fit into ``BATCH_BYTES``, measured with one clip and with two; not by free memory."""
        (one, _), (two, _) = (
            self.attempt(self._measure, torch.zeros((num_clips, *self.feature_shape), device=self.device))
            for num_clips in (1, 2)
        )
        if one is None or two is None:
            self.release()
            return 1
        size = MOST_CLIPS.get(self.device.type, MOST_CLIPS_ON_A_GPU)
        while size > 1 and self.needed(one, two, size) > BATCH_BYTES:
            size //= 2
        return size

    def needed(self, one: Activations, two: Activations, size: int) -> float:
        """Return the bytes that ``size`` clips seem to need without gradients."""
        return LARGEST_TO_PEAK * (one.largest + (size - 1) * (two.largest - one.largest))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return scores, float32 (n, C), of features (n, T, F) with n at most ``batch_size``.

        Raises
        ------
        ResourceError
            When memory runs out.
        """
        self._batch[: len(features)] = torch.from_numpy(features)
        self._batch[len(features) :] = 0
        scores, failure = self.attempt(self._score)
        if scores is None:
            self.release()
            hint = f"give `batch_size={self.batch_size // 2}`, or score" if self.batch_size > 1 else "score"
            raise ResourceError(
                f"out of memory with {self.batch_size} clips at once ({failure}): {hint} on a device with more memory"
            )
        return scores[: len(features)]

    @torch.inference_mode()
    def _score(self) -> np.ndarray:
        """Return the scores of the whole batch, float32 (batch_size, C)."""
        by_clip: AbstractContextManager[Any] = ClipByClip() if self.device.type == "cpu" else nullcontext()
        with self.autocast(), by_clip:
            logits = self.model(self._batch.to(self.device)).float()
            scores = torch.sigmoid(logits) if self.label_mode == "multi" else torch.softmax(logits, dim=1)
        return np.ascontiguousarray(scores.cpu().numpy())


class ClipByClip(TorchFunctionMode):
    """Context in which the functions whose last bits depend on a clip's place compute each clip alone.

    Their first argument is (n, ...), a clip a row. What else a network consists of (convolutions, normalisation,
    attention, pooling, rectifiers) computes a clip the same at every place of a batch of one size.
    """

    PLACED = (functional.linear, functional.gelu, torch.sigmoid)

    def __torch_function__(
        self,
        func: Callable[..., torch.Tensor],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        kwargs = kwargs or {}
        if func in self.PLACED:
            clips = args[0].split(1)
            if not _are_aligned(args[0]):
                clips = [clip.clone() for clip in clips]
            return torch.cat([func(clip, *args[1:], **kwargs) for clip in clips])
        return func(*args, **kwargs)


def _are_aligned(clips: torch.Tensor) -> bool:
    """Return whether each clip (n, ...) begins at a whole register, as each does that has memory of its own."""
    clip_bytes = clips[:1].numel() * clips.element_size()
    return clips.is_contiguous() and clips.data_ptr() % _REGISTER_BYTES == clip_bytes % _REGISTER_BYTES == 0
