"""Every option of the commands, once: name, default, help, allowed values.

Each stage is given one small frozen dataclass; ``BuildConfig`` and ``TrainConfig`` hold those of a whole run.
The commands make their flags from the fields (``flags``), the file and the checkpoint store them as JSON
(``to_json``), and ``differences`` says in words where two runs part. Values are checked on construction, so a
configuration that exists is one that can be run. Standard library only: ``--help`` costs nothing.

Units are in the names: ``_seconds``, ``_hz``, ``_db``.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field

from egoaudio.errors import ConfigurationError

FEATURES = ("spectrogram", "mfcc", "logmel", "waveform")


def _option(default, help, choices=None, flag=None, minimum=None, above=None):
    """Return a dataclass field that also carries its flag's name, help and limits."""
    metadata = {"help": help, "choices": choices, "flag": flag, "minimum": minimum, "above": above}
    return field(default=default, metadata=metadata)


def flag_of(option):
    """Return the command-line flag of a dataclass field, such as ``--hop-seconds``."""
    return option.metadata.get("flag") or "--" + option.name.replace("_", "-")


class _Checked:
    """A base that holds every field to its declared type, choices and limits."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if dataclasses.is_dataclass(value) or not option.metadata:
                continue
            _check(option, hints[option.name], value)


def _check(option, hint, value):
    """Raise ConfigurationError unless ``value`` fits the field."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, kinds) or (float in kinds and number)
    if isinstance(value, bool) and bool not in kinds:
        fits = False
    if not fits:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigurationError(f"{flag_of(option)} {value!r}: expected {names}")
    choices, minimum, above = (option.metadata[name] for name in ("choices", "minimum", "above"))
    if choices and value is not None:
        for one in value if isinstance(value, tuple) else (value,):
            if one not in choices:
                raise ConfigurationError(f"{flag_of(option)} {one!r}: expected one of {', '.join(choices)}")
    if number and not abs(value) < float("inf"):
        raise ConfigurationError(f"{flag_of(option)} {value!r}: expected a finite number")
    if number and minimum is not None and value < minimum:
        raise ConfigurationError(f"{flag_of(option)} {value!r}: expected at least {minimum}")
    if number and above is not None and value <= above:
        raise ConfigurationError(f"{flag_of(option)} {value!r}: expected more than {above}")


# ---------------------------------------------------------------------------------------------------- build


@dataclass(frozen=True)
class ClipConfig(_Checked):
    """Which clips a recording yields, and when a class is on in one."""

    clip_seconds: float = _option(1.0, "Length of a clip.", above=0)
    hop_seconds: float | None = _option(None, "From one clip's start to the next one's; the clip's length if not given.", above=0)
    context_seconds: float | None = _option(
        None,
        "Features see this much sound around the clip's centre (silence beyond the recording's ends), "
        "labels only the clip; the clip's length if not given.",
        above=0,
    )
    min_overlap_seconds: float = _option(0.0, "A class is on when it overlaps the clip by more than this many seconds.", flag="--min-overlap", minimum=0)
    no_action: str = _option(
        "all",
        "The class that is on where no other is: everywhere (all), only before the last annotated end, with later clips "
        "unlabelled (interior), or no such class (none).",
        choices=("all", "interior", "none"),
    )

    def __post_init__(self):
        """Check that the features see at least the clip itself."""
        super().__post_init__()
        if self.context_seconds is not None and self.context_seconds < self.clip_seconds:
            raise ConfigurationError(
                f"--context-seconds {self.context_seconds:g} is less than --clip-seconds {self.clip_seconds:g}: "
                "give at least the clip's length, or leave it out"
            )


@dataclass(frozen=True)
class DenoiseConfig(_Checked):
    """How the sound is gated before features are taken."""

    mode: str = _option(
        "nonstationary", "Spectral gating: the noise floor follows the sound (nonstationary), or is fixed (stationary).",
        choices=("nonstationary", "stationary", "none"), flag="--denoise",
    )
    scope: str = _option(
        "recording", "Learn the noise floor from the whole recording, or from each clip alone (as the paper).",
        choices=("recording", "clip"), flag="--denoise-scope",
    )
    engine: str = _option(
        "egoaudio", "Ours, or the noisereduce library: the same result, slower, and with the whole recording in memory.",
        choices=("egoaudio", "noisereduce"), flag="--denoise-engine",
    )


@dataclass(frozen=True)
class FeatureConfig(_Checked):
    """Which feature arrays the file holds and the parameters that make them."""

    features: tuple[str, ...] = _option(("spectrogram", "mfcc"), "Comma-separated, any of: " + ", ".join(FEATURES) + ".", choices=FEATURES)
    n_fft: int = _option(2048, "Samples in a frame of spectrogram and mfcc.", minimum=2)
    hop_length: int = _option(512, "Samples from one frame to the next.", minimum=1)
    window: str = _option("hann", "Window of a frame.", choices=("hann", "hamming", "blackman", "boxcar"))
    n_mels: int = _option(128, "Mel bands behind the mfcc.", minimum=1)
    n_mfcc: int = _option(20, "Coefficients of the mfcc.", minimum=1)
    f_min_hz: float = _option(0.0, "Lowest frequency of the mel bands behind the mfcc.", flag="--f-min", minimum=0)
    f_max_hz: float | None = _option(None, "Highest frequency of those bands; half the sample rate if not given.", flag="--f-max", above=0)
    dtype: str = _option("float32", "Type of the feature arrays; float16 halves the file, but viewers cannot show it.", choices=("float32", "float16"))

    def __post_init__(self):
        """Check the combination and put the features in the file's order."""
        super().__post_init__()
        if not self.features:
            raise ConfigurationError("--features is empty: expected any of " + ", ".join(FEATURES))
        object.__setattr__(self, "features", tuple(name for name in FEATURES if name in self.features))
        if self.n_mfcc > self.n_mels:
            raise ConfigurationError(f"--n-mfcc {self.n_mfcc} is more than --n-mels {self.n_mels}: an mfcc has at most as many coefficients as bands")


@dataclass(frozen=True)
class BuildConfig(_Checked):
    """Everything that decides the bytes of an egoaudio file, besides its inputs."""

    sample_rate: int = _option(16000, "Samples a second after resampling.", minimum=1000)
    clips: ClipConfig = field(default_factory=ClipConfig)
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self):
        """Check what concerns more than one stage."""
        super().__post_init__()
        if self.clips.clip_seconds * self.sample_rate < 1:
            raise ConfigurationError(f"--clip-seconds {self.clips.clip_seconds:g} is less than one sample at {self.sample_rate} Hz")
        if self.features.f_max_hz is not None and not self.features.f_min_hz < self.features.f_max_hz <= self.sample_rate / 2:
            raise ConfigurationError(
                f"--f-max {self.features.f_max_hz:g}: expected more than --f-min {self.features.f_min_hz:g} and at most "
                f"{self.sample_rate / 2:g}, half the sample rate"
            )


BUILD_PRESETS = {
    # The student paper: every second of video gated by itself, 1 s spectrogram and MFCC, no_action wherever nothing is on.
    "paper": {
        "sample_rate": 16000, "clip_seconds": 1.0, "hop_seconds": None, "context_seconds": None, "min_overlap_seconds": 0.0,
        "no_action": "all", "mode": "nonstationary", "scope": "clip", "features": ("spectrogram", "mfcc"), "n_fft": 2048,
        "hop_length": 512, "window": "hann", "n_mels": 128, "n_mfcc": 20, "f_min_hz": 0.0, "f_max_hz": None,
    },
}


# ---------------------------------------------------------------------------------------------------- train


@dataclass(frozen=True)
class DataConfig(_Checked):
    """Which rows are trained on, in what order, and what is done to them."""

    validation_fraction: float = _option(0.2, "Share of the file's train split that is held out for validation.", minimum=0)
    split_unit: str = _option(
        "video", "What is held out whole. 'clip' is the paper's: neighbouring clips of a video fall on both sides, so its scores leak.",
        choices=("video", "subject", "clip"),
    )
    normalize: str = _option("dataset", "By the training videos' mean and deviation, the paper's numbers, or not.", choices=("dataset", "paper", "none"))
    label_mode: str = _option("multi", "All active classes of a clip (sigmoids), or one row per clip and active class (softmax).", choices=("multi", "single"))
    class_weights: bool = _option(False, "Weight the loss by total / (num_classes * count).")
    balanced_sampling: bool = _option(False, "Draw clips so that rare classes come as often as common ones.")
    shuffle: str = _option("full", "A full permutation, or one of blocks of rows (spinning disks, network file systems).", choices=("full", "block"))
    loader_workers: int = _option(0, "Processes that read; 0 reads in a thread of this one, which is fastest.", minimum=0)
    spec_augment: bool = _option(False, "Mask bands of frequency and spans of time while training.")
    mixup: float = _option(0.0, "Mix pairs of clips, with this Beta parameter; 0 is off.", minimum=0)
    gain_db: float = _option(0.0, "Change the level of a clip at random by up to this many dB; 0 is off.", minimum=0)

    def __post_init__(self):
        """Check that something is left to train on."""
        super().__post_init__()
        if self.validation_fraction >= 1:
            raise ConfigurationError(f"--validation-fraction {self.validation_fraction:g}: expected less than 1, or nothing is left to train on")


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """The network; sizes apply to ``ast`` only, the others are what their papers say."""

    model: str = _option("cnn", "cnn and ast-paper are the paper's; cnn-small and ast do better.", choices=("cnn", "cnn-small", "ast", "ast-paper"))
    feature: str | None = _option(None, "The array to train on: logmel for ast, spectrogram for the others if not given.", choices=FEATURES[:3])
    pretrained: str | None = _option(None, "Weights of a published AST to start from: a folder or a hub id. Its sizes replace those below.")
    hidden_size: int = _option(384, "Width of ast.", minimum=1)
    num_layers: int = _option(6, "Layers of ast.", minimum=1)
    num_heads: int = _option(6, "Attention heads of ast.", minimum=1)
    patch_size: int = _option(16, "Side of a patch of ast, in frames and bins.", minimum=1)
    stride: int = _option(10, "Step between the patches of ast, in frames and bins.", minimum=1)
    dropout: float = _option(0.0, "Dropout of ast and cnn-small.", minimum=0)


@dataclass(frozen=True)
class OptimizationConfig(_Checked):
    """The loop: optimiser, schedule, memory, precision."""

    epochs: int = _option(30, "Passes over the training clips.", minimum=1)
    batch_size: int = _option(64, "Clips in a step of the optimiser; never changed by the search for memory.", minimum=1)
    micro_batch_size: int | None = _option(None, "Clips on the device at once; found out if not given.", minimum=1)
    optimizer: str = _option("adam", "adam (the paper's) or adamw.", choices=("adam", "adamw"))
    learning_rate: float = _option(1e-3, "Peak learning rate.", above=0)
    weight_decay: float = _option(0.0, "Weight decay.", minimum=0)
    schedule: str = _option("cosine", "After the warm-up: down to zero along a cosine, or constant.", choices=("cosine", "constant"))
    warmup_fraction: float = _option(0.05, "Share of all steps over which the learning rate rises.", minimum=0)
    patience: int = _option(0, "Stop after this many epochs without a better validation mAP; 0 never stops early.", minimum=0)
    clip_gradient: float = _option(0.0, "Largest norm of the gradient; 0 does not clip.", minimum=0)
    amp: bool = _option(False, "Mixed precision: bfloat16 where the device has it, else float16 with a gradient scaler.")
    amp_dtype: str | None = _option(None, "The type for --amp, if the choice is to be yours.", choices=("bfloat16", "float16"))
    activation_checkpointing: bool = _option(False, "Recompute activations in the backward pass: less memory, about a third more time.")
    compile: bool = _option(False, "Compile the model first (torch.compile).")
    checkpoint_minutes: float = _option(10.0, "Write last.pt this often within an epoch too.", above=0)
    seed: int = _option(0, "All randomness follows from it.", minimum=0)

    def __post_init__(self):
        """Check that no option would be without effect."""
        super().__post_init__()
        if self.amp_dtype is not None and not self.amp:
            raise ConfigurationError(f"--amp-dtype {self.amp_dtype} has no effect without --amp: give both, or neither")


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """Everything that decides a trained model, besides the file."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)


TRAIN_PRESETS = {
    # The student paper's protocol, for either of its models; its clip split leaks neighbouring clips into validation.
    "paper": {
        "normalize": "paper", "split_unit": "clip", "validation_fraction": 0.2, "class_weights": True, "label_mode": "multi",
        "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "warmup_fraction": 0.0,
    },
}


# ---------------------------------------------------------------------------------------- all configurations


def flags(config_class):
    """Yield ``(option, type_hint)`` for every field that is a flag, through nested configurations, in order."""
    hints = typing.get_type_hints(config_class)
    for option in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[option.name]):
            yield from flags(hints[option.name])
        else:
            yield option, hints[option.name]


def from_flat(config_class, values):
    """Build a configuration from ``{field name: value}``; names that no field has raise ConfigurationError."""
    config, unknown = _take(config_class, dict(values))
    if unknown:
        raise ConfigurationError(f"unknown options {', '.join(sorted(unknown))}: not among those of {config_class.__name__}")
    return config


def _take(config_class, values):
    """Take the fields of ``config_class`` out of ``values``; return the configuration and what is left over."""
    hints = typing.get_type_hints(config_class)
    chosen = {}
    for option in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[option.name]):
            chosen[option.name], values = _take(hints[option.name], values)
        elif option.name in values:
            value = values.pop(option.name)
            chosen[option.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**chosen), values


def to_flat(config):
    """Return ``{field name: value}`` through nested configurations."""
    return {option.name: _find(config, option.name) for option, _ in flags(type(config))}


def _find(config, name):
    """Return the value of the field called ``name`` in ``config`` or one of its parts."""
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if dataclasses.is_dataclass(value):
            if any(inner.name == name for inner, _ in flags(type(value))):
                return _find(value, name)
        elif option.name == name:
            return value
    raise KeyError(name)


def to_json(config):
    """Return the configuration as canonical JSON (sorted, no spaces): equal configurations give equal text."""
    return json.dumps(to_flat(config), sort_keys=True, separators=(",", ":"))


def from_json(config_class, text):
    """Return the configuration that ``to_json`` wrote."""
    return from_flat(config_class, json.loads(text))


def differences(config, other):
    """Return a line for each flag whose value differs: ``--clip-seconds: 1.0, now 0.1``."""
    before, after = to_flat(config), to_flat(other)
    changed = [option for option, _ in flags(type(config)) if before[option.name] != after[option.name]]
    return [f"{flag_of(option)}: {_shown(before[option.name])}, now {_shown(after[option.name])}" for option in changed]


def _shown(value):
    """Return a value as it would be typed."""
    return "not given" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
