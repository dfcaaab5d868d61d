"""Rows out of the file: equal to plain indexing in every form of file, and never out of a file that has changed."""

import ctypes
import gc
import mmap
import os
import shutil
import time
import warnings

import h5py
import numpy as np
import pytest
from synthetic import make_file

from egoaudio.data import rows as data_rows
from egoaudio.data.rows import RowSource
from egoaudio.errors import StoreError, TrainingError
from egoaudio.hdf5 import reader

SHAPE = (6, 40)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_file(
        tmp_path_factory.mktemp("gather") / "ego.h5", num_videos=6, clips_per_video=50, features={"spectrogram": SHAPE}
    )


@pytest.fixture
def copy(path, tmp_path):
    return shutil.copy(path, tmp_path / "ego.h5")


def repack(path, target):
    """Write the file again with a compressed spectrogram, as h5repack does."""
    with h5py.File(path, "r") as source, h5py.File(target, "w") as repacked:
        repacked.attrs.update(source.attrs)
        for name in source:
            if name != "spectrogram":
                source.copy(name, repacked)
        repacked.create_dataset("spectrogram", data=source["spectrogram"][()], chunks=(16, *SHAPE), compression="gzip")
    return str(target)


def take(path, rows, *normalization, warm=False):
    out = np.full((len(rows), *SHAPE), np.nan, np.float32)
    source = RowSource(path, "spectrogram")
    if warm:
        source._cold_batches = 0
    source.take(rows, out, *normalization)
    return out


ROWS = np.random.default_rng(0).integers(0, 300, 137)


@pytest.mark.parametrize("kind", ["read", "mapped", "half precision", "repacked"])
@pytest.mark.parametrize("cached_bytes", [1, 5000, 512 * 1024])
def test_rows_equal_plain_indexing(path, tmp_path, monkeypatch, kind, cached_bytes):
    monkeypatch.setattr(data_rows, "_CACHED_BYTES", cached_bytes)
    if kind == "half precision":
        path = make_file(
            tmp_path / "half.h5", num_videos=6, clips_per_video=50, features={"spectrogram": SHAPE}, dtype="float16"
        )
    with reader.open(path) as file:
        expected = np.array(file["spectrogram"]).astype(np.float32)[ROWS]
    if kind == "repacked":
        path = repack(path, tmp_path / "repacked.h5")
        with pytest.warns(UserWarning, match="repacked by another tool.*slower"):
            np.testing.assert_array_equal(take(path, ROWS), expected)
        with pytest.warns(UserWarning, match="repacked"):
            normalized = take(path, ROWS, 2.5, 4.0)
    else:
        np.testing.assert_array_equal(take(path, ROWS, warm=kind == "mapped"), expected)
        normalized = take(path, ROWS, 2.5, 4.0, warm=kind == "mapped")
    np.testing.assert_allclose(normalized, (expected - 2.5) / 4, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [[-1], [0, 300], [1 << 40]])
def test_a_row_outside_the_file_is_an_error_not_another_row(path, rows):
    with pytest.raises(IndexError, match="not all among the 300"):
        take(path, np.array(rows))


def test_a_missing_array_is_named_with_those_there_are(path):
    with pytest.raises(
        TrainingError, match="has no logmel; it has spectrogram: build again with `features=.'logmel',.`"
    ):
        RowSource(path, "logmel")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere.h5"):
        RowSource(str(tmp_path / "nowhere.h5"), "spectrogram")


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")
    os.utime(path, ns=(0, 1_600_000_000_000_000_000))  # a clock too coarse to show two writes in one tick


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def grow(path):
    os.truncate(path, os.path.getsize(path) + 1)


@pytest.mark.parametrize("change", [overwrite, truncate, grow])
def test_a_file_that_changes_under_the_reader_stops_it_and_is_named(copy, change):
    source = RowSource(str(copy), "spectrogram")
    out = np.empty((137, *SHAPE), np.float32)
    source.take(ROWS, out)
    change(copy)
    with pytest.raises(
        TrainingError,
        match=r"ego\.h5 was changed during the run: it had [\d,]+ bytes, last written .*egoaudio-inspect --verify",
    ):
        source.take(ROWS, out)  # a truncated map would kill the process here


def test_a_file_cut_short_between_two_looks_is_told_where_rows_are_read(copy, monkeypatch):
    source = RowSource(copy, "spectrogram")
    monkeypatch.setattr(source._parts[0], "check_unchanged", lambda: None)
    os.truncate(copy, source._parts[0].offset + 7 * source.row_bytes + 5)
    source.take([6], np.empty((1, *SHAPE), np.float32))
    with pytest.raises(TrainingError, match="in the middle of row 7: it was truncated"):
        source.take([6, 7], np.empty((2, *SHAPE), np.float32))


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_a_file_that_loses_its_name_is_read_to_the_end_with_one_warning(copy, tmp_path, fate):
    source = RowSource(str(copy), "spectrogram")
    before, after = np.empty((2, 137, *SHAPE), np.float32)
    source.take(ROWS, before)
    if fate == "deleted":
        os.unlink(copy)
    else:
        os.replace(
            make_file(tmp_path / "new.h5", num_videos=6, clips_per_video=50, features={"spectrogram": SHAPE}, seed=9),
            copy,
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            source.take(ROWS, after)
    np.testing.assert_array_equal(after, before)
    assert len(caught) == 1 and f"ego.h5 was {'moved or deleted' if fate == 'deleted' else 'replaced'}" in str(
        caught[0].message
    )


def test_another_process_refuses_a_file_that_has_taken_the_name(copy, tmp_path):
    identity = RowSource(str(copy), "spectrogram").identity
    RowSource(str(copy), "spectrogram", identity)
    os.replace(make_file(tmp_path / "new.h5", num_videos=6, clips_per_video=50, features={"spectrogram": SHAPE}), copy)
    with pytest.raises(TrainingError, match="was replaced by another file during the run"):
        RowSource(str(copy), "spectrogram", identity)


@pytest.mark.parametrize("just_opened", [True, False])
def test_announced_rows_come_into_memory_without_being_read(tmp_path, monkeypatch, just_opened):
    monkeypatch.setattr(data_rows, "_ANNOUNCED_BYTES", 20_000)  # several announcements a row
    path = make_file(tmp_path / "cold.h5", num_videos=8, clips_per_video=50, features={"spectrogram": (32, 400)})
    source = RowSource(path, "spectrogram")
    rows = np.random.default_rng(1).permutation(400)[:40]
    starts = source.file.extents["spectrogram"].offset + rows * source.row_bytes
    pages = np.unique(
        np.concatenate([np.arange(start // 4096, -(-(start + source.row_bytes) // 4096)) for start in starts])
    )
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        os.fdatasync(file.fileno())  # pages that are not on disk cannot be given away
        deadline = time.monotonic() + 5
        while (warm := resident(mapped)[pages].any()) and time.monotonic() < deadline:  # pages just written may be busy
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            time.sleep(0.01)
        if warm:
            pytest.skip("this file system keeps its files in memory (tmpfs?)")
        if not just_opened:
            source._cold_batches = 0  # it has to ask
        source.announce(rows)
        deadline = time.monotonic() + 20
        while not resident(mapped)[pages].all() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert resident(mapped)[pages].all()


def test_rows_that_are_in_memory_are_announced_no_longer(path, monkeypatch):
    monkeypatch.setattr(data_rows, "_COLD_BATCHES", 2)
    announced = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: announced.append(arguments))
    source = RowSource(path, "spectrogram")
    take(path, np.arange(300))
    for expected in (10, 20, 20, 20):
        source.announce(np.arange(10))
        assert len(announced) == expected


def resident(mapped):
    """Return which pages of a map are in memory, as mincore(2) says: asking changes nothing."""
    flags = (ctypes.c_ubyte * -(-len(mapped) // 4096))()
    first = ctypes.c_char.from_buffer(mapped)
    try:
        assert (
            ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), flags
            )
            == 0
        )
    finally:
        del first
    return np.frombuffer(flags, np.uint8) & 1 == 1


def test_descriptors_are_closed(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        RowSource(path, "spectrogram").file.close()
        with pytest.raises(TrainingError):
            RowSource(path, "mfcc")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_source_that_is_dropped_closes_its_file_and_leaves_its_maps(tmp_path):
    source = RowSource(make_file(tmp_path / "clips.h5", 2, 3, {"spectrogram": (4, 5)}), "spectrogram")
    file, array = source.file, source.file["spectrogram"]
    del source
    gc.collect()
    with pytest.raises(StoreError, match="clips.h5 was closed: open it again"):
        assert file.labels is None
    assert np.isfinite(array).all()
