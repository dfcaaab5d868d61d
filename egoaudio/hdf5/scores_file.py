"""The file of scores, version 1: a network's scores of every clip of some recordings. See FORMAT.md.

In: a table of the classes, then the rows of one recording after the other. Out: an HDF5 file, written as a whole or not
at all, and ``ScoresFile``, which reads it as ``EgoAudioFile`` reads an egoaudio file: the same ``/clips``, ``/videos``.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from egoaudio._version import __version__
from egoaudio.errors import Status, StoreError
from egoaudio.hdf5 import create
from egoaudio.hdf5.mapped_file import MappedFile
from egoaudio.hdf5.safe_access import hard_links
from egoaudio.hdf5.schema import CLIP_DTYPE, FINGERPRINT_BYTES, VIDEO_COLUMNS, encode
from egoaudio.hdf5.writer import Extents, RowWriter

FORMAT = "egoaudio-scores"
FORMAT_VERSION = 1
CLASS_COLUMNS = {
    "class_id": "S",
    "name": "S",
    "num_clips": "<i8",
    "onset": "<f8",
    "offset": "<f8",
    "slope": "<f8",
    "intercept": "<f8",
}
_ROOT = {
    "complete": int,
    "egoaudio_version": str,
    "sample_rate": int,
    "clip_seconds": (int, float),
    "hop_seconds": (int, float),
    "smooth_clips": int,
    "config": str,
    "build": str,
    "feature": str,
    "label_mode": str,
    "checkpoint": str,
    "checkpoint_sha256": str,
    "plan_sha256": str,
    "scoring_sha256": str,
    "source": str,
}


def class_table(class_ids: list[str], names: list[str], **columns: np.ndarray) -> np.ndarray:
    """Return the rows of ``/classes``: ids and names, and the other columns of ``CLASS_COLUMNS`` that are given."""
    texts = {"class_id": [encode(text) for text in class_ids], "name": [encode(text) for text in names]}
    longest = {name: max((len(raw) for raw in raws), default=0) or 1 for name, raws in texts.items()}
    table = np.zeros(
        len(class_ids),
        [(name, f"S{longest[name]}" if kind == "S" else kind) for name, kind in CLASS_COLUMNS.items()],
    )
    for name, values in (texts | columns).items():
        table[name] = values
    return table


@contextlib.contextmanager
def writing(
    path: str | os.PathLike[str],
    attributes: Mapping[str, str | int | float],
    classes: np.ndarray,
    video_dtype: np.dtype,
    num_videos: int,
    num_clips: int,
) -> Iterator[RowWriter]:
    """Make a file of scores; it appears under ``path``, whole and on disk, when the block ends.

    Parameters
    ----------
    path : str or os.PathLike
        Replaced if it exists.
    attributes : mapping
        Those of ``_ROOT`` except ``complete`` and the version.
    classes : ndarray
        From ``class_table``.
    video_dtype : numpy.dtype
        From ``schema.video_dtype``.
    num_videos, num_clips : int

    Yields
    ------
    RowWriter
        For ``scores``, ``clips``, ``videos``, ``fingerprints`` and, once more, ``classes``.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    root: dict[str, str | int | float] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": 1,
        "egoaudio_version": __version__,
    }
    scores = {"units": "1", "axes": "clip,class"}
    tables: dict[str, Any] = {
        "scores": ((num_clips, len(classes)), "<f4", scores),
        "clips": ((num_clips,), CLIP_DTYPE, {}),
        "videos": ((num_videos,), video_dtype, {}),
        "classes": ((len(classes),), classes.dtype, {}),
        "fingerprints": ((num_videos, FINGERPRINT_BYTES), "u1", {}),
    }
    with create.drafting_tables(path, root | dict(attributes), tables) as draft:
        with ScoresFile(draft) as file:
            extents = Extents(file.extents, file.identity)
        with RowWriter(draft, extents) as writer:
            writer.write("classes", 0, classes)
            yield writer
            writer.sync()


class ScoresFile(MappedFile):
    """A file of scores, read-only; a context manager.

    ``scores`` is the whole array (N, C). ``clips``, ``videos`` and ``classes`` are DataFrames, ``clip_table``,
    ``video_table`` and ``class_table`` the same as structured arrays.

    Attributes
    ----------
    path : str
        Absolute.
    num_clips, num_videos, num_classes : int
    sample_rate : int
        Of the recordings after resampling, in Hz.
    clip_seconds, hop_seconds : float
    smooth_clips : int
        Over how many neighbouring clips on each side scores are averaged before they become segments.
    config, build : dict
        All options of the prediction, and those of the build that makes the same features, by name.
    feature, label_mode : str
        The network's input; and ``multi``, independent scores, or ``single``, scores that add up to 1.
    checkpoint, checkpoint_sha256 : str
        The model.
    plan_sha256 : str
        Of the file that it was trained on.
    scoring_sha256 : str
        Of everything that determines a recording's scores besides the recording.
    source : str
        The egoaudio file that was scored; empty if media were.
    """

    complete: int
    egoaudio_version: str
    sample_rate: int
    clip_seconds: float
    hop_seconds: float
    smooth_clips: int
    config: dict[str, Any]
    build: dict[str, Any]
    feature: str
    label_mode: str
    checkpoint: str
    checkpoint_sha256: str
    plan_sha256: str
    scoring_sha256: str
    source: str
    num_clips: int
    num_videos: int
    num_classes: int

    def _read_root(self) -> None:
        self._root(FORMAT, FORMAT_VERSION, _ROOT, "a file of scores")
        for name in ("config", "build"):
            options = json.loads(getattr(self, name))
            if not isinstance(options, dict):
                raise StoreError(
                    f"{self.path}: the root attribute {name} holds no options; the file is damaged or foreign"
                )
            setattr(self, name, options)

    def _read_structure(self) -> None:
        hard_links(self._h5, self.path)
        self.num_clips = self._add("clips", (CLIP_DTYPE,), (None,))[0]
        self.num_videos = self._add("videos", VIDEO_COLUMNS, (None,))[0]
        self.num_classes = self._add("classes", CLASS_COLUMNS, (None,))[0]
        self._add("scores", (np.dtype("<f4"),), (self.num_clips, self.num_classes))
        self._add("fingerprints", (np.dtype("u1"),), (self.num_videos, FINGERPRINT_BYTES))

    @property
    def scores(self) -> np.ndarray:
        """float32 (N, C), from 0 to 1, of each clip alone; NaN for a clip without sound."""
        return self._whole("scores")

    @property
    def fingerprints(self) -> np.ndarray:
        """uint8 (V, 32): which media file each video is."""
        return self._whole("fingerprints")

    @property
    def usable(self) -> np.ndarray:
        """Bool (N,): the clip has sound and was scored."""
        return self.clip_table["status"] == Status.OK

    def rows_of(self, video: int) -> slice:
        """Return the rows of a video's clips; raise a StoreError if there are not as many."""
        row = self.video_table[video]
        first, count = int(row["first_clip"]), int(row["num_clips"])
        if not 0 <= first <= first + count <= self.num_clips:
            raise StoreError(
                f"{self.path}: /videos: row {video} names clips that do not exist; the file is damaged or foreign"
            )
        return slice(first, first + count)
