"""What a run needs of the machine besides memory and disks: open files, shared memory, a working folder; and words where it lacks.

Containers often have a /dev/shm of 64 kB or none, and limits on open files. What then fails, fails deep inside a library.
"""

import contextlib
import errno
import os
import resource
import sys

from egoaudio.errors import ResourceError

SHARED_MEMORY = "/dev/shm"


def require_working_folder():
    """Raise an ``ResourceError`` where the working folder was deleted: no relative path leads anywhere, and workers cannot start."""
    try:
        os.getcwd()
    except OSError as error:
        raise ResourceError(
            "the working folder is gone: cd to one that exists, and run the same command again"
        ) from error


@contextlib.contextmanager
def lacking():
    """Turn errors about what the system does not give into an ``ResourceError`` that names it and the remedy."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"out of memory ({str(error) or 'no more is to be had'}): give smaller numbers, or free some"
        ) from error
    except OSError as error:
        words = _words(error)
        if words is None:
            raise
        raise ResourceError(words) from error


def _words(error):
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files: at most {limit} are allowed, and more are needed. Raise it: ulimit -n 1024"
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: the name is too long: give a shorter one"
    if error.errno == errno.EAGAIN and isinstance(error, BlockingIOError):  # of fork
        return (
            f"no more processes may be started ({error.strerror}): give fewer --workers, or raise the limit: ulimit -u"
        )
    return None


def require_shared_memory(num_bytes, user):
    """Refuse to start processes that exchange data in shared memory where there is too little: they would hang, or die one by one.

    Parameters
    ----------
    num_bytes : int
        What will be there at once.
    user : str
        Who needs it, and what to do without: ``--loader-workers 2 needs it; 0 does not``.

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
            f"{SHARED_MEMORY}, the shared memory, is not there ({error.strerror}). {user}. {remedy}"
        ) from error
    if info.f_flag & os.ST_RDONLY or not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        raise ResourceError(f"{SHARED_MEMORY}, the shared memory, cannot be written to. {user}. {remedy}")
    free = info.f_bavail * info.f_frsize
    if free < num_bytes:
        raise ResourceError(
            f"{SHARED_MEMORY}, the shared memory, has {free:,} bytes free, and {num_bytes:,} are needed. {user}. {remedy}"
        )


def require_open_files(num_files):
    """Refuse to start what will have so many files open where fewer are allowed.

    Raises
    ------
    ResourceError
        The limit is lower.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < num_files:
        raise ResourceError(
            f"at most {limit} open files are allowed, and up to {num_files} are needed. Raise it: ulimit -n {max(1024, num_files)}"
        )
