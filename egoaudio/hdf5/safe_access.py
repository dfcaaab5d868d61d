"""Inspect an HDF5 file that may be damaged or hostile: which datasets it has, of what type, and where they lie.

In: a path, names, and what is expected of them. Out: checked datasets and their ``Extent``; ``RepackedArray`` where
there is none. No link and no dataset may lead to another file, and an array that is mapped lies within its file.

Conventions: errors are a ``StoreError`` that says what, where and what to do. With ``create``, the only user of h5py.
Source: the HDF5 reference (H5Dget_offset, H5Dchunk_iter, H5Pset_external, H5Lget_info).
"""

import functools
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import h5py
import numpy as np

from egoaudio.errors import ResourceError, StoreError
from egoaudio.system import surroundings
from egoaudio.system.files import StrPath

# What h5py raises for damage depends on where HDF5 finds it.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Extent:
    """Where an array lies in its file: ``shape[0]`` rows back to back, in C order."""

    offset: int
    """First byte."""
    shape: tuple[int, ...]
    """Rows first."""
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def stop(self) -> int:
        """First byte after the last row."""
        return self.offset + self.shape[0] * self.row_bytes


@contextmanager
def reading(path: StrPath, what: str) -> Iterator[None]:
    """Turn whatever h5py raises inside into a StoreError that names the file and the part."""
    try:
        yield
    except StoreError:
        raise
    except _HDF5_ERRORS as error:
        raise StoreError(f"{path}: {what} cannot be read, the file is damaged or foreign ({error})") from error


class RepackedArray:
    """A feature array that cannot be mapped: indexed by rows like one, and read through h5py while the file is open."""

    def __init__(self, dataset: h5py.Dataset, path: StrPath) -> None:
        self._dataset, self._path = dataset, path
        self.shape, self.dtype, self.ndim = dataset.shape, dataset.dtype, dataset.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read everything."""
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        """Return rows: ``[int]``, ``[slice]``, ``[integers or booleans]``, and further indices after a comma."""
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        index = np.arange(len(self))[rows]  # raises for what is out of range
        if not self._dataset:  # h5py's objects are false once their file is closed
            raise StoreError(f"{self._path} was closed, and this array is read from it: open it again")
        with reading(self._path, self._dataset.name):
            if index.ndim == 0:
                return self._dataset[int(index)][rest]
            wanted, inverse = np.unique(index, return_inverse=True)
            values = np.empty((len(wanted), *self.shape[1:]), self.dtype)
            # Consecutive rows at once: 8 times as fast as h5py's own fancy indexing.
            for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(wanted) != 1) + 1):
                if len(run):
                    values[run[0] : run[-1] + 1] = self._dataset[int(wanted[run[0]]) : int(wanted[run[-1]]) + 1]
        values = values[inverse.reshape(index.shape)]
        return values[(slice(None), *rest)] if rest else values


def open_regular(path: StrPath) -> BinaryIO:
    """Open a regular file: a pipe would block, a device might never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StoreError(f"{path} is not a regular file")
        with surroundings.lacking():  # too many open files
            return open(path, "rb")
    except (StoreError, ResourceError):
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise StoreError(f"{path!r} cannot be opened: {error}") from error


def open_hdf5(path: StrPath, raw: BinaryIO) -> h5py.File:
    """Open a path with h5py and make sure that it is still the file ``raw``."""
    try:
        file = h5py.File(path, "r")
    except _HDF5_ERRORS as error:
        with surroundings.lacking():  # too many open files
            known = h5py.is_hdf5(path)
        if not known:
            raise StoreError(f"{path} is not an HDF5 file") from error
        raise StoreError(
            f"{path} cannot be opened as HDF5: damaged, or cut short. Build or copy it again ({error})"
        ) from error
    if not os.path.samestat(os.fstat(file.id.get_vfd_handle()), os.fstat(raw.fileno())):
        file.close()
        raise StoreError(f"{path} was replaced while it was being opened: open it again")
    return file


def hard_links(group: h5py.Group, path: StrPath) -> set[str]:
    """Return the names in a group; a link that leads elsewhere is refused."""
    if not isinstance(group, h5py.Group):
        raise StoreError(f"{path}: {group.name} is not a group; the file is damaged or foreign")
    names = []
    for name in group.id:
        if group.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise StoreError(
                f"{path}: {group.name} links {name.decode(errors='replace')!r} to what may be any file: refused. "
                "Copy it with h5repack first"
            )
        names.append(name.decode(errors="replace"))
    return set(names)


def take_dataset(
    file: h5py.File,
    path: StrPath,
    name: str,
    types: "tuple[np.dtype, ...] | Mapping[str, str]",
    shape: tuple[int | None, ...],
) -> h5py.h5d.DatasetID:
    """Return a dataset that has one of the wanted types and the wanted shape, with its data in this very file.

    Parameters
    ----------
    file : h5py.File
    path : str
        For messages.
    name : str
    types : tuple of numpy.dtype, or dict of str to str
        Types allowed; or the columns of a table, "S" being a string of any length.
    shape : tuple of int or None
        None fits any length.
    """
    try:
        dataset = h5py.h5o.open(file.id, name.encode())  # in a sixth of the time of h5py's own objects
    except _HDF5_ERRORS as error:
        raise StoreError(
            f"{path}: /{name} is missing or cannot be opened; the file is damaged or foreign ({error})"
        ) from error
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise StoreError(f"{path}: /{name} is not a dataset; the file is damaged or foreign")
    plan = dataset.get_create_plist()
    if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
        raise StoreError(
            f"{path}: /{name} has its data in another file, which could be any file: refused. "
            "Copy it with h5repack first"
        )
    dtype = _dtype(dataset.get_type().encode())
    if not _fits(dtype, types):
        raise StoreError(f"{path}: /{name} has type {dtype}; the file is damaged or foreign")
    found = dataset.shape or ()
    if len(found) != len(shape) or any(
        wanted not in (None, length) for length, wanted in zip(found, shape, strict=True)
    ):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise StoreError(f"{path}: /{name} has shape {found}, expected ({expected}); the file is damaged or foreign")
    return dataset


@functools.lru_cache(maxsize=128)
def _dtype(encoded: bytes) -> np.dtype:
    """Return a type of HDF5, as it is encoded, for NumPy: a fifth of the time of opening a file, were it done anew."""
    return h5py.h5t.decode(encoded).dtype


def _fits(dtype: np.dtype, types: "tuple[np.dtype, ...] | Mapping[str, str]") -> bool:
    """Return whether a type is one of those wanted, or has the wanted columns."""
    if isinstance(types, tuple):
        return dtype in types
    if (
        dtype.names is None
        or dtype.names[: len(types)] != tuple(types)
        or any(dtype[name].kind not in "iufS" for name in dtype.names)
    ):
        return False  # columns of later versions are at the end
    return all(
        dtype[name].kind == "S" if kind == "S" else dtype[name] == np.dtype(kind) for name, kind in types.items()
    )


def find_extent(dataset: h5py.h5d.DatasetID, path: StrPath, name: str, num_bytes: int) -> Extent | None:
    """Return where a dataset lies in a file of ``num_bytes`` without a user block; None if not back to back."""
    extent = _extent(dataset)
    if extent is not None and extent.stop > num_bytes:
        raise StoreError(
            f"{path}: /{name} ends at byte {extent.stop:,}, the file at {num_bytes:,}: it was cut short. "
            "Build or copy it again"
        )
    return extent


def _extent(dataset: h5py.h5d.DatasetID) -> Extent | None:
    plan, shape = dataset.get_create_plist(), dataset.shape
    plain = _plain_dtype(_dtype(dataset.get_type().encode()))
    if 0 in shape:
        return Extent(0, shape, plain)
    if plan.get_nfilters():
        return None
    if plan.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.get_offset()
    elif plan.get_layout() == h5py.h5d.CHUNKED and plan.get_chunk()[1:] == shape[1:]:
        offset = _first_chunk(dataset, plan, shape, plain.itemsize)
    else:
        offset = None
    return None if offset is None else Extent(offset, shape, plain)


def _first_chunk(dataset: h5py.h5d.DatasetID, plan: Any, shape: tuple[int, ...], item_bytes: int) -> int | None:
    """Return the offset of the first chunk if all are back to back, else None.

    With fixed dimensions, no filter and early allocation HDF5 always writes the chunks in order, so the first and the
    last one suffice: 8 ms for 10^6 chunks. In any other case every chunk is checked (1.4 s for 10^6).
    """
    chunk = plan.get_chunk()
    chunk_rows = chunk[0]
    chunk_bytes = math.prod(chunk) * item_bytes
    num_chunks = -(-shape[0] // chunk_rows)
    rest = (0,) * (len(shape) - 1)
    first = dataset.get_chunk_info_by_coord((0, *rest)).byte_offset
    if first is None:
        return None
    if plan.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY and dataset.get_space().get_simple_extent_dims(True) == shape:
        last = dataset.get_chunk_info_by_coord(((num_chunks - 1) * chunk_rows, *rest)).byte_offset
        return first if last == first + (num_chunks - 1) * chunk_bytes else None
    seen = 0

    def misplaced(chunk: Any) -> bool | None:
        nonlocal seen
        seen += 1
        return None if chunk.byte_offset == first + chunk.chunk_offset[0] // chunk_rows * chunk_bytes else True

    stopped = dataset.chunk_iter(misplaced)
    return first if stopped is None and seen == num_chunks else None


def _plain_dtype(dtype: np.dtype) -> np.dtype:
    """Return a dtype without h5py's metadata of its strings, so that it pickles small and compares equal."""
    return dtype if dtype.names is None else np.dtype([(name, dtype[name].str) for name in dtype.names])


def plain_value(value: Any) -> Any:
    """Return an attribute as str, int, float or array."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value
