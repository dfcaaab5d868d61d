"""Open an egoaudio file: check it, find where its arrays lie, map them.

In: a path. Out: ``EgoAudioFile``, whose arrays are read-only memory maps and whose tables are structured arrays or
DataFrames. Only the structure is read on opening, so a million clips take milliseconds.

A file may be damaged or hostile, so everything is checked before it is used (``mapped_file``). An array that another
tool has repacked (compressed, say) cannot be mapped: it is read through h5py, with a warning.

Source: FORMAT.md.
"""

import json
import math
import os
import warnings
from typing import Any

import numpy as np

from egoaudio.config.build import FEATURES
from egoaudio.errors import Status, StoreError
from egoaudio.hdf5.mapped_file import MappedFile
from egoaudio.hdf5.safe_access import RepackedArray, hard_links
from egoaudio.hdf5.schema import (
    CLASS_COLUMNS,
    CLIP_DTYPE,
    FINGERPRINT_BYTES,
    FORMAT,
    FORMAT_VERSION,
    INSTANCE_DTYPE,
    VIDEO_COLUMNS,
)


def open(path: str | os.PathLike[str]) -> "EgoAudioFile":
    """Open an egoaudio file for reading; one that is still being built gives a ``UserWarning``.

    Parameters
    ----------
    path : str or os.PathLike
        The file; a ``.partial`` of an unfinished build will do.

    Returns
    -------
    EgoAudioFile

    Raises
    ------
    StoreError
        The file is missing, not HDF5, not an egoaudio file, of another version, damaged, or links to other files.

    Examples
    --------
    >>> import egoaudio
    >>> with egoaudio.open("ego.h5") as file:
    ...     file["spectrogram"].shape[1:], file.clips[file.usable].columns[0]
    ((32, 1025), 'video')
    """
    file = EgoAudioFile(path)
    if not file.complete:
        done = np.count_nonzero(file.video_table["status"] != Status.PLANNED)
        warnings.warn(
            f"{path} is incomplete: {done} of {file.num_videos} videos are done. Leave the other rows out with "
            ".usable, or run the same egoaudio-build again to finish it",
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
                (np.dtype("<f4"), np.dtype("<f2")),
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
                self._arrays[name] = RepackedArray(self._datasets[name])
        return self._arrays[name]

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
        return self._whole("instances") if "instances" in self._datasets else np.zeros(0, INSTANCE_DTYPE)

    @property
    def synced(self) -> np.ndarray:
        """uint8 (V,): 1 where a video's rows were known to be on disk when the build last wrote."""
        return self._whole("synced") if "synced" in self._datasets else np.ones(self.num_videos, "u1")

    @property
    def fingerprints(self) -> np.ndarray:
        """uint8 (V, 32): which media file each video was made from; zeros in files of earlier versions."""
        unknown = np.zeros((self.num_videos, FINGERPRINT_BYTES), "u1")
        return self._whole("fingerprints") if "fingerprints" in self._datasets else unknown

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
