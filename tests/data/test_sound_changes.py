"""Other sound and filters against NumPy; silence, bounds, and that no option changes nothing."""

import numpy as np
import pytest
import torch

from egoaudio.config.train import DataConfig
from egoaudio.data import augment, sound_changes


def _sound(num_clips=8, num_samples=4000, seed=0):
    """Noise at many levels, the third one silent; float32 (n, samples)."""
    noise = np.random.default_rng(seed).standard_normal((num_clips, num_samples))
    sound = (noise * np.geomspace(0.3, 1e-3, num_clips)[:, None]).astype(np.float32)
    sound[2] = 0
    return torch.from_numpy(sound)


def _augmented(sound, seed=0, **options):
    config = DataConfig(**options)
    labels = torch.eye(len(sound))
    changed, its_labels = augment.Augmentation(config, sample_rate=16000)(
        sound.clone(), labels, np.random.default_rng(seed)
    )
    assert torch.equal(its_labels, labels)  # the other sound is noise
    assert changed.dtype == torch.float32 and torch.isfinite(changed).all()
    return changed


def _decibels(ratio):
    return 10 * np.log10(np.asarray(ratio))


# ------------------------------------------------------------------------------------------------ other sound


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.5, 40.0])
def test_the_other_sound_is_so_far_below_the_clips_own(snr_db):
    sound = _sound().double().numpy()
    sources = np.roll(np.arange(len(sound)), 1)
    mixed = sound_changes.mix_in(_sound(), sources, np.full(len(sound), snr_db)).double().numpy()
    for clip, source, result in zip(sound, sources, mixed, strict=True):
        added, other = result - clip, sound[source]
        if clip.any() and other.any():
            assert _decibels((clip**2).mean() / (added**2).mean()) == pytest.approx(snr_db, abs=0.01)
            factor = (added * other).sum() / (other**2).sum()
            np.testing.assert_allclose(added, factor * other, atol=1e-6 * np.abs(clip).max() + 1e-9)
        else:
            np.testing.assert_array_equal(result, clip)


@pytest.mark.parametrize("options, low, high", [((3.0, 20.0), 3, 20), ((12.0,), 12, 12), ((-5.0, -5.0), -5, -5)])
def test_the_distance_is_drawn_evenly_between_the_two_numbers(options, low, high):
    sound = torch.randn(400, 1000, generator=torch.Generator().manual_seed(0))
    added = _augmented(sound, mix_snr_db=options) - sound
    found = _decibels(sound.square().mean(1) / added.square().mean(1))
    assert low - 0.01 < found.min() and found.max() < high + 0.01
    if low < high:
        np.testing.assert_allclose(np.quantile(found, [0, 0.25, 0.5, 0.75, 1]), np.linspace(low, high, 5), atol=1.2)


@pytest.mark.parametrize("quiet", [0.0, 1e-45, 1e-30, 1e-6])
def test_silence_is_neither_added_nor_changed(quiet):
    """A recording of 1e-6 is under -100 dB: as loud as a clip it would be rounding errors alone."""
    sound = torch.full((2, 100), quiet)
    sound[0, ::2] = 0.5
    mixed = sound_changes.mix_in(sound, np.array([1, 0]), np.array([0.0, 0.0]))
    assert torch.equal(mixed, sound)


def test_a_clip_alone_in_its_batch_has_no_other():
    sound = torch.randn(1, 500)
    assert torch.equal(_augmented(sound, mix_snr_db=(0.0,)), sound)


# ------------------------------------------------------------------------------------------------------ filter


@pytest.mark.parametrize("num_samples", [16000, 4001])
@pytest.mark.parametrize("limit", [3.0, 12.0])
def test_gains_stay_within_the_limit_and_come_near_it(num_samples, limit):
    click = torch.zeros(200, num_samples)
    click[:, 100] = 1  # all frequencies are as loud in it
    filtered = _augmented(click, filter_db=limit)
    gains = 2 * _decibels(np.abs(np.fft.rfft(filtered.double().numpy())))
    assert np.abs(gains).max() < limit + 0.01
    assert gains.max() > 0.9 * limit and gains.min() < -0.9 * limit
    assert np.abs(np.diff(gains)).max() < 0.02 * limit * 16000 / num_samples  # it changes smoothly
    assert np.ptp(gains[:, :-1], axis=1).mean() > limit / 2  # and differs between bands


def test_the_filter_is_numpys():
    sound, drawn = _sound(), np.random.default_rng(1).uniform(-9, 9, (8, sound_changes.NUM_BANDS))
    filtered = sound.clone()
    sound_changes.filter_sound(filtered, drawn, 16000)
    hz = np.fft.rfftfreq(4000, 1 / 16000)
    edges = np.linspace(0, np.log10(1 + 8000 / 700), sound_changes.NUM_BANDS)
    for before, after, gains_db in zip(sound.double().numpy(), filtered.numpy(), drawn, strict=True):
        gains = 10 ** (np.interp(np.log10(1 + hz / 700), edges, gains_db) / 20)
        np.testing.assert_allclose(after, np.fft.irfft(np.fft.rfft(before) * gains), atol=1e-6)


# ---------------------------------------------------------------------------------------------------- for both


@pytest.mark.parametrize("num_samples", [4000, 3999, 2])
def test_options_that_are_zero_leave_the_sound_bit_for_bit(num_samples):
    sound = _sound(num_samples=num_samples)
    assert torch.equal(_augmented(sound), sound)
    assert torch.equal(_augmented(sound, filter_db=0.0, mix_snr_db=(), gain_db=0.0, time_shift_seconds=0.0), sound)


@pytest.mark.parametrize("options", [{"mix_snr_db": (5.0, 20.0)}, {"filter_db": 6.0}])
def test_the_seed_decides_and_autocast_does_not(options):
    sound = _sound()
    expected = _augmented(sound, **options)
    assert torch.equal(_augmented(sound, **options), expected)
    assert not torch.equal(_augmented(sound, seed=1, **options), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_augmented(sound, **options), expected)


def test_clips_that_are_worked_on_together_do_not_matter(monkeypatch):
    sound = _sound()
    expected = _augmented(sound, filter_db=6.0)
    monkeypatch.setattr(sound_changes, "_SAMPLES_AT_ONCE", {"cpu": 9000})
    torch.testing.assert_close(_augmented(sound, filter_db=6.0), expected, rtol=0, atol=1e-6)
