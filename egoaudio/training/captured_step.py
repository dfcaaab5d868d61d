"""A whole step on one batch as a CUDA graph: recorded once, replayed in one call.

A GPU finishes the kernels of a small network sooner than Python can launch them: of 12.9 ms of a step of ``ast`` on 64
clips of a second, an H200 computed for 2.7. A recorded step (forward and backward pass, masks of dropout, the
optimiser's update) is launched as a whole, with the same kernels in the same order. It reads and writes the same memory
each time, so the batch and the learning rates are copied there first, without waiting for the step before. Recording
needs as much memory again as a pass, so it is only for batches that take a small part of the GPU's.

In: features (b, T, F) and labels (b, C) on the GPU, always of one shape. Out: the loss, on the GPU; the weights are
changed, unless it is not finite. Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from egoaudio.errors import first_line
from egoaudio.models.dropout import ClipDropout, Patchout, place_micro_batch
from egoaudio.models.scorer import ClipLoss
from egoaudio.system.memory import free_memory
from egoaudio.training.pending_loss import PendingLoss

# Steps on batches of one shape before one is captured: cuDNN chooses its algorithms in the first.
STEPS_BEFORE = 3
# A step is captured where one takes up to this share of the GPU's memory, as its graph takes as much again.
MEMORY_SHARE = 0.25


class CapturedStep:
    """The step on batches of one shape; ``replay`` does it.

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
    optimizer : torch.optim.Adam or torch.optim.AdamW
        Fused, with its state.
    update : callable
        Changes the weights by the gradients in the model; returns the message of an out-of-memory error, or None.
    features, labels : torch.Tensor
        A batch of the shape; it is not changed.

    Raises
    ------
    RuntimeError
        When the step cannot be recorded: memory ran out, or the model does something that cannot be.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: ClipLoss,
        autocast: Callable[[], AbstractContextManager[Any]],
        layers: Sequence[ClipDropout | Patchout],
        optimizer: torch.optim.Optimizer,
        update: Callable[[], str | None],
        features: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        device = features.device
        self._optimizer, self._layers = optimizer, layers
        self._features, self._labels = features.clone(), labels.clone()
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._graph = torch.cuda.CUDAGraph()
        self._dropouts = [layer for layer in layers if isinstance(layer, ClipDropout)]
        self._generators = [[torch.Generator(device) for _ in range(layer.num_draws)] for layer in self._dropouts]
        for generator in (one for several in self._generators for one in several):
            self._graph.register_generator_state(generator)  # its seed is then read in each replay
        self._patchouts = [(layer, layer.kept().to(device)) for layer in layers if isinstance(layer, Patchout)]
        optimizer.zero_grad(set_to_none=True)  # the recorded backward pass makes gradients of its own
        # The loader's thread copies batches meanwhile, which must not end the recording.
        with self._fixed(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            with autocast():
                logits = model(self._features)
            value = loss.sum(logits, self._labels) / loss.divisor(self._labels)
            value.backward()
            self._loss = value.detach()
            with skipping_if_not_finite(optimizer, self._loss):
                if failure := update():
                    raise RuntimeError(failure)
        optimizer.zero_grad(set_to_none=True)

    @property
    def shape(self) -> torch.Size:
        """The shape of the features that were recorded."""
        return self._features.shape

    @contextlib.contextmanager
    def _fixed(self) -> Iterator[None]:
        """Let what differs from step to step be read from fixed places."""
        groups = self._optimizer.param_groups
        options = [(group["lr"], group["capturable"]) for group in groups]
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"], group["capturable"] = rate, True
            for layer, generators in zip(self._dropouts, self._generators, strict=True):
                layer.generators = generators
            for patchout, numbers in self._patchouts:
                patchout.held = numbers
            yield
        finally:
            for group, (rate, capturable) in zip(groups, options, strict=True):
                group["lr"], group["capturable"] = rate, capturable
            for layer in self._dropouts:
                layer.generators = []
            for patchout, _ in self._patchouts:
                patchout.held = None

    def replay(self, features: torch.Tensor, labels: torch.Tensor, seed: int) -> PendingLoss:
        """Launch the step on one batch; return its loss.

        Parameters
        ----------
        features : torch.Tensor
            (b, T, F).
        labels : torch.Tensor
            (b, C).
        seed : int
            Of the step's dropout.
        """
        self._features.copy_(features)
        self._labels.copy_(labels)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        place_micro_batch(self._layers, seed, 0)
        for layer, generators in zip(self._dropouts, self._generators, strict=True):
            for number, generator in enumerate(generators):
                generator.manual_seed(layer.seed_of(number))
        for patchout, numbers in self._patchouts:
            numbers.copy_(patchout.kept().pin_memory(), non_blocking=True)
        self._graph.replay()
        return PendingLoss(self._loss)


@contextlib.contextmanager
def skipping_if_not_finite(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> Iterator[None]:
    """Let the optimiser skip, where it computes, steps whose loss is not finite: as torch's GradScaler tells it to."""
    told: Any = optimizer
    told.grad_scale, told.found_inf = None, (~torch.isfinite(loss)).float()
    try:
        yield
    finally:
        del told.grad_scale, told.found_inf


class Captures:
    """When a step is captured: on a GPU, for the first shape that comes several times, if memory is plenty.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    log : callable
        Called with a line of text if a step cannot be captured.
    """

    def __init__(self, device: torch.device, log: Callable[[str], object]) -> None:
        self._device, self._log = device, log
        self._captured: CapturedStep | None = None
        self._shapes: deque[torch.Size] = deque(maxlen=STEPS_BEFORE)  # of the last batches
        self._off = device.type != "cuda"

    def find(self, features: torch.Tensor, capture: Callable[[], CapturedStep]) -> CapturedStep | None:
        """Return the captured step for a batch; None if its kernels must be launched one by one.

        Parameters
        ----------
        features : torch.Tensor
            (b, T, F).
        capture : callable
            Captures the step on this batch.
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

    def _try(self, capture: Callable[[], CapturedStep]) -> CapturedStep | None:
        """Capture, or say why it cannot be done, and leave it."""
        try:
            return capture()
        except RuntimeError as error:
            self._off = True
            self._log(f"no CUDA graph: each kernel is launched by itself ({first_line(error)})")
            return None
