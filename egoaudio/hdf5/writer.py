"""Write rows into a laid-out file, from many processes at once, without locks and without data sent between them.

A build calls, in this order: ``create.lay_out`` (the whole structure, closed), ``files.reserve`` (disk space),
``offsets`` (where every array lies), a ``RowWriter`` in each worker and one in the parent, ``create.mark_complete``.

Conventions: rows are clips, except in ``/videos``, ``/video_labels``, ``/checksums``, ``/statistics`` and ``/synced``
(videos) and ``/classes``. A row is passed in the type in which it is stored, so its checksum can be taken before.

Source: FORMAT.md.
"""

import os
from collections.abc import Mapping

import numpy as np

from egoaudio.errors import StoreError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.safe_access import Extent
from egoaudio.system import files
from egoaudio.system.files import StrPath


class Extents(dict[str, Extent]):
    """Where every array of one file lies; ``identity`` makes sure that rows are written into that very file."""

    def __init__(self, extents: dict[str, Extent] | None = None, identity: tuple[int, int] | None = None) -> None:
        super().__init__(extents or {})
        self.identity = identity
        """Device and inode; None where that does not matter."""


def offsets(path: StrPath) -> Extents:
    """Return where every array of a file lies.

    Returns
    -------
    Extents
        ``"spectrogram"``, ``"checksums/spectrogram"``, ``"clips"``, ...; small, and can be pickled to the workers.

    Raises
    ------
    StoreError
        As from ``open``; or an array was repacked, so that nothing can be written into it.
    """
    with EgoAudioFile(path) as file:
        repacked = [name for name in file.features if not file.is_mapped(name)]
        if repacked or "clips" not in file.extents:
            raise StoreError(
                f"{path}: /{(repacked or ['clips'])[0]} was repacked by another tool, so no rows can be written: "
                "build the file again"
            )
        return Extents(file.extents, file.identity)


class RowWriter:
    """Write rows of a laid-out file to their places, beside any number of other writers; a context manager.

    Parameters
    ----------
    path : str or os.PathLike
    extents : dict of str to Extent
        What ``offsets`` returned; opening costs one system call.
    """

    def __init__(self, path: StrPath, extents: Mapping[str, Extent]) -> None:
        self._path, self.extents = os.fspath(path), extents
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(files.explain(self._path, error)) from error
        identity, info = getattr(extents, "identity", None), os.fstat(self._descriptor)
        if identity is not None and identity != (info.st_dev, info.st_ino):
            os.close(self._descriptor)
            raise StoreError(
                f"{self._path} was replaced by another file while it was being written: another program, or another "
                "build, writes there"
            )

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Write rows of one array.

        Parameters
        ----------
        name : str
            ``"spectrogram"``, ``"clips"``, ``"checksums/spectrogram"``, ...
        first_row : int
        rows : ndarray (n, ...)
            In the array's own type and row shape.

        Raises
        ------
        StoreError
            The disk, a quota or a limit is full, or the file cannot be written.
        """
        extent = self.extents[name]
        rows = np.ascontiguousarray(rows)
        if rows.dtype != extent.dtype or rows.shape[1:] != extent.shape[1:]:
            raise ValueError(f"/{name} takes rows {extent.dtype} {extent.shape[1:]}, not {rows.dtype} {rows.shape[1:]}")
        if not 0 <= first_row <= first_row + len(rows) <= extent.shape[0]:
            raise ValueError(
                f"/{name} has {extent.shape[0]} rows, and {first_row} to {first_row + len(rows)} are not all among them"
            )
        self._put(rows.reshape(-1).view("u1").data if rows.size else b"", extent.offset + first_row * extent.row_bytes)

    def copy(self, name: str, first_row: int, descriptor: int, offset: int, num_rows: int) -> None:
        """Copy rows of one array, as they are stored, from an offset in another file, inside the kernel."""
        extent = self.extents[name]
        if not 0 <= first_row <= first_row + num_rows <= extent.shape[0]:
            raise ValueError(
                f"/{name} has {extent.shape[0]} rows, and {first_row} to {first_row + num_rows} are not all among them"
            )
        target, num_bytes = extent.offset + first_row * extent.row_bytes, num_rows * extent.row_bytes
        try:
            files.copy_bytes(descriptor, offset, self._descriptor, target, num_bytes)
            files.begin_writing(self._descriptor, target, num_bytes)
        except OSError as error:
            raise StoreError(files.explain(self._path, error, num_bytes)) from error

    def read(self, name: str, first_row: int, num_rows: int) -> np.ndarray:
        """Return rows of one array as they are in the file now, writable."""
        extent = self.extents[name]
        num_bytes = num_rows * extent.row_bytes
        try:
            raw = os.pread(self._descriptor, num_bytes, extent.offset + first_row * extent.row_bytes)
        except OSError as error:
            raise StoreError(files.explain(self._path, error)) from error
        if len(raw) != num_bytes:
            raise StoreError(f"{self._path} was cut short while it was being written")
        return np.frombuffer(raw, extent.dtype).reshape(num_rows, *extent.shape[1:]).copy()

    def erase(self, name: str, first_row: int, num_rows: int) -> None:
        """Write zeros: a row that is not ok holds no data, even if a worker wrote some before it died."""
        extent = self.extents[name]
        block = np.zeros((max(1, (1 << 20) // extent.row_bytes), *extent.shape[1:]), extent.dtype)
        for row in range(first_row, first_row + num_rows, len(block)):
            self.write(name, row, block[: first_row + num_rows - row])

    def _put(self, raw: bytes | memoryview, offset: int) -> None:
        try:
            files.write_all(self._descriptor, raw, offset)
        except OSError as error:
            raise StoreError(files.explain(self._path, error, len(raw))) from error

    def sync(self) -> None:
        """Wait until all that was written is on disk; raise if the file was removed meanwhile."""
        try:
            os.fsync(self._descriptor)
            removed = os.fstat(self._descriptor).st_nlink == 0
        except OSError as error:
            raise StoreError(files.explain(self._path, error)) from error
        if removed:
            raise StoreError(
                f"{self._path} was removed while it was being written: what was done is lost, build it again"
            )

    def close(self) -> None:
        """Close the file without a sync."""
        os.close(self._descriptor)
