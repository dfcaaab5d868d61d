"""A batch in slices that fit into memory: what training and scoring share.

The size of a slice (micro-batch) is found once. On CUDA the whole batch is tried first; on a CPU, where Linux kills
rather than raises, the first size follows from what is free (``memory``) and what a forward pass of one and of two
clips would keep; the pass that finds this out keeps nothing, as it could be killed for it. Whenever memory runs out
the size is halved, never raised again.
"""

import gc
import math
import weakref
from dataclasses import dataclass

import torch

from egoaudio.models.memory import free_memory, is_out_of_memory
from egoaudio.system import allocator

# A step takes more than the activations and gradients it keeps: workspaces, the allocator's gaps. Measured peaks were
# 1.05 (ast) to 1.16 (cnn) times what is kept, more than twice that where the C library's heap tears. It does not for
# one clip at a time (``allocator.return_freed_memory``).
KEPT_TO_PEAK = 2.5
KEPT_TO_PEAK_OF_ONE = 1.3


@dataclass(frozen=True)
class Activations:
    """Bytes of the tensors that a forward pass would keep for its backward pass."""

    kept: int
    """All of them."""
    largest: int
    """The largest of them."""


class MicroBatches:
    """What training and scoring share: the size of a slice, and what to do when it is too large."""

    def __init__(self, model, device, micro_batch_size, amp_dtype, log):
        self.model = model
        self.device = torch.device(device)
        self.micro_batch_size = micro_batch_size  # None until the first batch
        self.amp_dtype = amp_dtype
        self.log = log

    def autocast(self):
        """Return the context in which the model computes."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    def attempt(self, work, *arguments):
        """Return ``(result, None)`` of ``work``, or ``(None, words)`` of an out-of-memory error.

        Only the words: the error's traceback keeps every tensor of the try alive, and goes when this returns.
        """
        try:
            return work(*arguments), None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None, (str(error).strip() or type(error).__name__).splitlines()[0][:200]

    def release(self):
        """Give back what a failed try has held; on a CPU memory is short then, and freed blocks are not kept any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            allocator.release_blocks()

    def first_size(self, features):
        """Return the first micro-batch: the whole batch on CUDA, where a try costs nothing; on a CPU what seems to fit."""
        size = len(features)
        if self.device.type != "cpu":
            return size
        few = [features[:num_clips].clone() for num_clips in (1, min(2, size))]  # a view holds the whole batch
        measured = [self.attempt(self._measure, clips) for clips in few]
        if any(failure for _, failure in measured):
            self.release()
        free = free_memory(self.device)
        (one, failure), (two, second_failure) = measured
        if failure or second_failure:
            size = 1
        while size > 1 and self.needed(one, two, size) > free:
            size = math.ceil(size / 2)
        if size < len(features):
            self.log(
                f"micro-batch: {size} of {len(features)} clips at a time, by the {free / 2**20:,.0f} MB that are free"
            )
        if size == 1:
            self.expect_one_clip(math.inf if failure else self.needed(one, two, 1), free)
        return size

    def needed(self, one, two, size):
        """Return the bytes that ``size`` clips and the gradients seem to need, from what was measured of one and of two."""
        gradients = sum(parameter.nbytes for parameter in self.model.parameters())
        return gradients + (KEPT_TO_PEAK if size > 1 else KEPT_TO_PEAK_OF_ONE) * (
            one.kept + (size - 1) * (two.kept - one.kept)
        )

    def expect_one_clip(self, needed, free):
        """Be told before the first try what one clip seems to need, where it is one at a time."""

    def _measure(self, features):
        """Return what a forward pass would keep for its backward pass, beside the weights, without activation checkpointing."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        seen, sizes = {}, []

        def pack(tensor):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            # What is not kept may be freed, and its address given to another, which counts anew.
            if address not in weights and (address not in seen or seen[address]() is not storage):
                seen[address] = weakref.ref(storage)
                sizes.append(storage.nbytes())

        training = self.model.training
        self.model.eval()  # checkpointing would hide what it keeps, batch norm would learn
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
