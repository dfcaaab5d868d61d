"""How long a GPU idles while its process waits for something, such as data.

Kernels are launched ahead of their execution, so the time for which the process waits says nothing: the GPU may be busy
all the while. Two events around the wait are reached by the GPU when it has done all that was launched before them; the
time between them is what it lacked work for.
"""

import contextlib
from collections import deque
from collections.abc import Iterator

import torch

UNREAD = 2  # gaps whose events the GPU may not have reached yet


class GpuIdle:
    """Adds up the idle time of the GPU during ``waiting``.

    Parameters
    ----------
    device : torch.device
        A GPU.

    Attributes
    ----------
    seconds : float
        Of all gaps but the last few; of all after ``finish``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self.seconds = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for something in the ``with`` block."""
        stream = torch.cuda.current_stream(self._device)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(stream)
        yield
        end.record(stream)
        self._gaps.append((begin, end))
        self._read(UNREAD)

    def finish(self) -> None:
        """Wait for the GPU to reach the last gap, and count it."""
        self._read(0)

    def _read(self, left: int) -> None:
        """Count gaps until ``left`` are left."""
        while len(self._gaps) > left:
            begin, end = self._gaps.popleft()
            end.synchronize()
            self.seconds += begin.elapsed_time(end) / 1000
