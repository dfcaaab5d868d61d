"""A file is read as it was written, through the map or, repacked by another tool, through h5py."""

import os
import pickle
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pandas
import pytest
import synthetic

import egoaudio
from egoaudio.errors import StoreError
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.writer import RowWriter, offsets

FEATURES = {"spectrogram": (32, 65), "mfcc": (32, 20)}


@pytest.fixture
def whole(tmp_path):
    return synthetic.make_file(tmp_path / "a.h5", features=FEATURES, failed=(2,), silent_clips=(5, 6), num_videos=6)


# -------------------------------------------------------------------------------------------------------- reading


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, egoaudio; heavy = 'numpy', 'h5py', 'pandas', 'torch', 'matplotlib'; "
        "print(egoaudio.__version__, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{egoaudio.__version__} []"


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        egoaudio.opne  # noqa: B018


def test_opening_loads_neither_pandas_nor_torch(whole):
    code = (
        f"import sys, egoaudio; egoaudio.open({whole!r})['mfcc'][3]; "
        "print([name for name in ('pandas', 'torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_root_and_shapes(whole):
    with egoaudio.open(whole) as file:
        assert file.path == os.path.abspath(whole)
        assert (file.complete, file.sample_rate, file.clip_seconds, file.hop_seconds) == (True, 16000, 1.0, 1.0)
        assert (file.num_clips, file.num_videos, file.num_classes, file.features) == (60, 6, 5, ("spectrogram", "mfcc"))
        assert file.config["n_fft"] == 2048
        assert file.plan_sha256 == "0" * 64
        assert file["spectrogram"].shape == (60, 32, 65)
        assert set(file.axes) == {"frequency_hz", "frame_seconds"}
        assert file.attributes("mfcc") == {
            "units": "dB",
            "axes": "clip,frame_seconds,coefficient",
            "n_fft": 2048,
            "hop_length": 512,
            "window": "hann",
            "f_min_hz": 0.0,
        }
        assert [len(file.checksums("mfcc")), file.statistics("mfcc").shape, len(file.instances)] == [6, (6, 3), 6]


def test_tables_are_data_frames_with_decoded_strings(whole):
    with egoaudio.open(whole) as file:
        assert isinstance(file.clips, pandas.DataFrame)
        assert file.videos["scene"].tolist() == ["Küche"] * 6
        assert file.videos["error"].tolist() == ["", "", "moov atom not found", "", "", ""]
        assert file.classes["class_id"].tolist()[-1] == "no_action"
        assert file.clips["start_seconds"].tolist() == [*map(float, range(10))] * 6
        for frame, table in (
            (file.clips, file.clip_table),
            (file.videos, file.video_table),
            (file.classes, file.class_table),
        ):
            assert list(frame.columns) == list(table.dtype.names)
            assert len(frame) == len(table)


def test_rows_without_data_are_easy_to_leave_out(whole):
    with egoaudio.open(whole) as file:
        left_out = {5, 6, *range(20, 30)}
        assert set(np.flatnonzero(~file.usable)) == left_out
        assert set(file.clips[file.usable].index) == set(range(60)) - left_out
        np.testing.assert_array_equal(file.trainable, file.usable & (file.clips["labelled"] == 1))
        np.testing.assert_array_equal(file.count_classes(), file.labels[file.trainable].sum(axis=0))


def test_a_clip_of_a_video_that_is_not_done_is_not_usable(whole):
    """The video's row is written last: it is what makes the clips count."""
    with RowWriter(whole, offsets(whole)) as writer:
        row = writer.read("videos", 1, 1)
        row["status"] = 0
        writer.write("videos", 1, row)
        rows = writer.read("clips", 0, 2)
        rows["video"] = [-1, 77]  # damaged: names no video at all
        writer.write("clips", 0, rows)
    with egoaudio.open(whole) as file:
        assert not file.usable[[0, 1, *range(10, 20)]].any()
        assert file.usable[2]


def test_maps_are_read_only(whole):
    with egoaudio.open(whole) as file:
        for array in (file["mfcc"], file.labels, file.clip_table):
            assert isinstance(array, np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[1]


def test_incomplete_file_opens_with_a_warning_that_counts(tmp_path):
    path = synthetic.make_file(
        tmp_path / "a.h5.partial", features={"mfcc": (32, 20)}, failed=(0,), planned=(1, 4), complete=False
    )
    words = r"a.h5.partial is incomplete: 6 of 8 videos are done. Leave the other rows out with .usable"
    with pytest.warns(UserWarning, match=words), egoaudio.open(path) as file:
        assert not file.complete
        assert file.usable.sum() == 50
        assert np.isfinite(file["mfcc"][file.usable]).all()


def test_file_is_pickled_as_its_path(whole):
    with egoaudio.open(whole) as file:
        file["mfcc"], file.clips  # noqa: B018
        raw = pickle.dumps(file)
        assert len(raw) < 500
        with pickle.loads(raw) as again:
            np.testing.assert_array_equal(again["mfcc"], file["mfcc"])


def test_arrays_outlive_the_file(whole):
    with egoaudio.open(whole) as file:
        array = file["mfcc"]
    assert np.isfinite(array).all()


def test_reader_keeps_the_old_file_when_a_new_one_takes_its_name(whole, tmp_path):
    with egoaudio.open(whole) as file:
        before = np.array(file["mfcc"])
        os.replace(synthetic.make_file(tmp_path / "b.h5", features=FEATURES, seed=9, num_videos=6), whole)
        np.testing.assert_array_equal(file["mfcc"], before)
        assert len(file.clips) == 60


def test_h5py_opens_the_same_file_beside_us(whole):
    with egoaudio.open(whole) as ours, h5py.File(whole) as theirs:
        np.testing.assert_array_equal(ours["mfcc"], theirs["mfcc"])


def test_unknown_feature_names_those_that_are_there(whole):
    with egoaudio.open(whole) as file, pytest.raises(KeyError, match="no 'logmel'; it has spectrogram, mfcc"):
        file["logmel"]


# ------------------------------------------------------------------------------------------------- repacked arrays


def replace(path, name, **options):
    """Write a dataset again as another tool would; its values stay unless ``data`` is given."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        values = file[name][()]
        attributes = {key: value for key, value in file[name].attrs.items() if key != "DIMENSION_LIST"}
        del file[name]
        if options.get("data", values) is not None:
            options = {"data": values, **options}
        dataset = file.create_dataset(name, **options)
        dataset.attrs.update(attributes)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "chunks": (7, 32, 20)},
        {"shuffle": True, "chunks": (1, 32, 20)},
        {"chunks": (4, 16, 20)},
        {"chunks": (4, 32, 20), "maxshape": (None, 32, 20)},
        {"chunks": (4, 32, 20)},
        {},
    ],
    ids=str,
)
def test_repacked_array_reads_the_same(whole, options):
    with egoaudio.open(whole) as file:
        before = np.array(file["mfcc"])
    replace(whole, "mfcc", **options)
    with warnings.catch_warnings(), egoaudio.open(whole) as file:
        warnings.simplefilter("ignore" if not file.is_mapped("mfcc") else "error")
        np.testing.assert_array_equal(file["mfcc"][:], before)
        assert file["mfcc"].shape == before.shape
        assert integrity.verify(file) == []


def test_repacked_tables_read_the_same(whole):
    with egoaudio.open(whole) as file:
        clips, videos, labels = file.clips, file.videos, np.array(file.labels)
    for name in ("clips", "videos", "labels"):
        replace(whole, name, compression="gzip")
    with egoaudio.open(whole) as file:
        pandas.testing.assert_frame_equal(file.clips, clips)
        pandas.testing.assert_frame_equal(file.videos, videos)
        np.testing.assert_array_equal(file.labels, labels)


def test_a_file_behind_a_user_block_reads_the_same(whole, tmp_path):
    moved = tmp_path / "moved.h5"
    with h5py.File(whole) as source, h5py.File(moved, "w", userblock_size=1024) as target:
        target.attrs.update(source.attrs)
        for name in source:
            source.copy(name, target)
    with egoaudio.open(whole) as file, egoaudio.open(moved) as other:
        assert not other.is_mapped("mfcc")
        with pytest.warns(UserWarning, match="repacked"):
            np.testing.assert_array_equal(other["mfcc"][:], file["mfcc"])
        np.testing.assert_array_equal(other.labels, file.labels)


def test_repacked_array_warns_of_the_cost(whole):
    replace(whole, "mfcc", compression="gzip")
    with (
        egoaudio.open(whole) as file,
        pytest.warns(
            UserWarning, match="/mfcc was repacked by another tool, so it is read through h5py, 20 times slower"
        ),
    ):
        file["mfcc"]


def test_chunks_out_of_order_are_not_mapped(whole):
    """Same size, first and last in their places, two in the middle swapped: only looking at every chunk tells."""
    with egoaudio.open(whole) as file:
        before = np.array(file["mfcc"])
    with h5py.File(whole, "r+", libver=("v110", "v110")) as file:
        del file["mfcc"]
        dataset = file.create_dataset("mfcc", before.shape, "<f4", chunks=(10, 32, 20))
        for chunk in (0, 2, 1, 3, 4, 5):
            dataset[chunk * 10 : chunk * 10 + 10] = before[chunk * 10 : chunk * 10 + 10]
            file.flush()
        offsets = [dataset.id.get_chunk_info(k).byte_offset for k in range(6)]
        assert offsets != sorted(offsets)
    with warnings.catch_warnings(), egoaudio.open(whole) as file:
        warnings.simplefilter("ignore")
        assert not file.is_mapped("mfcc")
        np.testing.assert_array_equal(file["mfcc"][:], before)


def test_chunks_with_gaps_between_them_are_not_mapped(whole):
    """An older layout puts chunks down one by one, each aligned, however early their space is taken."""
    with egoaudio.open(whole) as file:
        before = np.array(file["mfcc"])
    with h5py.File(whole, "r+", libver=("earliest", "v110"), alignment_threshold=1, alignment_interval=4096) as file:
        del file["mfcc"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((1, 32, 20))
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        h5py.h5d.create(file.id, b"mfcc", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(before.shape), plan)
        file["mfcc"][:] = before
        assert file["mfcc"].id.get_chunk_info(1).byte_offset - file["mfcc"].id.get_chunk_info(0).byte_offset == 4096
    with warnings.catch_warnings(), egoaudio.open(whole) as file:
        warnings.simplefilter("ignore")
        assert not file.is_mapped("mfcc")
        np.testing.assert_array_equal(file["mfcc"][:], before)


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        np.int64(59),
        slice(None),
        slice(5, 9),
        slice(50, 5, -7),
        slice(3, 3),
        [4],
        [59, 0, 0, 7, -2, 8, 9],
        [],
        np.arange(60) % 7 == 2,
        (4, 2),
        (slice(2, 5), 1),
        ([9, 3], slice(None), 4),
        (5, slice(2, 4), slice(None, None, 3)),
        np.array([[1, 2], [3, 1]]),
    ],
    ids=str,
)
def test_repacked_array_is_indexed_like_a_map(whole, key):
    key = np.array(key, np.int64) if isinstance(key, list) and not key else key
    with egoaudio.open(whole) as file:
        expected = np.array(file["mfcc"])[key]
    replace(whole, "mfcc", compression="gzip")
    with warnings.catch_warnings(), egoaudio.open(whole) as file:
        warnings.simplefilter("ignore")
        result = file["mfcc"][key]
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
        for beyond in (60, -61, [3, 60], (60, 1)):
            with pytest.raises(IndexError):
                file["mfcc"][beyond]


def test_what_cannot_be_read_once_a_file_was_closed_says_so(whole):
    with egoaudio.open(whole) as file:
        labels, expected = file.labels, file.labels.tobytes()
    assert labels.tobytes() == expected  # a map stays valid
    with pytest.raises(StoreError, match="was closed: open it again, or take its arrays before"):
        file["mfcc"][0]
    replace(whole, "mfcc", compression="gzip")
    with warnings.catch_warnings(), egoaudio.open(whole) as file:
        warnings.simplefilter("ignore")
        array = file["mfcc"]
    for read in (lambda: array[0], lambda: np.asarray(array), lambda: file["mfcc"], lambda: file.attributes("mfcc")):
        with pytest.raises(StoreError, match="was closed"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
