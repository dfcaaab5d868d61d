"""Context: a clip joined with its neighbours in time equals a slow reading of the file, whatever reads it."""

import json
import os
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_file

from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import BuildConfig, ClipConfig
from egoaudio.config.options import from_flat, to_json
from egoaudio.config.train import DataConfig, TrainConfig
from egoaudio.data import rows as gather
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.splits import split_rows
from egoaudio.errors import ConfigurationError, TrainingError
from egoaudio.hdf5 import reader

SHAPE = (6, 40)
# -100 dB but for the rounding of the logarithm.
SILENCE = FeatureExtractor(BuildConfig().features, 16000, 16000)(np.zeros((1, 16000), np.float32))["spectrogram"].max()
AUGMENTED = {"mixup": 0.4, "gain_db": 6.0, "spec_augment": True, "time_shift_seconds": 0.7}
DAMAGED = {"num_videos": 9, "clips_per_video": 7, "failed": (3,), "silent_clips": (0, 10, 34, 62), "unlabelled": 0.3}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("context") / "ego.h5", features={"spectrogram": SHAPE}, **DAMAGED)


def read_slowly(path, row, context_clips, apart=1, feature="spectrogram", silence=SILENCE):
    """Return a row joined with its neighbours, looked up one by one."""
    parts = []
    with h5py.File(path) as file:
        clips, videos = file["clips"][:], file["videos"][:]
        for offset in range(-context_clips, context_clips + 1):
            beside = row + offset * apart
            here = 0 <= beside < len(clips) and clips["video"][beside] == clips["video"][row]
            if here and clips["status"][beside] == 1 and videos["status"][clips["video"][beside]] == 1:
                parts.append(file[feature][beside].astype(np.float32))
            else:
                stored = np.broadcast_to(np.asarray(silence, file[feature].dtype), file[feature].shape[1:])
                parts.append(stored.astype(np.float32))
    return np.concatenate(parts)


def repack(path, target):
    """Write the file again with a compressed spectrogram, as h5repack does."""
    with h5py.File(path, "r") as source, h5py.File(target, "w") as repacked:
        repacked.attrs.update(source.attrs)
        for name in source:
            if name != "spectrogram":
                source.copy(name, repacked)
        repacked.create_dataset("spectrogram", data=source["spectrogram"][()], chunks=(16, *SHAPE), compression="gzip")
    return str(target)


def usable_rows(path):
    with reader.open(path) as file:
        return np.flatnonzero(file.usable)


def take(path, rows, context_clips, *normalization, warm=False):
    source = gather.RowSource(path, "spectrogram", context_clips=context_clips)
    if warm:
        source._cold_batches = 0
    out = np.full((len(rows), *source.joined_shape), np.nan, np.float32)
    source.take(rows, out, *normalization)
    return out


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("kind", ["read", "mapped", "half precision"])
@pytest.mark.parametrize("context_clips", [1, 2, 9])  # 9: more than a video has
@pytest.mark.parametrize("cached_bytes", [1, 512 * 1024])
def test_joined_rows_equal_a_slow_reading(path, tmp_path, monkeypatch, kind, context_clips, cached_bytes):
    monkeypatch.setattr(gather, "_CACHED_BYTES", cached_bytes)
    if kind == "half precision":
        path = make_file(tmp_path / "half.h5", features={"spectrogram": SHAPE}, dtype="float16", **DAMAGED)
    rows = np.random.default_rng(0).choice(usable_rows(path), 80)
    expected = np.stack([read_slowly(path, row, context_clips) for row in rows])
    assert (expected < -99).any() and expected.shape[1] == (2 * context_clips + 1) * SHAPE[0]
    np.testing.assert_array_equal(take(path, rows, context_clips, warm=kind == "mapped"), expected)
    normalized = take(path, rows, context_clips, 2.5, 4.0, warm=kind == "mapped")
    np.testing.assert_allclose(normalized, (expected - 2.5) / 4, rtol=1e-6, atol=1e-6)


def test_a_repacked_file_gives_the_same_and_says_that_it_is_slow(path, tmp_path):
    rows, repacked = usable_rows(path), repack(path, tmp_path / "repacked.h5")
    with pytest.warns(UserWarning, match="repacked by another tool.*slower"):
        joined = take(repacked, rows, 2)
    np.testing.assert_array_equal(joined, take(path, rows, 2))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), num_videos=st.integers(1, 5), clips_per_video=st.integers(1, 6), context_clips=st.integers(0, 7))
def test_any_file_gives_what_a_slow_reading_gives(tmp_path, data, num_videos, clips_per_video, context_clips):
    num_clips, apart = num_videos * clips_per_video, data.draw(st.sampled_from([1, 2, 4]))
    path = make_file(
        tmp_path / "any.h5",
        num_videos,
        clips_per_video,
        {"spectrogram": (2, 3)},
        hop_seconds=1 / apart,
        failed=data.draw(st.sets(st.integers(0, num_videos - 1))),
        silent_clips=data.draw(st.sets(st.integers(0, num_clips - 1))),
    )
    usable = usable_rows(path)
    if len(usable) == 0:
        return
    rows = np.array(data.draw(st.lists(st.sampled_from(usable.tolist()), min_size=1, max_size=12)))
    expected = [read_slowly(path, row, context_clips, apart) for row in rows]
    for warm in (False, True):
        np.testing.assert_array_equal(take(path, rows, context_clips, warm=warm), expected)


def test_without_neighbours_a_clip_is_the_middle_of_what_it_is_with_them_bit_for_bit(path):
    rows = usable_rows(path)
    for normalization in [(), (1.7, 3.0)]:
        alone = take(path, rows, 0, *normalization)
        assert alone.shape[1:] == SHAPE
        np.testing.assert_array_equal(take(path, rows, 1, *normalization)[:, SHAPE[0] : 2 * SHAPE[0]], alone)


def test_joining_copies_no_more_than_what_is_asked_for(path):
    source = gather.RowSource(path, "spectrogram", context_clips=1)
    source._cold_batches = 0
    rows = usable_rows(path)
    out = np.empty((len(rows), *source.joined_shape), np.float32)
    source.take(rows, out)
    tracemalloc.start()
    source.take(rows, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes / 4  # row numbers and the like; out of a strided view it is three times the array


def test_neighbours_are_announced_with_the_clip_in_one_stretch(path, monkeypatch):
    announced = []
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, start, size, advice: announced.append((start, size)))
    source = gather.RowSource(path, "spectrogram", context_clips=2)
    assert 10 in (clips := set(DAMAGED["silent_clips"])) and not clips & {6, 13, 14, 15, 16}
    source.announce(np.array([5, 12, 15]))  # one at the end of its video, beyond a failed clip, at a beginning
    stretches = [
        ((start - source._parts[0].offset) // source.row_bytes, size // source.row_bytes) for start, size in announced
    ]
    assert stretches == [(3, 4), (11, 3), (14, 4)]


def test_a_file_cut_short_names_the_row_of_the_window_that_is_missing(path, tmp_path, monkeypatch):
    whole = make_file(tmp_path / "ego.h5", features={"spectrogram": SHAPE}, num_videos=2, clips_per_video=8)
    source = gather.RowSource(whole, "spectrogram", context_clips=2)
    monkeypatch.setattr(source._parts[0], "check_unchanged", lambda: None)
    os.truncate(whole, source._parts[0].offset + 5 * source.row_bytes + 5)
    with pytest.raises(TrainingError, match="in the middle of row 5: it was truncated"):
        source.take([4], np.empty((1, *source.joined_shape), np.float32))


# --------------------------------------------------------------------------------------------------- time, silence


@pytest.mark.parametrize(
    ("clips", "apart"),
    [
        (ClipConfig(clip_seconds=1.0, hop_seconds=0.5), 2),
        (ClipConfig(clip_seconds=0.3, hop_seconds=0.1), 3),  # 0.3 / 0.1 is 2.9999999999999996 in floating point
        (ClipConfig(clip_seconds=1.0, context_seconds=3.0), 3),  # what abuts three seconds are those three clips away
    ],
)
def test_neighbours_are_those_that_abut_in_time(tmp_path, clips, apart):
    config = BuildConfig(clips=clips)
    path = make_file(
        tmp_path / "ego.h5",
        features={"spectrogram": SHAPE},
        config=to_json(config),
        clip_seconds=clips.clip_seconds,
        hop_seconds=clips.hop_seconds or clips.clip_seconds,
        **DAMAGED,
    )
    rows = usable_rows(path)
    np.testing.assert_array_equal(take(path, rows, 2), [read_slowly(path, row, 2, apart) for row in rows])


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ({"hop_seconds": 0.3}, "hold 1 s of sound every 0.3 s and overlap, none beginning where another ends"),
        (
            {"hop_seconds": 2.0},
            "hold 1 s of sound every 2 s and leave gaps: .*`context_clips=0`, or .* `hop_seconds=1`",
        ),
    ],
)
def test_rows_that_do_not_abut_are_refused(tmp_path, seconds, message):
    path = make_file(tmp_path / "ego.h5", 2, 4, {"spectrogram": SHAPE}, **seconds)
    with pytest.raises(TrainingError, match="`context_clips=1`: rows of spectrogram in .*ego.h5 " + message):
        ClipDataset(path, "spectrogram", context_clips=1)
    ClipDataset(path, "spectrogram")


# The orthonormal cosine transform of a constant: coefficient 0 alone.
MFCC_SILENCE = np.concatenate([[-100 * np.sqrt(128)], np.zeros(19)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("feature", "shape", "silence"),
    [
        ("spectrogram", (32, 1025), -100.0),
        ("mfcc", (32, 20), MFCC_SILENCE),
        ("logmel", (98, 128), np.log(np.finfo(np.float32).eps)),
        ("waveform", (16000,), 0.0),
        ("yamnet", (96, 64), np.log(0.001)),
    ],
)
def test_silence_is_what_the_files_parameters_make_of_zeros(tmp_path, feature, shape, silence, dtype):
    config = replace(BuildConfig().features, features=(feature,))
    shape = FeatureExtractor(config, 16000, 16000).shapes[feature] if feature == "yamnet" else shape
    path = make_file(tmp_path / "ego.h5", 1, 2, {feature: shape}, dtype=dtype, unlabelled=0)
    data = ClipDataset(path, feature, rows=[0], context_clips=1)
    assert data.feature_shape == (3 * shape[0], *shape[1:])
    got = data.fetch([0])[0][0]
    tolerance = 1e-3 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(got[: shape[0]], np.broadcast_to(silence, shape), rtol=tolerance, atol=2e-4)
    assert (got[: shape[0]].astype(dtype) == got[: shape[0]]).all()  # as the file would have stored it
    with reader.open(path) as file:
        np.testing.assert_array_equal(got[shape[0] :], np.concatenate(file[feature][:2]))


def test_silence_of_an_array_that_its_configuration_does_not_make_is_refused(tmp_path):
    path = make_file(tmp_path / "ego.h5", 1, 4, {"mfcc": (8, 4)})
    with pytest.raises(TrainingError, match=r"\(8, 4\), but its configuration makes \(32, 20\).*`context_clips=0`"):
        ClipDataset(path, "mfcc", context_clips=1)


def test_a_waveform_is_joined_by_its_clips_where_other_features_see_more(tmp_path):
    config = BuildConfig(clips=ClipConfig(context_seconds=3.0))
    path = make_file(
        tmp_path / "ego.h5", 2, 9, {"spectrogram": SHAPE, "waveform": (50,)}, unlabelled=0, config=to_json(config)
    )
    rows = usable_rows(path)
    got = ClipDataset(path, "waveform", rows, context_clips=1).fetch(np.arange(len(rows)))[0]
    np.testing.assert_array_equal(got, [read_slowly(path, row, 1, 1, "waveform", 0.0) for row in rows])


@pytest.mark.parametrize("context_clips", [-1, -3])
def test_a_negative_number_of_neighbours_is_refused(path, context_clips):
    with pytest.raises(ValueError, match=f"context_clips {context_clips}: expected at least 0"):
        ClipDataset(path, "spectrogram", context_clips=context_clips)


# ---------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("split_unit", ["video", "subject"])
def test_neighbours_come_from_the_clips_own_video_alone_also_those_nobody_labelled(path, split_unit):
    with reader.open(path) as file:
        split = split_rows(file, DataConfig(split_unit=split_unit, validation_fraction=0.4), seed=0)
        video, unlabelled = file.clip_table["video"], file.clip_table["labelled"] == 0
    heard = {}
    for name in ("train", "validation", "test"):
        data = ClipDataset(path, "spectrogram", split.rows(name), context_clips=3)
        windows = data.source._windows(data.rows)
        assert (windows[:, 3] == data.rows).all()
        for window, row in zip(windows, data.rows, strict=True):
            assert (video[window[window >= 0]] == video[row]).all()
        heard[name] = set(windows[windows >= 0].tolist())
        assert unlabelled[sorted(heard[name])].any()
    assert not heard["train"] & heard["validation"] and not heard["train"] & heard["test"]


def test_context_across_the_papers_split_is_refused_with_the_fix():
    message = "`context_clips=1` .* with `split_unit=.clip.`: .*give `context_clips=0`, or `split_unit=.video.`"
    with pytest.raises(ConfigurationError, match=message):
        DataConfig(split_unit="clip", context_clips=1)
    with pytest.raises(ConfigurationError, match=message):
        from_flat(TrainConfig, {"model": "cnn-small", "split_unit": "clip"}).resolved()
    assert from_flat(TrainConfig, {"model": "cnn", "split_unit": "clip"}).resolved().data.context_clips == 0


# ----------------------------------------------------------------------------------------------------------- batches


def loader(path, rows=None, batch_size=8, training=True, context_clips=2, label_mode="multi", **options):
    data = ClipDataset(path, "spectrogram", rows, label_mode, (1.0, 2.0), context_clips)
    return Loader(data, batch_size, DataConfig(**options), seed=3, training=training)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"shuffle": "block"}, {"label_mode": "single"}, {"training": False}])
def test_batches_are_the_joined_rows_in_the_order_without_context(path, workers, options):
    batches, plain = loader(path, loader_workers=workers, **options), loader(path, context_clips=0, **options)
    num_batches = 0
    for batch, other in zip(batches.epoch(1), plain.epoch(1), strict=True):
        np.testing.assert_array_equal(batch.rows, other.rows)
        assert torch.equal(batch.labels, other.labels)
        expected = np.stack([read_slowly(path, row, 2) for row in batch.rows])
        np.testing.assert_allclose(batch.features, (expected - 1) / 2, rtol=1e-6, atol=1e-6)
        num_batches += 1
    assert num_batches > 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start_batch", [1, 3])
def test_an_epoch_with_context_continues_in_its_middle(path, workers, start_batch):
    whole = list(loader(path, **AUGMENTED).epoch(2))
    rest = list(loader(path, loader_workers=workers, **AUGMENTED).epoch(2, start_batch))
    assert len(rest) == len(whole) - start_batch > 0
    for expected, batch in zip(whole[start_batch:], rest, strict=True):
        np.testing.assert_array_equal(batch.rows, expected.rows)
        assert torch.equal(batch.features, expected.features) and torch.equal(batch.labels, expected.labels)


@pytest.mark.parametrize("context_clips", [0, 1])
def test_a_time_shift_rolls_all_that_is_seen_by_at_most_its_seconds(path, context_clips):
    still = loader(path, context_clips=context_clips)
    moved = loader(path, context_clips=context_clips, time_shift_seconds=0.3)
    shifts = []
    for epoch in range(6):
        for before, after in zip(still.epoch(epoch), moved.epoch(epoch), strict=True):
            for one, other in zip(before.features, after.features, strict=True):
                found = [frames for frames in range(-3, 3) if torch.equal(torch.roll(one, frames, 0), other)]
                assert len(found) == 1
                shifts += found
    assert set(shifts) == {-2, -1, 0, 1, 2}  # 0.3 s at 6 frames a second


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0.05, "`time_shift_seconds=0.05` is less than half a frame of 0.167 s and has no effect"),
        (6.0, "`time_shift_seconds=6`: expected at most 5 s"),
    ],
)
def test_a_time_shift_that_cannot_be_is_refused(path, seconds, message):
    with pytest.raises(ConfigurationError, match=message):
        loader(path, time_shift_seconds=seconds)
    loader(path, time_shift_seconds=seconds, training=False)  # not shifted, so not asked


def test_the_build_configuration_of_a_file_is_what_silence_is_made_from(tmp_path):
    features = replace(BuildConfig().features, n_mfcc=5, n_mels=32, n_fft=512, hop_length=4000)
    config = replace(BuildConfig(), features=features)
    path = make_file(tmp_path / "ego.h5", 1, 3, {"mfcc": (5, 5)}, unlabelled=0, config=to_json(config))
    assert json.loads(to_json(config))["n_mels"] == 32
    got = ClipDataset(path, "mfcc", [0], context_clips=1).fetch([0])[0][0]
    np.testing.assert_allclose(got[:5], np.broadcast_to([-100 * np.sqrt(32), 0, 0, 0, 0], (5, 5)), rtol=1e-5, atol=1e-3)
