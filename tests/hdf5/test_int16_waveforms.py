"""Waveforms in int16: half the bytes, and the same sound to everybody who reads them."""

import wave

import h5py
import numpy as np
import pandas as pd
import pytest
import tables
from conftest import chirp, make_media
from sound_files import make_sound_file

from egoaudio.audio.features import INT16_SCALE, FeatureExtractor
from egoaudio.builder.build import build
from egoaudio.builder.plan import Inputs
from egoaudio.config.build import BuildConfig, DenoiseConfig, FeatureConfig
from egoaudio.config.options import from_flat, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.normalization import normalization
from egoaudio.errors import ConfigurationError, MediaError, StoreError
from egoaudio.figures import plot_clip
from egoaudio.hdf5 import integrity, reader, summary
from egoaudio.models import checkpoints
from egoaudio.reporting import levels as measuring
from egoaudio.reporting.excerpts import Excerpt, StoredSounds

STEP = INT16_SCALE


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A video of a chirp, and one of full scale that is cut off in its last clip."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "videos").mkdir()
    make_media(folder / "videos" / "chirp.wav", audio="pcm_s16le", sound=chirp(16000, 2.0), sample_rate=16000)
    loud = np.sign(chirp(16000, 1.7, 20.0, 40.0))
    make_media(folder / "videos" / "loud.wav", 1.7, "pcm_s16le", sound=loud, sample_rate=16000)
    (folder / "all.csv").write_text("video,start,end,label\nchirp,0,1,sound\nloud,0,2,noise\n")
    return Inputs((str(folder / "all.csv"),), str(folder / "videos"))


def _config(waveform_dtype, **features):
    features = FeatureConfig(features=("logmel", "waveform"), waveform_dtype=waveform_dtype, **features)
    return BuildConfig(denoise=DenoiseConfig(mode="none"), features=features)


@pytest.fixture(scope="module")
def files(inputs, tmp_path_factory, kept_workers):
    """The same build with waveforms in float32 and in int16."""
    folder = tmp_path_factory.mktemp("files")
    for dtype in ("float32", "int16"):
        build(inputs, folder / f"{dtype}.h5", _config(dtype), num_workers=1)
    return folder / "float32.h5", folder / "int16.h5"


@pytest.fixture(scope="module")
def sound(files):
    """The waveforms as float32 holds them."""
    with h5py.File(files[0]) as file:
        return file["waveform"][:]


def test_the_array_takes_half_and_everything_else_is_the_same(files):
    with reader.open(files[0]) as one, reader.open(files[1]) as other:
        assert other["waveform"].dtype == np.int16 and one["waveform"].nbytes == 2 * other["waveform"].nbytes
        assert other.is_mapped("waveform")
        np.testing.assert_array_equal(one["logmel"], other["logmel"])
        assert other.attributes("waveform") == one.attributes("waveform") | {"scale": STEP}
        assert integrity.verify(other) == []


def test_h5py_and_pandas_alone_make_sound_of_it(files, sound):
    assert np.abs(sound).max() > 0.99
    with h5py.File(files[1]) as file:
        found = file["waveform"][:] * file["waveform"].attrs["scale"]
    np.testing.assert_allclose(found, sound, atol=STEP / 2, rtol=0)
    with tables.open_file(str(files[1])) as file:
        waveform = file.root.waveform
        np.testing.assert_allclose(waveform[:] * waveform.attrs["scale"], sound, atol=STEP / 2, rtol=0)
    with pd.HDFStore(files[1], "r") as store:
        assert store.get_node("waveform").attrs["scale"] == STEP
    assert len(pd.read_hdf(files[1], "clips")) == len(sound)


def test_everything_of_ours_gives_the_sound(files, sound, tmp_path):
    with reader.open(files[1]) as file:
        np.testing.assert_allclose(file.values("waveform", slice(None)), sound, atol=STEP / 2, rtol=0)
        summary.export_clip(file, 0, tmp_path / "clip.wav")
        plot_clip(file, 0, tmp_path / "clip.png")
        excerpt = Excerpt(0, 0, 0.0, 1.0, 0.0, 1.0)
        ((_, heard),) = StoredSounds(file).read([excerpt])
        levels = measuring.measure(file, [])
    np.testing.assert_allclose(heard, sound[0], atol=STEP / 2, rtol=0)
    with wave.open(str(tmp_path / "clip.wav")) as written:
        exported = np.frombuffer(written.readframes(-1), "<i2") / 32767
    np.testing.assert_allclose(exported, sound[0], atol=STEP, rtol=0)
    rms = 10 * np.log10((sound[levels.rows].astype(float) ** 2).mean(axis=1))
    np.testing.assert_allclose(levels.rms_db, rms, atol=0.01)


@pytest.mark.parametrize("context_clips", [0, 1])
def test_models_are_given_the_sound(files, context_clips):
    one, other = (ClipDataset(path, "waveform", context_clips=context_clips) for path in files)
    rows = np.arange(len(one))
    expected, found = (dataset.fetch(rows)[0] for dataset in (one, other))
    np.testing.assert_allclose(found, expected, atol=STEP / 2, rtol=0)
    with reader.open(files[0]) as float32, reader.open(files[1]) as int16:
        moments = [normalization(file, "waveform", one.rows, "dataset") for file in (float32, int16)]
    np.testing.assert_allclose(moments[1], moments[0], atol=STEP / 2)


@pytest.mark.parametrize("context_clips", [0, 1])
def test_rows_are_read_as_they_are_stored_where_that_is_asked(files, context_clips):
    dataset = ClipDataset(files[1], "waveform", context_clips=context_clips)
    assert dataset.dtype == np.int16 and dataset.unit == pytest.approx(STEP)
    rows = np.random.default_rng(0).permutation(len(dataset))
    stored = np.empty((len(rows), *dataset.item_shape), np.int16)
    for just_opened in (True, False):
        stored[:] = 7
        dataset.source._cold_batches *= just_opened
        dataset.fetch(rows, stored, normalize=False)
        np.testing.assert_array_equal(stored * np.float32(dataset.unit), dataset.fetch(rows)[0])


def test_denoised_sound_may_rise_above_one_but_not_beyond_what_int16_holds(tmp_path):
    extractor = FeatureExtractor(_config("int16").features, 16000, 16000)
    clips = np.full((1, 16000), 1.9, np.float32)
    np.testing.assert_allclose(extractor(clips)["waveform"] * STEP, clips, atol=STEP / 2)
    with pytest.raises(
        MediaError, match=r"reaches 2.1 .*int16 holds less than 2: build with `waveform_dtype='float32'"
    ):
        extractor(np.full((1, 16000), -2.1, np.float32))
    with pytest.raises(MediaError):
        extractor(np.full((1, 16000), np.nan, np.float32))


def test_a_float16_build_may_hold_waveforms_in_another_type():
    config = _config("int16", dtype="float16").features
    found = FeatureExtractor(config, 16000, 16000)(np.zeros((1, 16000), np.float32))
    assert found["logmel"].dtype == np.float16 and found["waveform"].dtype == np.int16
    assert FeatureConfig(features=("waveform",), dtype="float16").dtype_of("waveform") == "float16"


def test_the_option_without_waveforms_is_refused(inputs, tmp_path):
    config = BuildConfig(features=FeatureConfig(features=("mfcc",), waveform_dtype="int16"))
    with pytest.raises(ConfigurationError, match="`waveform_dtype='int16'` has no effect without waveform"):
        build(inputs, tmp_path / "ego.h5", config)


def test_an_array_whose_scale_was_lost_is_refused(tmp_path):
    path = make_sound_file(tmp_path / "ego.h5", ("waveform",), 2, 3, waveform_dtype="int16")
    with h5py.File(path, "r+") as file:
        del file["waveform"].attrs["scale"]
    with pytest.raises(StoreError, match="its attribute scale is .None., expected one number above 0"):
        ClipDataset(path, "waveform")


def test_a_model_that_was_trained_on_float32_takes_int16(tmp_path):
    """And the other way round: the sound is the same."""
    paths = [
        make_sound_file(tmp_path / f"{dtype}.h5", ("waveform",), 2, 3, waveform_dtype=dtype)
        for dtype in ("float32", "int16")
    ]
    config = from_flat(TrainConfig, {"model": "yamnet", "feature": "waveform"})
    for mine, other in (paths, paths[::-1]):
        with reader.open(mine) as file:
            contents = {"config": to_json(config), **checkpoints.describe_data(file, "waveform")}
        with reader.open(other) as file:
            assert checkpoints.require_match(contents, file) is False
