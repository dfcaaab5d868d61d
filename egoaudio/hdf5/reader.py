"""Open an egoaudio file: check it, find where its arrays lie, map them.

In: a path. Out: ``EgoAudioFile``, whose arrays are read-only memory maps and whose tables are structured arrays or
DataFrames. Only the structure is read on opening, so a million clips take milliseconds.

A file may be damaged or hostile, so everything is checked before it is used (``mapped_file``). An array that another
tool has repacked (compressed, say) cannot be mapped: it is read through h5py, with a warning.

Source: FORMAT.md.
"""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from egoaudio.config.build import FEATURES
from egoaudio.errors import Status, StoreError
from egoaudio.hdf5 import joined, schema
from egoaudio.hdf5.mapped_file import MappedFile
from egoaudio.hdf5.safe_access import Extent, RepackedArray, hard_links, plain_value, reading
from egoaudio.hdf5.schema import (
    CLASS_COLUMNS,
    CLIP_DTYPE,
    FINGERPRINT_BYTES,
    FORMAT,
    FORMAT_VERSION,
    INSTANCE_DTYPE,
    VIDEO_COLUMNS,
)
from egoaudio.system.files import StrPaths, as_paths


def open(path: StrPaths) -> "EgoAudioFile":
    """Open an egoaudio file for reading, or several as one; what is still being built gives a ``UserWarning``.

    Parameters
    ----------
    path : path, or sequence of path
        The file; a ``.partial`` of an unfinished build will do. Of several, such as the shards of a build, rows are
        numbered through; they must be of one configuration and class list.

    Returns
    -------
    EgoAudioFile

    Raises
    ------
    StoreError
        The file is missing, not HDF5, not an egoaudio file, of another version, damaged, or links to other files;
        or files do not belong together.

    Examples
    --------
    >>> import egoaudio
    >>> with egoaudio.open("ego.h5") as file:
    ...     file["spectrogram"].shape[1:], file.clips[file.usable].columns[0]
    ((32, 1025), 'video')
    """
    paths = as_paths(path)
    file = EgoAudioFile(paths[0]) if len(paths) == 1 else EgoAudioFiles(paths)
    for part in file.parts:
        if not part.complete:
            done = np.count_nonzero(part.video_table["status"] != Status.PLANNED)
            warnings.warn(
                f"{part.path if len(paths) > 1 else paths[0]} is incomplete: {done} of {part.num_videos} videos are "
                "done. Leave the other rows out with .usable, or run the same egoaudio-build again to finish it",
                stacklevel=2,
            )
    return file


class EgoAudioFile(MappedFile):
    """An egoaudio file, read-only; pickled as its path; a context manager.

    ``file["spectrogram"]`` is the whole array, a ``numpy.memmap`` (N, T, F). ``clips``, ``videos`` and ``classes`` are
    DataFrames, ``clip_table``, ``video_table`` and ``class_table`` the same as structured arrays (strings as bytes).
    They all include rows without data: ``file.clips[file.usable]`` leaves those out.

    Attributes
    ----------
    path : str
        Absolute.
    complete : bool
        False until the build has finished.
    config : dict
        The build's options by name.
    sample_rate : int
    clip_seconds, hop_seconds : float
    plan_sha256, created_utc, egoaudio_version : str
    features : tuple of str
        Names of the feature arrays.
    num_clips, num_videos, num_classes : int
    num_bytes : int
        Size of the file.
    identity : tuple of int
        Device and inode.
    """

    path: str
    complete: bool
    config: dict[str, Any]
    sample_rate: int
    clip_seconds: float
    hop_seconds: float
    plan_sha256: str
    created_utc: str
    egoaudio_version: str
    features: tuple[str, ...]
    num_clips: int
    num_videos: int
    num_classes: int
    num_bytes: int

    @property
    def parts(self) -> tuple["EgoAudioFile", ...]:
        """The file itself; of several files that were opened as one, each of them."""
        return (self,)

    @property
    def shard(self) -> str | None:
        """Which share of a build the file is, such as ``3/16``; None where it is no shard."""
        return self._attribute("shard")

    @property
    def whole_plan_sha256(self) -> str | None:
        """The ``plan_sha256`` of the build that the file is a shard of; None where it is no shard."""
        return self._attribute("whole_plan_sha256")

    def _attribute(self, name: str) -> str | None:
        """Return a text of the root that not every file has."""
        with reading(self.path, "the attributes of its root"):
            value = plain_value(self._h5.attrs[name]) if name in self._h5.attrs else None
        return value if isinstance(value, str) else None

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the parts are."""
        return tuple(part.path for part in self.parts)

    # ------------------------------------------------------------------------------------------------ structure

    def _read_root(self) -> None:
        kinds: dict[str, Any] = {
            "complete": int,
            "sample_rate": int,
            "clip_seconds": (int, float),
            "hop_seconds": (int, float),
            "config": str,
            "plan_sha256": str,
            "created_utc": str,
            "egoaudio_version": str,
        }
        self._root(FORMAT, FORMAT_VERSION, kinds, "an egoaudio file")
        self.complete = self.complete == 1
        self.config = json.loads(self.config)  # type: ignore[arg-type]
        if not isinstance(self.config, dict):
            raise StoreError(f"{self.path}: the root attribute config holds no options; the file is damaged or foreign")
        if not (self.sample_rate > 0 and 0 < self.clip_seconds < math.inf and 0 < self.hop_seconds < math.inf):
            raise StoreError(
                f"{self.path}: sample_rate {self.sample_rate}, clip_seconds {self.clip_seconds}, "
                f"hop_seconds {self.hop_seconds}: expected more than 0"
            )

    def _read_structure(self) -> None:
        links = {"": hard_links(self._h5, self.path)}
        for group in ("checksums", "statistics", "axes"):
            if group in links[""]:
                links[group] = hard_links(self._h5[group], self.path)
        self.num_clips = self._add("clips", (CLIP_DTYPE,), (None,))[0]
        self.num_videos = self._add("videos", VIDEO_COLUMNS, (None,))[0]
        self.num_classes = self._add("classes", CLASS_COLUMNS, (None,))[0]
        self._add("labels", (np.dtype("u1"),), (self.num_clips, self.num_classes))
        self._add("video_labels", (np.dtype("u1"),), (self.num_videos, self.num_classes))
        self.features = tuple(name for name in FEATURES if name in links[""])
        for name in self.features:
            self._add(
                name,
                (np.dtype("<f4"), np.dtype("<f2"), *([np.dtype("<i2")] if name == "waveform" else [])),
                (self.num_clips, None) if name == "waveform" else (self.num_clips, None, None),
            )
            self._add(f"checksums/{name}", (np.dtype("<u4"),), (self.num_videos,))
            self._add(f"statistics/{name}", (np.dtype("<f8"),), (self.num_videos, 3))
        if "instances" in links[""]:
            self._add("instances", (INSTANCE_DTYPE,), (None,))
        if "synced" in links[""]:
            self._add("synced", (np.dtype("u1"),), (self.num_videos,))
        if "fingerprints" in links[""]:
            self._add("fingerprints", (np.dtype("u1"),), (self.num_videos, FINGERPRINT_BYTES))
        self._axes = sorted(links.get("axes", ()))
        for name in self._axes:
            self._add(f"axes/{name}", (np.dtype("<f8"),), (None,))

    # --------------------------------------------------------------------------------------------------- arrays

    def __getitem__(self, name: str) -> np.ndarray | RepackedArray:
        """Return a feature array (N, ...): a read-only ``numpy.memmap``, or a ``RepackedArray``, indexed likewise."""
        if name not in self.features:
            raise KeyError(f"{self.path} has no {name!r}; it has {', '.join(self.features) or 'no features'}")
        if name not in self._arrays:
            if self.is_mapped(name):
                self._arrays[name] = self._map(name)
            else:
                warnings.warn(
                    f"{self.path}: /{name} was repacked by another tool, so it is read through h5py, 20 times slower "
                    "or more. For full speed: h5repack -f NONE -l CHUNK=... or build the file again",
                    stacklevel=2,
                )
                self._require_open()
                self._arrays[name] = RepackedArray(self._unmapped[name], self.path)
        return self._arrays[name]

    def scale(self, name: str) -> float:
        """Return what a stored number of a feature array is worth: 1, or the attribute of an array in int16."""
        return schema.require_scale(self.path, name, self[name].dtype, [part.attributes(name) for part in self.parts])

    def values(self, name: str, rows: Any) -> np.ndarray:
        """Return rows of a feature array as float32, in its units."""
        return np.asarray(self[name][rows], np.float32) * np.float32(self.scale(name))

    @property
    def labels(self) -> np.ndarray:
        """Multi-hot uint8 (N, C)."""
        return self._whole("labels")

    @property
    def video_labels(self) -> np.ndarray:
        """Multi-hot uint8 (V, C) over whole videos."""
        return self._whole("video_labels")

    def checksums(self, name: str) -> np.ndarray:
        """Return uint32 (V,): the CRC-32 of each video's rows of a feature array."""
        return self._whole(f"checksums/{name}")

    def statistics(self, name: str) -> np.ndarray:
        """Return float64 (V, 3): count, sum and sum of squares over each video's usable clips of a feature array."""
        return self._whole(f"statistics/{name}")

    @property
    def instances(self) -> np.ndarray:
        """The annotated actions (``video``, ``class_index``, ``start_seconds``, ``stop_seconds``), structured (I,)."""
        return self._whole("instances") if self._has("instances") else np.zeros(0, INSTANCE_DTYPE)

    @property
    def synced(self) -> np.ndarray:
        """uint8 (V,): 1 where a video's rows were known to be on disk when the build last wrote."""
        return self._whole("synced") if self._has("synced") else np.ones(self.num_videos, "u1")

    @property
    def fingerprints(self) -> np.ndarray:
        """uint8 (V, 32): which media file each video was made from; zeros in files of earlier versions."""
        unknown = np.zeros((self.num_videos, FINGERPRINT_BYTES), "u1")
        return self._whole("fingerprints") if self._has("fingerprints") else unknown

    @property
    def axes(self) -> dict[str, np.ndarray]:
        """``{name: float64 values}``: frequency_hz, mel_hz, frame_seconds, ..."""
        return {name: self._whole(f"axes/{name}") for name in self._axes}

    @property
    def usable(self) -> np.ndarray:
        """Bool (N,): the clip and its video have status 1, so that the row holds data."""
        video = self.clip_table["video"]
        done = self.video_table["status"] == Status.OK
        inside = (video >= 0) & (video < self.num_videos)
        if not done.size:
            return np.zeros(self.num_clips, bool)
        return (self.clip_table["status"] == Status.OK) & inside & done[np.where(inside, video, 0)]

    @property
    def trainable(self) -> np.ndarray:
        """Bool (N,): usable, and the annotations cover the clip."""
        return self.usable & (self.clip_table["labelled"] == 1)

    def count_classes(self) -> np.ndarray:
        """Return int64 (C,): in how many trainable clips each class is active, as ``/classes`` of a complete file."""
        counts, trainable = np.zeros(self.num_classes, np.int64), self.trainable
        for start in range(0, self.num_clips, 65536):
            rows = slice(start, start + 65536)
            counts += self.labels[rows][trainable[rows]].sum(axis=0, dtype=np.int64)
        return counts


class EgoAudioFiles(EgoAudioFile):
    """Several egoaudio files as one, in the order given: what an ``EgoAudioFile`` of all their videos would be.

    ``files["spectrogram"]`` is not a map but a ``JoinedArray``, indexed by rows likewise; tables and per-video arrays
    are copies. ``path`` names the first file and the number of others, ``plan_sha256`` is those of all, with spaces.

    Parameters
    ----------
    paths : sequence of path

    Raises
    ------
    StoreError
        As from ``open``; or there is no file, they disagree, or a video is in two of them.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        if not paths:
            raise StoreError("no egoaudio file was given: give one or more")
        self._arrays: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            self._parts = tuple(stack.enter_context(EgoAudioFile(path)) for path in paths)
            joined.require_agreement(self._parts)
            joined.require_no_video_twice(self._parts)
            self._opened = stack.pop_all()
        first = self._parts[0]
        for name in ("config", "sample_rate", "clip_seconds", "hop_seconds", "features", "num_classes", "identity"):
            setattr(self, name, getattr(first, name))
        more = len(self._parts) - 1
        self.path = first.path if not more else f"{first.path} and {more:,} more"
        self.complete = all(part.complete for part in self._parts)
        self.plan_sha256 = " ".join(part.plan_sha256 for part in self._parts)
        self.created_utc = max(part.created_utc for part in self._parts)
        self.egoaudio_version = ", ".join(sorted({part.egoaudio_version for part in self._parts}))
        self.num_clips, self.num_videos, self.num_bytes = (
            sum(getattr(part, name) for part in self._parts) for name in ("num_clips", "num_videos", "num_bytes")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the paths; the other process opens the files itself."""
        return type(self), (self.paths,)

    def close(self) -> None:
        """Close the files; maps and tables already taken stay valid, a ``RepackedArray`` can no longer be read."""
        self._arrays.clear()
        self._opened.close()

    @property
    def parts(self) -> tuple[EgoAudioFile, ...]:
        """The files."""
        return self._parts

    def _attribute(self, name: str) -> None:
        """Return nothing: several files are no shard."""

    @property
    def extents(self) -> dict[str, Extent]:
        """Nothing: no array lies in one place."""
        return {}

    def is_mapped(self, name: str) -> bool:
        """Return whether a feature array is a memory map in each file."""
        return all(part.is_mapped(name) for part in self._parts)

    def __getitem__(self, name: str) -> Any:
        """Return a feature array (N, ...): a ``JoinedArray``."""
        return self._join(name, lambda: joined.JoinedArray([part[name] for part in self._parts]))

    @property
    def labels(self) -> Any:
        """Multi-hot uint8 (N, C): a ``JoinedArray``."""
        return self._join("labels", lambda: joined.JoinedArray([part.labels for part in self._parts]))

    @property
    def instances(self) -> np.ndarray:
        """The annotated actions with their times, as of one file."""
        return self._join("instances", lambda: joined.join_instances(self._parts))

    @property
    def synced(self) -> np.ndarray:
        """uint8 (V,), as of one file."""
        return self._join("synced", lambda: np.concatenate([part.synced for part in self._parts]))

    @property
    def fingerprints(self) -> np.ndarray:
        """uint8 (V, 32), as of one file."""
        return self._join("fingerprints", lambda: np.concatenate([part.fingerprints for part in self._parts]))

    @property
    def axes(self) -> dict[str, np.ndarray]:
        """Those of the first file."""
        return self._parts[0].axes

    def attributes(self, name: str) -> dict[str, Any]:
        """Return a feature array's attributes, which all files have alike."""
        return self._parts[0].attributes(name)

    def _whole(self, name: str) -> Any:
        """Return a table or a per-video array of all files."""
        tables = {"clips": joined.join_clips, "videos": joined.join_videos, "classes": joined.join_classes}
        if name in tables:
            return self._join(name, lambda: tables[name](self._parts))
        return self._join(name, lambda: np.concatenate([part._whole(name) for part in self._parts]))

    def _join(self, name: str, make: Callable[[], Any]) -> Any:
        """Return an array that is made once."""
        if name not in self._arrays:
            self._arrays[name] = make()
        return self._arrays[name]
