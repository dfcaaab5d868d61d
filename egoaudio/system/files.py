"""Write files that are whole or absent, on disks that may be full, limited, read-only or gone.

``replacing`` is the one atomic write of the package: builds, checkpoints, tables, pictures and submissions use it. In:
paths and descriptors. Out: nothing, or an ``OSError`` that ``explain`` puts into words, with the bytes needed and
available.

Conventions: what was written is on disk only after a sync, of the file and, for a new or changed name, of its folder.
Where an output is a symbolic link, its target is replaced and the link stays. Only regular files are replaced, never a
device, a pipe or a folder.
"""

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from egoaudio.errors import StoreError

StrPath = str | os.PathLike[str]
StrPaths = StrPath | Sequence[StrPath]
LONGEST_NAME_BYTES = 255
"""Of a file's name, on every file system in use."""
_TOKEN_BYTES = 8  # random ones in a temporary name
_RESERVE_BYTES = 1 << 30  # in one call, so that signals are handled between two
_COPY_BYTES = 1 << 30  # in one call, for the same reason
_READ_BYTES = 1 << 20
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF)
_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def as_paths(paths: StrPaths) -> tuple[str, ...]:
    """Return one path or several as a tuple of texts."""
    return tuple(os.fspath(path) for path in ((paths,) if isinstance(paths, (str, os.PathLike)) else paths))


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of ``path``, whole and on disk, when the block ends without an exception.

    The file is made beside the one it replaces, under a random name that did not exist, so no link is followed and
    nothing else overwritten. Until the end of the block, its ``name`` is its path.

    Parameters
    ----------
    path : str or os.PathLike
        Where it is a symbolic link, its target is replaced.

    Yields
    ------
    binary file
        Empty, open for writing and reading.

    Raises
    ------
    OSError
        It cannot be written, or ``path`` is something other than a regular file.
    """
    target = os.path.realpath(path)
    check_output(target)
    temporary = _beside(target, secrets.token_hex(_TOKEN_BYTES))
    file = open(temporary, "x+b")  # O_EXCL: the name is new, and no link is followed
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(target)


def write_file(path: StrPath, contents: bytes) -> None:
    """Write bytes to ``path`` as ``replacing`` does; its folder is made if it is missing."""
    Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(contents)


def remove_leftovers(path: StrPath) -> None:
    """Remove what killed writers of ``path`` left beside it; the caller makes sure that none is running."""
    target = os.path.realpath(path)
    with os.scandir(os.path.dirname(target)) as entries:
        for entry in entries:
            token = entry.name.removesuffix(".partial")[-2 * _TOKEN_BYTES :]
            if entry.path == _beside(target, token) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def _beside(target: str, token: str) -> str:
    """Return the temporary name of a file; a long name is shortened."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{os.fsdecode(os.fsencode(name)[:200])}.{token}.partial")


def check_output(path: StrPath, inputs: Iterable[StrPath | None] = ()) -> None:
    """Refuse an output that cannot or must not be replaced.

    Parameters
    ----------
    path : str or os.PathLike
    inputs : iterable of path
        Files that are read: none of them, under whatever name, may be the output. None is ignored.

    Raises
    ------
    OSError
        ``path`` is a device, a pipe, a folder, one of the inputs, or has an impossible name.
    """
    if not os.fspath(path):
        raise OSError(errno.ENOENT, "its name is empty, as that of a variable that is not set: give a name")
    name = os.path.basename(os.fspath(path))
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        raise OSError(
            errno.ENAMETOOLONG,
            f"its name has {len(os.fsencode(name))} bytes, more than {LONGEST_NAME_BYTES}: give a shorter one",
        )
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode):
        raise OSError(errno.EISDIR, "it is a folder: give the name of a file")
    if not stat.S_ISREG(there.st_mode):
        kind = _KINDS.get(stat.S_IFMT(there.st_mode), "something else")
        raise OSError(errno.EEXIST, f"it is {kind}, and only a regular file is replaced: give another name")
    for given in inputs:
        if given is not None and os.path.exists(given) and os.path.samestat(there, os.stat(given)):
            raise OSError(errno.EEXIST, f"it is an input of this command, {given}: give another name")


def require_writable_folder(path: StrPath) -> None:
    """Raise OSError where the folder of a path that is to be made, or the nearest one above it, is not writable."""
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"the folder {folder} cannot be written to: give a name in another one")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # /proc and /sys say to root that they can be written to
    except OSError as error:
        said = f"the folder {folder} takes no new file ({error.strerror}): give a name in another one"
        raise OSError(error.errno, said) from error


def reserve(path: StrPath) -> None:
    """Allocate the disk space of the whole file now, so that the disk is not found full later.

    Call it before anything writes to the file: where the file system cannot reserve, the C library writes to every
    block instead.

    Raises
    ------
    StoreError
        There is not enough space, or a quota or limit is reached; the bytes needed and available are named.
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
        # Where the file system cannot reserve, continue: there was enough space a moment ago.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise StoreError(explain(path, error, missing)) from error
    finally:
        os.close(descriptor)


def write_all(descriptor: int, raw: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset; one system call may write fewer."""
    view = memoryview(raw)
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def copy_bytes(source: int, source_offset: int, target: int, target_offset: int, num_bytes: int) -> None:
    """Copy a range of one file into another by the fastest means that these file systems have.

    ``copy_file_range`` (which shares blocks, or copies on the server, where it can), else ``sendfile``, else reads.

    Parameters
    ----------
    source, target : int
        Descriptors of regular files. The position of ``target`` may change, so no two threads may share one.
    source_offset, target_offset, num_bytes : int

    Raises
    ------
    OSError
        The range cannot be read or written, or the source ends before it does.
    """
    means = [_copy_in_kernel, _send, _copy_by_reads]
    while num_bytes:
        try:
            count = means[0](source, source_offset, target, target_offset, min(num_bytes, _COPY_BYTES))
        except OSError as error:
            if len(means) > 1 and error.errno in _NO_COPY:
                del means[0]
                continue
            raise
        if not count:
            raise OSError(errno.EIO, f"the file that is copied ends at byte {source_offset:,}, before the copy does")
        source_offset, target_offset, num_bytes = source_offset + count, target_offset + count, num_bytes - count


def _copy_in_kernel(source: int, source_offset: int, target: int, target_offset: int, num_bytes: int) -> int:
    return os.copy_file_range(source, target, num_bytes, source_offset, target_offset)


def _send(source: int, source_offset: int, target: int, target_offset: int, num_bytes: int) -> int:
    os.lseek(target, target_offset, os.SEEK_SET)
    return os.sendfile(target, source, source_offset, num_bytes)


def _copy_by_reads(source: int, source_offset: int, target: int, target_offset: int, num_bytes: int) -> int:
    raw = os.pread(source, min(num_bytes, _READ_BYTES), source_offset)
    write_all(target, raw, target_offset)
    return len(raw)


def begin_writing(descriptor: int, offset: int, num_bytes: int) -> None:
    """Have the kernel begin to write a range to its disk, so that a later sync waits less; does not wait for it.

    Linux does so when it is told that memory need not keep the range; what is not yet on disk, it keeps nevertheless.
    """
    if num_bytes and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_DONTNEED)


def sync_folder(path: StrPath) -> None:
    """Sync the folder of ``path``, so that a rename is on disk."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def available_bytes(path: StrPath) -> int:
    """Return the bytes a user may still write where ``path`` is, or will be."""
    info = os.statvfs(os.path.dirname(os.path.abspath(path)))
    return info.f_bavail * info.f_frsize


def explain(path: StrPath, error: Exception, num_bytes: int | None = None) -> str:
    """Return in words why a file cannot be written, and what to do."""
    code = getattr(error, "errno", None)
    needed = "more bytes are needed" if num_bytes is None else f"{num_bytes:,} bytes are needed"
    fix = "Free some, or choose another `output`"
    if code == errno.ENOSPC:
        return f"{path}: no space left: {needed}, {available_bytes(path):,} are available. {fix}"
    if code == errno.EDQUOT:
        return f"{path}: the disk quota is used up: {needed}. {fix}"
    if code == errno.EFBIG:
        return f"{path}: the file would be larger than a limit (ulimit -f) or the file system allows: {needed}"
    return f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}"
