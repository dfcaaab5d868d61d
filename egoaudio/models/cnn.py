"""The paper's convolutional network, to the letter, and fast.

In: float (batch, num_frames, num_bins), seen as an image with one channel. Out: logits float (batch, num_classes).
An axis that is down to one frame or bin is not halved any more, so clips of 0.1 s (4 frames) fit too; from 8 frames
and 8 bins on, the cnn is the paper's to the letter: its parameters, its outputs, its gradients.

A third of the time of the network as it is usually written (``benchmarks/README.md``), because
- the ReLU comes after the pooling, on a quarter of the numbers. The two commute (the largest of four numbers, cut at
  zero, is the largest of the four cut at zero), gradients included;
- a convolution of one input channel is computed as one of four (``FirstConvolution``), which oneDNN does faster;
- memory is channels_last throughout, in slices of a batch whose largest maps stay in the cache.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHANNELS = (1, 16, 32, 64)
CACHED_BYTES = (
    2**25
)  # of the largest maps; 16 MB is as good on an idle machine, and worse where threads wait for a core


def pooled(length):
    """Return what a 2x2 pooling leaves of an axis: half, but not less than one."""
    return max(length // 2, 1)


def pool_and_rectify(x):
    """Return ReLU of the 2x2 maxima of ``x`` (batch, channels, height, width); an axis of length 1 stays."""
    return functional.relu(functional.max_pool2d(x, [min(length, 2) for length in x.shape[2:]]))


class FirstConvolution(nn.Conv2d):
    """A 3x3 convolution (padding 1) of one channel, whose outputs stand in groups that are pooled together.

    The four outputs of a 2x2 pooling see one 4x4 patch of the input. As 2x2 blocks, four channels each, the patch is
    2x2 blocks: so all four outputs of all channels are one 2x2 convolution of 4 into ``4 * out_channels`` channels,
    with the 3x3 kernel at four places in it, zeros elsewhere. The parameters are those of a plain ``Conv2d``.

    Parameters
    ----------
    out_channels : int
        Channels of the output.
    bias : bool
        Whether a bias is added.
    """

    def __init__(self, out_channels, bias=True):
        super().__init__(1, out_channels, 3, padding=1, bias=bias)

    def placed_kernel(self):
        """Return the weights as (4 * out_channels, 4, 2, 2): output's place in its group first, block's second."""
        kernel = self.weight.squeeze(1)  # (c, 3, 3)
        placed = torch.stack(
            [functional.pad(kernel, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
        )  # (4, c, 4, 4)
        placed = placed.view(-1, 2, 2, 2, 2).permute(0, 2, 4, 1, 3)  # 4 = (block, place in it), twice
        return placed.reshape(-1, 4, 2, 2)

    def forward(self, x, kernel):
        """Return (batch, out_channels, height // 2 * width // 2, 4) of ``x`` (batch, height, width), both at least 2.

        ``kernel`` is ``placed_kernel()``, made once for all slices of a batch.
        """
        batch, height, width = x.shape
        rows, columns = height // 2, width // 2
        x = functional.pad(
            x, (1, 1 - width % 2, 1, 1 - height % 2)
        )  # whole blocks; an odd last row is a neighbour only
        blocks = (
            x.view(batch, rows + 1, 2, columns + 1, 2).permute(0, 2, 4, 1, 3).reshape(batch, 4, rows + 1, columns + 1)
        )
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.repeat(4)
        groups = functional.conv2d(blocks, kernel, bias)  # (b, 4c, rows, columns)
        return groups.permute(0, 2, 3, 1).reshape(batch, rows * columns, 4, self.out_channels).permute(0, 3, 1, 2)


def pool_and_rectify_groups(x):
    """Return ReLU of the maxima of ``x`` (..., 4) along its last axis."""
    return functional.relu(functional.max_pool2d(x, (1, 4)))


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
        later = (nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(CHANNELS[1:]))
        self.convolutions = nn.ModuleList([FirstConvolution(CHANNELS[1]), *later])
        self.activation_checkpointing = False
        self.to(memory_format=torch.channels_last)
        height, width = (pooled(pooled(pooled(length))) for length in feature_shape)
        self.classifier = nn.Linear(CHANNELS[-1] * height * width, num_classes)

    def enable_activation_checkpointing(self):
        """Recompute the activations of the convolutions in the backward pass."""
        self.activation_checkpointing = True

    def blocks(self, x, kernel):
        """Return the last block's maps (batch, 64, height, width) of ``x`` (batch, num_frames, num_bins)."""
        first, *later = self.convolutions
        batch, height, width = x.shape
        if min(height, width) > 1:
            x = pool_and_rectify_groups(first(x, kernel)).reshape(batch, -1, height // 2, width // 2)
        else:  # nothing to group along one axis
            x = functional.conv2d(x.unsqueeze(1), first.weight, first.bias, padding=1)
            x = pool_and_rectify(x)
        for convolution in later:
            x = pool_and_rectify(convolution(x))
        return x

    def maps(self, x, slice_size):
        """Return ``blocks`` of a whole batch, ``slice_size`` clips at a time."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        kernel = self.convolutions[0].placed_kernel().to(dtype)
        parts = []
        for part in x.to(dtype).split(slice_size):
            if self.activation_checkpointing and self.training:
                parts.append(checkpoint(self.blocks, part, kernel, use_reentrant=False))
            else:
                parts.append(self.blocks(part, kernel))
        return torch.cat(parts)

    def forward(self, x):
        """Return logits (batch, num_classes) of ``x`` (batch, num_frames, num_bins)."""
        size = len(x)
        if x.device.type == "cpu":
            bytes_per_clip = x[0].numel() * CHANNELS[1] * (2 if torch.is_autocast_enabled("cpu") else x.element_size())
            size = max(CACHED_BYTES // bytes_per_clip, 1)
        return self.classifier(self.maps(x, size).flatten(1))
