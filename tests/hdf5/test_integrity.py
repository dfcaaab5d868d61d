"""Checksums and statistics do not depend on how rows were grouped; whatever is wrong is found and its video named."""

import os
import re
import warnings
import zlib

import h5py
import numpy as np
import pytest
import synthetic

from egoaudio.errors import Status
from egoaudio.hdf5 import integrity, reader
from egoaudio.hdf5.writer import RowWriter


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 4), (5, 5, 9)])
def test_block_by_block_equals_all_at_once(cuts, dtype):
    rows = np.random.default_rng(0).normal(-40, 20, (12, 32, 51)).astype(dtype)
    crc, sums = 0, None
    for block in np.split(rows, cuts):
        crc, sums = integrity.checksum(block, crc), integrity.statistics(block, sums)
    assert crc == zlib.crc32(rows.tobytes())
    assert sums.tolist() == integrity.statistics(rows).tolist()  # to the last bit
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(sums, [rows.size, wide.sum(), (wide**2).sum()], rtol=1e-12)


def test_statistics_of_nothing_are_zero():
    assert integrity.statistics(np.zeros((0, 3, 4), "f4")).tolist() == [0, 0, 0]


def test_statistics_keep_what_float32_sums_lose():
    rows = np.full((200, 32, 100), 0.1, np.float32)
    assert integrity.statistics(rows)[1] == pytest.approx(rows.size * float(np.float32(0.1)), rel=1e-13)


@pytest.fixture
def whole(tmp_path):
    features = {"spectrogram": (32, 65), "mfcc": (32, 20)}
    return synthetic.make_file(tmp_path / "a.h5", features=features, failed=(2,), silent_clips=(5, 6), num_videos=6)


def test_file_as_written_has_no_problem(whole):
    steps = []
    with reader.open(whole) as file:
        assert integrity.verify(file, progress=steps.append) == []
    assert steps == [1] * 6


def test_one_flipped_bit_of_any_feature_is_found_and_its_video_named(whole):
    generator = np.random.default_rng(1)
    with reader.open(whole) as file:
        extents = file.extents
    for _ in range(40):
        name = generator.choice(["spectrogram", "mfcc"])
        extent = extents[name]
        where = int(generator.integers(extent.offset, extent.stop))
        video = (where - extent.offset) // extent.row_bytes // 10
        flip(whole, where, 1 << generator.integers(8))
        with reader.open(whole) as file:
            problems = integrity.verify(file)
            assert problems, where
            assert all(problem.startswith(f"video {video} (V{video:04d}EGO): /{name} ") for problem in problems)
            assert integrity.verify_video(file, video) == problems
            assert integrity.verify_video(file, (video + 1) % 6) == []
        flip(whole, where, 0)


FLIPPED = {}


def flip(path, where, mask):
    """Flip bits of one byte; with mask 0, put the byte back."""
    with open(path, "r+b") as file:
        file.seek(where)
        old = file.read(1)[0]
        file.seek(where)
        file.write(bytes([old ^ mask if mask else FLIPPED[path, where]]))
        FLIPPED[path, where] = old


def change(name, row, column, value):
    """Return a function that sets a value of a table or array."""

    def apply(writer):
        rows = writer.read(name, row, 1)
        if column is None:
            rows[:] = value
        else:
            rows[column] = value
        writer.write(name, row, rows)

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            change("checksums/mfcc", 3, None, 7),
            r"video 3 \(V0003EGO\): /mfcc is damaged: its checksum is [0-9a-f]{8}, not 00000007",
        ),
        (change("statistics/mfcc", 1, None, 0), r"video 1 .*: /mfcc has statistics \[0.0, 0.0, 0.0\]"),
        (change("mfcc", 42, None, np.nan), r"video 4 .*: /mfcc is damaged"),
        (change("mfcc", 25, None, 1), r"video 2 .*: /mfcc has values in clips that are marked as without data"),
        (change("mfcc", 5, None, 1), r"video 0 .*: /mfcc has values in clips that are marked as without data"),
        (change("videos", 1, "status", 0), "marked complete, but has videos that were only planned"),
        (change("videos", 1, "status", 9), "a status that the format does not have"),
        (change("videos", 1, "status", 4), r"video 1 .*: status 4, but clips of status \[1\]"),
        (change("videos", 1, "first_clip", 11), "do not follow each other"),
        (change("videos", 5, "num_clips", 11), "do not follow each other"),
        (change("videos", 1, "num_clips", -3), "video 1 .* are not all among the file's 60"),
        (change("videos", 1, "first_clip", 2**62), "video 1 .* are not all among the file's 60"),
        (change("clips", 11, "status", 0), r"video 1 .*: status 1, but clips of status \[0\]"),
        (change("clips", 25, "status", 1), r"video 2 .*: status 3, but clips of status \[1\]"),
        (change("clips", 11, "video", 4), r"video 1 .*: clips that name another video"),
        (change("clips", 11, "stop_seconds", np.nan), r"video 1 .*: clips with impossible times"),
        (change("clips", 11, "labelled", 2), r"video 1 .*: clips with impossible times, samples or labels"),
        (change("labels", 11, None, 2), "/labels: a value other than 0 and 1"),
        (change("video_labels", 1, None, 3), "/video_labels: a value other than 0 and 1"),
        (
            change("classes", 2, "num_clips", 999),
            r"class c002 is active in \d+ clips that can be trained on, not in 999",
        ),
    ],
)
def test_every_kind_of_damage_is_found(whole, damage, words):
    with reader.open(whole) as file:
        extents = file.extents
    with RowWriter(whole, extents) as writer:
        damage(writer)
    with reader.open(whole) as file:
        problems = integrity.verify(file)
    assert any(re.search(words, problem) for problem in problems), problems


def test_values_that_are_not_finite_are_found_even_with_a_right_checksum(whole):
    with reader.open(whole) as file:
        extents, rows = file.extents, np.array(file["mfcc"][30:40])
    rows[3, 2, 1] = np.inf
    with RowWriter(whole, extents) as writer:
        writer.write("mfcc", 30, rows)
        writer.write("checksums/mfcc", 3, np.array([integrity.checksum(rows)], "u4"))
    with reader.open(whole) as file:
        assert integrity.verify(file) == ["video 3 (V0003EGO): /mfcc holds values that are not finite"]


def test_unfinished_file_is_checked_as_far_as_it_is_done(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (32, 20)}, planned=(1, 4), complete=False)
    with reader.EgoAudioFile(path) as file:
        assert integrity.verify(file) == []
        assert (file.video_table["status"] == Status.PLANNED).sum() == 2


def test_damage_inside_a_compressed_array_is_found(whole):
    with h5py.File(whole, "r+", libver=("v110", "v110")) as file:
        values = file["mfcc"][()]
        del file["mfcc"]
        dataset = file.create_dataset("mfcc", data=values, chunks=(10, 32, 20), compression="gzip", fletcher32=True)
        where = dataset.id.get_chunk_info(3).byte_offset
    with open(whole, "r+b") as file:
        file.seek(where + 100)
        file.write(os.urandom(200))
    with warnings.catch_warnings(), reader.open(whole) as file:
        warnings.simplefilter("ignore")
        problems = integrity.verify(file)
    assert len(problems) == 1
    assert problems[0].startswith("video 3 (V0003EGO): /mfcc")
