"""What an egoaudio file is made of: names, types, sizes; the description of a file before it exists.

``Layout`` is everything about a file except its rows; ``create.lay_out`` makes it. Strings are UTF-8 of a fixed length
that each file chooses; there are no booleans. NumPy only.

Source: FORMAT.md.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from egoaudio.errors import StoreError

FORMAT = "egoaudio"
FORMAT_VERSION = 1
CLIP_DTYPE = np.dtype(
    [
        ("video", "<i4"),
        ("start_seconds", "<f8"),
        ("stop_seconds", "<f8"),
        ("num_samples", "<i4"),
        ("labelled", "u1"),
        ("status", "u1"),
    ]
)
INSTANCE_DTYPE = np.dtype([("video", "<i4"), ("class_index", "<i4"), ("start_seconds", "<f8"), ("stop_seconds", "<f8")])

# "S" stands for a fixed-length string, whose length each file chooses.
VIDEO_COLUMNS = {
    "video_id": "S",
    "file": "S",
    "split": "S",
    "subject": "S",
    "scene": "S",
    "egocentric": "u1",
    "duration_seconds": "<f8",
    "sample_rate": "<i4",
    "channels": "<i2",
    "first_clip": "<i8",
    "num_clips": "<i4",
    "status": "u1",
    "lost_samples": "<i8",
    "error": "S",
}
# Added at the end of /videos after the first release of version 1: files without them, or with more, are read, too.
ADDED_VIDEO_COLUMNS = {
    "gap_samples": "<i8",
    "clock_jumps": "<i4",
    "bad_parts": "<i4",
    "peak_db": "<f4",
    "rms_db": "<f4",
    "cancels_out": "u1",
}
SILENT_DB = -80.0  # a recording whose peak is below this is silent
FINGERPRINT_BYTES = 32
CLASS_COLUMNS = {"class_id": "S", "name": "S", "num_clips": "<i8"}
ALIGNMENT = 4096  # a page: every array starts on one
CHUNK_BYTES = 128 * 1024  # whole clips, as many as fit, at least one
ERROR_BYTES = 240  # longest reason of a failed video


@dataclass(frozen=True)
class ArrayLayout:
    """A feature array to lay out."""

    name: str
    """One of ``config.build.FEATURES``."""
    row_shape: tuple[int, ...]
    """Shape of one clip: (T, F), or (num_samples,) for the waveform."""
    dtype: str
    """float32, float16, or int16 for the waveform."""
    attributes: Mapping[str, str | int | float]
    """``units``, ``axes`` (comma-separated, the clip's first; those in ``Layout.axes`` become scales), parameters."""

    @property
    def axis_names(self) -> list[str]:
        """Name of each dimension, the clip's first."""
        return [name.strip() for name in str(self.attributes["axes"]).split(",")]

    @property
    def row_bytes(self) -> int:
        """Bytes of one clip."""
        return np.dtype(self.dtype).itemsize * math.prod(self.row_shape)

    def chunk_rows(self, num_clips: int) -> int:
        """Return how many whole clips make a chunk, which may not be longer than the array."""
        return max(1, min(num_clips, CHUNK_BYTES // self.row_bytes))


@dataclass(frozen=True)
class Layout:
    """Everything about a file except its rows."""

    num_clips: int
    num_videos: int
    num_classes: int
    video_dtype: np.dtype
    """Row of /videos, from ``video_dtype``, with strings of lengths that the build chooses."""
    class_dtype: np.dtype
    """Row of /classes, from ``class_dtype``."""
    arrays: tuple[ArrayLayout, ...]
    sample_rate: int
    clip_seconds: float
    hop_seconds: float
    config: str
    """The whole build configuration, JSON."""
    plan_sha256: str
    """Hexadecimal; what the file is a build of."""
    created_utc: str
    """ISO 8601."""
    axes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """``{name: float64 values}`` under /axes."""
    num_instances: int = 0
    """Rows of /instances, the annotated actions with their times."""
    instance_attributes: Mapping[str, int] = field(default_factory=dict)
    """Attributes of /instances: how many lie beyond the sound."""
    shard_of: Mapping[str, str] = field(default_factory=dict)
    """Further attributes of a shard's root: ``shard`` and ``whole_plan_sha256``."""

    def __post_init__(self) -> None:
        """Check that each named axis is as long as the dimension it describes."""
        for array in self.arrays:
            for length, name in zip(array.row_shape, array.axis_names[1:], strict=True):
                if name in self.axes and len(self.axes[name]) != length:
                    raise ValueError(
                        f"axis {name} has {len(self.axes[name])} values, and /{array.name} has length {length} along it"
                    )

    @property
    def num_bytes(self) -> int:
        """Size of the file, accurate to a page for each array and a little for the structure."""
        tables = (
            self.num_clips * (CLIP_DTYPE.itemsize + self.num_classes) + self.num_classes * self.class_dtype.itemsize
        )
        tables += self.num_instances * INSTANCE_DTYPE.itemsize
        tables += self.num_videos * (
            self.video_dtype.itemsize + self.num_classes + 1 + FINGERPRINT_BYTES + len(self.arrays) * (4 + 3 * 8)
        )
        data = 0
        for array in self.arrays:
            rows = array.chunk_rows(self.num_clips)
            data += -(-self.num_clips // rows) * rows * array.row_bytes
        return tables + data + ALIGNMENT * (14 + 8 * len(self.arrays) + len(self.axes))


_Texts = Iterable[str] | np.ndarray  # text, or an array of UTF-8


def video_dtype(*, video_id: _Texts, file: _Texts, split: _Texts, subject: _Texts, scene: _Texts) -> np.dtype:
    """Return the row type of /videos in which every text of the given columns fits; ``error`` holds 240 bytes."""
    texts = {"video_id": video_id, "file": file, "split": split, "subject": subject, "scene": scene}
    columns = (VIDEO_COLUMNS | ADDED_VIDEO_COLUMNS).items()
    return np.dtype(
        [
            (name, _string(texts[name]) if name in texts else f"S{ERROR_BYTES}" if kind == "S" else kind)
            for name, kind in columns
        ]
    )


def class_dtype(*, class_id: Iterable[str], name: Iterable[str]) -> np.dtype:
    """Return the row type of /classes in which every text of the given columns fits."""
    texts = {"class_id": class_id, "name": name}
    return np.dtype(
        [(column, _string(texts[column]) if kind == "S" else kind) for column, kind in CLASS_COLUMNS.items()]
    )


def _string(texts: _Texts) -> str:
    if isinstance(texts, np.ndarray):
        return f"S{np.char.str_len(texts).max(initial=0) or 1}"
    return f"S{max((len(encode(text)) for text in texts), default=0) or 1}"


def encode(text: str, num_bytes: int | None = None) -> bytes:
    """Return a text as UTF-8, cut between two characters if it is longer than ``num_bytes``."""
    raw = text.encode("utf-8", errors="replace")
    return raw if num_bytes is None else raw[:num_bytes].decode("utf-8", errors="ignore").encode("utf-8")


def require_scale(path: str, name: str, dtype: np.dtype[Any], attributes: Sequence[Mapping[str, Any]]) -> float:
    """Return what a stored number of an array is worth, by the attributes that each of its files gives it.

    Raises
    ------
    StoreError
        When numbers that are no floats have no scale, or different ones.
    """
    if dtype.kind == "f":
        return 1.0
    scale, *others = {given.get("scale") for given in attributes}
    if others or not isinstance(scale, float) or not 0 < scale < math.inf:
        raise StoreError(
            f"{path}: /{name} is {dtype} and its attribute scale is {[scale, *others]}, expected one number above 0: "
            "the file is damaged or foreign"
        )
    return scale
