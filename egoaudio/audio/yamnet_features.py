"""The log-mel that YAMNet takes: clips in, float32 (clips, frames, 64) out.

In: float32 (clips, samples), mono, [-1, 1], at 16 kHz and no other rate. Frames of 25 ms every 10 ms, whole frames only
(no padding, not centred), periodic Hann, magnitudes of an FFT of 512, 64 bands from 125 to 7,500 Hz, natural logarithm
of band + 0.001. The bands are TensorFlow's ``linear_to_mel_weight_matrix``: HTK's mel scale, and triangles on that
scale, not in Hz as in librosa and torchaudio. NumPy and SciPy only, for the build's workers. On recordings this and
the published SavedModel in TensorFlow are both within 3e-4 of float64. Source:
https://github.com/tensorflow/models/tree/master/research/audioset/yamnet (features.py, params.py).
"""

import numpy as np

from egoaudio.audio.framing import Framer
from egoaudio.audio.mel import FilterBank, kaldi_hz, kaldi_mel
from egoaudio.config.build import YAMNET_SAMPLE_RATE as SAMPLE_RATE
from egoaudio.config.build import check_yamnet_rate
from egoaudio.errors import ConfigurationError

FRAME_LENGTH = 400
HOP_LENGTH = 160
N_FFT = 512
NUM_BANDS = 64
MIN_HZ = 125.0
MAX_HZ = 7500.0
LOG_OFFSET = 0.001


def num_frames(num_samples: int) -> int:
    """Return how many whole frames a clip of ``num_samples`` has: 98 in 1 s; 0 if it is shorter than one."""
    return max(0, 1 + (num_samples - FRAME_LENGTH) // HOP_LENGTH)


def periodic_hann() -> np.ndarray:
    """Return the window of a frame, float32 (400,)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME_LENGTH) / FRAME_LENGTH)).astype(np.float32)


def band_edges() -> np.ndarray:
    """Return the bands' edges on the mel scale, float64 (66,): band i rises from edge i and falls to edge i + 2."""
    return np.linspace(kaldi_mel(MIN_HZ), kaldi_mel(MAX_HZ), NUM_BANDS + 2)


def filter_bank() -> FilterBank:
    """Return the product of magnitudes (clips, frames, 257) with the bands."""
    return FilterBank(kaldi_mel(np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT), band_edges())


class YamnetLogMel(Framer):
    """YAMNet's log-mel of clips of one length, a few clips at a time (``groups``), in buffers that are reused.

    Parameters
    ----------
    sample_rate : int
        Samples a second; 16,000.
    num_samples : int
        Samples in a clip; at least one frame of 400.

    Raises
    ------
    ConfigurationError
        For another rate, or clips shorter than one frame.
    """

    def __init__(self, sample_rate: int, num_samples: int) -> None:
        check_yamnet_rate(sample_rate)
        if num_samples < FRAME_LENGTH:
            raise ConfigurationError(
                f"`features=('yamnet',)`: a clip of {num_samples / sample_rate:g} s is shorter than one frame of "
                f"{1000 * FRAME_LENGTH // SAMPLE_RATE} ms; give a longer `clip_seconds` or `context_seconds`, "
                "or leave yamnet out"
            )
        super().__init__(num_frames(num_samples), FRAME_LENGTH, HOP_LENGTH, N_FFT, periodic_hann())
        self.centres_hz = kaldi_hz(band_edges()[1:-1])
        self._bank = filter_bank()

    def __call__(self, samples: np.ndarray, out: np.ndarray) -> None:
        """Write the log-mel of ``samples`` (clips, num_samples) to ``out`` (clips, num_frames, 64)."""
        frames, windowed = self.views(samples)
        np.multiply(frames, self.window, out=windowed)
        bands = self._bank(self.magnitudes(len(samples)))
        bands += np.float32(LOG_OFFSET)
        np.log(bands, out=out)


def attributes() -> dict[str, str | int | float]:
    """Return what the array ``/yamnet`` holds and how it was made: ``units``, ``axes`` and every parameter."""
    return {
        "units": "log magnitude",
        "axes": "clip,yamnet_frame_seconds,yamnet_hz",
        "n_fft": N_FFT,
        "frame_length": FRAME_LENGTH,
        "hop_length": HOP_LENGTH,
        "window": "hann",
        "center": 0,
        "power": 1.0,
        "n_mels": NUM_BANDS,
        "f_min_hz": MIN_HZ,
        "f_max_hz": MAX_HZ,
        "mel_scale": "htk",
        "log_offset": LOG_OFFSET,
    }


def yamnet_logmel(clips: np.ndarray, sample_rate: int) -> np.ndarray:
    """Compute YAMNet's log-mel.

    Parameters
    ----------
    clips : float32 (num_clips, num_samples)
        Mono, [-1, 1].
    sample_rate : int
        Hz; 16,000.

    Returns
    -------
    float32 (num_clips, num_frames, 64)
        ``num_frames`` is ``1 + (num_samples - 400) // 160``: 98 for 1 s.

    Raises
    ------
    ConfigurationError
        For another rate, or clips shorter than one frame.
    """
    clips = np.asarray(clips, dtype=np.float32)
    if clips.ndim != 2:
        raise ValueError(f"expected clips of shape (num_clips, num_samples), not {clips.shape}")
    extractor = YamnetLogMel(sample_rate, clips.shape[1])
    out = np.empty((len(clips), extractor.num_frames, NUM_BANDS), np.float32)
    for group in extractor.groups(len(clips)):
        extractor(clips[group], out[group])
    return out
