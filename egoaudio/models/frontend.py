"""Features computed where the model runs: the file's own, from its waveforms, batched, on any device.

In: waveforms float (batch, num_samples), [-1, 1], with context the samples of a clip and its neighbours in time. Out:
float32 (batch, num_frames, num_values), not normalised: ``spectrogram``, ``mfcc``, ``logmel`` (Kaldi's, as the AST
extractor) or ``yamnet``, equal to what ``audio.features`` writes, to the rounding of float32. Every clip is framed by
itself, as in the file. ``sound_features`` does the computing, and says where rounding is seen.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from egoaudio.audio import clips as placing
from egoaudio.audio import features as own
from egoaudio.config.build import FEATURES, BuildConfig, FeatureConfig
from egoaudio.config.options import from_json
from egoaudio.config.train import TrainConfig
from egoaudio.errors import ConfigurationError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.models.sound_features import KaldiLogMel, Mfcc, Spectra, Spectrogram, YamnetLogMel, in_float32

TRANSFORMS = ("fft", "matrix")
# The options of a build that an array's attributes state, by feature; the other features have none.
_STATED = {
    "spectrogram": ("n_fft", "hop_length", "window"),
    "mfcc": ("n_fft", "hop_length", "window", "n_mels", "n_mfcc", "f_min_hz", "f_max_hz"),
}


class FrontEnd(nn.Module):
    """Waveforms of clips in, their features out.

    Parameters
    ----------
    feature : str
        Name of the feature.
    compute : torch.nn.Module
        Samples (clips, num_samples) in, features (clips, num_frames, num_values) out.
    num_samples : int
        Samples of one clip.
    shape : (int, int) or (int,)
        Of the features of one clip.
    context_clips : int
        K: each waveform holds a clip and K neighbours on each side.

    Attributes
    ----------
    num_clips : int
        2 * K + 1.
    feature_shape : (int, int) or (int,)
        ((2 * K + 1) * num_frames, num_values) of a waveform's features.
    """

    def __init__(
        self, feature: str, compute: nn.Module, num_samples: int, shape: tuple[int, ...], context_clips: int = 0
    ) -> None:
        super().__init__()
        self.feature, self.compute, self.num_samples = feature, compute, num_samples
        self.num_clips = 2 * context_clips + 1
        self.feature_shape = (self.num_clips * shape[0], *shape[1:])

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return features float32 (batch, *feature_shape) of waveforms (batch, num_clips * num_samples)."""
        if waveforms.ndim != 2 or waveforms.shape[1] != self.num_clips * self.num_samples:
            raise ValueError(
                f"expected waveforms of shape (batch, {self.num_clips * self.num_samples}), not "
                f"{tuple(waveforms.shape)}"
            )
        features = in_float32(self.compute, waveforms.reshape(-1, self.num_samples))
        return features.reshape(-1, *self.feature_shape)


class WithFrontEnd(nn.Module):
    """A network behind its front end: waveforms in, logits out.

    Parameters
    ----------
    front_end : FrontEnd
    normalization : (float, float)
        Mean and standard deviation of the features.
    model : torch.nn.Module
        Takes the normalised features.
    """

    def __init__(self, front_end: FrontEnd, normalization: tuple[float, float], model: nn.Module) -> None:
        super().__init__()
        self.front_end, self.model = front_end, model
        self.mean, self.std = normalization

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, num_classes) of waveforms (batch, num_clips * num_samples)."""
        features = self.front_end(waveforms)
        if (self.mean, self.std) != (0.0, 1.0):
            features = (features - self.mean) * (1.0 / self.std)
        logits: torch.Tensor = self.model(features)
        return logits


def create_front_end(
    feature: str,
    attributes: Mapping[str, Any] | str,
    sample_rate: int,
    num_samples: int,
    context_clips: int = 0,
    transform: str = "fft",
) -> FrontEnd:
    """Return the module that computes a feature as it is described.

    Parameters
    ----------
    feature : str
        ``spectrogram``, ``mfcc``, ``logmel`` or ``yamnet``; ``waveform`` leaves the waveforms as they are.
    attributes : mapping or str
        Of the feature's array: ``EgoAudioFile.attributes(feature)``, or ``feature_attributes`` of a checkpoint (JSON).
    sample_rate : int
        Hz.
    num_samples : int
        Samples of one clip.
    context_clips : int
        K, neighbours on each side that are joined with a clip.
    transform : {"fft", "matrix"}
        How spectra are computed; see ``sound_features``.

    Raises
    ------
    ConfigurationError
        When the attributes describe a feature that this version does not make, or the clip is too short for it.

    Examples
    --------
    >>> import torch
    >>> from egoaudio.config.build import FeatureConfig
    >>> from egoaudio.audio.features import FeatureExtractor
    >>> described = FeatureExtractor(FeatureConfig(features=("logmel",)), 16000, 16000).attributes("logmel")
    >>> create_front_end("logmel", described, sample_rate=16000, num_samples=16000)(torch.zeros(4, 16000)).shape
    torch.Size([4, 98, 128])
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform {transform!r}: expected one of {', '.join(TRANSFORMS)}")
    given = json.loads(attributes) if isinstance(attributes, str) else dict(attributes)
    stated = {name: given[name] for name in _STATED.get(feature, ()) if name in given}
    try:
        config = FeatureConfig(features=(feature,), **stated)
    except ConfigurationError as error:
        raise ConfigurationError(f"{feature} cannot be computed from waveforms as it is described: {error}") from error
    extractor = own.FeatureExtractor(config, sample_rate, num_samples)
    _require_equal(feature, given, extractor.attributes(feature))
    module = _compute(feature, config, sample_rate, num_samples, transform == "matrix")
    return FrontEnd(feature, module, num_samples, extractor.shapes[feature], context_clips)


def computable_features(file: EgoAudioFile) -> tuple[str, ...]:
    """Return the features that can be computed from the waveforms of a file.

    Raises
    ------
    ConfigurationError
        When it has none.
    """
    if "waveform" not in file.features:
        raise ConfigurationError(
            f"`on_the_fly=True`: {file.path} has no waveform to compute features from; it has "
            f"{', '.join(file.features) or 'no features'}: build again with `features=('waveform',)`, or leave "
            "`on_the_fly` out"
        )
    return tuple(name for name in FEATURES if name != "waveform")


def front_end_of_file(
    file: EgoAudioFile, feature: str, context_clips: int = 0, transform: str = "fft"
) -> tuple[FrontEnd, dict[str, Any]]:
    """Return the front end that makes a feature of a file's waveforms, and the attributes of what it makes.

    Where the file holds the feature it is the file's own; else the one that the file's configuration describes.

    Raises
    ------
    ConfigurationError
        When the file has no waveforms, or the feature cannot be made of them.
    """
    computable_features(file)
    build = from_json(BuildConfig, json.dumps(file.config))
    num_samples = require_whole_sound(build, file.sample_rate, feature)
    made = describe(build, feature, file.sample_rate, num_samples)
    attributes = file.attributes(feature) if feature in file.features else made
    try:
        return create_front_end(feature, attributes, file.sample_rate, num_samples, context_clips, transform), made
    except ConfigurationError as error:
        raise ConfigurationError(f"{file.path}: {error}, or leave `on_the_fly` out") from error


def front_end_of_checkpoint(contents: Mapping[str, Any], transform: str = "fft") -> FrontEnd:
    """Return the front end of a checkpoint's contents: sound with the run's context in, what its network takes out.

    Raises
    ------
    ConfigurationError
        When the checkpoint does not say how its features were made, or they cannot be made of waveforms.
    """
    feature = contents["feature"]
    if contents["build"] is None:
        raise ConfigurationError(
            f"an earlier version ({contents['egoaudio_version']}) wrote the checkpoint, and it does not say how its "
            f"{feature} was made: train again"
        )
    build = from_json(BuildConfig, contents["build"])
    num_samples = require_whole_sound(build, contents["sample_rate"], feature)
    data = from_json(TrainConfig, contents["config"]).data
    described = contents["feature_attributes"], contents["sample_rate"], num_samples, data.context_clips or 0
    try:
        return create_front_end(feature, *described, transform)
    except ConfigurationError as error:
        if data.on_the_fly:  # its predictions need no option
            raise
        raise ConfigurationError(f"{error}, or leave `on_the_fly` out") from error


def describe(build: BuildConfig, feature: str, sample_rate: int, num_samples: int) -> dict[str, Any]:
    """Return the attributes of the array that a build's configuration makes of clips of ``num_samples``."""
    options = {name: getattr(build.features, name) for names in _STATED.values() for name in names}
    config = FeatureConfig(features=(feature,), **options)
    return own.FeatureExtractor(config, sample_rate, num_samples).attributes(feature)


def require_whole_sound(build: BuildConfig, sample_rate: int, feature: str) -> int:
    """Return the samples of a clip; refuse features of more sound than a row of waveforms holds.

    Raises
    ------
    ConfigurationError
        With ``context_seconds``: only the clip itself is stored as a waveform.
    """
    clip_samples, context_samples = placing.count_samples(build.clips, sample_rate)
    if clip_samples != context_samples and feature != "waveform":
        raise ConfigurationError(
            f"`context_seconds={build.clips.context_seconds:g}`: {feature} was made of more sound than the "
            f"{build.clips.clip_seconds:g} s of a clip, and waveforms hold the clip alone: build without "
            "`context_seconds` and give `context_clips`, or leave `on_the_fly` out"
        )
    return clip_samples


def _compute(feature: str, config: FeatureConfig, sample_rate: int, num_samples: int, matrix: bool) -> nn.Module:
    """Return the module that computes a feature of clips."""
    if feature == "waveform":
        return nn.Identity()
    if feature == "yamnet":
        return YamnetLogMel(matrix)
    if feature == "logmel":
        banks = own.FilterBanks(sample_rate, num_samples)
        return KaldiLogMel(Spectra(banks, matrix=matrix), banks.bank.matrix(banks.n_fft // 2 + 1))
    spectra = Spectra(own.PowerSpectra(config, num_samples), config.n_fft // 2, matrix)
    if feature == "spectrogram":
        return Spectrogram(spectra)
    cepstra = own.Cepstra(config, sample_rate)
    return Mfcc(spectra, cepstra.bank.matrix(config.n_fft // 2 + 1), cepstra.cosines)


def _require_equal(feature: str, given: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless an array with these attributes is what this version makes."""
    differing = [
        f"{name} {given.get(name, 'not stated')} (here {made.get(name, 'not known')})"
        for name in sorted(given.keys() | made.keys())
        if given.get(name) != made.get(name)
    ]
    if differing:
        raise ConfigurationError(
            f"{feature} cannot be computed from waveforms as it is described: {', '.join(differing)}: build again with "
            "this version, and train on that file"
        )
