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
_BITEXACT = 0x800000  # AV_CODEC_FLAG_BITEXACT
MIME_TYPE = "audio/webm;codecs=opus"


def encode_opus(samples: np.ndarray, sample_rate: int) -> bytes:
    """Return mono sound as an Opus file.

    Parameters
    ----------
    samples : float array (num_samples,)
        In [-1, 1]; what lies beyond is clipped, and what is no number is silence.
    sample_rate : int
        In Hz.
    """
    rate = next((rate for rate in _RATES if rate >= sample_rate), _RATES[-1])
    samples = np.clip(np.nan_to_num(samples), -1, 1).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = sample_rate, 0
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=rate, layout="mono")
        stream.bit_rate = _BITS_PER_SECOND
        stream.codec_context.flags |= _BITEXACT
        for part in _at_rate(frame, rate):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _at_rate(frame: av.AudioFrame, rate: int) -> list[av.AudioFrame]:
    """Return a frame's sound at another rate, as a list of frames."""
    if frame.sample_rate == rate:
        return [frame]
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    return [*resampler.resample(frame), *resampler.resample(None)]


def expected_bytes(seconds: float) -> int:
    """Return how many bytes ``encode_opus`` makes of so many seconds, or a few more."""
    return round(_CONTAINER_BYTES + _SPARE * seconds * _BITS_PER_SECOND / 8)
