"""Encode sound for a web browser: Opus in WebM, small, and the same bytes for the same samples.

In: mono float32 samples in [-1, 1] and their rate. Out: the bytes of a file that every current browser plays and seeks
in. Opus has five rates; others are resampled to the next higher one.
"""

import io

import av
import numpy as np

_RATES = (8000, 12000, 16000, 24000, 48000)  # that Opus codes
_BITS_PER_SECOND = 24000
_CONTAINER_BYTES = 800  # of a WebM file without any sound, and its index
_SPARE = 1.4  # the rate varies with the sound
_PIECE_SAMPLES = 65536
_BITEXACT = 0x800000  # AV_CODEC_FLAG_BITEXACT
MIME_TYPE = "audio/webm;codecs=opus"


class OpusWriter:
    """Encodes sound that comes in pieces: no more of it is held than a piece.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._place = sample_rate, 0
        rate = next((rate for rate in _RATES if rate >= sample_rate), _RATES[-1])
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="webm", options={"fflags": "+bitexact"})
        self._stream = self._container.add_stream("libopus", rate=rate, layout="mono")
        self._stream.bit_rate = _BITS_PER_SECOND
        self._stream.codec_context.flags |= _BITEXACT
        same = rate == sample_rate
        self._resampler = None if same else av.AudioResampler(format="flt", layout="mono", rate=rate)

    def write(self, samples: np.ndarray) -> None:
        """Add mono samples (num_samples,), float, in [-1, 1]; what lies beyond is clipped, and NaN is silence."""
        for start in range(0, len(samples), _PIECE_SAMPLES):
            piece = np.clip(np.nan_to_num(samples[start : start + _PIECE_SAMPLES]), -1, 1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._place
            self._place += len(piece)
            for resampled in [frame] if self._resampler is None else self._resampler.resample(frame):
                self._container.mux(self._stream.encode(resampled))

    def finish(self) -> bytes:
        """Return the file; nothing can be added any more."""
        for resampled in [] if self._resampler is None else self._resampler.resample(None):
            self._container.mux(self._stream.encode(resampled))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


def encode_opus(samples: np.ndarray, sample_rate: int) -> bytes:
    """Return mono sound as an Opus file.

    Parameters
    ----------
    samples : float array (num_samples,)
        In [-1, 1]; what lies beyond is clipped, and NaN is silence.
    sample_rate : int
        In Hz.
    """
    writer = OpusWriter(sample_rate)
    writer.write(samples)
    return writer.finish()


def expected_bytes(seconds: float) -> int:
    """Return how many bytes ``encode_opus`` makes of so many seconds, or a few more."""
    return round(_CONTAINER_BYTES + _SPARE * seconds * _BITS_PER_SECOND / 8)
