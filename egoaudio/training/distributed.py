"""What the processes of a group have to agree on when a batch is done in slices.

One process that runs out of memory and halves while the others go on would leave them waiting for ever; so the flag
is shared, and so are the normaliser of the loss and, after the last slice, the gradients. Without a process group
each function returns what it was given.
"""

import torch


def _distributed():
    """Return whether this process is one of a group."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def any_rank(flag, device):
    """Return whether ``flag`` is true in any process of the group, so that all of them redo a batch or none."""
    if not _distributed():
        return flag
    shared = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared)


def sum_over_ranks(value, device):
    """Return the sum of a float over the processes of the group."""
    if not _distributed():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared)
    return float(shared)


def sum_gradients_over_ranks(parameters):
    """Replace each gradient by its sum over the processes of the group."""
    if _distributed():
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
