"""The loss of a step that a GPU may still be computing.

In: a scalar where the step is computed. Out: a number, once that step is done. ``tensor.item()`` would wait for
everything that was launched until then, the next step included, and leave the GPU idle while Python launches the one
after that.
"""

import torch


class PendingLoss:
    """``float(loss)`` waits for what was launched before the loss was made, and for nothing after it.

    Parameters
    ----------
    loss : torch.Tensor
        A scalar; it may be overwritten later.
    """

    def __init__(self, loss: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._value = loss.detach()
        if loss.is_cuda:
            self._value = torch.empty((), dtype=loss.dtype, pin_memory=True)
            self._value.copy_(loss.detach(), non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(loss.device))

    @property
    def is_known(self) -> bool:
        """Whether nothing is left to wait for."""
        return self._done is None

    def __float__(self) -> float:
        if self._done is not None:
            self._done.synchronize()
        return float(self._value)
