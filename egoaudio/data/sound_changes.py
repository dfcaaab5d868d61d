"""Random changes to sound itself: another clip's sound mixed in as noise, and a filter.

In: waveforms float32 (b, num_samples) on any device, with context a clip between its neighbours, and what was drawn for
each of them, float64 (b,) or (b, NUM_BANDS). All is computed in float32, under autocast too, as nothing here is a
product of matrices; sums are float64. ``augment`` draws.

Sources: mixing at a signal-to-noise ratio as in audiomentations' AddBackgroundNoise; the filter is FilterAugment's
linear one (Nam et al. 2022, https://arxiv.org/abs/2110.03282), for the sound instead of its mel bands.
"""

import numpy as np
import torch

from egoaudio.audio import mel
from egoaudio.audio.features import MIN_POWER

NUM_BANDS = 6  # of the filter, from 0 Hz to half the sample rate, evenly spaced in mel
# Samples that are worked on together. A core's cache holds 8 clips of 1 s: a front end takes 0.26 ms a clip then, and
# 0.67 with all of a batch at once; a GPU computes with more at a time, in 300 MB.
_SAMPLES_AT_ONCE = {"cpu": 1 << 17}
_SAMPLES_AT_ONCE_ON_A_GPU = 1 << 22


def together(waveforms: torch.Tensor) -> list[slice]:
    """Return which of the waveforms (b, num_samples) to work on together; nothing if there are none."""
    most = _SAMPLES_AT_ONCE.get(waveforms.device.type, _SAMPLES_AT_ONCE_ON_A_GPU)
    size = max(1, most // waveforms.shape[1])
    return [slice(start, start + size) for start in range(0, len(waveforms), size)]


def mix_in(waveforms: torch.Tensor, sources: np.ndarray, snr_db: np.ndarray) -> torch.Tensor:
    """Return the first waveforms, each with another one added to it.

    A sound is as loud as its mean power says, over all that the model hears. Sound below -100 dB is silence, which has
    no ratio to anything: it is not added, and stays as it is.

    Parameters
    ----------
    waveforms : torch.Tensor, float32 (b, num_samples)
    sources : int64 array (k,)
        Which of the waveforms is added to each of the first k; itself adds nothing.
    snr_db : float64 array (k,)
        How far the added sound is below the other.

    Returns
    -------
    torch.Tensor
        float32 (k, num_samples), new.
    """
    at = torch.from_numpy(sources).to(waveforms.device)
    rms = torch.linalg.vector_norm(waveforms, dim=1, dtype=torch.float64) / waveforms.shape[1] ** 0.5
    rms = torch.where(rms < MIN_POWER**0.5, 0.0, rms)
    wanted = rms[: len(sources)] * torch.from_numpy(10 ** (-snr_db / 20)).to(waveforms.device)
    is_other = at != torch.arange(len(sources), device=waveforms.device)
    factors = torch.where(is_other & (rms[at] > 0), wanted / rms[at], 0.0)
    mixed = waveforms[at]
    return mixed.mul_(factors.float()[:, None]).add_(waveforms[: len(sources)])


def filter_sound(waveforms: torch.Tensor, gains_db: np.ndarray, sample_rate: int) -> None:
    """Filter each waveform, in place, by gains that change linearly from band to band.

    The filter has no phase: sounds stay where they are. What leaves at one end enters at the other, as in a shift.

    Parameters
    ----------
    waveforms : torch.Tensor, float32 (b, num_samples)
    gains_db : float64 array (b, NUM_BANDS)
        At the middle of each band; no frequency is changed by more than the two beside it.
    sample_rate : int
        Hz.
    """
    num_samples = waveforms.shape[1]
    scale = mel.kaldi_mel(np.fft.rfftfreq(num_samples, 1 / sample_rate))
    positions = scale * ((NUM_BANDS - 1) / mel.kaldi_mel(sample_rate / 2))
    below = np.minimum(positions.astype(np.int64), NUM_BANDS - 2)
    at = torch.from_numpy(below).to(waveforms.device)
    shares = torch.from_numpy((positions - below).astype(np.float32)).to(waveforms.device)  # (num_bins,)
    gains = torch.from_numpy(gains_db.astype(np.float32)).to(waveforms.device)
    for rows in together(waveforms):
        decibels = torch.lerp(gains[rows][:, at], gains[rows][:, at + 1], shares)
        spectra = torch.fft.rfft(waveforms[rows]).mul_(10 ** (decibels / 20))
        waveforms[rows] = torch.fft.irfft(spectra, num_samples)
