"""Rows go where they belong, from any number of processes, and a kill leaves a file that opens."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import synthetic

from egoaudio.errors import StoreError
from egoaudio.hdf5 import create, reader
from egoaudio.hdf5.writer import RowWriter, offsets


@pytest.fixture
def laid_out(tmp_path):
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(60, 6, features={"spectrogram": (32, 1025), "mfcc": (32, 20)}))
    return path, offsets(path)


def rows_of(video):
    """Return a video's ten rows of both features."""
    generator = np.random.default_rng(video)
    return {
        "spectrogram": generator.standard_normal((10, 32, 1025), np.float32),
        "mfcc": generator.standard_normal((10, 32, 20), np.float32),
    }


def write_videos(path, extents, videos):
    with RowWriter(path, extents) as writer:
        for video in videos:
            for name, rows in rows_of(video).items():
                writer.write(name, video * 10, rows)


def test_processes_fill_one_file_as_one_would(laid_out, tmp_path):
    path, extents = laid_out
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(write_videos, [(path, extents, (0, 3, 4)), (path, extents, (5, 2, 1))])
    alone = tmp_path / "b.h5"
    create.lay_out(alone, synthetic.make_layout(60, 6, features={"spectrogram": (32, 1025), "mfcc": (32, 20)}))
    write_videos(alone, offsets(alone), range(6))
    assert path.read_bytes() == alone.read_bytes()
    with h5py.File(path) as file:
        for video in range(6):
            for name, rows in rows_of(video).items():
                np.testing.assert_array_equal(file[name][video * 10 : video * 10 + 10], rows)


def test_offsets_are_small_and_pickled(laid_out):
    _, extents = laid_out
    raw = pickle.dumps(extents)
    assert len(raw) < 10_000
    assert pickle.loads(raw) == extents
    assert {
        "spectrogram",
        "mfcc",
        "clips",
        "labels",
        "videos",
        "video_labels",
        "classes",
        "checksums/mfcc",
        "statistics/mfcc",
        "synced",
    } <= set(extents)


def test_tables_are_written_row_by_row_and_read_back(laid_out):
    path, extents = laid_out
    with RowWriter(path, extents) as writer:
        row = np.zeros(1, extents["videos"].dtype)
        row["video_id"], row["num_clips"] = "ABCDEEGO", 10
        writer.write("videos", 4, row)
        again = writer.read("videos", 4, 1)
        again["num_clips"] += 1
        writer.write("videos", 4, again)
        assert writer.read("videos", 3, 2)["num_clips"].tolist() == [0, 11]
    with h5py.File(path) as file:
        assert file["videos"][4]["video_id"] == b"ABCDEEGO"
        assert file["videos"]["num_clips"].tolist() == [0, 0, 0, 0, 11, 0]


@pytest.mark.parametrize(
    ("name", "first", "rows", "words"),
    [
        ("mfcc", 0, np.zeros((1, 32, 20)), "takes rows float32"),
        ("mfcc", 0, np.zeros((1, 32, 21), "f4"), r"\(32, 20\), not float32 \(32, 21\)"),
        ("mfcc", 58, np.zeros((3, 32, 20), "f4"), "60 rows, and 58 to 61"),
        ("mfcc", -1, np.zeros((1, 32, 20), "f4"), "60 rows, and -1 to 0"),
        ("clips", 0, np.zeros(1, [("video", "i4")]), "takes rows"),
    ],
)
def test_rows_that_do_not_belong_are_our_mistake_and_touch_nothing(laid_out, name, first, rows, words):
    path, extents = laid_out
    before = path.read_bytes()
    with RowWriter(path, extents) as writer, pytest.raises(ValueError, match=words):
        writer.write(name, first, rows)
    assert path.read_bytes() == before


def test_strided_rows_are_written_as_their_values(laid_out):
    path, extents = laid_out
    values = np.arange(2 * 32 * 40, dtype=np.float32).reshape(2, 32, 40)[:, :, ::2]
    with RowWriter(path, extents) as writer:
        writer.write("mfcc", 7, values)
        writer.write("mfcc", 9, values[:0])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["mfcc"][7:9], values)


@pytest.mark.parametrize(("first", "count"), [(0, 60), (10, 10), (13, 1), (20, 0)])
def test_erased_rows_are_zero_and_their_neighbours_are_not(laid_out, first, count):
    path, extents = laid_out
    with RowWriter(path, extents) as writer:
        writer.write("spectrogram", 0, np.ones((60, 32, 1025), "f4"))
        writer.erase("spectrogram", first, count)
    with h5py.File(path) as file:
        erased = ~file["spectrogram"][()].reshape(60, -1).any(axis=1)
    assert np.flatnonzero(erased).tolist() == list(range(first, first + count))


def test_file_that_vanishes_is_noticed(laid_out):
    path, extents = laid_out
    with RowWriter(path, extents) as writer:
        writer.sync()
        path.unlink()
        with pytest.raises(StoreError, match="a.h5 was removed while it was being written"):
            writer.sync()
    with pytest.raises(StoreError, match="No such file"):
        RowWriter(path, extents)


def test_file_cut_short_while_writing_is_noticed(laid_out):
    path, extents = laid_out
    with RowWriter(path, extents) as writer:
        os.truncate(path, extents["clips"].offset + 30)
        with pytest.raises(StoreError, match="cut short"):
            writer.read("clips", 0, 5)


def test_nothing_is_written_into_a_repacked_file(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (32, 20)})
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        values = file["mfcc"][()]
        del file["mfcc"]
        file.create_dataset("mfcc", data=values, compression="gzip")
    with pytest.raises(StoreError, match="/mfcc was repacked by another tool, so no rows can be written"):
        offsets(path)


def test_writer_killed_at_any_moment_leaves_a_file_that_opens(tmp_path):
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import numpy as np, synthetic
from egoaudio.hdf5 import create, reader
from egoaudio.hdf5.writer import RowWriter, offsets
path = sys.argv[1]
create.lay_out(path, synthetic.make_layout(60, 6, features={{"mfcc": (32, 20)}}))
extents = offsets(path)
print("ready", flush=True)
with RowWriter(path, extents) as writer:
    for turn in range(10**9):
        video = turn % 6
        row = np.zeros(1, extents["videos"].dtype)
        row["status"] = 1
        writer.write("mfcc", video * 10, np.full((10, 32, 20), turn, "f4"))
        writer.write("videos", video, row)
        writer.erase("videos", video, 1)
        if turn % 50 == 0:
            writer.sync()
            create.mark_complete(path)
"""
    generator = np.random.default_rng(0)
    for turn in range(6):
        path = tmp_path / f"{turn}.h5"
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"ready\n"
            try:
                child.wait(timeout=float(generator.uniform(0, 0.15)))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        with h5py.File(path, "r+") as file:
            assert file["mfcc"].shape == (60, 32, 20)
        with reader.EgoAudioFile(path) as file:
            assert set(file.video_table["status"].tolist()) <= {0, 1}
    assert {p.suffix for p in tmp_path.iterdir()} == {".h5"}


def test_rows_are_written_into_the_file_that_was_laid_out_and_no_other(tmp_path):
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(6, 2, features={"mfcc": (32, 20)}))
    extents = pickle.loads(pickle.dumps(offsets(path)))
    with RowWriter(path, extents) as writer:
        writer.write("mfcc", 0, np.ones((1, 32, 20), "f4"))
    os.replace(path, tmp_path / "moved.h5")
    create.lay_out(path, synthetic.make_layout(6, 2, features={"mfcc": (32, 20)}))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="was replaced by another file while it was being written"):
        RowWriter(path, extents)
    assert path.read_bytes() == before
    with RowWriter(tmp_path / "moved.h5", extents) as writer:  # it is the same file
        writer.write("mfcc", 1, np.ones((1, 32, 20), "f4"))
