"""Denoising against its oracle, noisereduce, and what the oracle cannot do: silence, extremes, bounded memory."""

import tracemalloc
import warnings

import numpy as np
import pytest

from egoaudio.audio.denoise import gate, gate_blocks
from egoaudio.config.build import DenoiseConfig
from egoaudio.errors import ConfigurationError, EgoAudioError

TOLERANCE = 1e-5
MODES = ("nonstationary", "stationary")
OURS = {mode: DenoiseConfig(mode=mode) for mode in MODES}


def _sound(num_samples, sample_rate=16000, seed=0):
    """Noise with tones that come and go, float32."""
    t = np.arange(num_samples) / sample_rate
    noise = np.random.default_rng(seed).normal(size=num_samples) * 0.02
    low = 0.3 * np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * 3 * t + seed) > 0.7)
    high = 0.1 * np.sin(2 * np.pi * 3000 * t) * (np.sin(2 * np.pi * 0.7 * t) > 0.5)
    return (noise + low + high).astype(np.float32)


def _oracle(samples, sample_rate, mode):
    """What noisereduce makes of it, NaN where it divides silence by silence."""
    from noisereduce import reduce_noise

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return reduce_noise(samples, sample_rate, stationary=mode == "stationary")


def _error(ours, oracle):
    return np.linalg.norm(ours.astype(np.float64) - oracle) / np.linalg.norm(oracle.astype(np.float64))


def _assert_equal(ours, oracle):
    """Within the tolerance, or both silent: stationary gating may let nothing pass."""
    if oracle.any():
        assert _error(ours, oracle) < TOLERANCE
    else:
        assert not ours.any()


def _stream(samples, size, config, sample_rate=16000):
    blocks = (samples[first : first + size] for first in range(0, len(samples), size))
    return np.concatenate(list(gate_blocks(blocks, sample_rate, config)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.1, 0.13, 1.0, 2.71])
def test_clips_equal_noisereduce(mode, sample_rate, seconds):
    num_samples = int(seconds * sample_rate)
    clips = np.stack([_sound(num_samples, sample_rate, seed) for seed in range(3)])
    gated = gate(clips, sample_rate, OURS[mode])
    assert gated.dtype == np.float32 and gated.shape == clips.shape
    for ours, clip in zip(gated, clips, strict=True):
        _assert_equal(ours, _oracle(clip, sample_rate, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_samples", [769, 800, 1000, 1023, 1024, 1025, 15999, 16001, 18431])
def test_odd_and_short_lengths_equal_noisereduce(mode, num_samples):
    clip = _sound(num_samples, seed=3)
    _assert_equal(gate(clip, 16000, OURS[mode]), _oracle(clip, 16000, mode))


@pytest.mark.parametrize("num_samples", [1, 2, 255, 256, 257, 511, 512, 513, 768])
def test_a_few_samples_are_gated_too(num_samples):
    clip = _sound(num_samples, seed=4)
    assert _error(gate(clip, 16000, OURS["nonstationary"]), _oracle(clip, 16000, "nonstationary")) < TOLERANCE
    stationary = gate(clip, 16000, OURS["stationary"])  # noisereduce refuses these
    assert stationary.shape == clip.shape and np.isfinite(stationary).all()


SOUNDS = {
    "tone": lambda t, noise: 0.5 * np.sin(2 * np.pi * 440 * t),
    "tone in the middle of a bin": lambda t, noise: 0.5 * np.sin(2 * np.pi * 500 * t),
    "bursts": lambda t, noise: 0.5 * np.sin(2 * np.pi * 440 * t) * (np.sin(4 * np.pi * t) > 0.5),
    "bursts in 16 bits": lambda t, noise: (
        np.round(16000 * np.sin(2 * np.pi * 440 * t) * (np.sin(4 * np.pi * t) > 0.5)) / 32768
    ),
    "chirp": lambda t, noise: 0.5 * np.sin(2 * np.pi * (100 * t + 1000 * t * t)),
    "constant": lambda t, noise: np.full(len(t), 0.3),
    "click": lambda t, noise: (np.arange(len(t)) == 5000).astype(float),
    "above full scale": lambda t, noise: 3 * noise,
    "very quiet": lambda t, noise: 1e-7 * noise,
    "far too quiet": lambda t, noise: 1e-13 * noise,
    "far too loud": lambda t, noise: 1e25 * noise,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOUNDS)
def test_any_kind_of_sound_equals_noisereduce(mode, name):
    t = np.arange(40000) / 16000
    clip = SOUNDS[name](t, np.random.default_rng(5).normal(size=len(t))).astype(np.float32)
    _assert_equal(gate(clip, 16000, OURS[mode]), _oracle(clip, 16000, mode))


@pytest.mark.parametrize("level", [1e-36, 1e-30, 1e-20, 1e30, 1e37])
def test_the_level_of_a_sound_does_not_matter(level):
    clip = _sound(16000)
    gated = gate(clip * np.float32(level), 16000, OURS["nonstationary"]) / np.float32(level)
    assert _error(gated, gate(clip, 16000, OURS["nonstationary"])) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_samples", [599_999, 600_000, 600_001, 630_000, 630_001, 1_234_567])
def test_recordings_equal_noisereduce_at_the_edges_of_its_chunks(mode, num_samples):
    recording = _sound(num_samples, seed=6)
    assert _error(_stream(recording, 65_536, OURS[mode]), _oracle(recording, 16000, mode)) < TOLERANCE


def test_a_recording_at_48_khz_equals_noisereduce():
    recording = _sound(700_000, 48000, seed=7)
    assert (
        _error(_stream(recording, 50_000, OURS["nonstationary"], 48000), _oracle(recording, 48000, "nonstationary"))
        < TOLERANCE
    )


@pytest.mark.parametrize("mode", MODES)
def test_how_a_recording_is_cut_into_blocks_does_not_matter(mode):
    recording = _sound(700_003, seed=8)
    whole = gate(recording, 16000, OURS[mode])
    for size in (1 << 16, 333_333, 629_999, 630_001):
        assert np.array_equal(_stream(recording, size, OURS[mode]), whole)


def test_empty_blocks_and_empty_recordings_are_fine():
    recording = _sound(20_000)
    empty = np.zeros(0, np.float32)
    blocks = [empty, recording[:7000], empty, recording[7000:], empty]
    assert np.array_equal(
        np.concatenate(list(gate_blocks(blocks, 16000, OURS["nonstationary"]))),
        gate(recording, 16000, OURS["nonstationary"]),
    )
    assert sum(len(block) for block in gate_blocks([], 16000, OURS["nonstationary"])) == 0
    assert gate(np.zeros((0, 16000), np.float32), 16000, OURS["stationary"]).shape == (0, 16000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_samples", [1600, 16000])
def test_a_clip_is_gated_alike_alone_and_among_others(mode, num_samples):
    clips = np.stack([_sound(num_samples, seed=seed) for seed in range(11)])
    together = gate(clips, 16000, OURS[mode])
    for clip, gated in zip(clips, together, strict=True):
        assert np.array_equal(gate(clip, 16000, OURS[mode]), gated)
    assert np.array_equal(gate(clips.reshape(11, 1, -1), 16000, OURS[mode])[:, 0], together)


@pytest.mark.parametrize("mode", MODES)
def test_the_samples_that_were_given_are_not_changed(mode):
    clips = np.stack([_sound(16000), np.zeros(16000, np.float32)])
    before = clips.copy()
    gate(clips, 16000, OURS[mode])
    list(gate_blocks([clips[0]], 16000, OURS[mode]))
    assert np.array_equal(clips, before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ["egoaudio", "noisereduce"])
def test_silence_stays_exactly_silent(mode, engine):
    config = DenoiseConfig(mode=mode, engine=engine)
    assert not gate(np.zeros((2, 16000), np.float32), 16000, config).any()
    assert not _stream(np.zeros(1_300_000, np.float32), 65_536, config).any()


@pytest.mark.parametrize("mode", MODES)
def test_a_silent_clip_does_not_change_its_neighbours(mode):
    clips = np.stack([_sound(1600, seed=seed) * (seed % 3 > 0) for seed in range(9)])
    gated = gate(clips, 16000, OURS[mode])
    assert np.isfinite(gated).all()
    for seed in range(9):
        assert np.array_equal(gated[seed], gate(clips[seed], 16000, OURS[mode]))
        assert seed % 3 or not gated[seed].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("silent", [slice(0, 100_000), slice(100_000, 250_000), slice(150_000, 300_000)])
def test_a_partly_silent_recording_equals_noisereduce(mode, silent):
    recording = _sound(300_000, seed=9)
    recording[silent] = 0
    assert _error(gate(recording, 16000, OURS[mode]), _oracle(recording, 16000, mode)) < TOLERANCE


def test_a_silent_chunk_in_a_recording_is_silent_and_the_others_equal_noisereduce():
    recording = _sound(2_000_000, seed=10)
    recording[560_000:1_240_000] = 0
    oracle = _oracle(recording, 16000, "nonstationary")
    assert np.isnan(oracle[600_000:1_200_000]).all()
    ours = _stream(recording, 65_536, OURS["nonstationary"])
    assert not ours[600_000:1_200_000].any()
    assert _error(ours, np.nan_to_num(oracle)) < TOLERANCE


@pytest.mark.parametrize("silent", [620_000, 650_000])
def test_a_recording_that_begins_with_silence_keeps_what_is_loud_in_stationary_mode(silent):
    recording = _sound(1_300_000, seed=11)
    recording[:silent] = 0
    ours = _stream(recording, 65_536, OURS["stationary"])
    assert _error(ours, _oracle(recording, 16000, "stationary")) < TOLERANCE
    assert (
        _error(ours[700_000:], recording[700_000:]) < 0.05
    )  # no noise was learnt: all passes, but for the smoothed ends of the band


def test_no_mode_gives_the_sound_back():
    clip = _sound(1600)
    config = DenoiseConfig(mode="none")
    assert np.array_equal(gate(clip, 16000, config), clip)
    assert np.array_equal(_stream(clip, 500, config), clip)


@pytest.mark.parametrize("mode", MODES)
def test_the_noisereduce_engine_calls_the_library(mode):
    clips = np.stack([_sound(16000), np.zeros(16000, np.float32)])
    config = DenoiseConfig(mode=mode, engine="noisereduce")
    gated = gate(clips, 16000, config)
    assert np.array_equal(gated[0], _oracle(clips[0], 16000, mode)) and not gated[1].any()
    assert np.array_equal(_stream(clips[0], 5000, config), gated[0])
    assert _error(gate(clips[0], 16000, OURS[mode]), gated[0]) < TOLERANCE


def test_the_noisereduce_engine_gives_silence_for_the_librarys_nan():
    recording = _sound(2_000_000, seed=12)
    recording[560_000:1_240_000] = 0
    gated = gate(recording, 16000, DenoiseConfig(engine="noisereduce"))
    assert np.isfinite(gated).all() and not gated[600_000:1_200_000].any() and gated[:600_000].any()


def test_what_noisereduce_refuses_is_named():
    with pytest.raises(EgoAudioError, match="noisereduce cannot denoise 500 samples at 16000 Hz"):
        gate(_sound(500), 16000, DenoiseConfig(mode="stationary", engine="noisereduce"))


@pytest.mark.parametrize("sample_rate", [1000, 5119, 300_000])
@pytest.mark.parametrize("engine", ["egoaudio", "noisereduce"])
def test_a_sample_rate_that_noisereduce_cannot_smooth_is_refused(sample_rate, engine):
    with pytest.raises(ConfigurationError, match=f"`sample_rate={sample_rate}`.*5120 to 256000"):
        gate(_sound(16000), sample_rate, DenoiseConfig(engine=engine))
    with pytest.raises(ConfigurationError, match="`denoise.mode='none'`"):
        list(gate_blocks([_sound(16000)], sample_rate, DenoiseConfig(engine=engine)))


@pytest.mark.parametrize("sample_rate", [5120, 256_000])
def test_the_outermost_sample_rates_equal_noisereduce(sample_rate):
    clip = _sound(40_000, sample_rate, seed=13)
    assert (
        _error(gate(clip, sample_rate, OURS["nonstationary"]), _oracle(clip, sample_rate, "nonstationary")) < TOLERANCE
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_samples_that_are_not_finite_are_refused(bad, mode):
    clips = np.stack([_sound(16000), _sound(16000)])
    clips[1, 77] = bad
    with pytest.raises(EgoAudioError, match="NaN or infinity"):
        gate(clips, 16000, OURS[mode])


@pytest.mark.parametrize("mode", MODES)
def test_memory_does_not_grow_with_the_recording(mode):
    def peak(num_blocks):
        block = _sound(65_536)
        tracemalloc.start()
        total = sum(len(part) for part in gate_blocks((block for _ in range(num_blocks)), 16000, OURS[mode]))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == num_blocks * 65_536
        return highest

    short, long = peak(30), peak(120)
    assert long < 1.05 * short and long < 60e6
