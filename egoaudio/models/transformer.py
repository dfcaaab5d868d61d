"""The Audio Spectrogram Transformer, from transformers: in the paper's sizes, others, or with published weights.

In: float (batch, num_frames, num_bins). Out: logits float (batch, num_classes). Source: Gong et al. 2021,
https://arxiv.org/abs/2104.01778.

Attention is always torch's memory-efficient one (SDPA): the eager one would hold num_tokens**2 numbers per head. The
last layer computes only the two special tokens, which are all that the classifier reads. The first step of
``ast-paper`` on one clip takes 3.5 GB, with activation checkpointing 1.7 (``benchmarks/README.md``).

The model is made for the clip's own number of frames (98 for 1 s), not the 1,024 that transformers assumes: position
embeddings of published weights are cut in time, as their authors do, or interpolated for longer clips. A clip shorter
than one patch is padded with zeros at its end. Published weights were trained on features normalised as
(x + 4.2677393) / (2 * 4.5689974): give ``normalize="paper"``.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import ASTConfig, ASTForAudioClassification, ASTModel
from transformers.utils import logging as transformers_logging

from egoaudio.config.train import ModelConfig
from egoaudio.errors import ConfigurationError
from egoaudio.models.dropout import Patchout, replace_dropout

TOKENS_AT_ONCE = 2048  # of an MLP, whose activations are the largest: 8 times a layer's own in ast-paper
NUM_SPECIAL_TOKENS = 2  # class and distillation, before the patches


class Embeddings(nn.Module):
    """The embeddings of transformers' AST, with the same weights and names, and patchout.

    Parameters
    ----------
    theirs : transformers' ASTEmbeddings
        Its parts are used here.
    patchout : float
        Share of the rows and of the columns of patches that are left out in training.
    """

    def __init__(self, theirs: Any, patchout: float) -> None:
        super().__init__()
        self.cls_token, self.distillation_token = theirs.cls_token, theirs.distillation_token
        self.patch_embeddings, self.position_embeddings = theirs.patch_embeddings, theirs.position_embeddings
        self.patchout = Patchout(patchout, patch_grid(theirs.config))
        self.dropout = theirs.dropout

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (batch, num_tokens, width) of ``features`` (batch, num_frames, num_bins), special tokens first."""
        of_special, of_patches = self.position_embeddings.tensor_split([NUM_SPECIAL_TOKENS], dim=1)
        special = torch.cat((self.cls_token, self.distillation_token), dim=1) + of_special
        patches = self.patchout(self.patch_embeddings(features) + of_patches)  # positions belong to patches
        return self.dropout(torch.cat((special.expand(patches.shape[0], -1, -1), patches), dim=1))


class Layer(nn.Module):
    """A layer of transformers' AST, with the same weights and names.

    Tokens that are not read are not computed. Each dropout has its own masks (as masks follow from the layer, one
    module applied twice, as in transformers, would draw the same mask twice). The MLP takes a part of the tokens at a
    time, as it treats each alone: its backward pass then holds a ninth as much in ``ast-paper``.

    Parameters
    ----------
    theirs : transformers' ASTLayer
        Its parts are used here.
    num_computed : int or None
        How many tokens, the first ones, are computed; None computes all. All are attended to.
    """

    def __init__(self, theirs: Any, num_computed: int | None = None) -> None:
        super().__init__()
        self.attention = theirs.attention
        self.layernorm_before, self.layernorm_after = theirs.layernorm_before, theirs.layernorm_after
        self.mlp = theirs.mlp
        self.attention_dropout, self.mlp_dropout = nn.Dropout(theirs.dropout.p), nn.Dropout(theirs.dropout.p)
        self.num_computed = num_computed
        self.activation_checkpointing = False

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return (batch, num_computed, width) of ``hidden`` (batch, num_tokens, width); there is no attention mask."""
        return self._recomputed(self._compute, hidden)

    def _compute(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for ``hidden``."""
        attention, read = self.attention, slice(self.num_computed)
        normed = self.layernorm_before(hidden)
        projections = ((attention.q_proj, normed[:, read]), (attention.k_proj, normed), (attention.v_proj, normed))
        heads = [
            project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for project, x in projections
        ]  # 3 x (b, heads, tokens, head_dim)
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        hidden = hidden[:, read] + self.attention_dropout(attention.o_proj(attended))
        parts = self.layernorm_after(hidden).split(TOKENS_AT_ONCE, dim=1)
        if len(parts) == 1:
            return hidden + self.mlp_dropout(self.mlp(*parts))
        return hidden + self.mlp_dropout(torch.cat([self._recomputed(self.mlp, part) for part in parts], dim=1))

    def _recomputed(self, work: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Return ``work(hidden)``, recomputed in the backward pass with activation checkpointing."""
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            recomputed: torch.Tensor = checkpoint(work, hidden, use_reentrant=False)
            return recomputed
        return work(hidden)


class AudioTransformer(nn.Module):
    """An AST of transformers with the interface of the other models: features in, logits out.

    Parameters
    ----------
    config : transformers.ASTConfig
        Sizes; ``max_length`` is the number of frames of a clip (padded to a patch).
    patchout : float
        Share of the rows and of the columns of patches that are left out in training, in [0, 1).
    """

    def __init__(self, config: ASTConfig, patchout: float = 0.0) -> None:
        super().__init__()
        self.network: Any = ASTForAudioClassification(config)
        transformer: Any = self.network.audio_spectrogram_transformer
        transformer.embeddings = Embeddings(transformer.embeddings, patchout)
        layers = transformer.layers
        for number, theirs in enumerate(layers):
            layers[number] = Layer(theirs, NUM_SPECIAL_TOKENS if number == len(layers) - 1 else None)
        replace_dropout(self.network)
        self.num_frames = config.max_length
        self.activation_checkpointing = False

    def enable_activation_checkpointing(self) -> None:
        """Recompute each layer's activations in the backward pass, those of its MLP a part of the tokens at a time."""
        self.activation_checkpointing = True
        for layer in self.network.audio_spectrogram_transformer.layers:
            layer.activation_checkpointing = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, num_classes) of ``x`` (batch, num_frames, num_bins)."""
        missing = self.num_frames - x.shape[1]
        if missing > 0:
            x = functional.pad(x, (0, 0, 0, missing))
        logits: torch.Tensor = self.network(x).logits
        return logits


def create_paper_ast(num_classes: int, feature_shape: Sequence[int]) -> AudioTransformer:
    """Return the paper's AST: patch 16, strides 1 and 1; 17,172 tokens for a clip of 32 x 1025."""
    config = _clip_config(
        num_classes,
        feature_shape,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=3072,
        hidden_act="sigmoid",
        hidden_dropout_prob=0.4,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.02,
        patch_size=16,
        frequency_stride=1,
        time_stride=1,
    )
    return AudioTransformer(config)


def create_ast(num_classes: int, feature_shape: Sequence[int], config: ModelConfig) -> AudioTransformer:
    """Return an AST with the sizes of ``config``, or with the weights of ``config.pretrained``."""
    if config.pretrained is not None:
        return _create_pretrained(config.pretrained, num_classes, feature_shape, config)
    if config.hidden_size % config.num_heads:
        raise ConfigurationError(
            f"`hidden_size={config.hidden_size}` is not a multiple of `num_heads={config.num_heads}`: each head takes "
            "an equal share"
        )
    model = AudioTransformer(
        _clip_config(
            num_classes,
            feature_shape,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=0.0,
            patch_size=config.patch_size,
            frequency_stride=config.stride,
            time_stride=config.stride,
        ),
        config.patchout or 0.0,
    )
    # As in the authors' code. transformers begins with zeros, and a layer norm of zeros multiplies the gradient by 1e6:
    # that of the special tokens was 1,183 instead of 0.18, and two of nine runs never learnt.
    embeddings = model.network.audio_spectrogram_transformer.embeddings
    for parameter in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
        nn.init.trunc_normal_(parameter, std=model.network.config.initializer_range)
    return model


def _clip_config(num_classes: int, feature_shape: Sequence[int], **values: Any) -> ASTConfig:
    """Return the ASTConfig for clips of ``feature_shape`` (num_frames, num_bins)."""
    num_frames, num_bins = feature_shape
    patch_size = values["patch_size"]
    if num_bins < patch_size:
        raise ConfigurationError(
            f"a patch of {patch_size} bins does not fit into a feature of {num_bins}: give `patch_size={num_bins}` or "
            "less, or another `feature`"
        )
    values.update(max_length=max(num_frames, patch_size), num_mel_bins=num_bins, num_labels=num_classes)
    return efficient_config(**values)


def efficient_config(**values: Any) -> ASTConfig:
    """Return an ASTConfig with torch's memory-efficient attention."""
    values["attn_implementation"] = "sdpa"
    return ASTConfig(**values)


def _create_pretrained(
    source: str, num_classes: int, feature_shape: Sequence[int], config: ModelConfig
) -> AudioTransformer:
    """Return an AST with published weights, position embeddings fitted to the clip, and a new head."""
    published = _load_published(source)
    sizes = published.config
    fitted = _clip_config(
        num_classes,
        feature_shape,
        **{
            name: getattr(sizes, name)
            for name in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "hidden_act",
                "initializer_range",
                "layer_norm_eps",
                "qkv_bias",
                "patch_size",
                "frequency_stride",
                "time_stride",
            )
        },
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=0.0,
    )
    model = AudioTransformer(fitted, config.patchout or 0.0)
    weights = published.float().state_dict()
    key = "embeddings.position_embeddings"
    weights[key] = fit_positions(weights[key], patch_grid(sizes), patch_grid(fitted))
    model.network.audio_spectrogram_transformer.load_state_dict(weights)
    return model


def _load_published(source: str) -> Any:
    """Return the ASTModel in a folder or on the hub, if its weights are whole, finite and all of its configuration's.

    Raises
    ------
    ConfigurationError
        Saying what is wrong, and where.
    """
    # Otherwise it would be looked up as a name on the hub.
    if os.path.isfile(source) or (source.startswith(("/", ".", "~")) and not os.path.isdir(source)):
        raise ConfigurationError(
            f"`pretrained={source!r}`: there is no such folder: give a folder, or a name on the hub"
        )
    try:
        with _quiet():
            sizes, _ = ASTConfig.get_config_dict(source)
            # At first one layer, so that the others are counted before memory is taken for as many as are said.
            found: Any = ASTModel.from_pretrained(source, num_hidden_layers=1, output_loading_info=True)
            _require_fitting(source, sizes.get("model_type"), found[1])
            layers = {int(one) for name in found[1]["unexpected_keys"] for one in re.findall(r"layers?\.(\d+)\.", name)}
            num_layers = 1 + max(layers, default=0)
            stated = sizes.get("num_hidden_layers", ASTConfig().num_hidden_layers)
            if stated != num_layers:
                raise ConfigurationError(
                    f"`pretrained={source!r}`: its config.json says num_hidden_layers={stated}, and its weights have "
                    f"{num_layers} layers: give both as they were published"
                )
            found = ASTModel.from_pretrained(source, output_loading_info=True)
    except (ConfigurationError, MemoryError):
        raise
    except Exception as error:  # of many kinds, of four packages
        reason = " ".join(str(error).split())
        if "ignore_mismatched_sizes" in reason:  # it points to a table that is not printed
            reason = "its weights have other shapes than its config.json says"
        raise ConfigurationError(
            f"`pretrained={source!r}`: no AST weights can be loaded from there ({reason}): give a folder with the "
            "config.json and the whole model.safetensors as they were published, or a hub id such as "
            "MIT/ast-finetuned-audioset-10-10-0.4593"
        ) from error
    published, report = found
    _require_fitting(source, sizes.get("model_type"), report)
    for name, value in published.state_dict().items():
        if not torch.isfinite(value).all():
            raise ConfigurationError(
                f"`pretrained={source!r}`: its weights {name} hold values that are not finite: download them again"
            )
    return published


def _require_fitting(source: str, kind: Any, report: Any) -> None:
    """Raise ConfigurationError unless weights of a ``kind`` of model, with transformers' ``report``, are an AST's."""
    missing = sorted(report["missing_keys"])
    if missing or kind != ASTConfig.model_type:
        raise ConfigurationError(
            f"`pretrained={source!r}`: not an Audio Spectrogram Transformer ({kind}; {len(missing)} "
            f"weights are missing, such as {', '.join(missing[:3]) or 'none'}): give a folder, or a hub id such as "
            "MIT/ast-finetuned-audioset-10-10-0.4593"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers and its hub print no tables, warnings or progress here; what is wrong is raised."""
    hub = logging.getLogger("huggingface_hub")
    level, verbosity, bar = (
        hub.level,
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    hub.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def patch_grid(config: Any) -> tuple[int, int]:
    """Return the number of patches of a clip with an ASTConfig: (along frequency, along time)."""
    return (
        (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1,
        (config.max_length - config.patch_size) // config.time_stride + 1,
    )


def fit_positions(positions: torch.Tensor, grid: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """Return position embeddings for another grid of patches.

    Time is cut to its middle part if the clip is shorter (neighbours keep their distance, as in the authors' code);
    everything else is interpolated linearly.

    Parameters
    ----------
    positions : torch.Tensor
        (1, 2 + frequency * time, hidden): the two special tokens, then the patches, time running fastest.
    grid, target : (int, int)
        Patches along (frequency, time), of ``positions`` and of the result.

    Returns
    -------
    torch.Tensor
        (1, 2 + target frequency * target time, hidden).
    """
    special, patches = positions[:, :NUM_SPECIAL_TOKENS], positions[:, NUM_SPECIAL_TOKENS:]
    maps = patches.reshape(1, *grid, -1).permute(0, 3, 1, 2)  # (1, hidden, frequency, time)
    if target[1] < grid[1]:
        start = (grid[1] - target[1]) // 2
        maps = maps[..., start : start + target[1]]
    if tuple(maps.shape[2:]) != tuple(target):
        maps = functional.interpolate(maps, size=tuple(target), mode="bilinear", align_corners=False)
    return torch.cat((special, maps.flatten(2).transpose(1, 2)), dim=1)
