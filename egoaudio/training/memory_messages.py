"""What a step says about memory that ran out: what was tried, and what would help."""

from collections.abc import Iterable, Sequence

import torch

from egoaudio.system.memory import free_memory


def describe_size(micro_batch_size: int, num_clips: int, with_checkpointing: bool) -> str:
    """Return the micro-batch of a batch, or of a rank's share of one, in words."""
    size = f"{min(micro_batch_size, num_clips)} of {num_clips} clips at a time"
    return f"{size} with activation checkpointing" if with_checkpointing else size


def describe_half_way(failure: str, micro_batch_size: int) -> str:
    """Return what to do after an optimiser ran out of memory while it was changing the weights."""
    return (
        f"out of memory while the optimiser was changing the weights ({failure}): they are half-way between two steps "
        "and must not be used, but the last checkpoint is intact: run the same command again, with "
        f"`micro_batch_size={max(micro_batch_size // 2, 1)}`"
    )


def describe_no_fit(
    tried: Sequence[str], failure: str, parameters: Iterable[torch.nn.Parameter], features: torch.Tensor
) -> str:
    """Return what was tried for a clip that does not fit, and what would help.

    Parameters
    ----------
    tried : sequence of str
        From ``describe_size``.
    failure : str
        The message of the last error.
    parameters : iterable of torch.nn.Parameter
        The model's.
    features : torch.Tensor
        (b, T, F), of the batch, on the device.
    """
    weights = sum(parameter.nbytes for parameter in parameters) / 2**20
    shape = " x ".join(str(length) for length in features.shape[1:])
    return (
        f"out of memory: tried {', then '.join(tried)}. {free_memory(features.device) / 2**20:,.0f} MB are free on "
        f"{features.device}; the model takes {weights:,.0f} MB for weights and {3 * weights:,.0f} MB for gradients "
        f"and Adam; a clip is {shape}. The last error was: {failure}. What would help: a smaller model "
        "(`model='cnn-small'`, or `model='ast'` with lower `num_layers` or `hidden_size`, or a higher `stride`), "
        "shorter clips, `amp=True`, which halves the activations, or a device with more memory"
    )
