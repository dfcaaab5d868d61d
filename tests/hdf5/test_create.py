"""The structure of the file: places, types, determinism, and that other tools read it."""

import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import synthetic

from egoaudio.errors import StoreError
from egoaudio.hdf5 import create, integrity, reader, schema
from egoaudio.hdf5.writer import offsets
from egoaudio.system import files

PAGE = 4096


def chunk_offsets(dataset):
    """Return the chunks' offsets in the order of their rows, from HDF5 itself."""
    found = {}
    dataset.id.chunk_iter(lambda chunk: found.__setitem__(chunk.chunk_offset[0], chunk.byte_offset))
    return np.array([found[row] for row in sorted(found)])


@pytest.mark.parametrize("row_shape", [(32, 1025), (32, 20), (3, 7), (200, 513)])
@pytest.mark.parametrize("num_clips", [1, 2, 7, 203])
def test_chunks_hold_whole_clips_back_to_back_on_pages(tmp_path, num_clips, row_shape):
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(num_clips, 1, features={"spectrogram": row_shape}))
    with h5py.File(path) as file:
        dataset = file["spectrogram"]
        places, chunk_bytes = chunk_offsets(dataset), int(np.prod(dataset.chunks)) * 4
        assert dataset.chunks[1:] == row_shape
        assert chunk_bytes <= 256 * 1024 or dataset.chunks[0] == 1
        assert chunk_bytes >= 64 * 1024 or dataset.chunks[0] == num_clips
        assert len(places) == -(-num_clips // dataset.chunks[0])
        assert (np.diff(places) == chunk_bytes).all()
        assert places[0] % PAGE == 0
        assert offsets(path)["spectrogram"].offset == places[0]
        # Edge chunks are stored whole, so what we write into the last rows lies inside the file.
        assert places[-1] + chunk_bytes <= path.stat().st_size


def test_chunk_index_is_the_implicit_one(tmp_path):
    """The layout message (version 4, chunked) names its index: 2 is implicit, which has no index at all."""
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(50, 1))
    dims = b"".join(size.to_bytes(2, "little") for size in (1, 32, 1025, 4))
    found = re.findall(
        re.escape(b"\x04\x02") + b"." + re.escape(b"\x04\x02" + dims) + b"(.)", path.read_bytes(), re.DOTALL
    )
    assert found == [b"\x02"]


@pytest.mark.parametrize("num_clips", [0, 1, 13, 64])
def test_map_and_h5py_read_the_same(tmp_path, num_clips):
    features = {"spectrogram": (32, 1025), "mfcc": (32, 20), "waveform": (1600,)}
    path = synthetic.make_file(tmp_path / "a.h5", num_videos=1, clips_per_video=num_clips, features=features)
    with reader.open(path) as ours, h5py.File(path) as theirs:
        for name in ("spectrogram", "mfcc", "waveform"):
            assert ours.is_mapped(name)
            assert ours[name].shape == theirs[name].shape
            np.testing.assert_array_equal(ours[name], theirs[name][()])
        assert num_clips == 0 or ours["mfcc"].any()
        np.testing.assert_array_equal(ours.labels, theirs["labels"][()])
        assert ours.clip_table.tolist() == theirs["clips"][()].tolist()
        assert ours.video_table.tolist() == theirs["videos"][()].tolist()


def test_every_array_starts_on_a_page_and_none_overlap(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"spectrogram": (32, 1025), "mfcc": (32, 20)})
    extents = sorted(offsets(path).values(), key=lambda extent: extent.offset)
    assert all(extent.offset % PAGE == 0 for extent in extents)
    assert all(a.stop <= b.offset for a, b in zip(extents, extents[1:], strict=False))


def test_same_layout_gives_the_same_bytes_in_another_process_too(tmp_path):
    features = {"spectrogram": (32, 1025), "mfcc": (32, 20), "logmel": (98, 128)}
    for name in ("a.h5", "b.h5"):
        create.lay_out(tmp_path / name, synthetic.make_layout(37, 4, features=features))
    code = f"import sys; sys.path[:0] = {sys.path!r}; import synthetic; from egoaudio.hdf5 import create\n"
    code += f"create.lay_out({str(tmp_path / 'c.h5')!r}, synthetic.make_layout(37, 4, features={features!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    first = (tmp_path / "a.h5").read_bytes()
    assert first == (tmp_path / "b.h5").read_bytes()
    assert first == (tmp_path / "c.h5").read_bytes()


def test_no_object_remembers_when_it_was_made(tmp_path):
    """A header with flag 0x20 holds four times of day."""
    create.lay_out(tmp_path / "a.h5", synthetic.make_layout(37, 4))
    raw = (tmp_path / "a.h5").read_bytes()
    flags = [raw[found.start() + 5] for found in re.finditer(b"OHDR", raw)]
    assert len(flags) >= 15
    assert not any(flag & 0x20 for flag in flags)


def test_file_is_sparse_until_written(tmp_path):
    create.lay_out(tmp_path / "a.h5", synthetic.make_layout(10**6, 30_000))
    info = (tmp_path / "a.h5").stat()
    assert info.st_size > 131 * 10**9
    assert info.st_blocks * 512 < 10**6


@pytest.mark.parametrize(("num_clips", "num_videos"), [(1, 1), (100, 9), (12345, 678)])
def test_size_is_known_before(tmp_path, num_clips, num_videos):
    plan = synthetic.make_layout(num_clips, num_videos, 158, features={"spectrogram": (32, 1025), "mfcc": (32, 20)})
    create.lay_out(tmp_path / "a.h5", plan)
    assert abs(plan.num_bytes - (tmp_path / "a.h5").stat().st_size) < 40 * PAGE


def every_attribute(path):
    """Yield ``(where, h5a.AttrID)`` of all attributes of a file."""
    with h5py.File(path) as file:
        items = {"/": file}
        file.visititems(lambda name, item: items.__setitem__("/" + name, item))
        for name, item in items.items():
            for key in item.attrs:
                yield f"{name}@{key}", h5py.h5a.open(item.id, key.encode())


def test_strings_have_fixed_length_and_nothing_is_boolean(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5")
    seen = set()
    for where, attribute in every_attribute(path):
        kind = attribute.get_type()
        assert not (kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()), where
        assert kind.get_class() != h5py.h5t.ENUM, where
        if kind.get_class() == h5py.h5t.VLEN:
            assert where.endswith("@DIMENSION_LIST")  # HDF5's own, of the scales
        seen.add(where)
    assert {
        "/@format",
        "/@config",
        "/@complete",
        "/spectrogram@units",
        "/spectrogram@axes",
        "/spectrogram@n_fft",
    } <= seen
    with h5py.File(path) as file:
        for name in ("clips", "videos", "classes"):
            for column in file[name].dtype.names:
                kind = file[name].dtype[column]
                assert kind.kind in "iufS", (name, column)
                if kind.kind == "S":
                    assert h5py.check_string_dtype(kind).encoding == "utf-8"


def test_root_says_what_the_format_says(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5")
    with h5py.File(path) as file:
        root = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        assert set(file) == {
            "spectrogram",
            "labels",
            "clips",
            "videos",
            "video_labels",
            "classes",
            "checksums",
            "statistics",
            "axes",
            "instances",
            "synced",
            "fingerprints",
        }
    assert (root["format"], root["format_version"], root["complete"], root["sample_rate"], root["clip_seconds"]) == (
        "egoaudio",
        1,
        1,
        16000,
        1.0,
    )
    assert set(root) == {
        "format",
        "format_version",
        "complete",
        "created_utc",
        "egoaudio_version",
        "sample_rate",
        "clip_seconds",
        "hop_seconds",
        "config",
        "plan_sha256",
    }


def test_axes_are_dimension_scales_of_the_arrays(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"spectrogram": (32, 1025), "mfcc": (32, 20)})
    with h5py.File(path) as file:
        assert file["axes/frequency_hz"].is_scale
        np.testing.assert_array_equal(file["spectrogram"].dims[2][0][()], np.linspace(0, 8000, 1025))
        np.testing.assert_array_equal(file["spectrogram"].dims[1]["frame_seconds"][()], np.arange(32) * 0.032)
        assert [len(dimension) for dimension in file["spectrogram"].dims] == [0, 1, 1]
        assert [len(dimension) for dimension in file["mfcc"].dims] == [0, 1, 0]


def test_an_axis_that_does_not_fit_is_a_mistake():
    with pytest.raises(ValueError, match="axis frequency_hz has 7 values, and /spectrogram has length 1025 along it"):
        synthetic.make_layout(3, 1, axes={"frequency_hz": np.arange(7.0)})


@pytest.mark.parametrize(
    ("table", "column", "first"),
    [("clips", "num_samples", 16000), ("videos", "video_id", b"V0000EGO"), ("classes", "class_id", b"c000")],
)
def test_pandas_reads_the_tables_by_itself(tmp_path, table, column, first):
    pandas, _ = (
        pytest.importorskip("pandas"),
        pytest.importorskip("tables", reason="PyTables is what pandas.read_hdf reads with"),
    )
    path = synthetic.make_file(tmp_path / "a.h5")
    frame = pandas.read_hdf(path, table)
    with h5py.File(path) as file:
        assert list(frame.columns) == list(file[table].dtype.names)
        assert len(frame) == len(file[table])
    assert frame[column][0] in (first, first.decode() if isinstance(first, bytes) else first)  # newer PyTables decode


def test_pytables_opens_every_array(tmp_path):
    """Dimension labels crash it, which is why there are none."""
    pytest.importorskip("tables", reason="the tool under test")
    path = synthetic.make_file(tmp_path / "a.h5")
    code = f"import tables; file = tables.open_file({path!r})\n"
    code += "names = 'spectrogram', 'labels', 'clips', 'statistics/spectrogram'\n"
    code += "print([file.get_node('/' + name).shape for name in names])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.replace("np.int64(", "").replace("),", ",").count("80") == 3, done.stderr


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump, of HDF5's own tools, is not installed")
def test_h5dump_reads_structure_and_rows(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (2, 3)}, num_videos=2, clips_per_video=3)
    head = subprocess.run(["h5dump", "-H", "-p", path], capture_output=True, text=True)
    assert head.returncode == 0, head.stderr
    for words in (
        "H5D_ALLOC_TIME_EARLY",
        "H5D_FILL_TIME_NEVER",
        'DATASET "mfcc"',
        'GROUP "statistics"',
        "H5T_CSET_UTF8",
        "CHUNKED ( 6, 2, 3 )",
    ):
        assert words in head.stdout
    rows = subprocess.run(["h5dump", "-d", "/videos", "-s", "1", "-c", "1", path], capture_output=True, text=True)
    assert rows.returncode == 0, rows.stderr
    assert "V0001EGO" in rows.stdout
    values = subprocess.run(
        ["h5dump", "-y", "-w", "0", "-m", "%.9g", "-d", "/mfcc", path], capture_output=True, text=True
    ).stdout
    numbers = re.search(r"DATA \{(.*?)\}", values, re.DOTALL).group(1).replace(",", " ").split()
    with reader.open(path) as file:
        np.testing.assert_allclose(np.array(numbers, np.float32), file["mfcc"].ravel())


def test_layout_appears_only_when_complete(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"what was there")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(create, "_set_attributes", fail)
    with pytest.raises(StoreError, match=r"no space left: [\d,]+ bytes are needed, [\d,]+ are available"):
        create.lay_out(tmp_path / "a.h5", synthetic.make_layout(3, 1))
    assert (tmp_path / "a.h5").read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_layout_in_a_missing_folder_says_so(tmp_path):
    with pytest.raises(StoreError, match="nowhere/a.h5: cannot be written: No such file"):
        create.lay_out(tmp_path / "nowhere" / "a.h5", synthetic.make_layout(3, 1))


def test_layout_beyond_a_size_limit_says_so(tmp_path):
    code = f"""
import sys, resource
sys.path[:0] = {sys.path!r}
import synthetic
from egoaudio import errors
from egoaudio.hdf5 import create
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    create.lay_out({str(tmp_path / "a.h5")!r}, synthetic.make_layout(100, 1))
except errors.StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(r"a\.h5: the file would be larger than a limit .* 13,\d{3},\d{3} bytes are needed", done.stdout), (
        done
    )
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ marking complete


def test_marking_complete_changes_a_few_bytes_in_one_write(tmp_path, monkeypatch):
    path = synthetic.make_file(tmp_path / "a.h5", complete=False)
    before = open(path, "rb").read()
    writes = []
    real = files.write_all
    monkeypatch.setattr(
        files,
        "write_all",
        lambda descriptor, raw, offset: (writes.append((offset, len(raw))), real(descriptor, raw, offset)),
    )
    create.mark_complete(path)
    after = open(path, "rb").read()
    changed = np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(after, "u1"))
    assert len(before) == len(after)
    assert len(writes) == 1
    assert writes[0][1] < PAGE
    assert 1 <= len(changed) <= 5  # the value, and the header's checksum
    with h5py.File(path) as file:
        assert file.attrs["complete"] == 1
    with reader.open(path) as file:
        assert file.complete
        assert integrity.verify(file) == []


def test_every_row_is_on_disk_before_the_file_is_marked(tmp_path, monkeypatch):
    path = synthetic.make_file(tmp_path / "a.h5", complete=False)
    calls = []
    write_all, fsync = files.write_all, os.fsync
    monkeypatch.setattr(files, "write_all", lambda *arguments: (calls.append("write_all"), write_all(*arguments)))
    monkeypatch.setattr(os, "fsync", lambda *arguments: (calls.append("fsync"), fsync(*arguments)))
    create.mark_complete(path)
    assert calls == ["fsync", "write_all", "fsync"]


def test_marking_complete_twice_is_the_same_as_once(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5")
    before = open(path, "rb").read()
    create.mark_complete(path)
    assert open(path, "rb").read() == before


def test_marking_that_fails_leaves_an_incomplete_file_that_opens(tmp_path, monkeypatch):
    path = synthetic.make_file(tmp_path / "a.h5", complete=False)
    before = open(path, "rb").read()

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "write_all", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        create.mark_complete(path)
    assert open(path, "rb").read() == before


def test_marking_something_else_complete_says_so(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no HDF5" * 1000)
    with pytest.raises(StoreError, match="a.h5: cannot be written"):
        create.mark_complete(tmp_path / "a.h5")
    with pytest.raises(StoreError, match="No such file"):
        create.mark_complete(tmp_path / "b.h5")


# --------------------------------------------------------------------------------------------------------- strings


@pytest.mark.parametrize(
    ("text", "num_bytes", "expected"),
    [
        ("Küche", None, b"K\xc3\xbcche"),
        ("Küche", 2, b"K"),
        ("Küche", 3, b"K\xc3\xbc"),
        ("", 5, b""),
        ("\ud800x", 9, b"?x"),
        ("abc", 0, b""),
    ],
)
def test_text_is_cut_between_characters(text, num_bytes, expected):
    assert schema.encode(text, num_bytes) == expected


def test_columns_are_as_wide_as_their_longest_text():
    dtype = schema.video_dtype(video_id=["a", "abc"], file=["Küche.mp4"], split=[], subject=[""], scene=["x"])
    assert [dtype[name].str for name in ("video_id", "file", "split", "subject", "error")] == [
        "|S3",
        "|S10",
        "|S1",
        "|S1",
        "|S240",
    ]
