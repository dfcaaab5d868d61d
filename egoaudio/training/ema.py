"""An average of the weights over the last steps (EMA), which is evaluated and kept instead of the newest weights.

    average <- d average + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t)) at step t = 0, 1, 2, ...

The rising d is TensorFlow's (``tf.train.ExponentialMovingAverage``): without it a short run's average would still be
half made of the random weights that it began with. Averaged are the parameters that are trained and the floating-point
buffers of the state (batch norm's statistics); what is frozen, and counters, are as they are in the model.

The averages hang on the model's own tensors, which ``torch.compile`` shares, so both may be used.
"""

import contextlib
from collections.abc import Iterator

import torch


class WeightAverage:
    """The average of a model's weights; ``update`` after each step of the optimiser.

    Parameters
    ----------
    model : torch.nn.Module
        Not compiled; its present weights are where the average begins.
    decay : float
        What is kept of the average from step to step, below 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.num_updates = 0
        named = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if _is_averaged(tensor)}
        averages = {tensor: tensor.detach().clone() for tensor in named.values()}  # one where two names share a tensor
        self._pairs = [(average, own) for own, average in averages.items()]
        self._averages = {name: averages[tensor] for name, tensor in named.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of the step that was just done."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for average, own in self._pairs:
            average.lerp_(own, 1 - decay)
        self.num_updates += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the model's state with the averages in place of the weights; the tensors are shared, not copied."""
        return {**self.model.state_dict(), **self._averages}

    @torch.no_grad()
    def load_state_dict(self, weights: dict[str, torch.Tensor], num_updates: int) -> None:
        """Go on from what ``state_dict`` returned after ``num_updates`` updates."""
        for name, average in self._averages.items():
            average.copy_(weights[name])
        self.num_updates = num_updates

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model compute with the averages, and put its own weights back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for average, own in self._pairs:
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def _is_averaged(tensor):
    """Return whether a tensor of the state is trained, or a floating-point buffer."""
    return tensor.requires_grad or (tensor.is_floating_point() and not isinstance(tensor, torch.nn.Parameter))
