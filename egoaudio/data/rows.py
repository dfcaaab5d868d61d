"""Random rows of one feature array, out of the file and into a buffer, as fast as memory allows.

In: the path of an egoaudio file, the name of an array, row numbers. Out: float32 rows, normalised if asked. A
``RowSource`` belongs to one process, which maps the array once; it notices when the file changes under it. With context
(``data.context``) each row comes joined in time with its neighbours.

Measured with 131 KB rows in batches of 256, on one core of an AMD EPYC with Linux 6.18, as shares of ``numpy.take`` from memory into a
ready buffer (170,000 clips/s of processor time):

- the page cache warm: one ``numpy.take`` out of the map into a ready buffer 0.92, into three in turn 0.85, which no longer fit the third-level
  cache; ``mode="clip"`` matters, the default copies through a second buffer (0.21). A fresh result each time 0.40 (page faults).
  ``os.preadv`` a row 0.66. Normalising each half megabyte while it is still in the cache 0.51.
  Without gain: rows in ascending order, single frames, ``numpy.copyto`` or ``memmove`` a row. Two threads with ``torch.index_select``, which lets
  go of the interpreter's lock, for twice the processor time: 0.93 instead of 0.71 in a quiet hour, 0.75 instead of 0.71 in a busy one, when
  the neighbours want the memory, and in a full run of the benchmark the same as one thread. Not kept;
- the same map holds the interpreter's lock, which matters where a page fault waits for a disk: rows that may not be in memory are read
  by ``os.preadv``, which does not;
- with context the same ``numpy.take``, of each row of each window, and silence written over what is not there: each byte is copied
  once. Taking windows out of an ``as_strided`` view copies the whole array first, 2 K + 1 times its bytes;
- cold, on an older machine where memory gave 90,000: 910 clips/s without announcement, 8,500 when each row is announced to the kernel first
  (``WILLNEED``: many reads under way at once, and 1.05 times the bytes read rather than 7.7 times). ``MADV_RANDOM`` instead is 390.
"""

import os
import time
import warnings

import numpy as np

from egoaudio.data.context import Context, joined_shape
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader

# Rows that are gathered and normalised together: they stay in a core's second-level cache.
_CACHED_BYTES = 512 * 1024
# One announcement covers so much: Linux may read less of a longer one.
_ANNOUNCED_BYTES = 256 * 1024
# Of each batch so many rows are asked whether they are in memory; announcing all of a batch that is costs 20 % of the gather.
_PROBED_ROWS = 16
# Where one row was not in memory, so many batches are announced without asking, and read rather than mapped; and the first ones of a
# file. Asking does not see holes of a sparse file, whose page faults take 20 times as long as announcing them.
_COLD_BATCHES = 64


class RowSource:
    """One feature array of one file, for one process.

    Parameters
    ----------
    path : str
        The file.
    feature : str
        The name of the array.
    identity : tuple, optional
        What ``identity`` of another process's source was: the file must still be that one.
    context_clips : int
        K: each row is joined with so many neighbours on each side.

    Attributes
    ----------
    joined_shape : tuple
        ((2 * K + 1) * T, F), of a row with its neighbours.

    Raises
    ------
    StoreError
        When the file cannot be opened.
    TrainingError
        When it has no such array, is not the file of ``identity`` any more, or its rows cannot be joined.

    """

    def __init__(self, path, feature, identity=None, context_clips=0):
        self.path = path
        self._descriptor = -1
        self._warned = False
        self.file = reader.open(path)
        if feature not in self.file.features:
            raise TrainingError(
                f"{path} has no {feature}; it has {', '.join(self.file.features) or 'no features'}: build again with --features {feature}"
            )
        self._descriptor = os.open(path, os.O_RDONLY)
        self.identity = identity or _identity(os.fstat(self._descriptor))
        self.check_unchanged()
        array = self.file[feature]
        self.is_mapped = self.file.is_mapped(feature)
        # A plain ndarray: numpy.memmap's own indexing costs 5 us a call.
        self._array = np.asarray(array) if self.is_mapped else array
        self.shape, self.dtype = array.shape, array.dtype
        self.row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        self._offset = self.file.extents[feature].offset if self.is_mapped else 0
        self._cold_batches = _COLD_BATCHES  # a file just opened is taken to be on disk
        self._byte = bytearray(1)
        if context_clips < 0:
            raise ValueError(f"context_clips {context_clips}: expected at least 0")
        self.joined_shape = joined_shape(self.shape[1:], context_clips)
        self._context = Context(self.file, feature, context_clips) if context_clips else None

    def __del__(self):
        """Close the descriptor; the arrays close themselves."""
        # At the interpreter's exit modules may be gone already, and the descriptor goes with the process.
        close = getattr(os, "close", None)
        if close is not None and self._descriptor >= 0:
            close(self._descriptor)

    def check_unchanged(self):
        """Raise unless the file is still what it was when it was opened.

        A file that was written to or cut short stops everything (reading beyond its new end would kill the process with
        SIGBUS; only the 3 ms of one gather are left for that). One that was deleted, or replaced under its name, goes on
        being read as long as this process lives: a warning says so once. Costs 4 us, so it is asked before every batch.

        Raises
        ------
        TrainingError
            When size or time of change differ, or the file cannot be asked any more.

        """
        try:
            now = _identity(os.fstat(self._descriptor))
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be read any more ({error.strerror}): run the same command again when its disk is back"
            ) from error
        if now[:2] != self.identity[:2]:
            raise TrainingError(
                f"{self.path} was replaced by another file during the run: put the first one back and run the same command again"
            )
        if now != self.identity:
            size, changed_ns = self.identity[2:]
            raise TrainingError(
                f"{self.path} was changed during the run: it had {size:,} bytes, last written {_clock(changed_ns)}, and has {now[2]:,}, "
                f"written {_clock(now[3])}. Let whatever writes to it finish, make sure that the file is whole (egoaudio-inspect --verify), "
                "and run the same command again"
            )
        self._check_name()

    def _check_name(self):
        """Warn once when the path leads to no file or to another one than is being read."""
        try:
            named = _identity(os.stat(self.path))
            fate = "replaced by another file" if named[:2] != self.identity[:2] else None
        except OSError as error:
            fate = f"moved or deleted ({error.strerror})"
        if fate and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.path} was {fate} during the run. The run goes on with the file it opened, which exists as long as it is open; "
                "to continue a stopped run, that file must be back",
                stacklevel=4,
            )

    def take(self, rows, out, mean=0.0, std=1.0):
        """Write ``(row - mean) / std`` of each row into ``out``.

        Parameters
        ----------
        rows : array of int, (b,)
            Within the array; in any order, repeated or not. Neighbours are read beside them.
        out : float32 array, (b, ...)
            C-contiguous; a clip is of ``joined_shape``.
        mean, std : float
            (0, 1) leaves the values as they are, bit for bit.

        Raises
        ------
        IndexError
            When a row is outside the array.
        TrainingError
            When the file has changed.

        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (0 <= rows.min() and rows.max() < len(self._array)):
            raise IndexError(
                f"rows {rows.min()} to {rows.max()} are not all among the {len(self._array)} of {self.path}"
            )
        self.check_unchanged()
        plain = (mean, std) == (0.0, 1.0)
        mean, scale = np.float32(mean), np.float32(1.0 / std)
        windows = self._windows(rows)  # (b, 2 * K + 1)
        out = out.reshape(*windows.shape, *self.shape[1:])  # the same memory
        step = (
            len(rows) if plain or not self.is_mapped else max(1, _CACHED_BYTES // (self.row_bytes * windows.shape[1]))
        )
        for start in range(0, len(rows), max(1, step)):
            part = out[start : start + step]
            self._fill(windows[start : start + step], part)
            if not plain:
                part -= mean
                part *= scale

    def _windows(self, rows):
        """Return the rows to join for each row, int64 (b, 2 * K + 1), -1 for silence."""
        return rows[:, None] if self._context is None else self._context.windows(rows)

    def _fill(self, windows, out):
        """Write the rows (b, w) as they are stored into ``out`` (b, w, T, F), and silence."""
        rows = windows
        if self._context is not None:
            silent = windows < 0
            rows = np.where(silent, windows[:, windows.shape[1] // 2, None], windows)  # what is read anyway
        if self.is_mapped and self.dtype == out.dtype:
            if self._cold_batches == 0:
                np.take(self._array, rows.ravel(), axis=0, out=out.reshape(-1, *self.shape[1:]), mode="clip")
            else:
                self._read(windows, out)
        else:  # float16, or repacked
            out[...] = self._array[rows]
        if self._context is not None:
            out[silent] = self._context.silence

    def _read(self, windows, out):
        """Read rows that may have to come from disk: unlike a page fault this lets other threads run, and a cut file is no SIGBUS."""
        out = out.reshape(-1).view(np.uint8)
        for place, first, num_rows in zip(*(found.tolist() for found in _stretches(windows)), strict=True):
            target = out[place * self.row_bytes : (place + num_rows) * self.row_bytes]
            offset, done = self._offset + first * self.row_bytes, 0
            while done < len(target):
                try:
                    count = os.preadv(self._descriptor, [target[done:]], offset + done)
                except OSError as error:
                    raise TrainingError(
                        f"{self.path} cannot be read any more ({error.strerror}): run the same command again when its "
                        "disk is back"
                    ) from error
                if not count:
                    self.check_unchanged()
                    raise TrainingError(
                        f"{self.path} ends at byte {offset + done:,}, in the middle of row "
                        f"{first + done // self.row_bytes}: it was cut short. Build or copy it again"
                    )
                done += count

    def announce(self, rows):
        """Let the kernel start to read these rows and their neighbours from disk, unless they seem to be in memory; only a hint."""
        if not self.is_mapped or not hasattr(os, "posix_fadvise"):
            return
        _, first, num_rows = _stretches(self._windows(np.asarray(rows, dtype=np.int64)))
        offsets, sizes = self._offset + first * self.row_bytes, num_rows * self.row_bytes
        if self._cold_batches == 0:
            if self._in_memory(offsets[:: max(1, len(offsets) // _PROBED_ROWS)].tolist()):
                return
            self._cold_batches = _COLD_BATCHES
        self._cold_batches -= 1
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            for start in range(offset, offset + size, _ANNOUNCED_BYTES):
                os.posix_fadvise(
                    self._descriptor, start, min(_ANNOUNCED_BYTES, offset + size - start), os.POSIX_FADV_WILLNEED
                )

    def _in_memory(self, offsets):
        """Return whether the byte at each offset can be had without waiting for a disk; False where nobody can tell."""
        if not hasattr(os, "RWF_NOWAIT"):
            return False
        try:
            return all(os.preadv(self._descriptor, [self._byte], offset, os.RWF_NOWAIT) for offset in offsets)
        except OSError:  # EAGAIN: it would wait. EOPNOTSUPP: this file system cannot tell.
            return False


def _stretches(windows):
    """Return the stretches of each window (b, w) that lie back to back in the file; silence (-1) is left out.

    Three int64 arrays: where a stretch begins in ``windows.ravel()``, its first row, and its number of rows.
    """
    present = windows >= 0
    begins = present.copy()
    begins[:, 1:] &= ~(present[:, :-1] & (windows[:, 1:] == windows[:, :-1] + 1))
    places = np.flatnonzero(begins)
    return places, windows.ravel()[places], np.add.reduceat(present.ravel(), places, dtype=np.int64)


def _identity(status):
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _clock(nanoseconds):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))
