"""An exponential moving average of the weights (EMA), which is evaluated and kept instead of the newest weights.

    average <- d average + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t)) at step t = 0, 1, 2, ...

The rising d is TensorFlow's (``tf.train.ExponentialMovingAverage``): without it, half of a short run's average would
still be the random weights that it began with. Averaged are the trained parameters and the floating-point buffers of
the state (batch norm's statistics); frozen parameters and counters are those of the model.

The averages refer to the model's own tensors, which ``torch.compile`` shares, so both may be used together.
"""

import contextlib
from collections.abc import Iterator

import torch


class WeightAverage:
    """The average of a model's weights; ``update`` after each step of the optimiser.

    Parameters
    ----------
    model : torch.nn.Module
        Not compiled; the average begins with its present weights.
    decay : float
        Share of the average that is kept from step to step, below 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.num_updates = 0
        named = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if _is_averaged(tensor)}
        averages = {tensor: tensor.detach().clone() for tensor in named.values()}  # one where two names share a tensor
        self._pairs = [(average, own) for own, average in averages.items()]
        self._averages = {name: averages[tensor] for name, tensor in named.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Include the weights of the step that was just done."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for average, own in self._pairs:
            average.lerp_(own, 1 - decay)
        self.num_updates += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the model's state with the averages in place of the weights; the tensors are shared, not copied."""
        return {**self.model.state_dict(), **self._averages}

    @torch.no_grad()
    def load_state_dict(self, weights: dict[str, torch.Tensor], num_updates: int) -> None:
        """Continue from what ``state_dict`` returned after ``num_updates`` updates."""
        for name, average in self._averages.items():
            average.copy_(weights[name])
        self.num_updates = num_updates

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the averages, and restore its own weights afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the model's tensors and the averages."""
        for average, own in self._pairs:
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def _is_averaged(tensor: torch.Tensor) -> bool:
    """Return whether a tensor of the state is trained, or a floating-point buffer."""
    return tensor.requires_grad or (tensor.is_floating_point() and not isinstance(tensor, torch.nn.Parameter))
