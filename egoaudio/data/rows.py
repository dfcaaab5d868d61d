"""Random rows of one feature array, read from the file into a buffer as fast as memory allows.

In: the path of an egoaudio file, or of several that are one, the name of an array, row numbers. Out: float32 rows,
normalised if asked, or rows as they are stored. A ``RowSource`` belongs to one process, which maps the array once; it
detects changes of the file. With context (``data.context``) each row comes joined in time with its neighbours.

Rows in the page cache are gathered from the map into a reused buffer: those that are normalised here, for a CPU, a few
at a time by ``numpy.take``, at 0.92 of its speed in memory (``mode="clip"`` matters: the default copies through a
second buffer, 0.21); a whole batch for a GPU by ``torch.index_select``, on several cores, from any number of files at
once, and without the interpreter's lock, which the loop that launches kernels needs meanwhile. Rows that may have to
come from disk are read by ``os.preadv`` instead, and are announced to the kernel first (``WILLNEED``): 8,500 clips/s
instead of 910. All figures are in ``benchmarks/README.md``.
"""

import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from egoaudio.data.context import Context, joined_shape
from egoaudio.data.joined_maps import JoinedMaps
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader
from egoaudio.hdf5.joined import JoinedArray
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.system.files import StrPaths

# Rows that are gathered and normalised together: they stay in a core's second-level cache.
_CACHED_BYTES = 512 * 1024
# The most that one announcement covers: Linux may read less of a longer one.
_ANNOUNCED_BYTES = 256 * 1024
# The number of rows of each batch that are checked for being in memory; announcing all rows of a batch that is in
# memory costs 20 % of the gather.
_PROBED_ROWS = 16
# After a row that was not in memory, and at the beginning of a file, this many batches are announced unchecked and read
# rather than mapped. The check does not see holes of a sparse file, whose page faults take 20 times as long.
_COLD_BATCHES = 64


class _Part:
    """The feature array of one file: its map, a descriptor to read it by, and what the file was when it was opened."""

    def __init__(self, file: EgoAudioFile, feature: str, identity: tuple[int, ...] | None) -> None:
        self.path = file.path
        self.descriptor = -1
        self._warned = False
        self.descriptor = os.open(self.path, os.O_RDONLY)
        self.identity = identity or _identity(os.fstat(self.descriptor))
        self.is_mapped = file.is_mapped(feature)
        # A plain ndarray: numpy.memmap's own indexing costs 5 us a call.
        self.array: Any = np.asarray(file[feature]) if self.is_mapped else file[feature]
        self.offset = file.extents[feature].offset if self.is_mapped else 0

    def __del__(self) -> None:
        """Close the descriptor."""
        if sys is None or sys.is_finalizing():  # modules may be gone already; the process closes its files itself
            return
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def check_unchanged(self) -> None:
        """Raise unless the file is what it was when it was opened."""
        try:
            now = _identity(os.fstat(self.descriptor))
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be read any more ({error.strerror}): run the same command again when its disk is "
                "back"
            ) from error
        if now[:2] != self.identity[:2]:
            raise TrainingError(
                f"{self.path} was replaced by another file during the run: put the first one back and run the same "
                "command again"
            )
        if now != self.identity:
            size, changed_ns = self.identity[2:]
            raise TrainingError(
                f"{self.path} was changed during the run: it had {size:,} bytes, last written {_clock(changed_ns)}, "
                f"and has {now[2]:,}, written {_clock(now[3])}. Let whatever writes to it finish, check that the file "
                "is intact (egoaudio-inspect --verify), and run the same command again"
            )

    def check_name(self) -> None:
        """Warn once if the path leads to no file, or not to the one that is being read."""
        try:
            named = _identity(os.stat(self.path))
            fate = "replaced by another file" if named[:2] != self.identity[:2] else None
        except OSError as error:
            fate = f"moved or deleted ({error.strerror})"
        if fate and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.path} was {fate} during the run. The run continues with the file that it opened, which exists "
                "as long as it is open; to resume a run that was stopped, that file must be back",
                stacklevel=5,
            )

    def read(self, row: int, row_bytes: int, target: memoryview) -> None:
        """Read rows, from ``row`` on, until ``target`` is full."""
        offset, done = self.offset + row * row_bytes, 0
        while done < len(target):
            try:
                count = os.preadv(self.descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise TrainingError(
                    f"{self.path} cannot be read any more ({error.strerror}): run the same command again when its "
                    "disk is back"
                ) from error
            if not count:
                self.check_unchanged()
                raise TrainingError(
                    f"{self.path} ends at byte {offset + done:,}, in the middle of row {row + done // row_bytes}: it "
                    "was truncated. Build or copy it again"
                )
            done += count


class RowSource:
    """One feature array of one file, or of several as one, for one process.

    Parameters
    ----------
    path : path, or sequence of path
        The file or files.
    feature : str
        The name of the array.
    identity : tuple, optional
        The ``identity`` of another process's source: the files must still be the same.
    context_clips : int
        K: each row is joined with K neighbours on each side.

    Attributes
    ----------
    identity : tuple of tuple of int
        Of each file device, inode, size and time of change.
    joined_shape : tuple
        ((2 * K + 1) * T, F), the shape of a row with its neighbours.
    dtype : numpy.dtype
        In which rows are stored.
    unit : numpy.float32
        What stored values are multiplied by: 1 but for int16.

    Raises
    ------
    StoreError
        When a file cannot be opened, or they do not belong together.
    TrainingError
        When there is no such array, a file is no longer that of ``identity``, or its rows cannot be joined.

    """

    def __init__(
        self,
        path: StrPaths,
        feature: str,
        identity: tuple[tuple[int, ...], ...] | None = None,
        context_clips: int = 0,
    ) -> None:
        self.file: Any = None
        self.file = reader.open(path)
        self.path: str = self.file.path
        if feature not in self.file.features:
            raise TrainingError(
                f"{self.path} has no {feature}; it has {', '.join(self.file.features) or 'no features'}: build again "
                f"with `features={(feature,)!r}`"
            )
        known = identity or (None,) * len(self.file.parts)
        self._parts = [_Part(part, feature, its) for part, its in zip(self.file.parts, known, strict=True)]
        self.identity = tuple(part.identity for part in self._parts)
        self._named = itertools.cycle(self._parts)
        self.check_unchanged()
        self.is_mapped = self.file.is_mapped(feature)
        self._array: Any = JoinedArray([part.array for part in self._parts])
        self._stored = JoinedMaps.of([part.array for part in self._parts]) if self.is_mapped else None
        self.shape, self.dtype = self._array.shape, self._array.dtype
        self.unit = np.float32(self.file.scale(feature))
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        self._cold_batches = _COLD_BATCHES  # a file that was just opened is assumed to be on disk
        self._byte = bytearray(1)
        if context_clips < 0:
            raise ValueError(f"context_clips {context_clips}: expected at least 0")
        self.joined_shape = joined_shape(self.shape[1:], context_clips)
        self._context = Context(self.file, feature, context_clips) if context_clips else None
        self._silence = {}
        if self._context is not None:
            stored = (self._context.silence / self.unit).astype(self.dtype)
            self._silence = {self.dtype: stored, np.dtype(np.float32): self._context.silence}

    def __del__(self) -> None:
        """Close the files; maps that were taken stay valid."""
        if sys is None or sys.is_finalizing():  # modules may be gone already; the process closes its files itself
            return
        if self.file is not None:
            self.file.close()

    def check_unchanged(self) -> None:
        """Raise unless every file is unchanged since it was opened; a check of 4 us, made before every batch.

        Reading a file beyond its new end would kill the process with SIGBUS; with this check that can happen only
        within the 3 ms of one gather. A file that was deleted, or replaced under its name, is still read as long as
        this process lives; a warning says so once. Of several files, the names are checked in turn, one a batch.

        Raises
        ------
        TrainingError
            When its size or time of change differs, or the file cannot be read any more.

        """
        for part in self._parts:
            part.check_unchanged()
        next(self._named).check_name()

    def take(self, rows: np.ndarray, out: np.ndarray, mean: float = 0.0, std: float = 1.0) -> None:
        """Write ``(row - mean) / std`` of each row into ``out``.

        Parameters
        ----------
        rows : array of int, (b,)
            Within the array; in any order, repeated or not. Their neighbours are read with them.
        out : array, (b, ...)
            C-contiguous; a clip has the shape ``joined_shape``. float32, or ``dtype``, which receives what is stored.
        mean, std : float
            (0, 1) leaves the values unchanged, bit for bit; of float32 alone.

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
        shift, scale = np.float32(mean), np.float32(1.0 / std)
        windows = self._windows(rows)  # (b, 2 * K + 1)
        out = out.reshape(*windows.shape, *self.shape[1:])  # the same memory
        step = (
            len(rows) if plain or not self.is_mapped else max(1, _CACHED_BYTES // (self.row_bytes * windows.shape[1]))
        )
        for start in range(0, len(rows), max(1, step)):
            part = out[start : start + step]
            self._fill(windows[start : start + step], part)
            if not plain:
                part -= shift
                part *= scale

    def _windows(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows to join for each row, int64 (b, 2 * K + 1), -1 for silence."""
        return rows[:, None] if self._context is None else self._context.windows(rows)

    def _fill(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Write the rows (b, w) as they are stored, and silence, into ``out`` (b, w, T, F)."""
        rows = windows
        if self._context is not None:
            silent = windows < 0
            rows = np.where(silent, windows[:, windows.shape[1] // 2, None], windows)  # a row that is read anyway
        as_stored = out.dtype == self.dtype
        if self.is_mapped and as_stored and self._cold_batches:
            self._read(windows, out)
        elif self.is_mapped:
            self._gather(rows.ravel(), out.reshape(-1, *self.shape[1:]))
        else:
            out[...] = self._array[rows]
        if not as_stored and self.unit != 1:
            out *= self.unit
        if self._context is not None:
            out[silent] = self._silence[out.dtype]

    def _gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows (b,) from the maps into ``out`` (b, T, F), converted if need be."""
        few = out.dtype == self.dtype and out.nbytes <= _CACHED_BYTES  # two threads would take twice the processor time
        if few and len(self._parts) == 1:
            np.take(self._parts[0].array, rows, axis=0, out=out, mode="clip")
            return
        part, row = self._array.locate(rows)
        if self._stored is not None and not few:
            self._stored.take(part, row, torch.from_numpy(out))
        else:
            for target, number, inside in zip(out, part.tolist(), row.tolist(), strict=True):
                target[...] = self._parts[number].array[inside]

    def _read(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Read rows that may have to come from disk.

        Unlike a page fault, this lets other threads run, and a truncated file causes an error rather than a SIGBUS.
        """
        memory = out.reshape(-1).view(np.uint8).data
        places, first, num_rows = _stretches(windows)  # of one video each, so none leads from one file into another
        part, inside = self._array.locate(first)
        stretches = (found.tolist() for found in (places, part, inside, num_rows))
        for place, number, row, count in zip(*stretches, strict=True):
            target = memory[place * self.row_bytes : (place + count) * self.row_bytes]
            self._parts[number].read(row, self.row_bytes, target)

    def announce(self, rows: np.ndarray) -> None:
        """Ask the kernel to start reading these rows and their neighbours, unless they seem to be in memory; a hint."""
        if not self.is_mapped or not hasattr(os, "posix_fadvise"):
            return
        rows = np.asarray(rows, dtype=np.int64)
        if self._cold_batches == 0:
            if self._in_memory(self._places(rows[:: max(1, len(rows) // _PROBED_ROWS)])):
                return
            self._cold_batches = _COLD_BATCHES
        self._cold_batches -= 1
        for descriptor, offset, size in self._places(rows):
            for start in range(offset, offset + size, _ANNOUNCED_BYTES):
                os.posix_fadvise(
                    descriptor, start, min(_ANNOUNCED_BYTES, offset + size - start), os.POSIX_FADV_WILLNEED
                )

    def _places(self, rows: np.ndarray) -> list[tuple[int, int, int]]:
        """Return (descriptor, offset, bytes) of each stretch of a file with some of the rows (b,) or neighbours."""
        _, first, num_rows = _stretches(self._windows(rows))
        part, inside = self._array.locate(first)
        offsets = np.array([each.offset for each in self._parts])[part] + inside * self.row_bytes
        descriptors = [self._parts[number].descriptor for number in part.tolist()]
        return list(zip(descriptors, offsets.tolist(), (num_rows * self.row_bytes).tolist(), strict=True))

    def _in_memory(self, places: Iterable[tuple[int, int, int]]) -> bool:
        """Return whether the first byte of each place is in memory, not on a disk; False if unknown."""
        if not hasattr(os, "RWF_NOWAIT"):
            return False
        try:
            return all(os.preadv(descriptor, [self._byte], offset, os.RWF_NOWAIT) for descriptor, offset, _ in places)
        except OSError:  # EAGAIN: it would wait. EOPNOTSUPP: this file system cannot tell.
            return False


def _stretches(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the stretches of each window (b, w) that are contiguous in the file; silence (-1) is left out.

    Three int64 arrays: where a stretch begins in ``windows.ravel()``, its first row, and its number of rows.
    """
    present = windows >= 0
    begins = present.copy()
    begins[:, 1:] &= ~(present[:, :-1] & (windows[:, 1:] == windows[:, :-1] + 1))
    places = np.flatnonzero(begins)
    return places, windows.ravel()[places], np.add.reduceat(present.ravel(), places, dtype=np.int64)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what tells two files, or two states of a file, apart."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _clock(nanoseconds: int) -> str:
    """Return a time of change as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))
