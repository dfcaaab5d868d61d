"""YAMNet's log-mel, against its definition."""

import numpy as np
import pytest
import torchaudio

from egoaudio.audio.yamnet_features import YamnetLogMel, num_frames, yamnet_logmel
from egoaudio.errors import ConfigurationError


def noise(num_clips, num_samples, seed=0):
    """Return white noise, float32 (num_clips, num_samples)."""
    return (0.1 * np.random.default_rng(seed).standard_normal((num_clips, num_samples))).astype(np.float32)


def test_the_log_mel_is_that_of_its_definition():
    clips = noise(7, 16000)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.lib.stride_tricks.sliding_window_view(clips.astype(float), 400, axis=1)[:, ::160] * window
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(
        64, 512, 16000.0, 125.0, 7500.0, 100.0, -500.0, 1.0
    )  # triangles on the mel scale
    expected = np.log(np.abs(np.fft.rfft(frames, 512))[..., :256] @ bands.numpy().T + 0.001)
    got = yamnet_logmel(clips, 16000)
    assert got.dtype == np.float32 and got.shape == (7, 98, 64)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_clip_is_the_same_alone_and_among_others_and_from_a_strided_array():
    clips = noise(10, 12345)
    together = yamnet_logmel(clips, 16000)
    for clip, expected in zip(clips, together, strict=True):
        np.testing.assert_array_equal(yamnet_logmel(clip[None], 16000)[0], expected)
    wide = np.zeros((10, 2, 12345), np.float32)
    wide[:, 1] = clips
    np.testing.assert_array_equal(yamnet_logmel(wide[:, 1], 16000), together)


@pytest.mark.parametrize("seconds, frames", [(0.025, 1), (0.034, 1), (0.035, 2), (0.975, 96), (1, 98), (3, 298)])
def test_frames_are_whole(seconds, frames):
    assert num_frames(round(16000 * seconds)) == frames
    assert yamnet_logmel(noise(1, round(16000 * seconds)), 16000).shape == (1, frames, 64)


@pytest.mark.parametrize("band", [0, 5, 31, 63])
def test_a_sine_is_loudest_in_its_band(band):
    extractor = YamnetLogMel(16000, 16000)
    sine = np.sin(2 * np.pi * extractor.centres_hz[band] * np.arange(16000) / 16000, dtype=np.float32)
    assert set(yamnet_logmel(sine[None], 16000)[0].argmax(axis=1)) <= {
        band - 1,
        band,
        band + 1,
    }  # low bands are narrower than the FFT's bins
    if band > 30:
        assert set(yamnet_logmel(sine[None], 16000)[0].argmax(axis=1)) == {band}


def test_silence_is_the_logarithm_of_the_offset():
    np.testing.assert_allclose(yamnet_logmel(np.zeros((1, 16000), np.float32), 16000), np.log(0.001), rtol=1e-6)


def test_other_rates_and_short_clips_are_refused():
    with pytest.raises(
        ConfigurationError, match="44100`: YAMNet takes 16000 Hz and no other rate; build with `sample_rate=16000`"
    ):
        yamnet_logmel(noise(1, 44100), 44100)
    with pytest.raises(ConfigurationError, match="a clip of 0.02.* s is shorter than one frame of 25 ms"):
        yamnet_logmel(noise(1, 399), 16000)
    with pytest.raises(ValueError, match=r"\(num_clips, num_samples\), not \(16000,\)"):
        yamnet_logmel(noise(1, 16000)[0], 16000)
