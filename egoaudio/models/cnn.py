"""The paper's convolutional network, and a smaller one against overfitting.

In: float (batch, num_frames, num_bins), seen as an image with one channel. Out: logits float (batch, num_classes).

Both pool *before* the ReLU. The two commute (the largest of four numbers, cut at zero, is the largest of the four
cut at zero), outputs and gradients are the same, and the ReLU runs on a quarter of the numbers.
An axis that is down to one frame or bin is not halved any more, so clips of 0.1 s (4 frames) fit too; from 8 frames
and 8 bins on, the network is the paper's to the letter.
"""

from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from egoaudio.models.dropout import ClipDropout

CHANNELS = (1, 16, 32, 64)


def pool_and_rectify(x):
    """Return ReLU of the 2x2 maxima of ``x`` (batch, channels, height, width); an axis of length 1 stays."""
    kernel = tuple(2 if length > 1 else 1 for length in x.shape[2:])
    return functional.relu(functional.max_pool2d(x, kernel))


def pooled(length):
    """Return what three poolings leave of an axis."""
    for _ in CHANNELS[1:]:
        length = max(length // 2, 1)
    return length


class PaperCNN(nn.Module):
    """Three 3x3 convolutions 16-32-64 (padding 1, ReLU, 2x2 max pooling), flatten, one linear layer.

    Parameters
    ----------
    num_classes : int
        Outputs.
    feature_shape : (int, int)
        (num_frames, num_bins) of a clip: the linear layer's size follows from it.
    """

    def __init__(self, num_classes, feature_shape):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(CHANNELS))
        self.classifier = nn.Linear(CHANNELS[-1] * pooled(feature_shape[0]) * pooled(feature_shape[1]), num_classes)
        self.activation_checkpointing = False
        self.to(memory_format=torch.channels_last)

    def enable_activation_checkpointing(self):
        """Recompute the activations of the convolutions in the backward pass."""
        self.activation_checkpointing = True

    def _trunk(self, x):
        """Return the last block's maps (batch, 64, height, width) of ``x`` (batch, 1, num_frames, num_bins)."""
        for convolution in self.convolutions:
            x = pool_and_rectify(convolution(x))
        return x

    def forward(self, x):
        """Return logits (batch, num_classes) of ``x`` (batch, num_frames, num_bins)."""
        x = x.unsqueeze(1).contiguous(memory_format=torch.channels_last)  # (b, 1, T, F)
        if self.activation_checkpointing and self.training:
            x = checkpoint(self._trunk, x, use_reentrant=False)
        else:
            x = self._trunk(x)
        return self.classifier(x.flatten(1))


class SmallCNN(nn.Module):
    """The paper's trunk with batch norm, then global average pooling, dropout and one small linear layer.

    29,000 parameters for 158 classes instead of 5.2 million, and any clip length fits.

    Parameters
    ----------
    num_classes : int
        Outputs.
    dropout : float
        Probability of dropout before the linear layer.
    """

    def __init__(self, num_classes, dropout):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(CHANNELS))
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in CHANNELS[1:])
        self.dropout = ClipDropout(dropout, layer=0)
        self.classifier = nn.Linear(CHANNELS[-1], num_classes)
        self.activation_checkpointing = False
        self.to(memory_format=torch.channels_last)

    def enable_activation_checkpointing(self):
        """Recompute the activations of the convolutions in the backward pass."""
        self.activation_checkpointing = True

    def _trunk(self, x):
        """Return the last block's maps (batch, 64, height, width) of ``x`` (batch, 1, num_frames, num_bins)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = pool_and_rectify(norm(convolution(x)))
        return x

    @contextmanager
    def _without_tracking(self):
        """Keep batch norm's running statistics still while a trunk is recomputed: they have seen the slice already."""
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0
            norm.num_batches_tracked -= 1
        try:
            yield
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum

    def forward(self, x):
        """Return logits (batch, num_classes) of ``x`` (batch, num_frames, num_bins)."""
        x = x.unsqueeze(1).contiguous(memory_format=torch.channels_last)  # (b, 1, T, F)
        if self.activation_checkpointing and self.training:
            x = checkpoint(self._trunk, x, use_reentrant=False, context_fn=lambda: (nullcontext(), self._without_tracking()))
        else:
            x = self._trunk(x)
        return self.classifier(self.dropout(x.mean(dim=(2, 3))))
