"""A batch in micro-batches that fit into memory, for training and scoring.

The size of a micro-batch is found once. On CUDA the whole batch is tried first; on a CPU, where Linux kills a process
instead of raising an error, the first size follows from the free memory (``memory``) and from what a forward pass of
one and of two clips would keep; the pass that measures this keeps nothing, as it could be killed for it. Whenever
memory runs out, the size is halved; it is never raised again.
"""

import gc
import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from egoaudio.errors import first_line
from egoaudio.system import allocator
from egoaudio.system.memory import free_memory, is_out_of_memory

Result = TypeVar("Result")

# A step takes more than the activations and gradients that it keeps: workspaces, gaps of the allocator. Measured peaks
# were 1.05 (ast) to 1.16 (cnn) times that, and more than twice as much where the C library's heap is fragmented, which
# does not happen with one clip at a time (``allocator.release_blocks``).
KEPT_TO_PEAK = 2.5
KEPT_TO_PEAK_OF_ONE = 1.3


@dataclass(frozen=True)
class Activations:
    """Bytes of the tensors that a forward pass would keep for its backward pass."""

    kept: int
    """In total."""
    largest: int
    """Of the largest tensor."""


class MicroBatches:
    """The size of a micro-batch, and what to do when it is too large; the base of training and scoring.

    Parameters
    ----------
    model : torch.nn.Module
        On ``device``; compiled or not.
    device : torch.device or str
    micro_batch_size : int or None
        Clips on the device at once; None until the first batch.
    amp_dtype : torch.dtype or None
        Type of autocast; None computes in float32.
    log : callable
        Called with a line of text whenever the size is found or changes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device | str,
        micro_batch_size: int | None,
        amp_dtype: torch.dtype | None,
        log: Callable[[str], object],
    ) -> None:
        self.model: Any = model
        self.device = torch.device(device)
        self.micro_batch_size = micro_batch_size
        self.amp_dtype = amp_dtype
        self.log = log
        self.num_sharing = 1  # processes that compute in the same memory at the same time

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    def attempt(self, work: Callable[..., Result], *arguments: Any) -> tuple[Result, None] | tuple[None, str]:
        """Return ``(result, None)`` of ``work``, or ``(None, message)`` of an out-of-memory error.

        Only the message: the error's traceback refers to every tensor of the attempt, and ends when this returns.
        """
        try:
            return work(*arguments), None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None, first_line(error)

    def release(self) -> None:
        """Release the memory of a failed attempt; on a CPU, freed blocks are not kept from now on."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            allocator.release_blocks()

    def first_size(self, features: torch.Tensor) -> int:
        """Return the first micro-batch: on CUDA the whole batch, as an attempt is cheap; on a CPU what seems to fit."""
        size = len(features)
        if self.device.type != "cpu":
            return size
        few = [features[:num_clips].clone() for num_clips in (1, min(2, size))]  # a view holds the whole batch
        (one, failure), (two, second_failure) = (self.attempt(self._measure, clips) for clips in few)
        if failure or second_failure:
            self.release()
        free = free_memory(self.device) // self.num_sharing
        if one is None or two is None:
            size = 1
        else:
            while size > 1 and self.needed(one, two, size) > free:
                size = math.ceil(size / 2)
        if size < len(features):
            self.log(
                f"micro-batch: {size} of {len(features)} clips at a time, by the {free / 2**20:,.0f} MB that are free"
            )
        if size == 1:
            self.expect_one_clip(math.inf if one is None or two is None else self.needed(one, two, 1), free)
        return size

    def needed(self, one: Activations, two: Activations, size: int) -> float:
        """Return the bytes that ``size`` clips and the gradients seem to need, measured with one clip and with two."""
        gradients = sum(parameter.nbytes for parameter in self.model.parameters())
        return gradients + (KEPT_TO_PEAK if size > 1 else KEPT_TO_PEAK_OF_ONE) * (
            one.kept + (size - 1) * (two.kept - one.kept)
        )

    def expect_one_clip(self, needed: float, free: int) -> None:
        """Prepare for one clip at a time: it seems to need ``needed`` bytes, and ``free`` are free."""

    def _measure(self, features: torch.Tensor) -> Activations:
        """Return what a forward pass keeps for its backward pass, without the weights and activation checkpointing."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        seen: dict[int, Any] = {}
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            # A tensor that is not kept may be freed, and another one at the same address counts as well.
            if address not in weights and (address not in seen or seen[address]() is not storage):
                seen[address] = weakref.ref(storage)
                sizes.append(storage.nbytes())

        training = self.model.training
        self.model.eval()  # checkpointing would hide what is kept, and batch norm's statistics would change
        try:
            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing),
                torch.enable_grad(),
                self.autocast(),
            ):
                self.model(features)
        finally:
            self.model.train(training)
        return Activations(sum(sizes), max(sizes, default=0))
