"""The mel scales and filter banks against librosa and torchaudio."""

import warnings

import librosa
import numpy as np
import pytest
from torchaudio.compliance.kaldi import get_mel_banks

from egoaudio.audio.mel import FilterBank, kaldi_hz, kaldi_mel, slaney_hz, slaney_mel


def _weights(bank, num_bins):
    """The bank as a matrix (bands, bins): what each single bin gives."""
    return bank(np.eye(num_bins, dtype=np.float32)[None])[0].T


@pytest.mark.parametrize("num_bands", [1, 5, 40, 128, 300])
@pytest.mark.parametrize(("low_hz", "high_hz"), [(0.0, 8000.0), (300.0, 3400.0)])
@pytest.mark.parametrize("n_fft", [16, 1024])  # with 16, many bands see no bin
def test_slaneys_bank_equals_librosas(num_bands, low_hz, high_hz, n_fft):
    edges = slaney_hz(np.linspace(slaney_mel(low_hz), slaney_mel(high_hz), num_bands + 2))
    bank = FilterBank(librosa.fft_frequencies(sr=16000, n_fft=n_fft), edges, 2 / (edges[2:] - edges[:-2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands without a bin
        expected = librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=num_bands, fmin=low_hz, fmax=high_hz)
    assert np.allclose(_weights(bank, n_fft // 2 + 1), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 48000])
def test_kaldis_bank_equals_torchaudios(sample_rate):
    edges = np.linspace(kaldi_mel(20), kaldi_mel(sample_rate / 2), 130)
    bank = FilterBank(kaldi_mel(np.arange(256) * sample_rate / 512), edges)
    expected, centres = get_mel_banks(128, 512, sample_rate, 20.0, 0.0, 100.0, -500.0, 1.0)
    weights = _weights(bank, 257)
    assert np.allclose(weights[:, :-1], expected.numpy(), atol=1e-4)  # torchaudio computes in float32
    assert not weights[:, -1].any()
    assert np.allclose(kaldi_hz(edges[1:-1]), centres.numpy()[:, 0], rtol=1e-4)


def test_scales_and_their_inverses():
    hz = np.geomspace(1, 24000, 200)
    assert np.allclose(slaney_mel(hz), librosa.hz_to_mel(hz))
    assert np.allclose(slaney_hz(slaney_mel(hz)), hz)
    assert np.allclose(kaldi_hz(kaldi_mel(hz)), hz)
    assert slaney_mel(1000) == 15 and slaney_mel(0) == kaldi_mel(0) == 0
