"""Several egoaudio files as one: their arrays and tables, numbered consecutively in the order of the files.

In: opened files, such as the shards of a build. Out: arrays that are indexed like one map, and tables as of one file;
an error if the files do not fit together. Features are copied only when they are read, the tables at once.

Conventions: row 0 of the second file follows the last row of the first; numbers of rows of another table (``video`` in
/clips and /instances, ``first_clip`` in /videos) are increased accordingly.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from egoaudio.config.build import BuildConfig
from egoaudio.config.options import differences, from_json
from egoaudio.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from egoaudio.hdf5.reader import EgoAudioFile

_MOST_NAMES = 3


class JoinedArray:
    """An array whose rows lie in several files, one after the other: indexed by rows like one, read each time."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        """int64 (num_parts + 1,): the first row of each part, and the number of all rows."""
        self.shape = (int(self.starts[-1]), *self.parts[0].shape[1:])
        self.dtype, self.ndim = self.parts[0].dtype, len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read everything."""
        return np.asarray(self[:], dtype=dtype)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the part that each row (b,) is in, and its row there."""
        part = np.searchsorted(self.starts, rows, side="right") - 1
        return part, rows - self.starts[part]

    def __getitem__(self, key: Any) -> Any:
        """Return rows: ``[int]``, ``[slice]``, ``[integers or booleans]``, and further indices after a comma."""
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {index.shape} for {len(self)} rows")
            index = np.flatnonzero(index)
        index = np.where(index < 0, index + len(self), index).astype(np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} are not all among the {len(self)} of the array")
        part, inside = self.locate(index)
        if index.ndim == 0:
            return self.parts[int(part)][(int(inside), *rest)]
        values = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        for number in np.unique(part).tolist():
            chosen = part == number
            values[chosen] = self.parts[number][inside[chosen]]
        return values[(slice(None), *rest)] if rest else values


def require_agreement(parts: Sequence["EgoAudioFile"]) -> None:
    """Raise unless the files can be one: of the same configuration, classes and features.

    Raises
    ------
    StoreError
        Names both sides.
    """
    first = parts[0]
    for other in parts[1:]:
        found = _disagreement(first, other)
        if found:
            raise StoreError(f"{first.path} and {other.path} cannot be one: {found}. Build them alike")


def require_no_video_twice(parts: Sequence["EgoAudioFile"]) -> None:
    """Raise where a video is in two of the files."""
    seen: dict[bytes, EgoAudioFile] = {}
    for part in parts:
        ids = part.video_table["video_id"].tolist()
        twice = [video_id for video_id in ids if video_id in seen]
        if twice and seen[twice[0]].identity == part.identity:
            other = seen[twice[0]].path
            raise StoreError(f"{part.path} is given twice{f', also as {other}' * (other != part.path)}: give it once")
        if twice:
            names = ", ".join(video_id.decode(errors="replace") for video_id in twice[:_MOST_NAMES])
            more = f" and {len(twice) - _MOST_NAMES:,} more" if len(twice) > _MOST_NAMES else ""
            raise StoreError(
                f"{seen[twice[0]].path} and {part.path} both hold {names}{more}: leave one of the files out, or merge "
                "them with `duplicates='first'`"
            )
        seen.update(dict.fromkeys(ids, part))


def _disagreement(one: "EgoAudioFile", other: "EgoAudioFile") -> str:
    """Return in words what differs between two files that are to be one; empty if nothing does."""
    found = []
    if one.config != other.config:  # one may be of an earlier version, which has fewer options
        try:
            configs = [from_json(BuildConfig, json.dumps(file.config)) for file in (one, other)]
            found = [line.replace(", now ", " and ") for line in differences(*configs)]
        except ConfigurationError:  # of a version that has other options
            found = ["their configurations differ"]
    for column in ("class_id", "name"):
        mine, theirs = one.class_table[column].tolist(), other.class_table[column].tolist()
        if mine != theirs and not found:
            only = [name.decode(errors="replace") for name in set(mine) ^ set(theirs)]
            which = f", such as {min(only)}" if only else " in their order"
            found.append(f"their classes differ ({len(mine)} and {len(theirs)}{which})")
    if not found and one.features != other.features:
        found.append(f"their features are {', '.join(one.features)} and {', '.join(other.features)}")
    for name in one.features if not found else ():
        mine, theirs = one[name], other[name]
        if (mine.shape[1:], mine.dtype) != (theirs.shape[1:], theirs.dtype):
            found.append(f"rows of {name} are {mine.dtype} {mine.shape[1:]} and {theirs.dtype} {theirs.shape[1:]}")
        elif repr(one.attributes(name)) != repr(other.attributes(name)):
            found.append(f"the parameters of {name} differ")
    return "; ".join(found)


def join_clips(parts: Sequence["EgoAudioFile"]) -> np.ndarray:
    """Return /clips of all, with the videos numbered consecutively."""
    return _moved([part.clip_table for part in parts], "video", [part.num_videos for part in parts])


def join_instances(parts: Sequence["EgoAudioFile"]) -> np.ndarray:
    """Return /instances of all, with the videos numbered consecutively."""
    return _moved([part.instances for part in parts], "video", [part.num_videos for part in parts])


def join_videos(parts: Sequence["EgoAudioFile"]) -> np.ndarray:
    """Return /videos of all, with the clips numbered consecutively; the longest strings, the columns that all have."""
    tables = [part.video_table for part in parts]
    names = [name for name in tables[0].dtype.names or () if all(name in (t.dtype.names or ()) for t in tables)]
    kinds = [(name, max((table.dtype[name] for table in tables), key=lambda kind: kind.itemsize)) for name in names]
    alike = []
    for table in tables:
        alike.append(np.zeros(len(table), kinds))
        for name in names:
            alike[-1][name] = table[name]
    return _moved(alike, "first_clip", [part.num_clips for part in parts])


def join_classes(parts: Sequence["EgoAudioFile"]) -> np.ndarray:
    """Return /classes, with the clips of all counted."""
    table = parts[0].class_table.copy()
    table["num_clips"] = sum(part.class_table["num_clips"] for part in parts)
    return table


def _moved(tables: Sequence[np.ndarray], column: str, lengths: Sequence[int]) -> np.ndarray:
    """Return tables as one, the rows that ``column`` names moved on by the lengths of what stands before."""
    table = np.concatenate(tables)
    table[column] += np.repeat(np.cumsum([0, *lengths[:-1]]), [len(each) for each in tables]).astype(
        table.dtype[column]
    )
    return table
