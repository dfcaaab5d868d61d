"""Rows of several files as one: equal to those of one file, and none of a file that has changed."""

import os
import pickle
import shutil

import numpy as np
import pytest
import synthetic

from egoaudio.data import rows
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.rows import RowSource
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader

SHAPE = (6, 40)
ROWS = np.random.default_rng(0).integers(0, 300, 137)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return synthetic.make_file(tmp_path_factory.mktemp("rows") / "ego.h5", 6, 50, {"spectrogram": SHAPE}, failed=(4,))


@pytest.fixture(scope="module")
def parts(whole, tmp_path_factory):
    return synthetic.divide(whole, tmp_path_factory.mktemp("parts"), [0, 1, 4, 6])


def _take(paths, warm, context_clips=0, rows=ROWS, normalization=(0.0, 1.0)):
    source = RowSource(paths, "spectrogram", context_clips=context_clips)
    source._cold_batches = 0 if warm else 10
    out = np.full((len(rows), *source.joined_shape), np.nan, np.float32)
    source.announce(rows)
    source.take(rows, out, *normalization)
    return out


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("normalization", [(0.0, 1.0), (-3.0, 2.5)])
def test_rows_are_those_of_the_one_file(whole, parts, warm, normalization):
    ours, theirs = (_take(paths, warm, normalization=normalization) for paths in (parts, whole))
    np.testing.assert_array_equal(ours, theirs)


def test_neighbours_of_a_clip_never_come_from_another_file(whole, parts):
    rows = np.array([0, 49, 50, 51, 199, 149, 150, 250, 299])
    for warm in (False, True):
        np.testing.assert_array_equal(_take(parts, warm, 1, rows), _take(whole, warm, 1, rows))


def test_half_precision_of_several_files(tmp_path):
    path = synthetic.make_file(tmp_path / "ego.h5", 6, 50, {"spectrogram": SHAPE}, dtype="float16")
    np.testing.assert_array_equal(_take(synthetic.divide(path, tmp_path, [0, 2, 6]), True), _take(path, True))


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_items_are_those_of_the_one_file_also_in_another_process(whole, parts, label_mode):
    one, several = (ClipDataset(paths, "spectrogram", label_mode=label_mode) for paths in (whole, parts))
    several = pickle.loads(pickle.dumps(several))
    assert len(one) == len(several)
    items = np.random.default_rng(1).integers(0, len(one), 64)
    for ours, theirs in zip(several.fetch(items), one.fetch(items), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_file_that_changed_is_named(parts, tmp_path):
    copies = [shutil.copy(path, tmp_path) for path in parts]
    source = RowSource(copies, "spectrogram")
    os.truncate(copies[2], os.path.getsize(copies[2]) + 1)
    with pytest.raises(TrainingError, match="shard-00002-of-00003 was changed during the run"):
        source.take(np.array([1]), np.empty((1, *SHAPE), np.float32))
    identity = RowSource(parts, "spectrogram").identity
    with pytest.raises(TrainingError, match="shard-00000-of-00003 was replaced"):
        RowSource([copies[0], *parts[1:]], "spectrogram", identity)


def test_a_file_that_is_cut_short_is_named_with_its_own_row(parts, tmp_path):
    copies = [shutil.copy(path, tmp_path) for path in parts]
    source = RowSource(copies, "spectrogram")
    part = source._parts[1]
    part.check_unchanged = lambda: None
    os.truncate(copies[1], part.offset + 7 * source.row_bytes + 5)
    with pytest.raises(TrainingError, match="shard-00001-of-00003 ends at byte .*, in the middle of row 7: it was"):
        source._fill(np.array([[57]]), np.empty((1, 1, *SHAPE), np.float32))


@pytest.mark.parametrize("is_odd", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_several_files_equal_those_of_one(whole, tmp_path, monkeypatch, dtype, is_odd):
    if dtype != "float32":
        whole = synthetic.make_file(
            tmp_path / "half.h5", num_videos=6, clips_per_video=50, features={"spectrogram": SHAPE}, dtype=dtype
        )
    parts = synthetic.divide(whole, tmp_path, [0, 1, 4, 6])
    if is_odd:  # a map that begins at an odd address
        moved = np.frombuffer(b"?" + reader.open(parts[1])["spectrogram"].tobytes(), dtype, offset=1)
        part = rows._Part
        monkeypatch.setattr(
            rows,
            "_Part",
            lambda file, *rest: vary(part(file, *rest), moved) if file.path == parts[1] else part(file, *rest),
        )
    monkeypatch.setattr(rows, "_CACHED_BYTES", 1)
    expected = np.array(reader.open(whole)["spectrogram"])[ROWS]
    source = RowSource(parts, "spectrogram")
    source._cold_batches = 0
    assert (source._stored is None) == is_odd
    for kind in {dtype, "float32"}:
        out = np.zeros(expected.shape, kind)
        source.take(ROWS, out)
        np.testing.assert_array_equal(out, expected.astype(kind))


def vary(part, moved):
    """Return the part with another map of the same rows."""
    part.array = moved.reshape(-1, *SHAPE)
    return part
