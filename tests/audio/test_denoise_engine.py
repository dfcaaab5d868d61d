"""The parts of the gating engine: frames, smoothing by shifted additions, kept buffers."""

import numpy as np
import pytest
from scipy.signal import stft

from egoaudio.audio.denoise_engine import Workspace, _additions, _triangle, hann, lay_out, overlapping, smoothing_widths


@pytest.mark.parametrize("width", range(2, 40))
@pytest.mark.parametrize("step", [1, 5])
def test_shifted_additions_are_a_triangular_smoothing(width, step):
    size = 100
    source = np.random.default_rng(width).random(size + 2 * (width - 1) * step).astype(np.float32)
    left, right = _triangle(
        source.copy(), np.full((3, len(source) + width * step), np.nan, np.float32), width, step, size
    )
    weights = np.zeros(2 * (width - 1) * step + 1)
    weights[::step] = width - np.abs(np.arange(1 - width, width))
    assert np.allclose(left[:size] + right[:size], np.correlate(source.astype(np.float64), weights, "valid"), rtol=1e-5)


def test_a_box_of_17_takes_five_additions():
    assert len(_additions(17)) == 10


@pytest.mark.parametrize("num_samples", [1, 208, 209, 256, 1000, 15_999, 16_000])
def test_frames_are_those_of_scipys_stft_that_see_the_sound(num_samples):
    padded = np.zeros(num_samples + 60_000)
    padded[30_000:-30_000] = np.random.default_rng(0).normal(size=num_samples)
    spectrum = stft(padded, nperseg=1024, noverlap=768, padded=False)[2].T * 512
    layout = lay_out(num_samples, 30_000, len(padded))
    row = np.zeros((1, layout.room))
    row[0, layout.inside] = padded[30_000:-30_000]
    ours = np.fft.rfft(overlapping(row, layout.num_frames, 1024, 256)[0] * hann(1024))
    seen = slice(layout.silent_before, layout.silent_before + layout.num_frames)
    assert np.allclose(ours, spectrum[seen])
    assert not spectrum[: seen.start].any() and not spectrum[seen.stop :].any()
    assert len(spectrum) == seen.stop + layout.silent_after


def test_a_second_at_16_khz_is_66_frames_of_which_the_first_begins_816_samples_before():
    layout = lay_out(16000, 30_000, 76_000)
    assert (layout.silent_before, layout.num_frames, layout.silent_after, layout.lead) == (116, 66, 115, 816)


@pytest.mark.parametrize(
    ("sample_rate", "widths"), [(8000, (32, 1)), (16000, (16, 3)), (44100, (5, 8)), (48000, (5, 9))]
)
def test_the_mask_is_smoothed_over_500_hz_and_50_ms(sample_rate, widths):
    assert smoothing_widths(sample_rate) == widths


def test_a_workspace_keeps_its_buffers_and_grows():
    workspace = Workspace()
    small = workspace.array("a", (3, 5))
    small[:] = 7
    assert np.array_equal(workspace.array("a", (5, 3)), np.full((5, 3), 7)) and np.shares_memory(
        small, workspace.array("a", (2,))
    )
    assert workspace.array("a", (100,), np.complex64).dtype == np.complex64
    assert not np.shares_memory(workspace.array("a", (50,)), workspace.array("b", (50,)))
    assert all(workspace.array("c", (size,)).ctypes.data % 64 == 0 for size in (1, 77, 1000, 100_000))
    assert workspace.array("empty", (0, 4)).shape == (0, 4)
