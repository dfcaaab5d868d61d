"""Space is reserved, or its lack is said with numbers."""

import errno
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic

from egoaudio.errors import StoreError
from egoaudio.hdf5 import create, reader
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.system import files

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import trials  # noqa: E402


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 2 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    with trials.tiny_disk(folder, 2 << 20) as mounted:
        if not mounted:
            pytest.skip("only root may mount a file system of 2 MB")
        yield folder


def test_reserved_space_is_taken_and_rows_are_kept(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", num_videos=2, failed=(1,))
    before = open(path, "rb").read()
    assert os.stat(path).st_blocks * 512 < len(before)
    files.reserve(path)
    assert os.stat(path).st_blocks * 512 >= len(before)
    assert open(path, "rb").read() == before


def test_too_small_a_disk_is_found_before_anything_is_taken(tiny_disk):
    path = tiny_disk / "a.h5"
    create.lay_out(path, synthetic.make_layout(100, 1))
    with pytest.raises(StoreError, match=r"no space left: 13,\d{3},\d{3} bytes are needed, [12],\d{3},\d{3} are available. Free some") as error:
        files.reserve(path)
    assert error.value.exit_code == 2
    assert path.stat().st_blocks * 512 < 200_000


def test_nothing_is_reserved_where_it_will_not_fit(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(100, 1))
    monkeypatch.setattr(files, "available_bytes", lambda _: 10**6)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("began to take what is not there"))
    with pytest.raises(StoreError, match="1,000,000 are available"):
        files.reserve(path)


def test_disk_that_fills_up_while_writing_stops_with_words_and_a_file_that_opens(tiny_disk):
    path = tiny_disk / "a.h5"
    create.lay_out(path, synthetic.make_layout(100, 1))
    with RowWriter(path, offsets(path)) as writer, pytest.raises(StoreError, match=r"a\.h5: no space left: [\d,]+ bytes are needed"):
        for row in range(100):
            writer.write("spectrogram", row, np.ones((1, 32, 1025), "f4"))
    with reader.EgoAudioFile(path) as file:
        assert not file.complete


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, r"no space left: [\d,]+ bytes are needed, [\d,]+ are available"),
        (errno.EDQUOT, r"disk quota is used up: [\d,]+ bytes are needed"),
        (errno.EFBIG, r"larger than a limit \(ulimit -f\) or the file system allows: [\d,]+ bytes are needed"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_why_space_cannot_be_reserved_is_said(tmp_path, monkeypatch, code, words):
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(100, 1))

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StoreError, match=f"^{re.escape(str(path))}: .*{words}"):
        files.reserve(path)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_file_system_that_cannot_reserve_is_used_all_the_same(tmp_path, monkeypatch, code):
    path = tmp_path / "a.h5"
    create.lay_out(path, synthetic.make_layout(100, 1))

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    files.reserve(path)


def test_large_reservation_is_made_in_slices(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    path.touch()
    os.truncate(path, 5 * 2**30 + 7)
    slices = []
    monkeypatch.setattr(files, "available_bytes", lambda _: 10**12)
    monkeypatch.setattr(os, "posix_fallocate", lambda _, start, count: slices.append((start, count)))
    files.reserve(path)
    assert slices == [(k * 2**30, 2**30) for k in range(5)] + [(5 * 2**30, 7)]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, raw, offset: real(descriptor, raw[:7], offset))
    with open(tmp_path / "a", "wb") as file:
        files.write_all(file.fileno(), b"x" * 100, 3)
    assert (tmp_path / "a").read_bytes() == b"\0" * 3 + b"x" * 100


def test_reserving_what_is_not_there_says_so(tmp_path):
    with pytest.raises(StoreError, match="a.h5: cannot be written: No such file"):
        files.reserve(tmp_path / "a.h5")
