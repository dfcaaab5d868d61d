"""YAMNet: the MobileNetV1 that Google trained on AudioSet, for fine-tuning.

In: float (batch, num_frames, 64), YAMNet's own log-mel, not normalised, or waveforms (batch, num_samples) at 16 kHz.
Out: logits float (batch, num_classes). 3.7 M weights: a convolution and 13 separable ones, mean over time and frequency
(an embedding of 1,024 numbers), one linear layer. Source: Plakal and Ellis,
https://github.com/tensorflow/models/tree/master/research/audioset/yamnet; Howard et al. 2017,
https://arxiv.org/abs/1704.04861.

Clips may have any number of frames: shorter ones than YAMNet's patch of 96 are padded with silence, longer ones (1 s is
98 frames; context) are one image, over which the mean is taken. For 96 frames this is the published network. With
context, the mean over the clip's own part follows that over the whole (a maximum adds nothing). Its strides pad as
TensorFlow's "same" does for even lengths, so that a longer clip is sampled where a patch would be.

Batch norm is folded into the convolutions before it. Small batches should not change its statistics, and with fixed
statistics it is a scale and an offset, both of which a convolution has. A clip's logits and gradients then depend on no
other clip (micro-batches are exact), the TensorFlow file and the ONNX file, which is folded, give the same network,
half the activations are kept, and Adam gets weights of the size that suits their fan-in: unfolded, those of all
layers have a standard deviation of 0.018, followed by factors of 0.2 to 100, for which steps of 0.001 are too large.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from egoaudio.audio import yamnet_features
from egoaudio.errors import ConfigurationError
from egoaudio.models.dropout import ClipDropout
from egoaudio.models.sound_features import YamnetLogMel, in_float32

NUM_PUBLISHED_CLASSES = 521
EMBEDDING_SIZE = 1024
PATCH_FRAMES = 96
COLUMN_FRAMES = 32  # of the log-mel, for each column of the last map
STEM_CHANNELS = 32
# (stride, channels) of the separable convolutions.
BLOCKS = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024))
SILENCE = math.log(yamnet_features.LOG_OFFSET)
# The learning rate of the published weights, as a share of the last layer's. With 1e-4 for them and 1e-3 for the last
# layer, mAP of audible classes was 28.0 on validation and 19.1 on other sounds; with 9e-5 and 3e-3 30.2 and 28.1.
TRUNK_RATE = 0.03


def check_shape(feature_shape: Sequence[int]) -> None:
    """Raise ConfigurationError unless ``feature_shape`` is (num_frames, 64), or (num_samples,) of a frame at least."""
    if len(feature_shape) == 1 and feature_shape[0] < yamnet_features.FRAME_LENGTH:
        raise ConfigurationError(
            f"yamnet on waveforms of {feature_shape[0]} samples: one frame has {yamnet_features.FRAME_LENGTH}; "
            "build with a longer `clip_seconds`"
        )
    if len(feature_shape) > 1 and feature_shape[1] != yamnet_features.NUM_BANDS:
        raise ConfigurationError(
            f"yamnet on features of {feature_shape[1]} bands: expected YAMNet's own {yamnet_features.NUM_BANDS}; "
            "build with `features=('yamnet',)`"
        )


class SameConvolution(nn.Conv2d):
    """A convolution of 3x3 or 1x1 and ReLU; at stride 2 padded behind the last row and column only.

    That is how TensorFlow's "same" pads even lengths.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel_size // 2 if stride == 1 else 0  # at stride 2 forward pads
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, out_channels, height, width) of ``x``, halved at stride 2."""
        if self.stride[0] == 2:
            x = functional.pad(x, (0, 1, 0, 1))
        return functional.relu(super().forward(x), inplace=True)


class SeparableConvolution(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 convolution over the channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = SameConvolution(in_channels, in_channels, 3, stride, groups=in_channels)
        self.pointwise = SameConvolution(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, out_channels, height, width) of ``x``, halved at stride 2."""
        features: torch.Tensor = self.pointwise(self.depthwise(x))
        return features


class YAMNet(nn.Module):
    """YAMNet with a linear layer of ``num_classes`` outputs, and random weights until ``yamnet_weights`` sets them.

    Parameters
    ----------
    num_classes : int
        Outputs.
    dropout : float
        Probability of dropout on the embedding, in [0, 1).
    freeze : bool
        Train only the linear layer: the trunk has no gradients, keeps no activations, and does not change.
    context_clips : int
        Neighbouring clips on each side that are part of the input.
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, freeze: bool = False, context_clips: int = 0) -> None:
        super().__init__()
        self.front_end = YamnetLogMel()
        channels = [STEM_CHANNELS, *(channels for _, channels in BLOCKS[:-1])]
        blocks = (
            SeparableConvolution(before, after, stride)
            for before, (stride, after) in zip(channels, BLOCKS, strict=True)
        )
        self.trunk = nn.ModuleList([SameConvolution(1, STEM_CHANNELS, 3, stride=2), *blocks])
        self.dropout = ClipDropout(dropout, layer=0)
        self.context_clips = context_clips
        self.classifier = nn.Linear(EMBEDDING_SIZE * (2 if context_clips else 1), num_classes)
        self.activation_checkpointing = False
        self.freeze = freeze
        self.trunk.requires_grad_(not freeze)
        self.to(memory_format=torch.channels_last)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the activations of the separable convolutions in the backward pass."""
        self.activation_checkpointing = True

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the parameters in groups, each with its factor of the learning rate: higher for new weights."""
        return [(list(self.classifier.parameters()), 1.0), (list(self.trunk.parameters()), TRUNK_RATE)]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding (batch, 1024) of log-mel (batch, num_frames, 64) or waveforms (batch, num_samples).

        With context it is (batch, 2048).
        """
        if x.ndim == 2:
            x = in_float32(self.front_end, x)
        num_frames = x.shape[1]
        if num_frames < PATCH_FRAMES:
            x = functional.pad(x, (0, 0, 0, PATCH_FRAMES - num_frames), value=SILENCE)
        maps = x.unsqueeze(1).to(memory_format=torch.channels_last)  # (b, 1, t, 64)
        recompute = self.activation_checkpointing and self.training and not self.freeze and torch.is_grad_enabled()
        for layer in self.trunk:
            maps = checkpoint(layer, maps, use_reentrant=False) if recompute else layer(maps)
        maps = maps.mean(dim=3)  # (b, 1024, t // 32)
        if not self.context_clips:
            return maps.mean(dim=2)
        clip_columns = num_frames / (2 * self.context_clips + 1) / COLUMN_FRAMES
        first = round(self.context_clips * clip_columns)
        stop = max(round((self.context_clips + 1) * clip_columns), first + 1)
        return torch.cat([maps[:, :, first:stop].mean(dim=2), maps.mean(dim=2)], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, num_classes) of log-mel (batch, num_frames, 64) or waveforms (batch, num_samples)."""
        logits: torch.Tensor = self.classifier(self.dropout(self.embed(x)))
        return logits
