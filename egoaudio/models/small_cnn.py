"""The small convolutional network, the trainer's default.

In: float (batch, num_frames, num_bins), normalised, any length and any number of bins; with context, the clip's own
frames are those in the middle. Out: logits float (batch, num_classes).

    average of frames and bins      (batch, 1, T, 64): about 25 frames a second and 64 bins at most
    batch norm of each bin          normalisation per band, learnt
    beside it, each bin's rise      above its mean over time: what is steady is nearly 0; 1.5 points of mAP
    3 x [3x3 convolution, batch norm, 2x2 maximum, ReLU], then one convolution without maximum
    channels x bins, flattened      keeps high and low frequencies apart: 12 points of mAP
    mean and maximum over time      of all frames, and again of the clip's own: 6 points
    hidden layer, dropout, output

The gain of each choice is in ``benchmarks/README.md``. Only convolutions, batch norm, pooling and linear layers, so it
exports to ONNX. Batch norm uses all clips of a micro-batch: in smaller ones its statistics are slightly different.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from egoaudio.models.dropout import ClipDropout

CHANNELS = (16, 32, 64, 128)
HIDDEN_SIZE = 64  # 128 are as good (validation mAP 32.0 and 32.3 %) and make 0.64 M weights of 0.37 M
MOST_BINS = 64
NUM_MAPS = 2  # the levels, and what they are above each bin's mean
# Frames that are averaged: 4 of a log-mel's 10 ms make 40 ms; fewer where a clip would keep less than 24 frames.
FRAMES_AVERAGED, FEWEST_FRAMES = 4, 24


class SmallCNN(nn.Module):
    """Four convolutions that keep frequency, mean and maximum over time, one hidden layer.

    Parameters
    ----------
    num_classes : int
        Outputs.
    feature_shape : (int, int)
        (num_frames, num_bins) of the input, context included.
    dropout : float
        Probability of dropout before each linear layer, in [0, 1).
    context_clips : int
        Neighbouring clips on each side that are in ``feature_shape``.
    """

    def __init__(
        self, num_classes: int, feature_shape: Sequence[int], dropout: float = 0.0, context_clips: int = 0
    ) -> None:
        super().__init__()
        num_frames, num_bins = feature_shape
        clip_frames = num_frames // (2 * context_clips + 1)
        self.pooling = min(max(round(clip_frames / FEWEST_FRAMES), 1), FRAMES_AVERAGED), max(num_bins // MOST_BINS, 1)
        self.context_clips = context_clips
        bins = num_bins // self.pooling[1]
        self.band_norm = nn.BatchNorm1d(bins, affine=False)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise((NUM_MAPS, *CHANNELS))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in CHANNELS)
        for _ in CHANNELS[:-1]:
            bins = max(bins // 2, 1)
        num_summaries = 4 if context_clips else 2
        self.dropouts = nn.ModuleList(ClipDropout(dropout, layer) for layer in range(2))
        self.hidden = nn.Linear(num_summaries * CHANNELS[-1] * bins, HIDDEN_SIZE)
        self.classifier = nn.Linear(HIDDEN_SIZE, num_classes)
        self.activation_checkpointing = False
        self.to(memory_format=torch.channels_last)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the activations of the convolutions in the backward pass."""
        self.activation_checkpointing = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, num_classes) of ``x`` (batch, num_frames, num_bins)."""
        if self.activation_checkpointing and self.training:
            maps = checkpoint(
                self.maps, x, use_reentrant=False, context_fn=lambda: (nullcontext(), self._recomputing())
            )
        else:
            maps = self.maps(x)
        summary = self.dropouts[0](torch.cat(self._summaries(maps), dim=1))
        return self.classifier(self.dropouts[1](functional.relu(self.hidden(summary))))

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolution's maps, (b, channels * bins, T), of ``x`` (b, num_frames, num_bins)."""
        frames, bins = self.pooling
        x = functional.avg_pool2d(x.unsqueeze(1), (min(frames, x.shape[1]), bins))  # (b, 1, T, F)
        x = self.band_norm(x.squeeze(1).transpose(1, 2)).transpose(1, 2).unsqueeze(1)
        x = torch.cat((x, x - x.mean(dim=2, keepdim=True)), dim=1)  # (b, 2, T, F)
        x = x.contiguous(memory_format=torch.channels_last)
        for block, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x))
            if block < len(self.convolutions) - 1:
                # The maximum before the ReLU: the same numbers from a quarter of the work.
                x = functional.max_pool2d(x, [min(length, 2) for length in x.shape[2:]])
            x = functional.relu(x)
        return x.permute(0, 1, 3, 2).flatten(1, 2)

    def _summaries(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Return mean and maximum over time, of all frames and, with context, of the clip's own."""
        parts = [maps]
        if self.context_clips:
            num_frames, num_clips = maps.shape[2], 2 * self.context_clips + 1
            first = num_frames * self.context_clips // num_clips
            stop = max(-(-num_frames * (self.context_clips + 1) // num_clips), first + 1)
            parts.append(maps[:, :, first:stop])
        return [summary for part in parts for summary in (part.mean(dim=2), part.amax(dim=2))]

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Leave batch norm's running statistics unchanged: the forward pass has updated them with these clips."""
        norms = [self.band_norm, *self.norms]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked -= 1
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
