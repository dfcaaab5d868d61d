"""One run on an output at a time: across processes, namespaces, symbolic links; who holds it is said."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from egoaudio.errors import BuildError
from egoaudio.system import lock

HOLD = """
import sys
from egoaudio.system import lock
with lock.held(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""
TRY = """
import sys
from egoaudio import errors
from egoaudio.system import lock
try:
    with lock.held(sys.argv[1]):
        print("held")
except errors.BuildError as error:
    print(error)
"""
CANNOT_UNSHARE = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0


@pytest.fixture
def holder(tmp_path):
    """A process that holds ``tmp_path/folder/ego.h5``."""
    (tmp_path / "folder").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "folder/ego.h5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.skipif(CANNOT_UNSHARE, reason="only root may make a network namespace")
def test_it_holds_between_network_namespaces(holder, tmp_path):
    command = ["unshare", "--net", sys.executable, "-c", TRY, tmp_path / "folder/ego.h5"]
    assert "is in use by another process" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_it_holds_through_symbolic_links_of_the_folder_and_of_the_file(holder, tmp_path):
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "ego.h5").symlink_to("folder/ego.h5")
    for path in ("link/ego.h5", "ego.h5", "folder/../folder/ego.h5"):
        with pytest.raises(BuildError, match="is in use by another process"), lock.held(tmp_path / path):
            pass
    with lock.held(tmp_path / "folder/other.h5"):
        pass


def test_a_folder_is_held_whatever_it_is_called(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with lock.held(tmp_path / "run"), pytest.raises(BuildError, match="is in use"), lock.held(tmp_path / "link"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_who_holds_it_is_said(holder, tmp_path):
    with pytest.raises(BuildError) as error, lock.held(tmp_path / "folder/ego.h5"):
        pass
    assert f"process {holder.pid} on {socket.gethostname()}, since 20" in str(error.value)


def test_who_holds_it_is_read_from_a_file_that_is_opened_anew(holder, tmp_path, monkeypatch):
    """On NFS, a descriptor that was opened before the holder wrote reads what was there before for seconds."""
    opened, pread = [], os.pread

    def read(descriptor, *arguments):
        opened.append(descriptor)
        return b"egoaudio lock\n" if descriptor == opened[0] else pread(descriptor, *arguments)

    monkeypatch.setattr(lock, "_HOLDER_SECONDS", 0.1)
    monkeypatch.setattr(lock.os, "pread", read)
    with pytest.raises(BuildError, match=f"process {holder.pid} on "), lock.held(tmp_path / "folder/ego.h5"):
        pass


def test_it_goes_with_its_process_and_leaves_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.listdir(tmp_path / "folder") == ["ego.h5.lock"]
    with lock.held(tmp_path / "folder/ego.h5"):
        assert f"process: {os.getpid()}\n" in (tmp_path / "folder/ego.h5.lock").read_text()
    assert os.listdir(tmp_path / "folder") == []


def test_a_lock_that_its_holder_removed_just_now_is_not_taken(tmp_path, monkeypatch):
    """The file is removed by each holder: who opened it before that would hold what nobody else can find."""
    path, real = tmp_path / "ego.h5.lock", lock.fcntl.flock

    def remove_first(*arguments):
        monkeypatch.setattr(lock.fcntl, "flock", real)
        path.unlink()
        real(*arguments)

    monkeypatch.setattr(lock.fcntl, "flock", remove_first)
    with lock.held(tmp_path / "ego.h5"):
        assert "process: " in path.read_text()
        with pytest.raises(BuildError, match="is in use"), lock.held(tmp_path / "ego.h5"):
            pass


def test_a_lock_that_another_host_removed_just_now_is_not_taken_either(tmp_path, monkeypatch):
    """On NFS, nothing can be asked of such a file any more."""
    path, flock, fstat = tmp_path / "ego.h5.lock", lock.fcntl.flock, os.fstat

    def be_stale(_):
        monkeypatch.setattr(lock.os, "fstat", fstat)
        raise OSError(errno.ESTALE, "Stale file handle")

    def remove_first(*arguments):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        path.unlink()
        path.write_text("egoaudio lock\n")  # the next holder's
        flock(*arguments)
        monkeypatch.setattr(lock.os, "fstat", be_stale)

    monkeypatch.setattr(lock.fcntl, "flock", remove_first)
    with lock.held(tmp_path / "ego.h5"):
        assert os.fstat is fstat and "process: " in path.read_text()


@pytest.mark.parametrize("kind", ["link", "hard link", "other file", "fifo"])
def test_what_lies_there_is_neither_followed_nor_overwritten(tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "ego.h5.lock"
    victim.write_text("mine")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("another program's")
    with pytest.raises(BuildError, match=r"ego\.h5\.lock: the lock cannot be made"), lock.held(tmp_path / "ego.h5"):
        pass
    assert victim.read_text() == "mine"
    assert os.path.lexists(path)


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks"), lock.held(Path(tmp_path) / "a.h5"):
        pass
