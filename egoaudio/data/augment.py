"""Random changes to a training batch: position in time, level, other sound, a filter, masks, mixing.

In: a whole batch, before it is cut into micro-batches, or the part of it that a rank needs (``Part``): normalised
features (b, T, F), or waveforms (b, num_samples), and labels (b, C). Out: the same shapes. Time, level, other sound and
filter change what the file holds, which is sound where features are computed on the fly; masks and mixing change what
the network is given. Every number is drawn on the CPU from the generator that is passed in, for the whole batch, so
the batch is the same on every device, for any number of ranks, and when it is made again. Each change is an option of
``DataConfig``: ``time_shift_seconds``, ``mix_snr_db``, ``filter_db``, ``gain_db``, ``spec_augment``, ``mixup``, in that
order.

Sources: SpecAugment (Park et al. 2019), mixup (Zhang et al. 2018); of changes to sound, see ``sound_changes``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from egoaudio.audio.yamnet_features import LOG_OFFSET
from egoaudio.config.build import FEATURES
from egoaudio.config.train import DataConfig
from egoaudio.data import sound_changes
from egoaudio.data.context import row_seconds
from egoaudio.data.dataset import ClipDataset
from egoaudio.errors import ConfigurationError

# SpecAugment: this many masks per axis, each covering up to this share of it.
MASKS = 2
MASK_SHARE = 1 / 8

LevelChange = Callable[[torch.Tensor, np.ndarray], None]
"""Raises the level of each clip: features (b, ...), changed in place, and float64 decibels (b,)."""


@dataclass(frozen=True, eq=False)
class Partners:
    """The clip of a batch that each of its clips is mixed with, int64 (num_clips,); None where nothing is mixed."""

    mixup: np.ndarray | None = None
    noise: np.ndarray | None = None
    """Whose sound is added to the clip's; another clip, if there is one."""

    @staticmethod
    def draw(num_clips: int, rng: np.random.Generator, config: DataConfig) -> "Partners":
        """Return the partners that the configuration asks for: the first that is drawn for a batch."""
        mixup = rng.permutation(num_clips) if config.mixup else None
        noise = None
        if config.mix_snr_db:
            circle = rng.permutation(num_clips)
            noise = np.empty_like(circle)
            noise[circle] = np.roll(circle, 1)
        return Partners(mixup, noise)


@dataclass(frozen=True, eq=False)
class Part:
    """The clips of a batch that are here: those of a rank, and others that are mixed with them."""

    num_clips: int
    """Of the whole batch."""
    places: np.ndarray
    """int64 (m,): the clips' places in the batch: the rank's, then mixup's, then those that are mixed in as noise."""
    num_own: int
    """How many of them are the rank's."""
    num_heard: int
    """How many of them are the rank's or mixup's."""

    @staticmethod
    def whole(num_clips: int) -> "Part":
        """Return all clips of a batch."""
        return Part(num_clips, np.arange(num_clips), num_clips, num_clips)

    @staticmethod
    def of(own: range, num_clips: int, partners: Partners) -> "Part":
        """Return the part of a rank with its ``own`` clips."""
        here = np.arange(own.start, own.stop)
        counts = [len(here)]
        for of_each in (partners.mixup, partners.noise):
            if of_each is not None:
                here = np.concatenate((here, np.setdiff1d(of_each[here], here)))
            counts.append(len(here))
        return Part(num_clips, here, *counts[:2])


class Augmentation:
    """The random changes that a configuration asks for, to batches of one dataset.

    Parameters
    ----------
    config : DataConfig
    change : LevelChange or None
        Of what is read, from ``level_change``; required for ``gain_db``.
    max_shift_frames : int
        From ``shift_frames``; 0 without a shift in time. Of waveforms, samples.
    sample_rate : int
        Hz, of waveforms; required for ``filter_db``.
    """

    def __init__(
        self,
        config: DataConfig,
        change: LevelChange | None = None,
        max_shift_frames: int = 0,
        sample_rate: int = 0,
    ) -> None:
        self.config, self._change = config, change
        self._max_shift_frames, self._sample_rate = max_shift_frames, sample_rate

    @classmethod
    def of_dataset(cls, dataset: ClipDataset, config: DataConfig) -> "Augmentation | None":
        """Return the changes to batches of a dataset; None if there are none.

        Raises
        ------
        ConfigurationError
            When what the dataset reads cannot be changed so.
        """
        wanted = (config.time_shift_seconds, config.mix_snr_db, config.filter_db, config.gain_db)
        if not any((*wanted, config.spec_augment, config.mixup)):
            return None
        if config.spec_augment and len(dataset.feature_shape) == 1:
            raise ConfigurationError(
                f"`spec_augment` masks bands of frequency, and {dataset.feature} has none: leave one of them out"
            )
        change, max_shift_frames = None, 0
        if config.gain_db:
            change = level_change(dataset.stored, dataset.file.config["n_mels"], dataset.normalization[1])
        if config.time_shift_seconds:
            sound_seconds = (2 * dataset.context_clips + 1) * row_seconds(dataset.file, dataset.stored)
            max_shift_frames = shift_frames(config.time_shift_seconds, dataset.item_shape, sound_seconds)
        return cls(config, change, max_shift_frames, dataset.file.sample_rate)

    def __call__(
        self,
        values: torch.Tensor,
        labels: torch.Tensor,
        rng: np.random.Generator,
        part: Part | None = None,
        compute: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of a batch and its labels with the random changes.

        Parameters
        ----------
        values : torch.Tensor, float (m, T, F), or (m, num_samples) of waveforms
            Changed in place.
        labels : torch.Tensor, float (m, C)
        rng : numpy.random.Generator
        part : Part or None
            Which clips of the batch these are; all of them if not given. Only its own are returned.
        compute : callable or None
            Makes features of changed waveforms; where there is nothing to make, they are returned.
        """
        config, part = self.config, Part.whole(len(values)) if part is None else part
        partners = Partners.draw(part.num_clips, rng, config)
        values = self._change_input(values, rng, partners.noise, part)
        features = values if compute is None else compute(values)
        if config.spec_augment:
            mask(features, rng, part)
        if partners.mixup is not None and config.mixup:
            shares = rng.beta(config.mixup, config.mixup, part.num_clips)
            return mix(features, labels, partners.mixup, shares, part)
        return features, labels[: part.num_own]

    def _change_input(
        self, values: torch.Tensor, rng: np.random.Generator, sources: np.ndarray | None, part: Part
    ) -> torch.Tensor:
        """Return what the file holds of the clips that are heard, changed; ``sources`` are ``Partners.noise``."""
        config, heard = self.config, part.places[: part.num_heard]
        if self._max_shift_frames:
            shift_time(values, rng, self._max_shift_frames, part)
        if sources is not None:
            snr_db = rng.uniform(config.mix_snr_db[0], config.mix_snr_db[-1], part.num_clips)[heard]
            values = sound_changes.mix_in(values, _find(sources[heard], part), snr_db)
        if config.filter_db:
            shape = part.num_clips, sound_changes.NUM_BANDS
            gains_db = rng.uniform(-config.filter_db, config.filter_db, shape)[heard]
            sound_changes.filter_sound(values, gains_db, self._sample_rate)
        if config.gain_db and self._change is not None:
            change_gain(values, rng, config.gain_db, self._change, part)
        return values


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
    num_frames = features.shape[1]
    drawn = rng.integers(-max_frames, max_frames + 1, part.num_clips)[part.places]
    starts = torch.from_numpy(-drawn % num_frames).to(features.device)
    clips = torch.arange(len(features), device=features.device)
    # Whole clips out of two in a row: of sound, 8 times as fast as an index for each sample.
    shifted = torch.cat((features, features), dim=1).unfold(1, num_frames, 1)[clips, starts]  # (b, T) or (b, F, T)
    features.copy_(shifted if features.ndim == 2 else shifted.transpose(1, 2))


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
    change(features, rng.uniform(-gain_db, gain_db, part.num_clips)[part.places[: part.num_heard]])


def mask(features: torch.Tensor, rng: np.random.Generator, part: Part) -> None:
    """Replace bands of bins and spans of frames of each clip by each bin's mean over the clip, in place.

    With one mean for all bins the masks themselves become sounds, clicks and hum, which the model learns: 22.7 % mAP on
    its own training clips after 8 epochs, 28.0 % with each bin's mean, 30.0 % without masks.
    """
    heard = part.places[: part.num_heard]
    frames, bins = (_spans(part.num_clips, length, rng)[heard] for length in features.shape[1:])
    hidden = frames[:, :, None] | bins[:, None, :]  # (b, T, F)
    mean = features.mean(dim=1, keepdim=True)
    torch.where(hidden.to(features.device), mean, features, out=features)


def _spans(num_clips: int, length: int, rng: np.random.Generator) -> torch.Tensor:
    """Return a bool tensor (num_clips, length) that is True in ``MASKS`` random spans of each row."""
    widths = rng.integers(0, int(length * MASK_SHARE) + 1, size=(num_clips, MASKS, 1))
    starts = rng.integers(0, length - widths + 1)
    at = np.arange(length)
    return torch.from_numpy(((at >= starts) & (at < starts + widths)).any(axis=1))


def _find(places: np.ndarray, part: Part) -> np.ndarray:
    """Return where places of the batch are in the part."""
    here = np.zeros(part.num_clips, dtype=np.int64)
    here[part.places] = np.arange(len(part.places))
    return here[places]


def mix(
    features: torch.Tensor, labels: torch.Tensor, partners: np.ndarray, shares: np.ndarray, part: Part
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each of the part's own clips mixed with its partner, features and labels by the same share.

    Parameters
    ----------
    features, labels : torch.Tensor, (m, ...)
        Of the part; of features, at least those that are heard.
    partners : int64 array (num_clips,)
        Of each clip of the batch.
    shares : float64 array (num_clips,)
        Of the clip itself.
    part : Part

    """
    own = part.places[: part.num_own]
    partner = torch.from_numpy(_find(partners[own], part)).to(features.device)
    return (
        torch.lerp(features[partner], features[: part.num_own], _for_clips(shares[own], features)),
        torch.lerp(labels[partner], labels[: part.num_own], _for_clips(shares[own], labels)),
    )
