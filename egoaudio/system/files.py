"""Write to a disk that may be full, limited, read-only or gone: reserve, write all, wait, and say in words what went wrong.

In: descriptors and paths. Out: nothing, or a ``StoreError`` whose message holds the bytes needed and available.
Conventions: what was written is on disk only after a sync, of the file and, for a new or changed name, of its folder.
"""

import errno
import os

from egoaudio.errors import StoreError

_RESERVE_BYTES = 1 << 30  # a slice at a time, so that a signal is heard between two


def reserve(path):
    """Take the disk space of the whole file now, so that no row finds the disk full later.

    Call it before anything writes to the file: where the file system cannot reserve, the C library touches every block instead.

    Raises
    ------
    StoreError
        There is not enough space, or a quota or limit is in the way; the bytes needed and available are named.
    """
    path = os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(explain(path, error)) from error
    try:
        info = os.fstat(descriptor)
        missing = max(0, info.st_size - info.st_blocks * 512)
        if missing > available_bytes(path):
            raise StoreError(explain(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), missing))
        for start in range(0, info.st_size, _RESERVE_BYTES):
            os.posix_fallocate(descriptor, start, min(_RESERVE_BYTES, info.st_size - start))
    except StoreError:
        raise
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that reserves nothing: space was there a moment ago
            raise StoreError(explain(path, error, missing)) from error
    finally:
        os.close(descriptor)


def write_all(descriptor, raw, offset):
    """Write all bytes at an offset; one call to the system may write fewer."""
    view = memoryview(raw)
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(path):
    """Put a rename on disk."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def available_bytes(path):
    """Return the bytes a user may still write where ``path`` is, or will be."""
    info = os.statvfs(os.path.dirname(os.path.abspath(path)))
    return info.f_bavail * info.f_frsize


def explain(path, error, num_bytes=None):
    """Say in words why a file cannot be written, and what to do."""
    code = getattr(error, "errno", None)
    needed = "" if num_bytes is None else f" {num_bytes:,} bytes are needed"
    if code == errno.ENOSPC:
        return f"{path}: no space left:{needed or ' more bytes are needed'}, {available_bytes(path):,} are available. Free some, or choose another --output"
    if code == getattr(errno, "EDQUOT", None):
        return f"{path}: the disk quota is used up:{needed or ' more bytes are needed'}. Free some, or choose another --output"
    if code == errno.EFBIG:
        return f"{path}: the file would be larger than a limit (ulimit -f) or the file system allows:{needed or ' more bytes are needed'}"
    return f"{path}: cannot be written: {error.strerror if code else error}"
