"""Sound for a browser: what comes back is what went in, at any rate, small, and the same bytes each time."""

import io

import av
import numpy as np
import pytest
from conftest import chirp

from egoaudio.inputs.encode import encode_opus, expected_bytes


def _decode(raw):
    """Return the samples of a file, and their rate."""
    with av.open(io.BytesIO(raw)) as container:
        assert container.format.name == "matroska,webm" and container.streams.audio[0].codec.name == "opus"
        frames = list(container.decode(audio=0))
        return np.concatenate(
            [frame.to_ndarray().reshape(-1, frame.layout.nb_channels)[:, 0] for frame in frames]
        ), frames[0].sample_rate


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 44100, 96000])
def test_sound_comes_back_in_time_and_as_it_was(sample_rate):
    raw = encode_opus(chirp(sample_rate, 2.0), sample_rate)
    decoded, rate = _decode(raw)
    expected = chirp(rate, 2.0)
    assert len(decoded) == pytest.approx(2 * rate, abs=0.02 * rate)
    length = min(len(decoded), len(expected))
    assert np.corrcoef(decoded[:length], expected[:length])[0, 1] > 0.95  # a shift of 0.1 ms would leave 0.8
    assert len(raw) < expected_bytes(2.0)


@pytest.mark.parametrize("num_samples", [1, 100, 1600, 480_000])
def test_any_length_is_encoded_and_bounded(num_samples):
    noise = np.random.default_rng(0).standard_normal(num_samples)
    raw = encode_opus(noise, 16000)
    assert len(raw) < expected_bytes(num_samples / 16000)
    assert raw == encode_opus(noise.astype(np.float32), 16000)
    assert len(_decode(raw)[0]) >= 3 * num_samples


def test_what_is_no_number_is_silence():
    assert np.abs(_decode(encode_opus(np.full(16000, np.nan), 16000))[0]).max() < 1e-3
    assert np.isfinite(_decode(encode_opus(np.full(16000, np.inf), 16000))[0]).all()
