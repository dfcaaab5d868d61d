"""Random changes to a training batch: position in time, level, masks, mixing.

In: a whole normalised batch, features (b, T, F) and labels (b, C), before it is cut into micro-batches, or the part of
it that a rank needs (``Part``). Out: the same shapes. Every number is drawn on the CPU from the generator that is
passed in, for the whole batch, so the batch is the same on every device, for any number of ranks, and when it is made
again. Each change is an option of ``DataConfig``: ``time_shift_seconds``, ``gain_db``,
``spec_augment``, ``mixup``.

Sources: SpecAugment (Park et al. 2019), mixup (Zhang et al. 2018).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from egoaudio.audio.yamnet_features import LOG_OFFSET
from egoaudio.config.build import FEATURES
from egoaudio.config.train import DataConfig
from egoaudio.errors import ConfigurationError

# SpecAugment: this many masks per axis, each covering up to this share of it.
MASKS = 2
MASK_SHARE = 1 / 8

LevelChange = Callable[[torch.Tensor, np.ndarray], None]
"""Raises the level of each clip: features (b, ...), changed in place, and float64 decibels (b,)."""


@dataclass(frozen=True, eq=False)
class Part:
    """The clips of a batch that are here: those of a rank, then those that mixup mixes with them."""

    num_clips: int
    """Of the whole batch."""
    places: np.ndarray
    """int64 (m,): the clips' places in the batch."""
    num_own: int
    """How many of them are the rank's."""

    @staticmethod
    def whole(num_clips: int) -> "Part":
        """Return all clips of a batch."""
        return Part(num_clips, np.arange(num_clips), num_clips)

    @staticmethod
    def of(own: range, num_clips: int, rng: np.random.Generator | None) -> "Part":
        """Return the part of a rank with its ``own`` clips; ``rng`` is that of ``augment`` if there is mixup."""
        here = np.arange(own.start, own.stop)
        if rng is None:
            return Part(num_clips, here, len(here))
        return Part(num_clips, np.concatenate((here, np.setdiff1d(_partners(num_clips, rng)[here], here))), len(here))


def augment(
    features: torch.Tensor,
    labels: torch.Tensor,
    rng: np.random.Generator,
    config: DataConfig,
    change: LevelChange | None = None,
    max_shift_frames: int = 0,
    part: Part | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch with the random changes that the configuration asks for.

    Parameters
    ----------
    features : torch.Tensor, float (b, T, F), or (b, num_samples) of waveforms
        Changed in place.
    labels : torch.Tensor, float (b, C)
    rng : numpy.random.Generator
    config : DataConfig
    change : callable or None
        From ``level_change``; required for ``gain_db``.
    max_shift_frames : int
        From ``shift_frames``; 0 without a shift in time.
    part : Part or None
        Which clips of the batch these are; all of them if not given. Only its own are returned.

    """
    part = Part.whole(len(features)) if part is None else part
    # The first that is drawn: ``Part.of`` draws it, too, to know which clips have to be read.
    partners = _partners(part.num_clips, rng) if config.mixup else None
    if max_shift_frames:
        shift_time(features, rng, max_shift_frames, part)
    if config.gain_db and change is not None:
        change_gain(features, rng, config.gain_db, change, part)
    if config.spec_augment:
        mask(features, rng, part)
    if partners is not None and config.mixup:
        return mix(features, labels, partners, rng.beta(config.mixup, config.mixup, part.num_clips), part)
    return features, labels


def level_change(feature: str, num_mel_bands: int, deviation: float) -> LevelChange:
    """Return the function that raises the level of each clip: ``change(features, decibels)``, in place.

    Parameters
    ----------
    feature : str
        Name of the array.
    num_mel_bands : int
        Mel bands from which the mfcc is computed.
    deviation : float
        The standard deviation that the features were divided by; waveforms and yamnet's log-mel are never normalised.

    Raises
    ------
    ConfigurationError
        For a feature for which the effect of a level change is not known.
    """
    if feature == "waveform":
        return _scale
    if feature == "yamnet":
        return _scale_magnitudes
    amount, num_bins = gain_per_db(feature, num_mel_bands)

    def shift(features: torch.Tensor, decibels: np.ndarray) -> None:
        features[..., :num_bins] += _for_clips(decibels * (amount / deviation), features)

    return shift


def shift_frames(seconds: float, feature_shape: tuple[int, ...], sound_seconds: float) -> int:
    """Return the largest shift of a clip in time, in frames.

    Parameters
    ----------
    seconds : float
        The largest shift (``time_shift_seconds``).
    feature_shape : tuple
        Of all that the model sees; frames first.
    sound_seconds : float
        The sound that the model sees.

    Raises
    ------
    ConfigurationError
        When it is less than half a frame, or longer than the sound.

    """
    if seconds > sound_seconds:
        raise ConfigurationError(
            f"`time_shift_seconds={seconds:g}`: expected at most {sound_seconds:g} s, all that the model sees around a "
            "clip"
        )
    frames = round(seconds * feature_shape[0] / sound_seconds)
    if frames == 0:
        raise ConfigurationError(
            f"`time_shift_seconds={seconds:g}` is less than half a frame of {sound_seconds / feature_shape[0]:.3g} s "
            "and has no effect: give more, or 0"
        )
    return frames


def shift_time(features: torch.Tensor, rng: np.random.Generator, max_frames: int, part: Part) -> None:
    """Rotate each clip in time by up to ``max_frames`` either way, in place.

    Frames that leave at one end enter at the other, which with context is a neighbour away from the clip.
    Repeating the last frame instead would add a steady sound that the recording does not hold.
    """
    num_clips, num_frames = features.shape[:2]
    shifts = rng.integers(-max_frames, max_frames + 1, part.num_clips)[part.places]
    frames = torch.from_numpy((np.arange(num_frames) - shifts[:, None]) % num_frames).to(features.device)  # (b, T)
    clips = torch.arange(num_clips, device=features.device)[:, None]
    features.copy_(features[clips, frames])


def gain_per_db(feature: str, num_mel_bands: int) -> tuple[float, int | None]:
    """Return by how much each bin rises when the sound gets 1 dB louder, and in how many bins (None: all).

    Log-power features rise equally in all bins: by 1 in dB, by ln(10) / 10 in the filter bank's natural logarithm. Of
    an mfcc only coefficient 0 rises, by the orthonormal cosine transform of a constant: the square root of the number
    of mel bands. Digital silence, which is at the floor of the logarithm, is raised like the rest.
    """
    if feature == "mfcc":
        return math.sqrt(num_mel_bands), 1
    if feature in ("spectrogram", "logmel"):
        return {"spectrogram": 1.0, "logmel": math.log(10) / 10}[feature], None
    raise ConfigurationError(
        f"`gain_db` cannot change the level of {feature!r}: expected one of {', '.join(FEATURES)}, or `gain_db=0`"
    )


def _scale(features: torch.Tensor, decibels: np.ndarray) -> None:
    """Raise the level of waveforms (b, num_samples)."""
    features *= _for_clips(10 ** (decibels / 20), features)


def _scale_magnitudes(features: torch.Tensor, decibels: np.ndarray) -> None:
    """Raise the level of YAMNet's log-mel (b, T, F): scale the magnitudes in ``log(magnitudes + offset)``."""
    magnitudes = features.exp_().sub_(LOG_OFFSET).clamp_(min=0)
    magnitudes.mul_(_for_clips(10 ** (decibels / 20), features)).add_(LOG_OFFSET).log_()


def _for_clips(values: np.ndarray, features: torch.Tensor) -> torch.Tensor:
    """Return one number per clip, float64 (b,), as a tensor that broadcasts over the features (b, ...)."""
    tensor = torch.as_tensor(values, dtype=features.dtype).to(features.device)
    return tensor.reshape(-1, *[1] * (features.ndim - 1))


def change_gain(
    features: torch.Tensor, rng: np.random.Generator, gain_db: float, change: LevelChange, part: Part
) -> None:
    """Change the level of each clip by up to ``gain_db`` either way, uniformly; ``change`` is from ``level_change``."""
    change(features, rng.uniform(-gain_db, gain_db, part.num_clips)[part.places])


def mask(features: torch.Tensor, rng: np.random.Generator, part: Part) -> None:
    """Replace bands of bins and spans of frames of each clip by each bin's mean over the clip, in place.

    With one mean for all bins the masks themselves become sounds, clicks and hum, which the model learns: 22.7 % mAP on
    its own training clips after 8 epochs, 28.0 % with each bin's mean, 30.0 % without masks.
    """
    frames, bins = (_spans(part.num_clips, length, rng)[part.places] for length in features.shape[1:])
    hidden = frames[:, :, None] | bins[:, None, :]  # (b, T, F)
    mean = features.mean(dim=1, keepdim=True)
    torch.where(hidden.to(features.device), mean, features, out=features)


def _spans(num_clips: int, length: int, rng: np.random.Generator) -> torch.Tensor:
    """Return a bool tensor (num_clips, length) that is True in ``MASKS`` random spans of each row."""
    widths = rng.integers(0, int(length * MASK_SHARE) + 1, size=(num_clips, MASKS, 1))
    starts = rng.integers(0, length - widths + 1)
    at = np.arange(length)
    return torch.from_numpy(((at >= starts) & (at < starts + widths)).any(axis=1))


def _partners(num_clips: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip of a batch that each of its clips is mixed with, int64 (num_clips,)."""
    return rng.permutation(num_clips)


def mix(
    features: torch.Tensor, labels: torch.Tensor, partners: np.ndarray, shares: np.ndarray, part: Part
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each of the part's own clips mixed with its partner, features and labels by the same share.

    Parameters
    ----------
    features, labels : torch.Tensor, (m, ...)
        Of the part.
    partners : int64 array (num_clips,)
        Of each clip of the batch.
    shares : float64 array (num_clips,)
        Of the clip itself.
    part : Part

    """
    own = part.places[: part.num_own]
    here = np.zeros(part.num_clips, dtype=np.int64)
    here[part.places] = np.arange(len(part.places))  # where each place of the batch is in the part
    partner = torch.from_numpy(here[partners[own]]).to(features.device)
    return (
        torch.lerp(features[partner], features[: part.num_own], _for_clips(shares[own], features)),
        torch.lerp(labels[partner], labels[: part.num_own], _for_clips(shares[own], labels)),
    )
