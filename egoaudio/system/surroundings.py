"""What a run needs of the machine besides memory and disks: open files, shared memory, a working folder.

Containers often have a /dev/shm of 64 kB or none, and limits on open files. What then fails, fails deep inside a
library, so it is checked before, or its error put into words.
"""

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Iterator

from egoaudio.errors import ResourceError

_UNLOADED = ("failed to map segment", "cannot allocate memory", "Too many open files")  # in the linker's words
SHARED_MEMORY = "/dev/shm"
_OPEN_FILES = 1 << 16  # of a command; some programs that it starts go through all that are allowed


def require_working_folder() -> None:
    """Raise ResourceError where the working folder was deleted: relative paths and workers need it."""
    try:
        os.getcwd()
    except OSError as error:
        raise ResourceError(
            "the working folder is gone: cd to one that exists, and run the same command again"
        ) from error


@contextlib.contextmanager
def lacking() -> Iterator[None]:
    """Turn errors about what the system lacks into a ResourceError that names it and the fix."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"out of memory ({str(error) or 'no more is available'}): give smaller numbers, or free some"
        ) from error
    except ImportError as error:
        if not any(words in str(error) for words in _UNLOADED):
            raise
        raise ResourceError(
            f"a library cannot be loaded ({error}): free some memory, or raise the limits: ulimit -v, ulimit -n"
        ) from error
    except OSError as error:
        words = _words(error)
        if words is None:
            raise
        raise ResourceError(words) from error


def _words(error: OSError) -> str | None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files: at most {limit} are allowed, and more are needed. Give fewer files at once, or "
            f"{_raise_limit(4 * limit)}"
        )
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: the name is too long: give a shorter one"
    if error.errno == errno.EAGAIN and isinstance(error, BlockingIOError):  # of fork
        return f"no more processes may be started ({error.strerror}): give fewer workers, or raise the limit: ulimit -u"
    return None


def require_shared_memory(num_bytes: int, user: str) -> None:
    """Refuse to start processes that exchange data in shared memory where there is too little: they would hang or die.

    Parameters
    ----------
    num_bytes : int
        Needed at one time.
    user : str
        What needs it, and what does not: ``The loader processes need it; `loader_workers=0` does not``.

    Raises
    ------
    ResourceError
        There is no shared memory, it cannot be written to, or less than ``num_bytes`` of it is free.
    """
    if not sys.platform.startswith("linux"):
        return
    remedy = "In a container: docker run --shm-size 1g; else mount a tmpfs there"
    try:
        info = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        raise ResourceError(
            f"{SHARED_MEMORY}, the shared memory, is missing ({error.strerror}). {user}. {remedy}"
        ) from error
    if info.f_flag & os.ST_RDONLY or not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        raise ResourceError(f"{SHARED_MEMORY}, the shared memory, cannot be written to. {user}. {remedy}")
    free = info.f_bavail * info.f_frsize
    if free < num_bytes:
        raise ResourceError(
            f"{SHARED_MEMORY}, the shared memory, has {free:,} bytes free, and {num_bytes:,} are needed. {user}. "
            f"{remedy}"
        )


def require_open_files(num_files: int) -> None:
    """Refuse to start where fewer than ``num_files`` open files are allowed.

    Raises
    ------
    ResourceError
        The limit is lower.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < num_files:
        raise ResourceError(
            f"at most {limit} open files are allowed, and up to {num_files} are needed: "
            f"{_raise_limit(max(1024, num_files))}"
        )


def _raise_limit(num_files: int) -> str:
    """Return how to allow so many open files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    alone = f", which takes an administrator above {hard}" if resource.RLIM_INFINITY != hard < num_files else ""
    return f"raise the limit: ulimit -n {num_files}{alone}"


def raise_open_files() -> None:
    """Allow this process as many open files as it may have; the usual 1024 are too few for hundreds of shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # it is one that macOS does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
