"""Features against their oracles: librosa, transformers' ASTFeatureExtractor and kaldi-native-fbank."""

import json
import logging
import warnings

import kaldi_native_fbank
import librosa
import numpy as np
import pytest
import torch
import torchaudio
from transformers import ASTFeatureExtractor

from egoaudio.audio.features import FeatureExtractor
from egoaudio.audio.yamnet_features import yamnet_logmel
from egoaudio.config.build import FeatureConfig
from egoaudio.errors import ConfigurationError

TOLERANCE = 1e-4
ALL = ("spectrogram", "mfcc", "logmel", "yamnet", "waveform")
PARAMETERS = {
    "the paper's": {},
    "small": {
        "n_fft": 512,
        "hop_length": 160,
        "window": "hamming",
        "n_mels": 64,
        "n_mfcc": 13,
        "f_min_hz": 50.0,
        "f_max_hz": 3500.0,
    },
    "odd": {"n_fft": 1001, "hop_length": 333, "window": "blackman", "n_mels": 40, "n_mfcc": 40},
    "no window": {"window": "boxcar", "n_mels": 20, "n_mfcc": 20, "f_min_hz": 300.0},
    "not overlapping": {"n_fft": 256, "hop_length": 300, "n_mels": 1, "n_mfcc": 1},
}


def _sounds(num_clips, num_samples, sample_rate=16000):
    """Noise with a tone that comes and goes, at several levels, the last one silent."""
    t = np.arange(num_samples) / sample_rate
    noise = np.random.default_rng(num_samples).normal(size=(num_clips, num_samples)) * 0.02
    clips = noise + 0.3 * np.sin(2 * np.pi * 440 * t) * (
        np.sin(2 * np.pi * 3 * t + np.arange(num_clips)[:, None]) > 0.7
    )
    return (clips * np.geomspace(1, 1e-3, num_clips)[:, None]).astype(np.float32)


def _error(ours, oracle):
    return np.linalg.norm(ours.astype(np.float64) - oracle) / np.linalg.norm(oracle.astype(np.float64))


def _extractor(features, sample_rate=16000, num_samples=16000, **parameters):
    return FeatureExtractor(FeatureConfig(features=features, **parameters), sample_rate, num_samples)


def _librosa_spectrogram(clip, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # n_fft longer than the clip
        spectrum = librosa.stft(
            clip, n_fft=config.n_fft, hop_length=config.hop_length, window=config.window, pad_mode="constant"
        )
    return 10 * np.log10(np.maximum(np.abs(spectrum) ** 2, 1e-10)).T


def _librosa_mfcc(clip, sample_rate, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands without a bin
        return librosa.feature.mfcc(
            y=clip,
            sr=sample_rate,
            n_mfcc=config.n_mfcc,
            n_fft=config.n_fft,
            hop_length=config.hop_length,
            window=config.window,
            n_mels=config.n_mels,
            fmin=config.f_min_hz,
            fmax=config.f_max_hz,
        ).T


def _ast(clip, sample_rate, num_frames):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    extractor = ASTFeatureExtractor(sampling_rate=sample_rate, max_length=num_frames, do_normalize=False)
    return extractor(clip, sampling_rate=sample_rate, return_tensors="np")["input_values"][0]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.3])
def test_spectrogram_and_mfcc_equal_librosa(parameters, sample_rate, seconds):
    clips = _sounds(3, int(seconds * sample_rate), sample_rate)
    extractor = _extractor(("spectrogram", "mfcc"), sample_rate, clips.shape[1], **PARAMETERS[parameters])
    arrays = extractor(clips)
    for clip, spectrogram, mfcc in zip(clips, arrays["spectrogram"], arrays["mfcc"], strict=True):
        assert spectrogram.dtype == mfcc.dtype == np.float32
        expected = _librosa_spectrogram(clip, extractor.config)
        assert spectrogram.shape == expected.shape == extractor.shapes["spectrogram"]
        assert _error(spectrogram, expected) < TOLERANCE
        expected = _librosa_mfcc(clip, sample_rate, extractor.config)
        assert mfcc.shape == expected.shape == extractor.shapes["mfcc"]
        assert _error(mfcc, expected) < TOLERANCE


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.025, 0.1, 1.0, 3.3])
def test_logmel_equals_the_ast_feature_extractor(sample_rate, seconds):
    clips = _sounds(3, int(np.ceil(seconds * sample_rate)), sample_rate)
    extractor = _extractor(("logmel",), sample_rate, clips.shape[1])
    for clip, logmel in zip(clips, extractor(clips)["logmel"], strict=True):
        whole = torchaudio.compliance.kaldi.fbank(
            torch.from_numpy(clip)[None], sample_frequency=sample_rate, window_type="hanning", num_mel_bins=128
        )
        assert logmel.shape == tuple(whole.shape) == extractor.shapes["logmel"]
        assert _error(logmel, whole.numpy()) < TOLERANCE
        assert _error(logmel, _ast(clip, sample_rate, len(logmel))) < TOLERANCE


def test_a_second_of_logmel_has_98_frames():
    assert _extractor(("logmel",)).shapes["logmel"] == (98, 128)


@pytest.mark.parametrize("sample_rate", [22050, 44100, 48000])
def test_logmel_equals_kaldi_native_fbank(sample_rate):  # which refuses 128 bands below: some see no bin
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = 128
    clips = _sounds(2, sample_rate, sample_rate)
    for clip, logmel in zip(clips, _extractor(("logmel",), sample_rate, sample_rate)(clips)["logmel"], strict=True):
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(sample_rate, clip.tolist())
        bank.input_finished()
        expected = np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])
        assert logmel.shape == expected.shape
        assert _error(logmel, expected) < TOLERANCE


@pytest.mark.parametrize("offset", [0.0, 0.5, -3.0])
def test_a_constant_in_the_sound_does_not_change_logmel(offset):
    clips = _sounds(2, 16000)
    shifted = clips + np.float32(offset)
    extractor = _extractor(("logmel",))
    assert _error(extractor(shifted)["logmel"][0], _ast(shifted[0], 16000, 98)) < TOLERANCE
    assert _error(extractor(shifted)["logmel"], extractor(clips)["logmel"]) < 1e-3


def test_silence_is_at_the_floor():
    arrays = _extractor(ALL)(np.zeros((2, 16000), np.float32))
    assert np.allclose(arrays["spectrogram"], -100, rtol=1e-6)
    assert _error(arrays["mfcc"][0], _librosa_mfcc(np.zeros(16000, np.float32), 16000, FeatureConfig())) < TOLERANCE
    assert _error(arrays["logmel"][0], _ast(np.zeros(16000, np.float32), 16000, 98)) < TOLERANCE
    assert np.allclose(arrays["yamnet"], np.log(0.001), rtol=1e-6)
    assert not arrays["waveform"].any()


def test_loud_and_clipped_sound_equals_librosa():
    clip = np.sign(_sounds(1, 16000)[0]) * 4
    extractor = _extractor(("spectrogram", "mfcc"))
    arrays = extractor(clip[None])
    assert _error(arrays["spectrogram"][0], _librosa_spectrogram(clip, extractor.config)) < TOLERANCE
    assert _error(arrays["mfcc"][0], _librosa_mfcc(clip, 16000, extractor.config)) < TOLERANCE


def test_mfcc_sees_nothing_80_db_below_the_loudest_of_the_same_clip():
    clips = _sounds(2, 16000)
    clips[0, 8000:] *= 1e-7  # in the first clip only: what is cut depends on the clip itself
    arrays = _extractor(("mfcc",))(clips)
    for clip, mfcc in zip(clips, arrays["mfcc"], strict=True):
        assert _error(mfcc, _librosa_mfcc(clip, 16000, FeatureConfig())) < TOLERANCE
    assert np.array_equal(arrays["mfcc"][0, -1], arrays["mfcc"][0, -2])


AXES = {
    "spectrogram": ("frame_seconds", "frequency_hz"),
    "logmel": ("logmel_frame_seconds", "mel_hz"),
    "yamnet": ("yamnet_frame_seconds", "yamnet_hz"),
}


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("hz", [500.0, 1000.0, 3000.0])
def test_a_sine_peaks_in_its_bin(name, hz):
    extractor = _extractor((name,))
    clip = 0.5 * np.sin(2 * np.pi * hz * np.arange(16000) / 16000)
    row = extractor(clip.astype(np.float32)[None])[name][0, 16]
    positions = extractor.axes[AXES[name][1]]
    assert abs(positions[row.argmax()] - hz) < hz / 20


@pytest.mark.parametrize("name", AXES)
def test_a_click_is_in_the_frame_whose_time_is_nearest(name):
    extractor = _extractor((name,))
    clip = np.zeros((1, 16000), np.float32)
    clip[0, 9000] = 1
    levels = extractor(clip)[name][0].mean(axis=1)
    times = extractor.axes[AXES[name][0]]
    assert len(times) == len(levels)
    assert levels.argmax() == np.abs(times - 9000 / 16000).argmin()


@pytest.mark.parametrize("num_samples", [1600, 16000])
@pytest.mark.parametrize("count", [1, 7, 33])
def test_a_clip_has_the_same_features_alone_and_among_others(num_samples, count):
    clips = _sounds(count, num_samples)
    extractor = _extractor(ALL, num_samples=num_samples)
    together = extractor(clips)
    for clip in range(count):
        for name, array in extractor(clips[clip : clip + 1]).items():
            assert np.allclose(array[0], together[name][clip], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("feature", ALL)
def test_a_feature_is_the_same_alone_and_beside_others(feature):
    clips = _sounds(3, 16000)
    alone = _extractor((feature,))(clips)
    assert list(alone) == [feature]
    assert np.array_equal(alone[feature], _extractor(ALL)(clips)[feature])


def test_windows_are_neither_changed_nor_kept():
    clips = _sounds(3, 16000)
    before = clips.copy()
    arrays = _extractor(ALL)(clips)
    assert np.array_equal(clips, before)
    clips[:] = 0
    assert np.array_equal(arrays["waveform"], before)


def test_windows_may_be_views_of_a_recording():
    recording = _sounds(1, 33_000)[0]
    overlapping = np.lib.stride_tricks.sliding_window_view(recording, 16000)[::8000]
    for name, array in _extractor(ALL)(overlapping).items():
        assert np.array_equal(array, _extractor(ALL)(overlapping.copy())[name])


def test_results_can_be_written_into_given_arrays():
    clips = _sounds(5, 16000)
    extractor = _extractor(ALL)
    out = {name: np.full((8, *shape), np.nan, np.float32) for name, shape in extractor.shapes.items()}
    arrays = extractor(clips, out=out)
    for name, expected in extractor(clips).items():
        assert np.array_equal(out[name][:5], expected)
        assert np.array_equal(arrays[name], expected)
        assert np.shares_memory(arrays[name], out[name])
        assert np.isnan(out[name][5:]).all()


def test_no_clips_give_empty_arrays():
    arrays = _extractor(ALL)(np.zeros((0, 16000), np.float32))
    assert {name: array.shape for name, array in arrays.items()} == {
        name: (0, *shape) for name, shape in _extractor(ALL).shapes.items()
    }


def test_float16_is_the_rounded_float32():
    clips = _sounds(3, 16000)
    halves = _extractor(ALL, dtype="float16")(clips)
    for name, array in _extractor(ALL)(clips).items():
        assert halves[name].dtype == np.float16
        assert np.array_equal(halves[name], array.astype(np.float16))


@pytest.mark.parametrize("name", ALL)
def test_attributes_say_how_an_array_was_made_and_name_its_axes(name):
    extractor = _extractor(ALL, **PARAMETERS["small"])
    attributes = extractor.attributes(name)
    assert json.loads(json.dumps(attributes)) == attributes
    assert all(isinstance(value, (str, int, float)) and not isinstance(value, bool) for value in attributes.values())
    assert attributes["units"]
    first, *others = attributes["axes"].split(",")
    assert first == "clip" and len(others) == len(extractor.shapes[name])
    for axis, size in zip(others, extractor.shapes[name], strict=True):
        if axis in extractor.axes:
            assert extractor.axes[axis].shape == (size,) and extractor.axes[axis].dtype == np.float64
    if name in ("spectrogram", "mfcc"):
        assert (attributes["n_fft"], attributes["hop_length"], attributes["window"]) == (512, 160, "hamming")
    if name == "mfcc":
        assert (attributes["n_mels"], attributes["n_mfcc"], attributes["f_min_hz"], attributes["f_max_hz"]) == (
            64,
            13,
            50.0,
            3500.0,
        )


def test_axes_are_only_those_of_the_features():
    assert set(_extractor(("waveform",)).axes) == set()
    assert set(_extractor(("mfcc",)).axes) == {"frame_seconds"}
    assert set(_extractor(("logmel",)).axes) == {"logmel_frame_seconds", "mel_hz"}
    assert set(_extractor(("yamnet",)).axes) == {"yamnet_frame_seconds", "yamnet_hz"}
    axes = _extractor(("spectrogram",)).axes
    assert set(axes) == {"frame_seconds", "frequency_hz"}
    assert np.allclose(axes["frequency_hz"], librosa.fft_frequencies(sr=16000, n_fft=2048))
    assert np.allclose(axes["frame_seconds"], librosa.times_like(32, sr=16000, hop_length=512))


def test_yamnet_is_its_own_log_mel():
    clips = _sounds(7, 16000)
    assert np.array_equal(_extractor(("yamnet",))(clips)["yamnet"], yamnet_logmel(clips, 16000))
    attributes = _extractor(("yamnet",)).attributes("yamnet")
    assert (attributes["units"], attributes["log_offset"], attributes["n_mels"]) == ("log magnitude", 0.001, 64)


def test_yamnet_at_another_rate_is_refused():
    with pytest.raises(ConfigurationError, match="at `sample_rate=44100`: YAMNet takes 16000 Hz and no other"):
        _extractor(("yamnet",), 44100, 44100)


def test_a_clip_shorter_than_a_frame_of_logmel_is_refused():
    with pytest.raises(
        ConfigurationError,
        match=r"`features=\('logmel',\)`: a clip of 0.0249375 s is shorter than one frame of 25 ms.*`clip_seconds`",
    ):
        _extractor(("spectrogram", "logmel"), num_samples=399)
    assert _extractor(("spectrogram",), num_samples=1).shapes["spectrogram"] == (1, 1025)


@pytest.mark.parametrize(("f_min_hz", "f_max_hz"), [(8000.0, None), (100.0, 100.0), (0.0, 8001.0)])
def test_mel_bands_that_cannot_be_are_refused(f_min_hz, f_max_hz):
    with pytest.raises(ConfigurationError, match="`f_min_hz=.* `f_max_hz=.*8000, half the sample rate"):
        _extractor(("mfcc",), f_min_hz=f_min_hz, f_max_hz=f_max_hz)


def test_an_empty_clip_is_refused():
    with pytest.raises(ConfigurationError, match="clips of 0 samples"):
        _extractor(("waveform",), num_samples=0)


@pytest.mark.parametrize("shape", [(16000,), (2, 15999), (2, 1, 16000)])
def test_windows_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected windows of shape \(clips, 16000\)"):
        _extractor(("waveform",))(np.zeros(shape, np.float32))
