"""The C library's heap: whether freed memory stays in the process for what comes next, or goes back to the kernel.

By default glibc returns a freed end of the heap and maps every larger block anew, so loops that allocate and free the
same blocks again and again spend their time on page faults. With another C library, nothing here has any effect.

The settings are those of the whole process. So the library changes them (``reuse_blocks``, ``release_blocks``) only
inside ``owned``, in which the commands run; a program that calls the library keeps its own.
Source: mallopt(3), malloc_trim(3).
"""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_MMAP_THRESHOLD = 32 << 20  # glibc accepts no more
_LARGE = 1 << 20
_owners: list[bool] = []  # one entry for each block inside ``owned``


@contextlib.contextmanager
def owned() -> Iterator[None]:
    """Let the library change the heap of this process while the block runs; what it sets stays set."""
    _owners.append(True)
    try:
        yield
    finally:
        _owners.pop()


def reuse_blocks() -> None:
    """Have each round of a loop reuse the blocks of the one before (``keep_freed_memory``), inside ``owned`` only."""
    if _owners:
        keep_freed_memory()


def release_blocks() -> None:
    """Give back what is free and, inside ``owned`` only, keep nothing from now on (``return_freed_memory``)."""
    if _owners:
        return_freed_memory()
    else:
        trim()


def keep_freed_memory(num_bytes: int | None = None) -> None:
    """Keep up to this many freed bytes at the end of the heap from now on; without a number, all of them.

    A build with denoising then takes 6 % less time a clip, training ``cnn`` in bfloat16 on a CPU half the time. Blocks
    of more than 32 MB are returned all the same.
    """
    library = _glibc()
    if library:
        library.mallopt(_M_TRIM_THRESHOLD, -1 if num_bytes is None else num_bytes)
        library.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)


def return_freed_memory() -> None:
    """Give what is free back to the kernel, and from now on large blocks as soon as they are freed.

    For when memory is short: a heap that keeps blocks of up to 32 MB becomes fragmented (a step of ``ast-paper`` with
    activation checkpointing took 4.5 GB instead of 1.7). Fresh pages for every large block cost time.
    """
    library = _glibc()
    if library:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.malloc_trim(0)


def trim() -> None:
    """Give what is free back to the kernel, once."""
    library = _glibc()
    if library:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
