"""Random changes to a batch while training: place in time, level, masks, mixing.

In: a whole normalised batch, features (b, T, F) and labels (b, C), before it is cut into micro-batches. Out: the same
shapes. Every number is drawn from the generator that is passed in, on the CPU, so the batch is the same on every device
and when it is made again. Each has its flag (``--time-shift``, ``--gain-db``, ``--spec-augment``, ``--mixup``).

Sources: SpecAugment (Park et al. 2019), mixup (Zhang et al. 2018).
"""

import math

import numpy as np
import torch

from egoaudio.audio.yamnet_features import LOG_OFFSET
from egoaudio.config.build import FEATURES
from egoaudio.errors import ConfigurationError

# SpecAugment: so many masks an axis, each up to this share of it.
MASKS = 2
MASK_SHARE = 1 / 8


def augment(features, labels, rng, config, change=None, max_shift_frames=0):
    """Return the batch changed at random, as the configuration asks.

    Parameters
    ----------
    features : torch.Tensor, float (b, T, F), or (b, samples) of waveforms
        Changed in place.
    labels : torch.Tensor, float (b, C)
    rng : numpy.random.Generator
    config : DataConfig
    change : callable or None
        What ``level_change`` returns; None without gain.
    max_shift_frames : int
        What ``shift_frames`` returns; 0 without a shift in time.

    """
    if max_shift_frames:
        shift_time(features, rng, max_shift_frames)
    if config.gain_db:
        change_gain(features, rng, config.gain_db, change)
    if config.spec_augment:
        mask(features, rng)
    if config.mixup:
        features, labels = mix(features, labels, rng, config.mixup)
    return features, labels


def level_change(feature, num_mel_bands, deviation):
    """Return the function that makes the sound of each clip louder: ``change(features, decibels)``, in place.

    Parameters
    ----------
    feature : str
        What the features are.
    num_mel_bands : int
        Mel bands behind the mfcc.
    deviation : float
        What the features were divided by; waveforms and yamnet's log-mel are never normalised.

    Raises
    ------
    ConfigurationError
        For a feature of which it is not known what louder means.
    """
    if feature == "waveform":
        return _scale
    if feature == "yamnet":
        return _scale_magnitudes
    amount, num_bins = gain_per_db(feature, num_mel_bands)

    def shift(features, decibels):
        features[..., :num_bins] += _for_clips(decibels * (amount / deviation), features)

    return shift


def shift_frames(seconds, feature_shape, sound_seconds):
    """Return how many frames are the most that ``--time-shift`` moves a clip by.

    Parameters
    ----------
    seconds : float
        What was asked for.
    feature_shape : tuple
        Frames first, of all that the model sees.
    sound_seconds : float
        How much sound that is.

    Raises
    ------
    ConfigurationError
        When it is less than a frame, or more than there is.

    """
    if seconds > sound_seconds:
        raise ConfigurationError(
            f"--time-shift {seconds:g}: expected at most {sound_seconds:g} s, all that the model sees around a clip"
        )
    frames = round(seconds * feature_shape[0] / sound_seconds)
    if frames == 0:
        raise ConfigurationError(
            f"--time-shift {seconds:g} is less than half a frame of {sound_seconds / feature_shape[0]:.3g} s "
            "and has no effect: give more, or 0"
        )
    return frames


def shift_time(features, rng, max_frames):
    """Move each clip in time by up to so many frames either way, in place; what leaves at one end comes in at the other.

    With context that end lies a neighbour away from the clip. Nothing is heard that the recording does not hold, which
    repeating the last frame would make: a steady sound.
    """
    num_clips, num_frames = features.shape[:2]
    shifts = rng.integers(-max_frames, max_frames + 1, num_clips)
    frames = torch.from_numpy((np.arange(num_frames) - shifts[:, None]) % num_frames).to(features.device)  # (b, T)
    clips = torch.arange(num_clips, device=features.device)[:, None]
    features.copy_(features[clips, frames])


def gain_per_db(feature, num_mel_bands):
    """Return by how much each bin rises when the sound gets 1 dB louder, ``(amount, number of bins)``.

    Log-power features rise alike in all bins: 1 in dB, ln(10) / 10 in the filter bank's natural logarithm. Of an mfcc only
    coefficient 0 rises, by the orthonormal cosine transform of a constant: the square root of the number of mel bands.
    Digital silence, which lies at the floor of the logarithm, is raised with the rest.
    """
    if feature == "mfcc":
        return math.sqrt(num_mel_bands), 1
    if feature in ("spectrogram", "logmel"):
        return {"spectrogram": 1.0, "logmel": math.log(10) / 10}[feature], None
    raise ConfigurationError(
        f"--gain-db does not know what a change of level does to {feature!r}: expected one of {', '.join(FEATURES)}"
    )


def _scale(features, decibels):
    """Make waveforms (b, samples) louder."""
    features *= _for_clips(10 ** (decibels / 20), features)


def _scale_magnitudes(features, decibels):
    """Make YAMNet's log-mel (b, T, F) louder: the logarithm of what is left when its offset is taken off, scaled and added again."""
    magnitudes = features.exp_().sub_(LOG_OFFSET).clamp_(min=0)
    magnitudes.mul_(_for_clips(10 ** (decibels / 20), features)).add_(LOG_OFFSET).log_()


def _for_clips(values, features):
    """Return a number for each clip, float64 (b,), as a tensor that fits the features (b, ...)."""
    tensor = torch.as_tensor(values, dtype=features.dtype).to(features.device)
    return tensor.reshape(-1, *[1] * (features.ndim - 1))


def change_gain(features, rng, gain_db, change):
    """Raise or lower each clip by up to ``gain_db``, evenly distributed, in place; ``change`` is from ``level_change``."""
    change(features, rng.uniform(-gain_db, gain_db, len(features)))


def mask(features, rng):
    """Replace bands of bins and spans of frames of each clip by each bin's mean over the clip, in place.

    One mean for all bins is not enough: no clip's spectrum is flat, so that the spans become clicks and the bands hum,
    and learning them takes the place of learning sounds. A CNN reached 22.7 % mAP on its own training clips in 8 epochs
    that way, 28.0 % with each bin's mean, 30.0 % without masks. Masking half of the clips, fewer masks, zero instead of
    the mean, or batch norm's statistics taken anew from whole clips mended less or nothing.
    """
    num_clips, num_frames, num_bins = features.shape
    hidden = _spans(num_clips, num_frames, rng)[:, :, None] | _spans(num_clips, num_bins, rng)[:, None, :]  # (b, T, F)
    mean = features.mean(dim=1, keepdim=True)
    torch.where(hidden.to(features.device), mean, features, out=features)


def _spans(num_clips, length, rng):
    """Return a bool tensor (num_clips, length) that is True in ``MASKS`` random spans of each row."""
    widths = rng.integers(0, int(length * MASK_SHARE) + 1, size=(num_clips, MASKS, 1))
    starts = rng.integers(0, length - widths + 1)
    at = np.arange(length)
    return torch.from_numpy(((at >= starts) & (at < starts + widths)).any(axis=1))


def mix(features, labels, rng, alpha):
    """Return each clip mixed with another of the batch, share and labels alike; the share is Beta(alpha, alpha)."""
    partner = torch.from_numpy(rng.permutation(len(features))).to(features.device)
    share = rng.beta(alpha, alpha, len(features))
    return (
        torch.lerp(features[partner], features, _for_clips(share, features)),
        torch.lerp(labels[partner], labels, _for_clips(share, labels)),
    )
