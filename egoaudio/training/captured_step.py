"""Forward and backward pass of one batch as a CUDA graph: recorded once, replayed in one call.

A GPU finishes the kernels of a small network sooner than Python can launch them: of 12.9 ms of a step of ``ast`` on 64
clips of a second, an H200 computed for 2.7. A recorded pass is launched as a whole, with the same kernels in the same
order. It reads and writes the same memory each time, so batch, normaliser and the masks of dropout are copied there
first. Recording needs as much memory again as a pass, so it is only for batches that take a small part of the GPU's.

In: features (b, T, F) and labels (b, C) on the GPU, always of one shape. Out: the loss, on the GPU, and gradients in
``parameter.grad``. Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from egoaudio.models.dropout import ClipDropout, Patchout, place_micro_batch
from egoaudio.models.memory import free_memory
from egoaudio.models.scorer import ClipLoss

# Steps on batches of one shape before their pass is captured: cuDNN chooses its algorithms in the first.
STEPS_BEFORE = 3
# A pass is captured where a step takes up to this share of the GPU's memory, as its graph takes as much again.
MEMORY_SHARE = 0.25


class CapturedPass:
    """The pass of one shape of batch; ``replay`` does it.

    Parameters
    ----------
    model : torch.nn.Module
        On the GPU, in training mode, without activation checkpointing; it has done passes of this shape before, so that
        cuDNN has chosen its algorithms.
    loss : ClipLoss
    autocast : callable
        Returns the context in which the model computes.
    layers : sequence of ClipDropout or Patchout
        Of the model; with new masks in each replay.
    features, labels : torch.Tensor
        A batch of the shape; it is not changed.

    Attributes
    ----------
    not_finite : torch.Tensor
        float32 scalar on the GPU: 1 if the last loss was not finite, else 0.

    Raises
    ------
    RuntimeError
        When the pass cannot be recorded: memory ran out, or the model does something that cannot be.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: ClipLoss,
        autocast: Callable[[], AbstractContextManager[Any]],
        layers: Sequence[ClipDropout | Patchout],
        features: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        self._features, self._labels = features.clone(), labels.clone()
        self._normaliser = torch.ones((), device=features.device)
        self._drawn = [(layer, layer.draw(features.device)) for layer in layers]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.grad = None  # the recorded backward pass makes gradients of its own, and overwrites them later
        for layer, drawn in self._drawn:
            layer.held = drawn
        self._graph = torch.cuda.CUDAGraph()
        try:
            # The loader's thread copies batches meanwhile, which must not end the recording.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                with autocast():
                    logits = model(self._features)
                value = loss.sum(logits, self._labels) / self._normaliser
                value.backward()
                self._loss = value.detach()
                self.not_finite = (~torch.isfinite(self._loss)).float()
        finally:
            for layer, _ in self._drawn:
                layer.held = None
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]

    @property
    def shape(self) -> torch.Size:
        """The shape of the features that were recorded."""
        return self._features.shape

    def replay(self, features: torch.Tensor, labels: torch.Tensor, normaliser: float, seed: int) -> torch.Tensor:
        """Launch the pass of one batch; return its loss, a scalar on the GPU, and leave its gradients in the model.

        Parameters
        ----------
        features : torch.Tensor
            (b, T, F).
        labels : torch.Tensor
            (b, C).
        normaliser : float
            Divisor of the loss, not 0.
        seed : int
            Of the step's dropout.
        """
        self._features.copy_(features)
        self._labels.copy_(labels)
        self._normaliser.fill_(normaliser)
        place_micro_batch([layer for layer, _ in self._drawn], seed, 0)
        for layer, drawn in self._drawn:
            drawn.copy_(layer.draw(features.device, like=drawn))
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss.clone()


class Captures:
    """When a pass is captured: on a GPU, for the first shape that comes several times, if memory is plenty.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    log : callable
        Called with a line of text if a pass cannot be captured.
    """

    def __init__(self, device: torch.device, log: Callable[[str], object]) -> None:
        self._device, self._log = device, log
        self._captured: CapturedPass | None = None
        self._shapes: deque[torch.Size] = deque(maxlen=STEPS_BEFORE)  # of the last batches
        self._off = device.type != "cuda"

    def find(self, features: torch.Tensor, capture: Callable[[], CapturedPass]) -> CapturedPass | None:
        """Return the captured pass for a batch; None if its kernels must be launched one by one.

        Parameters
        ----------
        features : torch.Tensor
            (b, T, F).
        capture : callable
            Captures the pass of this batch.
        """
        if self._off:
            return None
        if self._captured is None and len(set(self._shapes)) == 1 and len(self._shapes) == STEPS_BEFORE:
            if self._shapes[0] == features.shape and self._memory_is_plenty():
                self._captured = self._try(capture)
        self._shapes.append(features.shape)
        return self._captured if self._captured is not None and self._captured.shape == features.shape else None

    def _memory_is_plenty(self) -> bool:
        """Return whether the graph's memory would be a small part of the GPU's."""
        total = torch.cuda.get_device_properties(self._device).total_memory
        return torch.cuda.max_memory_allocated(self._device) < MEMORY_SHARE * min(total, free_memory(self._device))

    def _try(self, capture: Callable[[], CapturedPass]) -> CapturedPass | None:
        """Capture, or say why it cannot be done, and leave it."""
        try:
            return capture()
        except RuntimeError as error:
            self._off = True
            self._log(f"no CUDA graph: each kernel is launched by itself ({str(error).splitlines()[0][:100]})")
            return None
