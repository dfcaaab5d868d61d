"""Videos and their action instances, as annotated: a table with a row for each, not an object.

``Videos`` is a sequence of ``Video``, and holds columns: a million videos with five instances each take 0.2 GB, a
fifth of what as many objects would. Texts are stored as in the file, UTF-8 of a fixed length.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

INSTANCE_COLUMNS = [("class_index", "<i4"), ("start_seconds", "<f8"), ("stop_seconds", "<f8")]
TEXTS = ("video_id", "split", "subject", "scene")


@dataclass(frozen=True, slots=True)
class Instance:
    """One action with its times, as annotated: it may be reversed, or lie beyond the recording."""

    class_index: int
    """Index into ``Annotations.class_ids``."""
    start_seconds: float
    """In [0, 1e7]."""
    stop_seconds: float
    """In [0, 1e7]; before ``start_seconds`` where the annotation is reversed."""


@dataclass(frozen=True, slots=True)
class Video:
    """One video and all its instances, in the order of the file."""

    video_id: str
    """Up to 255 bytes, never a path; a generic id may have a media extension."""
    split: str
    """``train`` or ``test``, or what a generic CSV says."""
    subject: str
    """Empty where the CSV has none."""
    scene: str
    """Empty where the CSV has none."""
    egocentric: bool
    """First person: the Charades column (absent: False); True for a generic CSV, which has no such column."""
    instances: tuple[Instance, ...]
    """May be empty: a video with no action."""


@dataclass(frozen=True, eq=False)
class Videos(Sequence[Video]):
    """Videos in order; equal to any sequence of the same ones."""

    table: np.ndarray
    """Structured (num_videos,): ``TEXTS``, UTF-8 of fixed lengths, and ``egocentric``."""
    instances: np.ndarray
    """Structured, ``INSTANCE_COLUMNS``: those of the first video, then those of the second, ..."""
    bounds: np.ndarray
    """int64 (num_videos + 1,): the instances of video ``v`` are the rows ``bounds[v]`` to ``bounds[v + 1]``."""

    def __post_init__(self) -> None:
        """Check that the bounds fit."""
        assert self.bounds.shape == (len(self.table) + 1,) and self.bounds[-1] - self.bounds[0] == len(self.instances)

    @classmethod
    def of(cls, videos: Iterable[Video]) -> "Videos":
        """Return the table of videos."""
        videos = list(videos)
        columns = {name: np.array([getattr(video, name).encode() for video in videos], "S") for name in TEXTS}
        rows = [(one.class_index, one.start_seconds, one.stop_seconds) for video in videos for one in video.instances]
        return cls(
            text_table(columns, np.array([video.egocentric for video in videos], bool)),
            np.array(rows, INSTANCE_COLUMNS),
            np.cumsum([0, *(len(video.instances) for video in videos)], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, which: int) -> Video: ...
    @overload
    def __getitem__(self, which: slice) -> "Videos": ...
    def __getitem__(self, which: int | slice) -> "Video | Videos":
        """Return a video, or consecutive ones as a table."""
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if step != 1:
                raise ValueError(f"videos {which}: only consecutive ones make a table")
            bounds = self.bounds[start : max(start, stop) + 1]
            rows = slice(int(bounds[0] - self.bounds[0]), int(bounds[-1] - self.bounds[0]))
            return Videos(self.table[start:stop], self.instances[rows], bounds)
        number = range(len(self))[which]
        row = self.table[number]
        start, stop = (self.bounds[number : number + 2] - self.bounds[0]).tolist()
        texts = {name: row[name].decode() for name in TEXTS}
        instances = tuple(Instance(*values) for values in self.instances[start:stop].tolist())
        return Video(**texts, egocentric=bool(row["egocentric"]), instances=instances)

    def __iter__(self) -> Iterator[Video]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Video.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def texts(self, name: str) -> list[str]:
        """Return a column of ``TEXTS`` as text."""
        return [raw.decode() for raw in self.table[name].tolist()]

    def numbers(self) -> np.ndarray:
        """Return for each instance its video, int64 (num_instances,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.bounds))


def text_table(columns: Mapping[str, np.ndarray], egocentric: np.ndarray) -> np.ndarray:
    """Return a ``Videos.table`` of its columns, texts as bytes."""
    dtype = [(name, columns[name].dtype) for name in TEXTS]
    table = np.zeros(len(egocentric), [*dtype, ("egocentric", "?")])
    for name in TEXTS:
        table[name] = columns[name]
    table["egocentric"] = egocentric
    return table
