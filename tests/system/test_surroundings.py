"""What the machine lacks is said before anything hangs or dies of it."""

import errno
import importlib
import os
import resource
import types

import pytest

from egoaudio.errors import ResourceError
from egoaudio.system import surroundings


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    surroundings.require_working_folder()
    (tmp_path / "here").rmdir()
    with pytest.raises(ResourceError, match="the working folder is gone: cd to one that exists"):
        surroundings.require_working_folder()


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files: at most .* raise the limit: ulimit -n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xxx"), "xxx: the name is too long"),
        (
            BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
            "no more processes may be started .*: give fewer workers",
        ),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "a library cannot be loaded .libtorch_cpu.so: failed to map .*ulimit -v",
        ),
        (MemoryError("Unable to allocate 15 GiB"), "out of memory .Unable to allocate 15 GiB.: give smaller numbers"),
    ],
)
def test_what_is_lacking_is_named(raised, words):
    with pytest.raises(ResourceError, match=words), surroundings.lacking():
        raise raised


def test_other_errors_stay_what_they_are():
    with pytest.raises(FileNotFoundError), surroundings.lacking():
        os.stat("/nowhere")
    with pytest.raises(ImportError, match="no_such_module"), surroundings.lacking():
        importlib.import_module("no_such_module")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "absent",
            r"is missing \(No such file or directory\)\. The loader needs it\. In a container: docker run --shm-size",
        ),
        ("read-only", r"cannot be written to\. The loader"),
        ("small", r"has 65,536 bytes free, and 65,537 are needed\. The loader"),
    ],
)
def test_shared_memory_that_does_not_suffice_is_told(tmp_path, monkeypatch, kind, words):
    monkeypatch.setattr(surroundings, "SHARED_MEMORY", str(tmp_path / "absent" if kind == "absent" else tmp_path))
    flags, free = (os.ST_RDONLY, 1 << 30) if kind == "read-only" else (0, 65536)
    if kind != "absent":
        monkeypatch.setattr(
            surroundings.os,
            "statvfs",
            lambda _: types.SimpleNamespace(f_flag=flags, f_bavail=free // 4096, f_frsize=4096),
        )
    with pytest.raises(ResourceError, match=words):
        surroundings.require_shared_memory(65537, "The loader needs it")
    if kind == "small":
        surroundings.require_shared_memory(65536, "The loader needs it")


def test_a_low_limit_on_open_files_is_told(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(
        ResourceError,
        match="at most 20 open files are allowed, and up to 40 are needed: raise the limit: ulimit -n 1024, which "
        "takes an administrator above 20",
    ):
        surroundings.require_open_files(40)
    surroundings.require_open_files(20)


@pytest.mark.parametrize("soft, hard, number", [(1024, 4096, "4096$"), (4096, 4096, "16384, which takes an admin")])
def test_the_limit_that_is_advised_is_above_the_present_one(monkeypatch, soft, hard, number):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    with pytest.raises(ResourceError, match=f"at most {soft} are .*, or raise the limit: ulimit -n {number}"):
        with surroundings.lacking():
            raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    "limits, raised",
    [((1024, 4096), 4096), ((1024, 1 << 20), 1 << 16), ((1024, -1), 1 << 16), ((1 << 17, 1 << 20), None)],
)
def test_a_command_may_have_as_many_open_files_as_is_allowed(monkeypatch, limits, raised):
    assert resource.RLIM_INFINITY == -1
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: given.append(both))
    surroundings.raise_open_files()
    assert given == ([] if raised is None else [(raised, limits[1])])
