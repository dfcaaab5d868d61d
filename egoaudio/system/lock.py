"""One run on an output at a time, on whatever host.

The lock is ``flock`` on a file beside the output (``ego.h5.lock``), or in the folder that is the output (``run.lock``).
The kernel releases it when the process ends, however it ends, and knows it by the file, not by its name: it holds
between containers, through symbolic links and other mounts of the folder, and, on NFS, between hosts. The file says who
holds it; it is removed at the end, and one that was left behind by a killed process is taken over.

Source: flock(2); NFS has it since Linux 2.6.12.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import shlex
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator

from egoaudio.errors import BuildError
from egoaudio.system.files import StrPath

_FIRST_LINE = "egoaudio lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Anyone can predict the name: whatever else is there must not be followed, waited for, or overwritten.
_AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HOLDER_SECONDS = 1.0  # within which a holder has written who it is


@contextlib.contextmanager
def held(output: StrPath) -> Iterator[None]:
    """Hold ``output``, a file or a folder, for this process while the block runs.

    Raises
    ------
    BuildError
        Another process holds it (named with its host and the time), or the lock's file cannot be made.
    """
    target = os.path.realpath(output)
    path = os.path.join(target, "run.lock") if os.path.isdir(target) else f"{target}.lock"
    try:
        descriptor = _acquire(path, output)
    except OSError as error:
        raise BuildError(f"{path}: the lock cannot be made: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _names(path, descriptor):
                os.unlink(path)
        os.close(descriptor)


def _acquire(path: str, output: StrPath) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _AS_IT_IS, 0o666)
        try:
            _require_ours(descriptor, path)
            locked = _flock(descriptor, path)
            if _names(path, descriptor):  # else its holder removed it between the two calls: try again
                if not locked:
                    raise BuildError(
                        f"{output} is in use by another process ({_holder(path)}): wait for it, stop it, or give "
                        "another `output`"
                    )
                _say_who(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, path: str) -> bool:
    """Take the lock and return whether that worked; where the file system has no locks, warn."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path}: this file system has no locks ({error.strerror}): make sure that no other run writes there",
            stacklevel=5,
        )
    return True


def _require_ours(descriptor: int, path: str) -> None:
    """Refuse a file that is not a lock of egoaudio."""
    there = os.fstat(descriptor)
    if (
        not stat.S_ISREG(there.st_mode)
        or there.st_nlink > 1
        or (there.st_size and not _read(descriptor).startswith(_FIRST_LINE))
    ):
        raise OSError(errno.EEXIST, "the file there is not a lock of egoaudio: move it away")


def _names(path: str, descriptor: int) -> bool:
    """Return whether the path still leads to the file that was opened."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # stale, on NFS: another host has removed it
            raise
        return False


def _say_who(descriptor: int) -> None:
    """Write into the lock's file who holds it; on a full disk the lock holds without."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(sep=" ", timespec="seconds")
    facts = {"process": os.getpid(), "host": socket.gethostname(), "since": now, "command": shlex.join(sys.argv)}
    text = "\n".join([_FIRST_LINE, *(f"{name}: {value}" for name, value in facts.items())]) + "\n"
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, os.fsencode(text), 0)
        os.fsync(descriptor)  # so that another host sees it over NFS


def _holder(path: str) -> str:
    """Return who holds the lock, from its file."""
    until = time.monotonic() + _HOLDER_SECONDS
    while "\ncommand: " not in (text := _text_of(path)) and time.monotonic() < until:
        time.sleep(0.02)  # it has the lock and is writing
    facts = dict(line.split(": ", 1) for line in text.splitlines()[1:] if ": " in line)
    if "command" not in facts:
        return "its lock does not say which"
    return (
        f"process {facts.get('process')} on {facts.get('host')}, since {facts.get('since')}: {facts['command'][:200]}"
    )


def _text_of(path: str) -> str:
    """Return what the lock's file says, opened anew: over NFS, what another host wrote since is seen only then."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _AS_IT_IS)
    except OSError:
        return ""  # its holder has just removed it
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode(errors="replace")
