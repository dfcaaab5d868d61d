"""The C library's heap: whether freed memory stays in the process for what comes next, or goes back to the kernel.

By default glibc gives a freed end of the heap back and has every larger block mapped anew, so loops that allocate and free the same
blocks again and again spend their time on page faults. Where the C library is not glibc, nothing here does anything.

The settings are one for a whole process. So the library changes them (``reuse_blocks``, ``release_blocks``) only inside
``owned``, in which the commands run; a program that calls the library keeps its own.
Source: mallopt(3), malloc_trim(3).
"""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more
_LARGE = 1 << 20


_owners: list[bool] = []  # one entry for each block inside ``owned``


@contextlib.contextmanager
def owned() -> Iterator[None]:
    """Let the library change the heap of this process while the block runs; settings once made stay."""
    _owners.append(True)
    try:
        yield
    finally:
        _owners.pop()


def reuse_blocks() -> None:
    """Have the next round of a loop take the blocks of the one before, if the process is ours: ``keep_freed_memory``."""
    if _owners:
        keep_freed_memory()


def release_blocks() -> None:
    """Give back what is free, and keep nothing from now on if the process is ours: ``return_freed_memory``."""
    if _owners:
        return_freed_memory()
    else:
        trim()


def keep_freed_memory(num_bytes: int | None = None) -> None:
    """Keep what is freed, from now on, until so many bytes of it are free at the end of the heap; without a number, for good.

    Of a build with denoising 40 page faults and 0.08 of 1.33 ms a clip went away; a worker's peak does not change. Training
    ``cnn --amp`` on a CPU took 1.36 s instead of 2.6 s for 16 batches of 64. Blocks of more than 32 MB are given back all the same.
    """
    library = _glibc()
    if library:
        library.mallopt(_M_TRIM_THRESHOLD, -1 if num_bytes is None else num_bytes)
        library.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)


def return_freed_memory() -> None:
    """Give what is free, and from now on large blocks as soon as they are freed, back to the kernel.

    For when memory is short: a heap that keeps blocks of up to 32 MB tears, and a step of ``ast-paper`` with activation
    checkpointing took 4.5 GB with it instead of 1.7. Fresh pages for every large block cost time.
    """
    library = _glibc()
    if library:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.malloc_trim(0)


def trim() -> None:
    """Give what is free back to the kernel, this once."""
    library = _glibc()
    if library:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
