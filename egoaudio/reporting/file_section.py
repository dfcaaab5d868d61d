"""What a page says of an egoaudio file: facts, failures, classes, lengths, levels, oddities, examples.

In: an open file. Out: a ``FileSection``, values alone; which of the examples are heard and seen is the gallery's to
say.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from egoaudio.errors import Status
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.summary import count_splits
from egoaudio.reporting import charts, levels, names
from egoaudio.reporting.oddities import Finding, find_oddities
from egoaudio.system.terminal import describe_bytes

_MOST_FAILURES = 40  # videos named for each reason
_MOST_CLASSES = 1000  # rows of the table
_MOST_PAIRS = 30
_MOST_IN_MATRIX = 40  # classes; more cannot be read
_FEWEST_TOGETHER = 5  # clips that a pair is in
_MOST_ROWS = 1_000_000  # clips that co-occurrence and examples are taken from
_CANDIDATES = 32  # clips of a class that examples are chosen from
_AT_ONCE = 65536


@dataclass(frozen=True)
class Failure:
    """The videos that gave no data for one reason."""

    reason: str
    num_videos: int
    examples: tuple[tuple[str, str], ...]
    """``(video id, what was said of it)`` of the first few."""


@dataclass(frozen=True)
class ClassRow:
    """A class of the file."""

    index: int
    """Column of ``/labels``."""
    class_id: str
    name: str
    num_clips: int
    """Clips to train on or to test with."""
    num_videos: int
    """Videos it is annotated in, with sound or without."""
    share: float
    """Of all such clips."""
    level_db: float
    """Half of its clips are louder; NaN where that is not known."""
    examples: tuple[int, ...] = ()
    """Rows of ``/clips``."""

    @property
    def title(self) -> str:
        """Id and name."""
        return self.class_id if self.name in ("", self.class_id) else f"{self.class_id} {self.name}"


@dataclass(frozen=True)
class Pair:
    """Two classes that are on at once."""

    first: str
    second: str
    num_clips: int
    share_of_first: float
    share_of_second: float


@dataclass(frozen=True)
class FileSection:
    """All that is said of a file."""

    name: str
    facts: tuple[tuple[str, str], ...]
    splits: tuple[tuple[str, int, int, int, int], ...]
    """As ``count_splits`` gives them."""
    failures: tuple[Failure, ...]
    classes: tuple[ClassRow, ...]
    """The most frequent first."""
    num_classes_left_out: int
    pairs: tuple[Pair, ...]
    matrix: charts.Matrix | None
    lengths: charts.Chart | None
    recording_levels: charts.Chart | None
    clip_levels: charts.Chart | None
    findings: tuple[Finding, ...]


def describe(file: EgoAudioFile, num_examples: int) -> FileSection:
    """Return what a page says of an open file, with so many examples of each class."""
    rows = _rows_of_classes(file)
    measured = levels.measure(file, rows)
    classes = _classes(file, rows, measured, num_examples)
    pairs, matrix = _together(file)
    sounding = file.video_table["status"] == Status.OK
    loudness = file.video_table["rms_db"][sounding] if "rms_db" in (file.video_table.dtype.names or ()) else np.zeros(0)
    return FileSection(
        names.clean(os.path.basename(file.path)),
        _facts(file),
        tuple(
            (names.clean(name), videos, subjects, clips, trainable)
            for name, videos, subjects, clips, trainable in count_splits(file)
        ),
        _failures(file),
        classes[:_MOST_CLASSES],
        max(0, len(classes) - _MOST_CLASSES),
        pairs,
        matrix,
        charts.histogram(
            file.video_table["duration_seconds"][sounding], "How long the recordings are", "seconds", "recordings"
        ),
        charts.histogram(loudness, "How loud the recordings are", "level in dB below full scale", "recordings"),
        None
        if measured is None
        else charts.histogram(measured.rms_db, "How loud clips are", f"level of {measured.feature} in dB", "clips"),
        tuple(find_oddities(file, measured)),
    )


def _facts(file: EgoAudioFile) -> tuple[tuple[str, str], ...]:
    """Return facts as pairs of texts."""
    sounding = file.video_table["status"] == Status.OK
    seconds = float(file.video_table["duration_seconds"][sounding].sum())
    options = ", ".join(
        f"{name} {_in_words(value)}" for name, value in sorted(file.config.items()) if value is not None
    )
    trainable = int(np.count_nonzero(file.trainable))
    labels = int(file.count_classes().sum())
    facts = {
        "Made": f"{file.created_utc} by egoaudio {file.egoaudio_version}",
        "Size": describe_bytes(file.num_bytes),
        "Sound": f"{seconds / 3600:,.2f} hours in {sounding.sum():,} of {file.num_videos:,} videos",
        "Clips": f"{file.num_clips:,} of {file.clip_seconds:g} s every {file.hop_seconds:g} s; "
        f"{trainable:,} with sound and labels",
        "Labels": f"{labels:,} in {file.num_classes:,} classes, {labels / max(1, trainable):.2f} a clip",
        "Arrays": ", ".join(f"{name} {' x '.join(f'{n:,}' for n in file[name].shape)}" for name in file.features),
        "Sample rate": f"{file.sample_rate:,} Hz",
        "Options": options,
    }
    return tuple((name, names.clean(text, 1000)) for name, text in facts.items())


def _in_words(value: Any) -> str:
    """Return an option's value: ``no`` for False, ``mfcc and logmel`` for a list."""
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _failures(file: EgoAudioFile) -> tuple[Failure, ...]:
    """Return the videos without data by reason, the commonest first."""
    videos = file.video_table
    groups = []
    for status in np.unique(videos["status"]).tolist():
        if status == Status.OK:
            continue
        inside = videos[videos["status"] == status]
        first = inside[:_MOST_FAILURES]
        examples = tuple(zip(names.column(first, "video_id"), names.column(first, "error"), strict=True))
        groups.append(Failure(Status.describe(status), len(inside), examples))
    return tuple(sorted(groups, key=lambda failure: -failure.num_videos))


def _labelled_rows(file: EgoAudioFile) -> np.ndarray:
    """Return the clips that can be trained on, evenly spread over the file where there are very many."""
    rows = np.flatnonzero(file.trainable)
    if len(rows) > _MOST_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST_ROWS).astype(np.int64)]
    return rows


def _rows_of_classes(file: EgoAudioFile) -> list[np.ndarray]:
    """Return the clips of each class, ascending."""
    rows, found = _labelled_rows(file), []
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        place, column = np.nonzero(file.labels[part] == 1)
        found.append((column, part[place]))
    if not found:
        return [np.zeros(0, np.int64) for _ in range(file.num_classes)]
    columns, clips = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(columns, kind="stable")
    ends = np.cumsum(np.bincount(columns, minlength=file.num_classes))[:-1]
    return np.split(clips[order], ends)


def _classes(
    file: EgoAudioFile, rows: list[np.ndarray], measured: levels.Levels | None, num_examples: int
) -> tuple[ClassRow, ...]:
    """Return the classes, the most frequent first."""
    counts = file.count_classes()
    videos = (np.asarray(file.video_labels) == 1).sum(axis=0)
    every = max(1, int(np.count_nonzero(file.trainable)))
    loudness = [np.zeros(0)] * file.num_classes if measured is None else measured.of_class(file.labels)
    ids, titles = names.column(file.class_table, "class_id"), names.column(file.class_table, "name")
    level_of = {} if measured is None else dict(zip(measured.rows.tolist(), measured.rms_db.tolist(), strict=True))
    return tuple(
        ClassRow(
            int(k),
            ids[k],
            titles[k],
            int(counts[k]),
            int(videos[k]),
            float(counts[k] / every),
            float(np.median(loudness[k])) if len(loudness[k]) else float("nan"),
            _examples(file, rows[k], level_of, num_examples),
        )
        for k in np.argsort(-counts, kind="stable")
    )


def _examples(file: EgoAudioFile, rows: np.ndarray, level_of: dict[int, float], num_examples: int) -> tuple[int, ...]:
    """Return clips of a class to listen to, each of another video: the fewest other labels first, then the loudest."""
    if len(rows) > _CANDIDATES:
        rows = rows[np.linspace(0, len(rows) - 1, _CANDIDATES).astype(np.int64)]
    if not len(rows):
        return ()
    others = file.labels[rows].sum(axis=1)
    level = [-level_of.get(int(row), 0.0) for row in rows]
    chosen, seen = [], set()
    for place in np.lexsort((level, others)):
        video = int(file.clip_table["video"][rows[place]])
        if video not in seen:
            seen.add(video)
            chosen.append(int(rows[place]))
    return tuple(chosen[:num_examples])


def _together(file: EgoAudioFile) -> tuple[tuple[Pair, ...], charts.Matrix | None]:
    """Return the pairs of classes that occur together most, and the matrix of the commonest classes."""
    rows = _labelled_rows(file)
    both = np.zeros((file.num_classes, file.num_classes))
    for start in range(0, len(rows), _AT_ONCE):
        on = (file.labels[rows[start : start + _AT_ONCE]] == 1).astype(np.float32)
        both += on.T @ on
    counts = np.diag(both).copy()
    titles = names.class_names(file.class_table)
    first, second = np.triu_indices(file.num_classes, 1)
    together = both[first, second]
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap = together / (counts[first] + counts[second] - together)  # Jaccard's
    overlap = np.where(together >= _FEWEST_TOGETHER, np.nan_to_num(overlap), 0)
    best = [place for place in np.argsort(-overlap, kind="stable")[:_MOST_PAIRS] if overlap[place] > 0]
    pairs = tuple(
        Pair(
            titles[first[place]],
            titles[second[place]],
            int(together[place]),
            float(together[place] / counts[first[place]]),
            float(together[place] / counts[second[place]]),
        )
        for place in best
    )
    shown = [k for k in np.argsort(-counts, kind="stable")[:_MOST_IN_MATRIX] if counts[k]]
    if len(shown) < 2:
        return pairs, None
    share = both[np.ix_(shown, shown)] / counts[shown][:, None]
    cells = tuple(
        (int(row), int(column), float(share[row, column])) for row, column in np.argwhere(share > 0) if row != column
    )
    return pairs, charts.Matrix(tuple(titles[k] for k in shown), cells)
