"""What the ranks of a process group share when a batch is computed in micro-batches.

A rank that runs out of memory and halves its micro-batch alone would leave the others waiting for ever; so that flag is
shared, and so are the normaliser of the loss and, after the last micro-batch, the gradients. Without a process group
each function returns its argument.
"""

from collections.abc import Iterable

import torch


def in_group() -> bool:
    """Return whether this process is one of a group."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is true in any rank, so that either all of them redo a batch or none."""
    if not in_group():
        return flag
    shared = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared)


def sum_over_ranks(value: float, device: torch.device) -> float:
    """Return the sum of a float over the ranks."""
    if not in_group():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared)
    return float(shared)


def sum_gradients_over_ranks(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over the ranks."""
    if in_group():
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
