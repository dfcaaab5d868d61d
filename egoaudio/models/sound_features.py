"""Features of samples in torch, batched, on any device: equal to those of ``audio.features`` and YAMNet's.

In: float32 (clips, num_samples). Out: float32 (clips, num_frames, num_values). Windows, bands and cosines are those of
``audio``, so that there is one definition of each. All is computed in float32: under autocast too (``in_float32``), and
on a GPU without TF32 (``product``). Far below a pure tone, where there is no other sound, levels are the rounding of
float32: up to 13 dB from float64's, here and in the file, and other in each.

Frames are cut by ``unfold`` and transformed by ``torch.fft.rfft``, both of which ONNX has (``DFT``, from opset 17 on);
with ``matrix`` the transform is a product with a matrix: 1e-6 of the loudest bin off, slower here, four times as fast
in ONNX Runtime, and in every runtime.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from egoaudio.audio import features as own
from egoaudio.audio import yamnet_features
from egoaudio.audio.framing import Framer


class Spectra(nn.Module):
    """Frames of samples and their spectra.

    Parameters
    ----------
    framer : Framer
        Window, hop and length of the transform.
    margin : int
        Zeros before and after the samples; half a frame where frames are centred.
    matrix : bool
        Transform by a product with a matrix.
    """

    window: torch.Tensor
    matrix: torch.Tensor | None

    def __init__(self, framer: Framer, margin: int = 0, matrix: bool = False) -> None:
        super().__init__()
        self.frame_length, self.hop_length, self.n_fft = framer.frame_length, framer.hop_length, framer.n_fft
        self.margin = margin
        self.register_buffer("window", torch.from_numpy(framer.window), persistent=False)
        self.register_buffer("matrix", _fourier(framer) if matrix else None, persistent=False)

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the frames (clips, num_frames, frame_length) of ``samples`` (clips, num_samples)."""
        if self.margin:
            samples = functional.pad(samples, (self.margin, self.margin))
        return samples.unfold(1, self.frame_length, self.hop_length)

    def magnitudes(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the magnitudes (clips, num_frames, n_fft // 2 + 1) of frames, which are windowed first."""
        frames = frames * self.window
        if self.matrix is None:
            return torch.fft.rfft(frames, self.n_fft).abs()
        cosines, sines = product(frames, self.matrix).square().chunk(2, dim=-1)
        return (cosines + sines).sqrt()

    def power(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the power (clips, num_frames, n_fft // 2 + 1) of frames, which are windowed first."""
        return self.magnitudes(frames).square()


class Spectrogram(nn.Module):
    """Log-power spectrogram in dB."""

    def __init__(self, spectra: Spectra) -> None:
        super().__init__()
        self.spectra = spectra

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the levels (clips, num_frames, num_bins) of ``samples`` (clips, num_samples)."""
        return decibels(self.spectra.power(self.spectra.frames(samples)))


class Mfcc(nn.Module):
    """MFCC, as ``librosa.feature.mfcc``."""

    bands: torch.Tensor
    cosines: torch.Tensor

    def __init__(self, spectra: Spectra, bands: np.ndarray, cosines: np.ndarray) -> None:
        super().__init__()
        self.spectra = spectra
        self.register_buffer("bands", torch.from_numpy(bands), persistent=False)
        self.register_buffer("cosines", torch.from_numpy(np.ascontiguousarray(cosines)), persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the coefficients (clips, num_frames, n_mfcc) of ``samples`` (clips, num_samples)."""
        levels = decibels(product(self.spectra.power(self.spectra.frames(samples)), self.bands))
        loudest = levels.amax(dim=(1, 2), keepdim=True)
        return product(torch.maximum(levels, loudest - own.TOP_DB), self.cosines)


class KaldiLogMel(nn.Module):
    """Kaldi's log-mel filter bank; see ``audio.features.FilterBanks``."""

    bands: torch.Tensor

    def __init__(self, spectra: Spectra, bands: np.ndarray) -> None:
        super().__init__()
        self.spectra = spectra
        self.register_buffer("bands", torch.from_numpy(bands), persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the log energies (clips, num_frames, num_bands) of ``samples`` (clips, num_samples)."""
        means = self.spectra.frames(samples).mean(dim=2, keepdim=True) * (1 - own.PREEMPHASIS)
        # The first sample has none before it; the window of the frame that it begins is zero there.
        emphasised = functional.pad(samples[:, 1:] - own.PREEMPHASIS * samples[:, :-1], (1, 0))
        energies = product(self.spectra.power(self.spectra.frames(emphasised) - means), self.bands)
        return energies.clamp(min=float(own.LOGMEL_MIN_ENERGY)).log()


class YamnetLogMel(nn.Module):
    """YAMNet's log-mel of samples of any length; see ``audio.yamnet_features``."""

    bands: torch.Tensor

    def __init__(self, matrix: bool = False) -> None:
        super().__init__()
        framer = yamnet_features.YamnetLogMel(yamnet_features.SAMPLE_RATE, yamnet_features.FRAME_LENGTH)
        self.spectra = Spectra(framer, matrix=matrix)
        bands = yamnet_features.filter_bank().matrix(yamnet_features.N_FFT // 2 + 1)
        self.register_buffer("bands", torch.from_numpy(bands), persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the log-mel (clips, num_frames, 64) of ``samples`` (clips, num_samples)."""
        magnitudes = self.spectra.magnitudes(self.spectra.frames(samples))
        return torch.log(product(magnitudes, self.bands) + yamnet_features.LOG_OFFSET)


def product(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return ``values @ matrix`` with the precision of float32 at least.

    A GPU may round the factors of a float32 product to TF32's 11 bits, as the caller's model wants it to. The setting
    is the whole process's, and float64 is beside it; of a batch's time it takes little.
    """
    return (values.double() @ matrix.double()).float() if values.is_cuda else values @ matrix


def decibels(power: torch.Tensor) -> torch.Tensor:
    """Return 10 log10 of ``power``, at least -100 dB."""
    return power.clamp(min=own.MIN_POWER).log() * float(own.DECIBELS)


def in_float32(compute: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    """Return what a module computes of ``samples``, in float32 under autocast too."""
    kind = samples.device.type
    if not torch.is_autocast_enabled(kind):  # an exported graph has no autocast, so none is begun in vain
        return compute(samples.float())
    with torch.autocast(kind, enabled=False):
        return compute(samples.float())


def _fourier(framer: Framer) -> torch.Tensor:
    """Return the matrix of cosines, then sines, that makes spectra of frames, float32 (frame_length, 2 * bins)."""
    steps = np.outer(np.arange(framer.frame_length), np.arange(framer.n_fft // 2 + 1)) % framer.n_fft
    angles = steps * (2 * np.pi / framer.n_fft)
    return torch.from_numpy(np.concatenate((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32))
