"""An HDF5 file of the package, open for reading: checked before it is used, its arrays read-only memory maps.

In: a path. Out: a ``MappedFile``, with a subclass for each format: ``reader.EgoAudioFile``, ``scores_file.ScoresFile``.
A file may be damaged or hostile, so everything is checked: types and shapes, that no link and no dataset leads to
another file, and that each array ends before the file does (a map beyond the end is a SIGBUS, which no ``except`` can
catch). Errors are a ``StoreError`` that names the file and the part.
"""

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from egoaudio.errors import StoreError
from egoaudio.hdf5.safe_access import Extent, find_extent, open_hdf5, open_regular, plain_value, reading, take_dataset
from egoaudio.hdf5.tables import to_data_frame
from egoaudio.system import surroundings

if TYPE_CHECKING:
    import pandas

_SCALE_ATTRIBUTES = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"}  # HDF5's own, of dimension scales
_LARGEST_READ_BYTES = 1 << 28
_LARGEST_RATIO = 1032  # of deflate
_Self = TypeVar("_Self", bound="MappedFile")


class MappedFile:
    """An HDF5 file of the package, read-only; pickled as its path; a context manager.

    Attributes
    ----------
    path : str
        Absolute.
    num_bytes : int
        Size of the file.
    identity : tuple of int
        Device and inode.
    """

    path: str
    num_bytes: int

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._arrays: dict[str, Any] = {}
        self._extents: dict[str, Extent] = {}
        self._unmapped: dict[str, Any] = {}  # open ones make closing a file ten times as long
        self._attributes: dict[str, dict[str, Any]] = {}
        self._bytes: np.ndarray | None = None
        with open_regular(self.path) as raw:
            info = os.fstat(raw.fileno())
            self.num_bytes, self.identity = info.st_size, (info.st_dev, info.st_ino)
            self._h5 = open_hdf5(self.path, raw)
            try:
                self._has_user_block = self._h5.userblock_size > 0  # before which nothing can be mapped
                with reading(self.path, "its structure"):
                    self._read_root()
                    self._read_structure()
                if self._extents:
                    self._bytes = self._map_file(raw)
            except BaseException:
                self._h5.close()
                raise

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path; the other process opens the file itself."""
        return type(self), (self.path,)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; maps and tables already taken stay valid, a ``RepackedArray`` can no longer be read."""
        self._arrays.clear()
        self._bytes = None
        self._h5.close()

    def _require_open(self) -> None:
        """Raise StoreError once the file was closed."""
        if not self._h5:  # h5py's objects are false then
            raise StoreError(f"{self.path} was closed: open it again, or take its arrays before")

    def _map_file(self, raw: BinaryIO) -> np.ndarray:
        """Map the whole file: each map takes an open file, of which a process may have few, so all arrays share one."""
        try:
            with surroundings.lacking():
                return np.memmap(raw, np.uint8, "r", shape=(self.num_bytes,))
        except (OSError, ValueError) as error:  # the latter where it was cut short meanwhile
            raise StoreError(f"{self.path} cannot be mapped into memory: {error}") from error

    def _read_root(self) -> None:
        """Check the root's attributes and keep them."""
        raise NotImplementedError

    def _read_structure(self) -> None:
        """Add every dataset of the format with ``_add``."""
        raise NotImplementedError

    def _root(self, file_format: str, version: int, kinds: dict[str, Any], what: str) -> None:
        """Check that the root is that of such a file, and keep its attributes."""
        stored = self._h5.attrs
        root = {name: plain_value(stored[name]) for name in stored}
        if root.get("format") != file_format:
            raise StoreError(f"{self.path} is HDF5, but not {what}: its root has no attribute format={file_format!r}")
        if root.get("format_version") != version:
            raise StoreError(
                f"{self.path} has format version {root.get('format_version')}, and this egoaudio reads version "
                f"{version}: use the egoaudio that wrote it, or build the file again"
            )
        for name, kind in kinds.items():
            if not isinstance(root.get(name), kind):
                raise StoreError(
                    f"{self.path}: the root attribute {name} is {root.get(name, 'missing')!r}; "
                    "the file is damaged or foreign"
                )
            setattr(self, name, root[name])

    def _add(self, name: str, types: Any, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Add a dataset, once its type, shape and place have been checked; return its shape."""
        dataset = take_dataset(self._h5, self.path, name, types, shape)
        extent = None if self._has_user_block else find_extent(dataset, self.path, name, self.num_bytes)
        if extent is not None:
            self._extents[name] = extent
        else:
            self._unmapped[name] = self._h5[name]
        return dataset.shape

    def _has(self, name: str) -> bool:
        """Return whether there is such a dataset."""
        return name in self._extents or name in self._unmapped

    @property
    def extents(self) -> dict[str, Extent]:
        """``{dataset: Extent}`` of all that can be mapped, such as ``"checksums/mfcc"``."""
        return dict(self._extents)

    def is_mapped(self, name: str) -> bool:
        """Return whether a feature array is one memory map."""
        return name in self._extents

    def _map(self, name: str) -> np.ndarray:
        extent = self._extents[name]
        if 0 in extent.shape:  # nothing can be mapped there
            empty = np.empty(extent.shape, extent.dtype)
            empty.flags.writeable = False
            return empty
        self._require_open()
        assert self._bytes is not None
        return self._bytes[extent.offset : extent.stop].view(extent.dtype).reshape(extent.shape)

    def _whole(self, name: str) -> Any:
        """Return a table or a small array: mapped if possible, else read."""
        if name not in self._arrays:
            if self.is_mapped(name):
                self._arrays[name] = self._map(name)
            else:
                self._arrays[name] = self._read(name)
        return self._arrays[name]

    def _read(self, name: str) -> np.ndarray:
        """Read what cannot be mapped, unless its size is impossible: a few bytes of HDF5 can claim to be terabytes."""
        self._require_open()
        dataset = self._unmapped[name]
        with reading(self.path, f"/{name}"):
            stored = dataset.id.get_storage_size()
            if dataset.nbytes > max(_LARGEST_READ_BYTES, _LARGEST_RATIO * stored):
                raise StoreError(
                    f"{self.path}: /{name} claims {dataset.nbytes:,} bytes and holds {stored:,}; "
                    "the file is damaged or foreign"
                )
            return dataset[()]

    @property
    def clip_table(self) -> np.ndarray:
        """``/clips`` as a structured array (N,)."""
        return self._whole("clips")

    @property
    def video_table(self) -> np.ndarray:
        """``/videos`` as a structured array (V,), strings as UTF-8 bytes."""
        return self._whole("videos")

    @property
    def class_table(self) -> np.ndarray:
        """``/classes`` as a structured array (C,), strings as UTF-8 bytes."""
        return self._whole("classes")

    @cached_property
    def clips(self) -> "pandas.DataFrame":
        """``/clips`` as a DataFrame."""
        return to_data_frame(self.clip_table)

    @cached_property
    def videos(self) -> "pandas.DataFrame":
        """``/videos`` as a DataFrame, strings decoded."""
        return to_data_frame(self.video_table)

    @cached_property
    def classes(self) -> "pandas.DataFrame":
        """``/classes`` as a DataFrame, strings decoded."""
        return to_data_frame(self.class_table)

    def attributes(self, name: str) -> dict[str, Any]:
        """Return a feature array's attributes: units, axes, and the parameters that made it."""
        if name not in self._attributes:
            self._require_open()
            with reading(self.path, f"the attributes of /{name}"):
                stored = self._h5[name].attrs
                found = {key: plain_value(stored[key]) for key in stored if key not in _SCALE_ATTRIBUTES}
            self._attributes[name] = found
        return dict(self._attributes[name])
