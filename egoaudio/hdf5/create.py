"""Lay out an egoaudio file: all names, types and places, without rows.

In: a ``Layout``. Out: a closed HDF5 file whose arrays lie at fixed places, ready for positioned writes; and, in the
end, the mark that it is complete. Once the file has its name, HDF5 never has it open for writing, so a file whose
build was killed at any instant can be opened.

Conventions: other tools can read the file without egoaudio. Version 1.10 of HDF5, fixed shapes, no filters, space
allocated early and never filled: HDF5 then puts the chunks of an array back to back. Fixed-length strings, no booleans,
no modification times (the same layout gives the same bytes).

Source: FORMAT.md, with the reasons and the measurements. With ``safe_access``, the only user of h5py.
"""

import contextlib
import errno
import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from egoaudio._version import __version__
from egoaudio.errors import StoreError
from egoaudio.hdf5.schema import (
    ALIGNMENT,
    CLIP_DTYPE,
    FINGERPRINT_BYTES,
    FORMAT,
    FORMAT_VERSION,
    INSTANCE_DTYPE,
    Layout,
    encode,
)
from egoaudio.system import files
from egoaudio.system.files import StrPath

_Attributes = Mapping[str, str | int | float]


def lay_out(path: StrPath, layout: Layout) -> None:
    """Create the whole file without its rows; it appears under ``path`` when it is complete, closed and on disk.

    The same layout gives the same bytes. The file is sparse: it takes a few pages until rows are written or reserved.

    Parameters
    ----------
    path : str or os.PathLike
        Replaced if it exists.
    layout : Layout

    Raises
    ------
    StoreError
        The file cannot be created, or would be larger than the file system or a limit allows.
    """
    with drafting(path, layout):
        pass


def drafting(path: StrPath, layout: Layout) -> contextlib.AbstractContextManager[str]:
    """Lay out the file as ``lay_out`` does, but yield it under a temporary name, for rows that are known beforehand.

    Yields
    ------
    str
        Path of the draft; it appears under ``path`` when the block ends, and is removed if the block raises.
    """
    return _drafting(path, layout.num_bytes, functools.partial(_create, layout=layout))


def drafting_tables(
    path: StrPath, attributes: _Attributes, tables: Mapping[str, tuple[tuple[int, ...], Any, _Attributes]]
) -> contextlib.AbstractContextManager[str]:
    """Likewise lay out a file of another format: tables and arrays without chunks.

    Parameters
    ----------
    path : str or os.PathLike
    attributes : mapping of str to str, int or float
        Of the root.
    tables : mapping of str to (shape, dtype, attributes)
        Of each dataset, by its name.
    """

    def create(draft: str) -> None:
        with _new_file(draft) as file:
            _set_attributes(file, attributes)
            for name, (shape, dtype, its_attributes) in tables.items():
                _set_attributes(_dataset(file, name, shape, dtype), its_attributes)

    sizes = [np.dtype(dtype).itemsize * math.prod(shape) + ALIGNMENT for shape, dtype, _ in tables.values()]
    return _drafting(path, sum(sizes) + 4 * ALIGNMENT, create)


@contextlib.contextmanager
def _drafting(path: StrPath, num_bytes: int, create: Callable[[str], None]) -> Iterator[str]:
    """Yield the path of a draft that ``create(path)`` has made; ``num_bytes`` is its approximate size."""
    path = os.fspath(path)
    try:
        with files.replacing(path) as draft:
            os.ftruncate(draft.fileno(), num_bytes)  # if it is too large, this says so with an errno, unlike HDF5
            os.ftruncate(draft.fileno(), 0)
            create(draft.name)
            if not os.path.samestat(os.stat(draft.name, follow_symlinks=False), os.fstat(draft.fileno())):
                raise OSError(errno.EEXIST, "its draft was replaced by another file while it was made")
            yield draft.name
    except StoreError:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        raise StoreError(files.explain(path, error, num_bytes)) from error


def _new_file(path: str) -> h5py.File:
    """Return a new HDF5 file, open for writing."""
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    creation.set_attr_phase_change(64, 0)  # keeps all of the root's attributes in its header
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_alignment(1, ALIGNMENT)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access))


def _create(path: str, layout: Layout) -> None:
    with _new_file(path) as file:
        root: _Attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": 0,
            "created_utc": layout.created_utc,
            "egoaudio_version": __version__,
            "sample_rate": layout.sample_rate,
            "clip_seconds": float(layout.clip_seconds),
            "hop_seconds": float(layout.hop_seconds),
            "config": layout.config,
            "plan_sha256": layout.plan_sha256,
            **layout.shard_of,
        }
        _set_attributes(file, root)
        num_clips, num_videos, num_classes = layout.num_clips, layout.num_videos, layout.num_classes
        _dataset(file, "clips", (num_clips,), CLIP_DTYPE)
        _dataset(file, "labels", (num_clips, num_classes), "u1")
        _dataset(file, "videos", (num_videos,), layout.video_dtype)
        _dataset(file, "video_labels", (num_videos, num_classes), "u1")
        _dataset(file, "classes", (num_classes,), layout.class_dtype)
        _set_attributes(
            _dataset(file, "instances", (layout.num_instances,), INSTANCE_DTYPE), layout.instance_attributes
        )
        _dataset(file, "synced", (num_videos,), "u1")
        groups = {name: h5py.Group(_group(file, name)) for name in ("checksums", "statistics", "axes")}
        for name, values in layout.axes.items():
            scale = _dataset(groups["axes"], name, np.shape(values), "<f8")
            scale[...] = values
            scale.make_scale(name)
        for array in layout.arrays:
            shape = (num_clips, *array.row_shape)
            dataset = _dataset(
                file, array.name, shape, np.dtype(array.dtype).newbyteorder("<"), array.chunk_rows(num_clips)
            )
            _set_attributes(dataset, array.attributes)
            # No dimension labels: they have variable length, and PyTables crashes on them. "axes" has the same names.
            for dimension, name in enumerate(array.axis_names):
                if name in layout.axes:
                    dataset.dims[dimension].attach_scale(groups["axes"][name])
            _dataset(groups["checksums"], array.name, (num_videos,), "<u4")
            _dataset(groups["statistics"], array.name, (num_videos, 3), "<f8")
        _dataset(file, "fingerprints", (num_videos, FINGERPRINT_BYTES), "u1")


def _group(parent: h5py.Group, name: str) -> Any:
    plan = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    plan.set_obj_track_times(False)
    return h5py.h5g.create(parent.id, os.fsencode(name), gcpl=plan)


def _dataset(
    parent: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, chunk_rows: int | None = None
) -> h5py.Dataset:
    """Create a dataset whose place in the file is fixed now and whose rows are not written; FORMAT.md says why."""
    dtype = np.dtype(dtype)
    if dtype.names is not None:
        dtype = np.dtype(
            [
                (key, h5py.string_dtype("utf-8", dtype[key].itemsize) if dtype[key].kind == "S" else dtype[key])
                for key in dtype.names
            ]
        )
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    if chunk_rows is not None and shape[0] > 0:  # HDF5 has no chunks of nothing
        plan.set_chunk((chunk_rows, *shape[1:]))
    return h5py.Dataset(
        h5py.h5d.create(
            parent.id, os.fsencode(name), h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape), plan
        )
    )


def _set_attributes(item: h5py.Group | h5py.Dataset, attributes: _Attributes) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):
            raw = encode(value) or b"\0"
            item.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", len(raw)))
        elif isinstance(value, bool):
            item.attrs.create(name, np.uint8(value))  # HDF5 has no booleans: other tools would see an enum
        else:
            item.attrs.create(name, np.int64(value) if isinstance(value, int) else np.asarray(value, "<f8"))


def mark_complete(path: StrPath) -> None:
    """Set the root's ``complete`` to 1, on disk, in one write of a few bytes.

    HDF5 works on an overlay that keeps its writes in memory; only the bytes that differ in the end are written to the
    real file, so it is never in a state in which HDF5 refuses to open it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            overlay = _Overlay(descriptor)
            with h5py.File(overlay, "r+", libver=("v110", "v110")) as file:
                file.attrs.modify("complete", np.int64(1))
            start, raw = overlay.difference()
            os.fsync(descriptor)  # every row first
            files.write_all(descriptor, raw, start)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:
        raise StoreError(files.explain(path, error)) from error


class _Overlay(io.RawIOBase):
    """A file-like object for h5py: reads come from a descriptor, writes stay in memory."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        if size is not None and size != self._size:
            raise OSError(errno.EPERM, f"a change of size from {self._size:,} to {size:,} bytes")
        return self._size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for page, inside, part in self._parts(len(view)):
            view[part] = self._page(page)[inside]
        self._position += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, inside, part in self._parts(len(view)):
            self._pages[page] = bytearray(self._page(page))
            self._pages[page][inside] = view[part]
        self._position += len(view)
        return len(view)

    def difference(self) -> tuple[int, bytes]:
        """Return ``(offset, bytes)``: the shortest write that makes the real file equal to this one."""
        changed = {page: raw for page, raw in self._pages.items() if raw != self._read(page)}
        if not changed:
            return 0, b""
        first, last = min(changed), max(changed)
        ours = b"".join(self._page(page) for page in range(first, last + 1))
        theirs = b"".join(self._read(page) for page in range(first, last + 1))
        different = np.flatnonzero(np.frombuffer(ours, "u1") != np.frombuffer(theirs, "u1"))
        return first * ALIGNMENT + int(different[0]), ours[different[0] : different[-1] + 1]

    def _parts(self, size: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield ``(page, slice inside it, slice of the data)`` for the next ``size`` bytes."""
        done = 0
        while done < size:
            page, start = divmod(self._position + done, ALIGNMENT)
            count = min(ALIGNMENT - start, size - done)
            yield page, slice(start, start + count), slice(done, done + count)
            done += count

    def _page(self, page: int) -> bytes | bytearray:
        return self._pages.get(page) or self._read(page)

    def _read(self, page: int) -> bytes:
        return os.pread(self._descriptor, ALIGNMENT, page * ALIGNMENT).ljust(ALIGNMENT, b"\0")
