"""Clips in, feature arrays out: log-power spectrogram, MFCC, Kaldi log-mel, YAMNet's log-mel and the waveform itself.

In: float32 windows (clips, samples), mono, [-1, 1]. Out: ``{name: float32 (clips, frames, values)}``, float16 when
asked for. ``spectrogram`` and ``mfcc`` come from one power spectrum and equal ``librosa.stft`` (centred, zeros beyond
the ends) in dB and ``librosa.feature.mfcc`` (Slaney mel, orthonormal DCT-II, at most 80 dB below the clip's loudest);
``logmel`` is the filter bank that transformers' ``ASTFeatureExtractor`` computes before it pads and normalises:
Kaldi's fbank of 25 ms frames every 10 ms, whole frames only (https://kaldi-asr.org/doc/feat.html); ``yamnet`` is what
YAMNet takes (``yamnet_features``). librosa, torchaudio and kaldi-native-fbank are the oracles in the tests.

A clip of 1 s at 16 kHz takes 0.13 ms for spectrogram and MFCC and 0.105 for ``logmel``, half of each in the FFT
(``benchmarks/README.md``).
"""

from collections.abc import Mapping

import numpy as np
import scipy.fft

from egoaudio.audio import yamnet_features
from egoaudio.audio.framing import Framer
from egoaudio.audio.mel import FilterBank, kaldi_hz, kaldi_mel, slaney_hz, slaney_mel
from egoaudio.config.build import FeatureConfig
from egoaudio.errors import ConfigurationError, MediaError

# What a step of a waveform in int16 is worth: such arrays hold sound between -2 and 2, as denoising may raise a peak
# above 1, with a rounding noise of -95 dB.
INT16_SCALE = 2.0**-14
MIN_POWER = 1e-10
TOP_DB = 80.0  # levels further below the clip's loudest are raised to this before the MFCC
DECIBELS = np.float32(10 / np.log(10))  # of the natural logarithm of a power

LOGMEL_FRAME_MS = 25.0
LOGMEL_HOP_MS = 10.0
LOGMEL_BANDS = 128
LOGMEL_MIN_HZ = 20.0
LOGMEL_MIN_ENERGY = np.float32(np.finfo(np.float32).eps)
PREEMPHASIS = 0.97

COSINES = {"hann": (0.5, -0.5), "hamming": (0.54, -0.46), "blackman": (0.42, -0.5, 0.08), "boxcar": (1.0,)}


class FeatureExtractor:
    """Compute the features of clips of one length.

    Parameters
    ----------
    config : FeatureConfig
        Which features, and their parameters.
    sample_rate : int
        Samples a second.
    num_samples : int
        Samples in a clip.

    Raises
    ------
    ConfigurationError
        Where a feature cannot be computed from such clips.

    Examples
    --------
    >>> import numpy as np
    >>> from egoaudio import FeatureConfig
    >>> extract = FeatureExtractor(FeatureConfig(features=("spectrogram",)), sample_rate=16000, num_samples=16000)
    >>> sine = np.sin(2 * np.pi * 1000 * np.arange(16000, dtype=np.float32) / 16000)
    >>> spectrogram = extract(sine[None])["spectrogram"]  # (clips, frames, bins)
    >>> spectrogram.shape
    (1, 32, 1025)
    >>> int(spectrogram[0, 16].argmax()) * 16000 / 2048  # Hz
    1000.0
    """

    def __init__(self, config: FeatureConfig, sample_rate: int, num_samples: int) -> None:
        if num_samples < 1:
            raise ConfigurationError(
                f"clips of {num_samples} samples: expected at least 1; give a longer `clip_seconds`"
            )
        self.config = config
        self.sample_rate = sample_rate
        self.num_samples = num_samples
        names = config.features
        self._spectra = PowerSpectra(config, num_samples) if {"spectrogram", "mfcc"} & set(names) else None
        self._cepstra = Cepstra(config, sample_rate) if "mfcc" in names else None
        self._filter_banks = FilterBanks(sample_rate, num_samples) if "logmel" in names else None
        self._yamnet = yamnet_features.YamnetLogMel(sample_rate, num_samples) if "yamnet" in names else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a clip in each array: ``{name: (num_frames, num_values)}``, ``(num_samples,)`` for the waveform."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self._spectra:
            shapes["spectrogram"] = (self._spectra.num_frames, self.config.n_fft // 2 + 1)
            shapes["mfcc"] = (self._spectra.num_frames, self.config.n_mfcc)
        if self._filter_banks:
            shapes["logmel"] = (self._filter_banks.num_frames, LOGMEL_BANDS)
        if self._yamnet:
            shapes["yamnet"] = (self._yamnet.num_frames, yamnet_features.NUM_BANDS)
        shapes["waveform"] = (self.num_samples,)
        return {name: shapes[name] for name in self.config.features}

    @property
    def axes(self) -> dict[str, np.ndarray]:
        """Coordinates float64 of the axes that ``attributes(name)["axes"]`` names.

        Times are those of a frame's centre, from the window's start.
        """
        axes = {}
        if self._spectra:
            axes["frame_seconds"] = np.arange(self._spectra.num_frames) * self.config.hop_length / self.sample_rate
        if "spectrogram" in self.config.features:
            axes["frequency_hz"] = np.arange(self.config.n_fft // 2 + 1) * self.sample_rate / self.config.n_fft
        if self._filter_banks:
            banks = self._filter_banks
            axes["logmel_frame_seconds"] = banks.centres_samples / self.sample_rate
            axes["mel_hz"] = banks.centres_hz
        if self._yamnet:
            axes["yamnet_frame_seconds"] = self._yamnet.centres_samples / self.sample_rate
            axes["yamnet_hz"] = self._yamnet.centres_hz
        return axes

    def attributes(self, name: str) -> dict[str, str | int | float]:
        """Return what an array holds and how it was made: ``units``, ``axes`` and every parameter."""
        config = self.config
        frames: dict[str, str | int | float] = {
            "n_fft": config.n_fft,
            "hop_length": config.hop_length,
            "window": config.window,
            "center": 1,
            "pad_mode": "constant",
        }
        if name == "spectrogram":
            return {
                "units": "dB",
                "axes": "clip,frame_seconds,frequency_hz",
                **frames,
                "power": 2.0,
                "min_power": MIN_POWER,
            }
        if name == "mfcc":
            return {
                "units": "dB",
                "axes": "clip,frame_seconds,coefficient",
                **frames,
                "power": 2.0,
                "min_power": MIN_POWER,
                "top_db": TOP_DB,
                "n_mfcc": config.n_mfcc,
                "n_mels": config.n_mels,
                "f_min_hz": float(config.f_min_hz),
                "f_max_hz": float(config.f_max_hz or self.sample_rate / 2),
                "mel_scale": "slaney",
                "mel_norm": "slaney",
                "dct_type": 2,
                "dct_norm": "ortho",
            }
        if name == "logmel":
            banks = self._filter_banks
            assert banks is not None, "the file has no logmel"
            return {
                "units": "log energy",
                "axes": "clip,logmel_frame_seconds,mel_hz",
                "n_fft": banks.n_fft,
                "frame_length": banks.frame_length,
                "hop_length": banks.hop_length,
                "window": "hanning",
                "center": 0,
                "n_mels": LOGMEL_BANDS,
                "f_min_hz": LOGMEL_MIN_HZ,
                "f_max_hz": self.sample_rate / 2,
                "mel_scale": "kaldi",
                "preemphasis": PREEMPHASIS,
                "remove_dc_offset": 1,
                "dither": 0.0,
                "min_energy": float(LOGMEL_MIN_ENERGY),
            }
        if name == "yamnet":
            return yamnet_features.attributes()
        scale = {"scale": INT16_SCALE} if config.dtype_of(name) == "int16" else {}
        return {"units": "1", "axes": "clip,sample", "sample_rate": self.sample_rate, **scale}

    def __call__(self, windows: np.ndarray, out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Compute every feature.

        Parameters
        ----------
        windows : float32 (num_clips, num_samples)
        out : dict of name to float32 array, optional
            Where to write, at least num_clips rows each; saves the allocation. Float32 even where ``config.dtype`` is
            float16.

        Returns
        -------
        dict of name to array (num_clips, num_frames, num_values)
            As ``config`` has them stored: float32, float16, or int16 in steps of ``INT16_SCALE``.

        Raises
        ------
        MediaError
            When the sound is too loud for int16.
        """
        windows = np.asarray(windows, dtype=np.float32)
        if windows.ndim != 2 or windows.shape[1] != self.num_samples:
            raise ValueError(f"expected windows of shape (clips, {self.num_samples}), not {windows.shape}")
        count = len(windows)
        if out is None:
            out = {name: np.empty((count, *shape), np.float32) for name, shape in self.shapes.items()}
        arrays = {name: out[name][:count] for name in self.config.features}
        if "waveform" in arrays:
            arrays["waveform"][:] = windows
        if self._spectra:
            for clips in self._spectra.groups(count):
                power = self._spectra(windows[clips])
                if self._cepstra:
                    self._cepstra(power, arrays["mfcc"][clips])
                if "spectrogram" in arrays:
                    _decibels(power, arrays["spectrogram"][clips])
        if self._filter_banks:
            for clips in self._filter_banks.groups(count):
                self._filter_banks(windows[clips], arrays["logmel"][clips])
        if self._yamnet:
            for clips in self._yamnet.groups(count):
                self._yamnet(windows[clips], arrays["yamnet"][clips])
        return {name: _stored(array, self.config.dtype_of(name)) for name, array in arrays.items()}


class PowerSpectra(Framer):
    """Power spectra of centred frames, with zeros beyond the clip's ends, as librosa.stft(pad_mode="constant")."""

    def __init__(self, config: FeatureConfig, num_samples: int) -> None:
        half = config.n_fft // 2
        padded = num_samples + 2 * half
        phase = 2 * np.pi * np.arange(config.n_fft) / config.n_fft
        window = np.zeros(config.n_fft)
        for order, weight in enumerate(COSINES[config.window]):
            window += weight * np.cos(order * phase)
        super().__init__(
            1 + max(0, padded - config.n_fft) // config.hop_length,
            config.n_fft,
            config.hop_length,
            config.n_fft,
            window,
        )
        self._padded = np.zeros((self.clips_at_once, max(padded, config.n_fft)), np.float32)
        self._inside = slice(half, half + num_samples)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return the power (clips, num_frames, num_bins) of ``samples`` (clips, num_samples), until the next call."""
        count = len(samples)
        self._padded[:count, self._inside] = samples
        frames, windowed = self.views(self._padded[:count])
        np.multiply(frames, self.window, out=windowed)
        return self.power(count)


class Cepstra:
    """MFCC of power spectra, as librosa.feature.mfcc."""

    def __init__(self, config: FeatureConfig, sample_rate: int) -> None:
        nyquist = sample_rate / 2
        f_max_hz = config.f_max_hz or nyquist
        if not config.f_min_hz < f_max_hz <= nyquist:
            raise ConfigurationError(
                f"`f_min_hz={config.f_min_hz:g}`, `f_max_hz={f_max_hz:g}`: expected the first below the second, and "
                f"the second at most {nyquist:g}, half the sample rate"
            )
        frequencies = np.arange(config.n_fft // 2 + 1) * sample_rate / config.n_fft
        edges = slaney_hz(np.linspace(slaney_mel(config.f_min_hz), slaney_mel(f_max_hz), config.n_mels + 2))
        self.bank = FilterBank(frequencies, edges, 2 / (edges[2:] - edges[:-2]))
        self.cosines = scipy.fft.dct(np.eye(config.n_mels), norm="ortho")[:, : config.n_mfcc].astype(np.float32)

    def __call__(self, power: np.ndarray, out: np.ndarray) -> None:
        """Write the MFCC of ``power`` (clips, frames, bins) to ``out`` (clips, frames, n_mfcc)."""
        levels = self.bank(power)
        _decibels(levels, levels)
        np.maximum(levels, levels.max(axis=(1, 2), keepdims=True) - np.float32(TOP_DB), out=levels)
        np.matmul(levels, self.cosines, out=out)


class FilterBanks(Framer):
    """Kaldi's log-mel filter bank: pre-emphasis 0.97, mean removed, symmetric Hann, no dither, whole frames only."""

    def __init__(self, sample_rate: int, num_samples: int) -> None:
        frame_length = int(sample_rate * LOGMEL_FRAME_MS * 0.001)  # truncated, as Kaldi does
        hop_length = int(sample_rate * LOGMEL_HOP_MS * 0.001)
        if num_samples < frame_length:
            raise ConfigurationError(
                f"`features=('logmel',)`: a clip of {num_samples / sample_rate:g} s is shorter than one frame of "
                f"{LOGMEL_FRAME_MS:g} ms; give a longer `clip_seconds` or `context_seconds`, or leave logmel out"
            )
        n_fft = 1 << (frame_length - 1).bit_length()
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame_length) / (frame_length - 1))
        super().__init__(1 + (num_samples - frame_length) // hop_length, frame_length, hop_length, n_fft, window)
        edges = np.linspace(kaldi_mel(LOGMEL_MIN_HZ), kaldi_mel(sample_rate / 2), LOGMEL_BANDS + 2)
        bins = np.arange(n_fft // 2)  # Kaldi leaves out the highest one
        self.bank = FilterBank(kaldi_mel(bins * sample_rate / n_fft), edges)
        self._emphasised = np.zeros((self.clips_at_once, num_samples), np.float32)
        self.centres_hz = kaldi_hz(edges[1:-1])

    def __call__(self, samples: np.ndarray, out: np.ndarray) -> None:
        """Write the log energies of ``samples`` (clips, num_samples) to ``out`` (clips, num_frames, LOGMEL_BANDS).

        Kaldi subtracts the mean m from each frame and then 0.97 times the previous sample from each sample. That equals
        the pre-emphasis of the whole clip minus 0.03 m, except in a frame's first sample, where the window is zero.
        """
        count = len(samples)
        emphasised = self._emphasised[:count]
        np.multiply(samples[:, :-1], np.float32(-PREEMPHASIS), out=emphasised[:, 1:])
        emphasised[:, 1:] += samples[:, 1:]
        frames, _ = self.views(samples)
        means = frames.mean(axis=2, keepdims=True)
        means *= np.float32(1 - PREEMPHASIS)
        frames, windowed = self.views(emphasised)
        np.subtract(frames, means, out=windowed)
        windowed *= self.window
        energies = self.bank(self.power(count))
        np.log(np.maximum(energies, LOGMEL_MIN_ENERGY, out=energies), out=out)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values as an array of ``dtype`` holds them."""
    if dtype != "int16":
        return values.astype(dtype, copy=False)
    steps = np.rint(values * np.float32(1 / INT16_SCALE))
    highest = np.abs(steps).max(initial=0)
    if not highest <= np.iinfo(np.int16).max:
        raise MediaError(
            f"its sound reaches {highest * INT16_SCALE:.3g} after denoising, and int16 holds less than "
            f"{-np.iinfo(np.int16).min * INT16_SCALE:g}: build with `waveform_dtype='float32'`"
        )
    return steps.astype(np.int16)


def _decibels(power: np.ndarray, out: np.ndarray) -> None:
    """Write 10 log10 of ``power``, at least -100 dB, to ``out``, and overwrite ``power``.

    NumPy vectorises the logarithm of float32, but not log10.
    """
    np.log(np.maximum(power, np.float32(MIN_POWER), out=power), out=out)
    out *= DECIBELS
