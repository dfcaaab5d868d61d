"""Space is reserved, or its lack is said with numbers."""

import errno
import os
import random
import re
import stat
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
    with pytest.raises(
        StoreError, match=r"no space left: 13,\d{3},\d{3} bytes are needed, [12],\d{3},\d{3} are available. Free some"
    ) as error:
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
    with (
        RowWriter(path, offsets(path)) as writer,
        pytest.raises(StoreError, match=r"a\.h5: no space left: [\d,]+ bytes are needed"),
    ):
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


# --------------------------------------------------------------------------------------------- the one atomic write


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a"
    files.write_file(path, b"first")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"second")
        assert path.read_bytes() == b"first"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first"
    with files.replacing(path) as file:
        file.write(b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _writers(tmp_path):
    """Yield ``(name of the output, function that writes it)`` for everything that writes files."""
    from egoaudio import figures
    from egoaudio.evaluation import results
    from egoaudio.hdf5 import summary
    from egoaudio.models import checkpoints

    made = synthetic.make_file(
        tmp_path.parent / f"{tmp_path.name}.h5", features={"mfcc": (32, 20), "waveform": (16000,)}
    )
    with reader.open(made) as file:
        yield "ego.h5", lambda path: create.lay_out(path, synthetic.make_layout(3, 1))
        yield "last.pt", lambda path: checkpoints.save(path, {"epoch": 1})
        yield "metrics.csv", lambda path: results.write_file(path, b"epoch")
        yield "classes.png", lambda path: figures.plot_classes(file, path)
        yield "clip.wav", lambda path: summary.export_clip(file, int(np.flatnonzero(file.usable)[0]), path)


def test_no_link_that_lies_in_wait_under_a_temporary_name_is_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    for name, write in _writers(tmp_path):
        for suffix in (".partial", ".layout", ".partial.layout", ".partial.layout.layout", ".tmp"):
            victim.write_text("mine")
            (tmp_path / f"{name}{suffix}").symlink_to(victim)
        write(tmp_path / name)
        assert victim.read_text() == "mine", name
        monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)  # and if somebody foresees the name
        (tmp_path / f".{name}.{'0' * 16}.partial").symlink_to(victim)
        with pytest.raises(Exception, match="File exists"):
            write(tmp_path / name)
        assert victim.read_text() == "mine", name
        monkeypatch.undo()


def test_an_output_that_is_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for name, write in _writers(tmp_path):
        (tmp_path / name).symlink_to(f"there/{name}")
        for _ in range(2):  # the target is not there, and is there
            write(tmp_path / name)
            assert (tmp_path / name).is_symlink()
            assert (tmp_path / "there" / name).stat().st_size > 0
    assert len(os.listdir(tmp_path / "there")) == 5


@pytest.mark.parametrize("kind", ["folder", "FIFO", "device"])
def test_what_is_no_file_is_never_replaced(tmp_path, kind):
    for name, write in _writers(tmp_path):
        path = tmp_path / name
        if kind == "folder":
            path.mkdir()
        elif kind == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/null")
        before = os.stat(path)
        words = (
            "it is a folder: give the name of a file"
            if kind == "folder"
            else f"it is a {kind}, and only a regular file is replaced"
        )
        with pytest.raises(Exception, match=f"{re.escape(name)}.*{words}"):
            write(path)
        assert os.path.samestat(os.stat(path), before)


@pytest.mark.parametrize("name", ["x" * 255, "\udcff\udcfe", "\u00e9" * 127])
def test_any_name_that_a_file_can_have_will_do(tmp_path, name):
    files.write_file(tmp_path / name, b"1")
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_too_long_is_told(tmp_path):
    with pytest.raises(OSError, match="its name has 256 bytes, more than 255: give a shorter one"):
        files.write_file(tmp_path / ("x" * 256), b"1")


def test_an_input_is_no_output_under_any_name(tmp_path):
    (tmp_path / "train.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to("train.csv")
    os.link(tmp_path / "train.csv", tmp_path / "hard.csv")
    for name in ("train.csv", "link.csv", "hard.csv"):
        with pytest.raises(OSError, match=r"it is an input of this command, .*train\.csv: give another name"):
            files.check_output(tmp_path / name, [None, tmp_path / "gone.csv", tmp_path / "train.csv"])
    files.check_output(tmp_path / "other.csv", [tmp_path / "train.csv"])


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    for name in (
        f".a.{'1' * 16}.partial",
        "a",
        "a.partial",
        ".a.1.partial",
        f".b.{'1' * 16}.partial",
        f"c.a.{'1' * 16}.partial",
    ):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["a", "a.partial", ".a.1.partial", f".b.{'1' * 16}.partial", f"c.a.{'1' * 16}.partial"]
    )


@pytest.mark.parametrize("lacking", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
def test_a_range_is_copied_by_whatever_the_file_systems_have(tmp_path, monkeypatch, lacking):
    def refuse(*arguments):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for name in lacking:
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(files, "_COPY_BYTES", 5000)
    monkeypatch.setattr(files, "_READ_BYTES", 3000)
    raw = random.Random(0).randbytes(20_000)
    (tmp_path / "a").write_bytes(raw)
    (tmp_path / "b").write_bytes(bytes(30_000))
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "r+b") as target:
        files.copy_bytes(source.fileno(), 101, target.fileno(), 4099, 17_003)
        with pytest.raises(OSError, match="ends at byte 20,000, before the copy does"):
            files.copy_bytes(source.fileno(), 19_999, target.fileno(), 29_000, 2)
    expected = bytes(4099) + raw[101:17_104] + bytes(30_000 - 4099 - 17_003)
    assert (tmp_path / "b").read_bytes()[:29_000] == expected[:29_000]


@pytest.mark.parametrize("refused", [False, True])
def test_a_range_whose_writing_begins_early_keeps_its_bytes_whatever_the_system_makes_of_the_advice(
    tmp_path, monkeypatch, refused
):
    advised = []

    def advise(*arguments):
        advised.append(arguments[1:])
        if refused:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return posix_fadvise(*arguments)

    posix_fadvise = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", advise)
    raw = random.Random(0).randbytes(200_000)
    with open(tmp_path / "a", "w+b", buffering=0) as file:
        file.write(raw)
        files.begin_writing(file.fileno(), 5000, 100_000)
        files.begin_writing(file.fileno(), 5000, 0)  # all up to the end, for the system
    assert advised == [(5000, 100_000, os.POSIX_FADV_DONTNEED)]
    assert (tmp_path / "a").read_bytes() == raw
