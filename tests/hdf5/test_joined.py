"""Several files as one: everything is what one file of all their videos would say."""

import gc
import os
import pickle
import re
import resource
import shutil

import numpy as np
import pytest
import synthetic

import egoaudio
from egoaudio.data.rows import RowSource
from egoaudio.errors import ResourceError, StoreError
from egoaudio.hdf5 import integrity, joined, reader, summary
from egoaudio.hdf5.joined import JoinedArray

FEATURES = {"spectrogram": (8, 17), "mfcc": (8, 4)}
BOUNDS = [0, 2, 3, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("joined")


@pytest.fixture(scope="module")
def whole(folder):
    return synthetic.make_file(folder / "ego.h5", 7, 5, FEATURES, failed=(2,), silent_clips=(30, 31))


@pytest.fixture(scope="module")
def parts(folder, whole):
    return synthetic.divide(whole, folder, BOUNDS)


def test_several_files_say_what_one_file_of_all_videos_says(whole, parts):
    with egoaudio.open(whole) as one, egoaudio.open(parts) as several:
        for name in ("num_clips", "num_videos", "num_classes", "features", "config", "sample_rate", "complete"):
            assert getattr(several, name) == getattr(one, name)
        for name in ("clip_table", "video_table", "class_table", "instances", "video_labels", "synced", "fingerprints"):
            np.testing.assert_array_equal(getattr(several, name), getattr(one, name), err_msg=name)
        for name in ("usable", "trainable"):
            np.testing.assert_array_equal(getattr(several, name), getattr(one, name))
        np.testing.assert_array_equal(several.labels, one.labels)
        np.testing.assert_array_equal(several.count_classes(), one.count_classes())
        for name in one.features:
            np.testing.assert_array_equal(several[name], one[name])
            np.testing.assert_array_equal(several.statistics(name), one.statistics(name))
            np.testing.assert_array_equal(several.checksums(name), one.checksums(name))
            assert several.attributes(name) == one.attributes(name) and several.is_mapped(name)
        assert several.clips.equals(one.clips) and several.videos.equals(one.videos)
        assert several.plan_sha256 == " ".join(f"{number:064x}" for number in range(3))
        assert several.paths == tuple(parts) and several.path == f"{parts[0]} and 2 more"


def test_rows_are_indexed_as_those_of_one_array(whole, parts):
    rng = np.random.default_rng(0)
    with egoaudio.open(whole) as one, egoaudio.open(parts) as several:
        ours, theirs = several["spectrogram"], one["spectrogram"]
        mask = rng.random(len(theirs)) < 0.3
        keys = [
            3,
            -1,
            slice(None),
            slice(8, 14),
            slice(30, 2, -3),
            mask,
            rng.integers(-35, 35, (4, 3)),
            [],
            np.int64(34),
        ]
        keys += [(slice(9, 16), 2), (12, 3), (12, slice(2, 4), 5), (rng.integers(0, 35, 9), slice(None), 4)]
        for key in keys:
            expected = theirs[np.array(key, int) if isinstance(key, list) else key]
            got = ours[np.array(key, int) if isinstance(key, list) else key]
            np.testing.assert_array_equal(got, expected)
            assert np.shape(got) == np.shape(expected)
        for wrong in (35, -36, [0, 35], np.ones(34, bool)):
            with pytest.raises(IndexError):
                ours[wrong]


def test_files_in_another_order_are_numbered_in_that_order(whole, parts):
    with egoaudio.open(whole) as one, egoaudio.open(parts[::-1]) as several:
        order = [3, 4, 5, 6, 2, 0, 1]
        assert several.videos["video_id"].tolist() == one.videos["video_id"][order].tolist()
        for number, video in enumerate(order):
            row, theirs = several.video_table[number], one.video_table[video]
            rows = slice(row["first_clip"], row["first_clip"] + row["num_clips"])
            assert (several.clip_table["video"][rows] == number).all()
            np.testing.assert_array_equal(
                several["mfcc"][rows], one["mfcc"][theirs["first_clip"] :][: row["num_clips"]]
            )


def test_several_files_are_verified_and_summarised(folder, parts):
    copies = [shutil.copy(path, folder / f"copy{number}") for number, path in enumerate(parts)]
    with egoaudio.open(copies) as several:
        assert integrity.verify(several) == []
        assert "7: 6 with sound, 1 unreadable" in summary.summary(several)
        place = several.parts[2].extents["mfcc"].offset + 3
    with open(copies[2], "r+b") as raw:
        raw.seek(place)
        raw.write(b"\xff")
    with egoaudio.open(copies) as several:
        (problem,) = integrity.verify(several)
    assert problem.startswith("video 3 (V0003EGO): /mfcc is damaged")


def test_several_files_are_pickled_as_their_paths(parts):
    with egoaudio.open(parts) as several, pickle.loads(pickle.dumps(several)) as again:
        assert again.paths == several.paths
        np.testing.assert_array_equal(again["mfcc"][11:13], several["mfcc"][11:13])


def _num_open():
    gc.collect()  # what other tests left
    return len(os.listdir("/proc/self/fd"))


def test_a_file_takes_two_open_files_however_many_of_its_arrays_are_used(whole, tmp_path):
    paths = [shutil.copy(whole, tmp_path / f"{number}.h5") for number in range(20)]
    before = _num_open()
    files = [reader.EgoAudioFile(path) for path in paths]
    arrays = [file[name] for file in files for name in file.features]
    for file in files:
        arrays += [file.labels, file.clip_table, file.video_table, file.instances, file.checksums("mfcc")]
    assert _num_open() - before <= 2 * len(paths)
    sources = [RowSource(path, "mfcc") for path in paths]
    assert _num_open() - before <= 4 * len(paths)
    for file in files:
        file.close()
    del sources
    assert all(array[:1].tobytes() is not None for array in arrays)  # they stay mapped
    del arrays
    assert _num_open() <= before


def test_too_many_files_for_the_limit_are_told_and_leave_none_open(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(joined, "require_no_video_twice", lambda parts: None)
    paths = [shutil.copy(whole, tmp_path / f"{number}.h5") for number in range(30)]
    before, limits = _num_open(), resource.getrlimit(resource.RLIMIT_NOFILE)
    for allowed in range(before + 30, before + 34):  # it is reached at any point of opening one
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
        try:
            with pytest.raises(ResourceError, match=f"too many open files: at most {allowed} are .* ulimit -n"):
                egoaudio.open(paths)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert _num_open() <= before
    with egoaudio.open(paths) as several:
        assert several.num_clips == 30 * 35


def test_a_list_of_one_is_that_file(whole):
    with egoaudio.open([whole]) as file:
        assert type(file) is egoaudio.EgoAudioFile and file.path == whole


def test_an_unfinished_file_among_several_is_named(folder, parts):
    path = synthetic.make_file(folder / "more.h5", 9, 5, FEATURES)
    done = synthetic.divide(path, folder, [0, 7, 9])[1]
    path = synthetic.make_file(folder / "late.h5", 7, 5, FEATURES, planned=(0, 6), complete=False)
    with pytest.warns(UserWarning, match=re.escape(f"{path} is incomplete: 5 of 7 videos are done")):
        egoaudio.open([path, done]).close()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"features": {"spectrogram": (8, 18), "mfcc": (8, 4)}}, r"spectrogram are float32 \(8, 17\) and .* \(8, 18\)"),
        ({"features": {"mfcc": (8, 4)}}, "their features are spectrogram, mfcc and mfcc"),
        ({"num_classes": 6}, r"their classes differ \(5 and 6, such as c004\)"),
        ({"dtype": "float16"}, "rows of spectrogram are float32"),
        ({"config": '{"clip_seconds": 0.5}'}, "`clip_seconds`: 1.0 and 0.5"),
        ({}, "both hold V0000EGO, V0001EGO"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused_and_both_are_named(tmp_path, parts, changes, words):
    other = synthetic.make_file(tmp_path / "other.h5", 3, 5, **{"features": FEATURES, **changes})
    with pytest.raises(StoreError, match=words) as refused:
        egoaudio.open([parts[0], other])
    assert parts[0] in str(refused.value) and other in str(refused.value)


def test_a_file_that_is_given_twice_is_named_once(parts, tmp_path):
    with pytest.raises(StoreError, match=re.escape(f"{parts[1]} is given twice: give it once")):
        egoaudio.open([*parts, parts[1]])
    (tmp_path / "link.h5").symlink_to(parts[1])
    words = re.escape(f"{tmp_path / 'link.h5'} is given twice, also as {parts[1]}: give it once")
    with pytest.raises(StoreError, match=words):
        egoaudio.open([*parts, tmp_path / "link.h5"])


def test_no_file_at_all_is_refused():
    with pytest.raises(StoreError, match="no egoaudio file was given"):
        egoaudio.open([])


def test_a_damaged_file_among_several_is_named(folder, parts):
    (folder / "text.h5").write_text("no HDF5")
    with pytest.raises(StoreError, match=re.escape(f"{folder / 'text.h5'} is not an HDF5 file")):
        egoaudio.open([*parts, folder / "text.h5"])


def test_a_joined_array_of_one_part_is_that_part():
    values = np.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(JoinedArray([values])[2:5], values[2:5])
