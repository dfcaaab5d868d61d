"""Features in torch against the file's own, against librosa, Kaldi and transformers, and in ONNX Runtime."""

import json
import warnings

import kaldi_native_fbank
import librosa
import numpy as np
import onnxruntime
import pytest
import synthetic
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import BuildConfig, ClipConfig, FeatureConfig
from egoaudio.config.options import to_json
from egoaudio.config.train import DataConfig, TrainConfig
from egoaudio.errors import ConfigurationError
from egoaudio.hdf5 import reader
from egoaudio.models.frontend import create_front_end, front_end_of_checkpoint, front_end_of_file

COMPUTED = ("spectrogram", "mfcc", "logmel", "yamnet")


def _sounds(num_clips, num_samples, seed=0):
    """Noise with a tone, at several levels, an offset in the first, the last one silent; float32 (n, samples)."""
    times = np.arange(num_samples) / 16000
    noise = np.random.default_rng(seed).normal(size=(num_clips, num_samples)) * 0.02
    clips = (noise + 0.3 * np.sin(2 * np.pi * 440 * times)) * np.geomspace(1, 1e-2, num_clips)[:, None]
    clips[0] += 0.1
    clips[-1] = 0
    return clips.astype(np.float32)


def _extractor(feature, sample_rate=16000, num_samples=16000, **options):
    return FeatureExtractor(FeatureConfig(features=(feature,), **options), sample_rate, num_samples)


def _front_end(extractor, context_clips=0, transform="fft"):
    (feature,) = extractor.config.features
    attributes = json.dumps(extractor.attributes(feature))
    return create_front_end(feature, attributes, extractor.sample_rate, extractor.num_samples, context_clips, transform)


def _error(ours, theirs):
    """Return the largest error of a clip, a sum of differences relative to that of its values; the first axis is clips.

    Squares would be ruled by a bin in which the sound cancels out, whose decibels are rounding.
    """
    ours, theirs = (np.reshape(np.float64(values), (len(values), -1)) for values in (ours, theirs))
    return (np.abs(ours - theirs).sum(axis=1) / np.abs(theirs).sum(axis=1)).max()


def test_levels_far_below_a_tone_are_rounding_in_the_file_as_well():
    """Where there is nothing but tones, neither is as float64 has it more than 120 dB below the loudest."""
    times = np.arange(16000) / 16000
    tones = 0.9 * np.sin(2 * np.pi * np.array([[440], [1000], [100.3], [3333]]) * times).astype(np.float32)
    extractor = _extractor("spectrogram")
    window = np.hanning(2049)[:-1]
    padded = np.pad(np.float64(tones), ((0, 0), (1024, 1024)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2048, axis=1)[:, :: extractor.config.hop_length]
    exact = 10 * np.log10(np.maximum(np.abs(np.fft.rfft(frames * window)) ** 2, 1e-10))
    heard = exact > exact.max() - 100
    for found in (extractor(tones)["spectrogram"], _front_end(extractor)(torch.from_numpy(tones)).numpy()):
        assert np.abs(found - exact)[heard].max() < 0.2
        assert np.abs(found - exact).max() > 5 and exact[np.abs(found - exact) > 3].max() < exact.max() - 120


@st.composite
def _extractors(draw):
    feature = draw(st.sampled_from(COMPUTED))
    sample_rate = 16000 if feature == "yamnet" else draw(st.sampled_from([8000, 11025, 16000, 22050, 48000]))
    num_samples = draw(st.integers(sample_rate // 40 + 1, sample_rate))
    if feature in ("logmel", "yamnet"):
        return _extractor(feature, sample_rate, num_samples)
    n_mels = draw(st.integers(1, 150))
    low, high = sorted(
        draw(st.tuples(st.integers(0, sample_rate // 4), st.integers(sample_rate // 3, sample_rate // 2)))
    )
    return _extractor(
        feature,
        sample_rate,
        num_samples,
        n_fft=draw(st.integers(2, 3000)),
        hop_length=draw(st.integers(30, 3000)),
        window=draw(st.sampled_from(["hann", "hamming", "blackman", "boxcar"])),
        n_mels=n_mels,
        n_mfcc=draw(st.integers(1, n_mels)),
        f_min_hz=float(low),
        f_max_hz=draw(st.sampled_from([None, float(high)])),
    )


@settings(max_examples=40, deadline=None)
@given(extractor=_extractors(), context_clips=st.integers(0, 2), transform=st.sampled_from(["fft", "matrix"]))
def test_any_feature_is_the_files_own(extractor, context_clips, transform):
    (feature,) = extractor.config.features
    num_clips = 2 * context_clips + 1
    clips = _sounds(2 * num_clips, extractor.num_samples)
    front_end = _front_end(extractor, context_clips, transform)
    ours = front_end(torch.from_numpy(clips.reshape(2, -1)))
    stored = extractor(clips)[feature]
    assert ours.dtype == torch.float32
    assert ours.shape[1:] == front_end.feature_shape
    assert _error(ours.numpy().reshape(stored.shape), stored) < 1e-4


@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_spectrogram_and_mfcc_are_librosas(seconds):
    clip = _sounds(2, int(seconds * 16000))[0]
    ours = _front_end(_extractor("spectrogram", num_samples=len(clip)))(torch.from_numpy(clip)[None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames are longer than the shorter clip
        power = np.abs(librosa.stft(clip, n_fft=2048, hop_length=512, pad_mode="constant")) ** 2
        theirs = librosa.feature.mfcc(y=clip, sr=16000)
    assert _error(ours.numpy(), 10 * np.log10(np.maximum(power, 1e-10)).T[None]) < 1e-4
    ours = _front_end(_extractor("mfcc", num_samples=len(clip)))(torch.from_numpy(clip)[None])
    assert _error(ours.numpy(), theirs.T[None]) < 1e-4


@pytest.mark.parametrize("sample_rate", [44100, 48000])  # at lower rates Kaldi refuses 128 bands
def test_logmel_is_kaldis(sample_rate):
    clip = _sounds(2, sample_rate)[0]
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = sample_rate, 0
    options.frame_opts.window_type, options.mel_opts.num_bins, options.use_energy = "hanning", 128, False
    kaldi = kaldi_native_fbank.OnlineFbank(options)
    kaldi.accept_waveform(sample_rate, clip.tolist())
    theirs = np.stack([kaldi.get_frame(frame) for frame in range(kaldi.num_frames_ready)])
    ours = _front_end(_extractor("logmel", sample_rate, sample_rate))(torch.from_numpy(clip)[None])
    assert _error(ours.numpy(), theirs[None]) < 1e-4


@pytest.mark.parametrize("feature", COMPUTED)
@pytest.mark.parametrize("transform", ["fft", "matrix"])
def test_autocast_changes_nothing(feature, transform):
    front_end = _front_end(_extractor(feature), transform=transform)
    waveforms = torch.from_numpy(_sounds(3, 16000))
    expected = front_end(waveforms)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(front_end(waveforms), expected, rtol=0, atol=0)


@pytest.mark.parametrize("feature, transform", [*((feature, "matrix") for feature in COMPUTED), ("logmel", "fft")])
def test_onnx_runtime_computes_the_same_of_any_batch(feature, transform, tmp_path):
    front_end = _front_end(_extractor(feature, num_samples=4000), 1, transform).eval()
    waveforms = torch.from_numpy(_sounds(5, 12000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            front_end,
            (waveforms[:2],),
            tmp_path / "front_end.onnx",
            input_names=["waveforms"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    (theirs,) = onnxruntime.InferenceSession(tmp_path / "front_end.onnx").run(None, {"waveforms": waveforms.numpy()})
    assert _error(theirs, front_end(waveforms).numpy()) < 1e-4


def test_waveforms_may_be_left_as_they_are():
    waveforms = torch.from_numpy(_sounds(3, 3000))
    assert torch.equal(_front_end(_extractor("waveform", num_samples=1000), 1)(waveforms), waveforms)


def test_other_waveforms_are_refused():
    with pytest.raises(ValueError, match=r"\(batch, 48000\), not \(2, 16000\)"):
        _front_end(_extractor("logmel"), 1)(torch.zeros(2, 16000))


@pytest.mark.parametrize(
    "feature, changed, words",
    [
        ("spectrogram", {"window": "kaiser"}, "expected one of hann, hamming, blackman, boxcar"),
        ("spectrogram", {"n_fft": 0}, "`n_fft=0`"),
        ("spectrogram", {"center": 0}, r"center 0 \(here 1\)"),
        ("mfcc", {"mel_scale": "htk"}, r"mel_scale htk \(here slaney\)"),
        ("mfcc", {"lifter": 22}, r"lifter 22 \(here not known\)"),
        ("logmel", {"n_mels": 64}, r"n_mels 64 \(here 128\)"),
        ("logmel", {"window": "povey"}, r"window povey \(here hanning\): build again with this version, and .*file$"),
        ("yamnet", {"log_offset": 0.01}, r"log_offset 0.01 \(here 0.001\)"),
    ],
)
def test_a_feature_of_another_kind_is_refused(feature, changed, words):
    attributes = _extractor(feature).attributes(feature) | changed
    with pytest.raises(ConfigurationError, match=f"^{feature} cannot be computed from waveforms.*{words}"):
        create_front_end(feature, attributes, 16000, 16000)


def test_a_feature_that_is_not_fully_described_is_refused():
    with pytest.raises(ConfigurationError, match="hop_length not stated"):
        create_front_end("logmel", {"n_fft": 512}, 16000, 16000)


# ------------------------------------------------------------------------------------------------ file, checkpoint


def _file(path, arrays, **clip_options):
    """A file of arrays with their shapes, whose configuration has a hop of 300 samples."""
    build = BuildConfig(
        features=FeatureConfig(features=tuple(arrays), hop_length=300), clips=ClipConfig(**clip_options)
    )
    return synthetic.make_file(path, features=arrays, config=to_json(build))


def test_a_file_of_waveforms_alone_gives_what_its_configuration_describes(tmp_path):
    with reader.open(_file(tmp_path / "ego.h5", {"waveform": (16000,)})) as file:
        front_end, attributes = front_end_of_file(file, "spectrogram", 1)
    clips = _sounds(3, 16000)
    expected = _extractor("spectrogram", hop_length=300)(clips)["spectrogram"]
    assert attributes["hop_length"] == 300
    assert _error(front_end(torch.from_numpy(clips.reshape(1, -1))).numpy(), expected.reshape(1, -1, 1025)) < 1e-4


def test_a_file_without_waveforms_is_refused(tmp_path):
    with reader.open(_file(tmp_path / "ego.h5", {"logmel": (98, 128)})) as file:
        with pytest.raises(ConfigurationError, match=r"has no waveform.*it has logmel.*`features=\('waveform',\)`"):
            front_end_of_file(file, "logmel")


def test_a_file_whose_feature_is_of_another_kind_is_refused(tmp_path):
    path = _file(tmp_path / "ego.h5", {"logmel": (98, 128), "waveform": (16000,)})
    with reader.open(path) as file:  # the synthetic file's attributes are not those of a log-mel
        with pytest.raises(
            ConfigurationError, match=r"ego.h5: logmel .* n_fft 2048 \(here 512\).*, or leave `on_the_fly` out$"
        ):
            front_end_of_file(file, "logmel")


def test_features_of_more_sound_than_the_clip_are_refused(tmp_path):
    with reader.open(_file(tmp_path / "ego.h5", {"waveform": (16000,)}, context_seconds=3.0)) as file:
        with pytest.raises(ConfigurationError, match="`context_seconds=3`.*give `context_clips`"):
            front_end_of_file(file, "logmel")


def test_a_checkpoint_gives_what_its_network_hears():
    contents = {
        "egoaudio_version": "0.1",
        "feature": "mfcc",
        "feature_attributes": json.dumps(_extractor("mfcc", n_mfcc=13).attributes("mfcc")),
        "sample_rate": 16000,
        "build": to_json(BuildConfig()),
        "config": to_json(TrainConfig(data=DataConfig(context_clips=2))),
    }
    front_end = front_end_of_checkpoint(contents)
    assert front_end.feature_shape == (5 * 32, 13)
    assert front_end(torch.zeros(2, 80000)).shape == (2, 160, 13)
    with pytest.raises(ConfigurationError, match=r"earlier version \(0.1\).*train again"):
        front_end_of_checkpoint(contents | {"build": None})
    other = {**contents, "feature_attributes": json.dumps(_extractor("mfcc").attributes("mfcc") | {"lifter": 22})}
    with pytest.raises(ConfigurationError, match="lifter 22.*and train on that file, or leave `on_the_fly` out$"):
        front_end_of_checkpoint(other)
    so_trained = to_json(TrainConfig(data=DataConfig(on_the_fly=True)))
    with pytest.raises(ConfigurationError, match="lifter 22.*and train on that file$"):
        front_end_of_checkpoint({**other, "config": so_trained})
