"""CSV files and a class list -> videos, their action instances, and the classes.

Two kinds of table, told apart by their header: Charades and Charades-Ego (one video a row, its actions as
``c075 0.00 10.30;c107 3.20 14.00``) and a generic one (one instance a row: ``video,start,end,label[,split]``, or
EPIC-SOUNDS' names for these columns). Commas, semicolons (Excel) or tabs; UTF-8 with or without a BOM; LF or CRLF.

What cannot be read raises an AnnotationError with the file, the row (its line number), the text and the fix. What
occurs in real files does not: reversed or duplicate instances, times beyond the end and the like are kept as they are
and counted in ``Annotations.irregularities``. Files may be hostile: ids cannot lead out of a folder, times are finite,
and memory is bounded by what the videos need.

Source: https://prior.allenai.org/projects/charades-ego, https://github.com/epic-kitchens/epic-sounds-annotations
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from egoaudio.errors import AnnotationError
from egoaudio.inputs.csv_rows import Lines, Row, Table
from egoaudio.system.files import StrPath

CHARADES_CLASSES = tuple(f"c{index:03d}" for index in range(157))
NO_ACTION = "no_action"  # the builder's own class; no annotation may use its name

_TIME_LETTERS = 32
_LONGEST_SECONDS = 1e7  # 115 days
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?|\.[0-9]+", re.ASCII)
_CLOCK = re.compile(r"([0-9]+):([0-5]?[0-9]):([0-5]?[0-9](\.[0-9]*)?)", re.ASCII)
_CODE = re.compile(r"[A-Za-z]{0,2}[0-9]+", re.ASCII)  # c000, 17


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


@dataclass(frozen=True)
class Annotations:
    """All that the CSV files say."""

    videos: tuple[Video, ...]
    """In the order of the files, ids unique."""
    class_ids: tuple[str, ...]
    """Without ``no_action``."""
    class_names: tuple[str, ...]
    """As long as ``class_ids``; the ids where no class list was given."""
    irregularities: dict[str, int]
    """What was tolerated and how often, such as ``{"reversed instances": 1108}``; only what occurred."""


def read_annotations(
    paths: Iterable[StrPath], test_paths: Iterable[StrPath] = (), classes_path: StrPath | None = None
) -> Annotations:
    """Read all CSV files of a data set.

    Parameters
    ----------
    paths : iterable of path
        Charades, Charades-Ego or generic CSV files; their videos are ``train`` unless a ``split`` column differs.
    test_paths : iterable of path
        Likewise; their videos are ``test``.
    classes_path : path or None
        Class list, a line each: ``c000 Holding some clothes``, or just the label. Without one the classes are c000
        to c156 where a Charades CSV was given, and the labels seen in generic CSVs, sorted.

    Returns
    -------
    Annotations

    Raises
    ------
    AnnotationError
        For what cannot be read, with file, row, text and fix.
    """
    classes = None if classes_path is None else _read_classes(classes_path)
    reading = _Reading(classes)
    for path in paths:
        reading.read(path, split=None)
    for path in test_paths:
        reading.read(path, split="test")
    if not reading.drafts:
        raise AnnotationError("no annotations were given: name at least one CSV file")
    return reading.finish()


@dataclass(slots=True)
class _Draft:
    """A video whose labels are not class indices yet, and where it was first seen."""

    row: Row
    kind: str
    video_id: str
    split: str
    subject: str
    scene: str
    egocentric: bool
    length_seconds: float | None
    instances: list[tuple[str, float, float]] = field(default_factory=list)

    def same_video(self, other: "_Draft") -> bool:
        """Return whether two rows agree on all but the instances."""
        names = ("kind", "split", "subject", "scene", "egocentric", "length_seconds")
        return all(getattr(self, name) == getattr(other, name) for name in names)


class _Reading:
    """The state of one ``read_annotations``."""

    def __init__(self, classes: Mapping[str, str] | None) -> None:
        self.classes = classes  # {class id: name} or None
        self.known = None if classes is None else _lookup(classes)
        self.drafts: dict[str, _Draft] = {}  # by video id, in the order of the files
        self.counts: Counter[str] = Counter()

    def read(self, path: StrPath, split: str | None) -> None:
        """Add a file's videos; ``split`` overrides the file's."""
        with Lines(path) as lines:
            table = Table(lines)
            take = self._take_charades if table.kind == "charades" else self._take_generic
            empty = True
            for row in table:
                take(row, split)
                empty = False
        self.counts.update(table.counts)
        if empty:
            raise AnnotationError(f"{path}: has a header but no rows: give the file that holds the annotations")

    def finish(self) -> Annotations:
        """Turn labels into class indices and count irregularities."""
        classes = self.classes
        if classes is None:
            charades = CHARADES_CLASSES if any(draft.kind == "charades" for draft in self.drafts.values()) else ()
            seen = {label for draft in self.drafts.values() for label, _, _ in draft.instances}
            classes = {label: label for label in (*charades, *sorted(seen.difference(charades)))}
        known = _lookup(classes)
        index = {class_id: number for number, class_id in enumerate(classes)}
        videos: list[Video] = []
        splits: dict[str, set[str]] = {}
        for draft in self.drafts.values():
            instances = tuple(Instance(index[known[label]], start, stop) for label, start, stop in draft.instances)
            videos.append(Video(draft.video_id, draft.split, draft.subject, draft.scene, draft.egocentric, instances))
            self.counts.update(_irregularities(draft))
            splits.setdefault(draft.subject, set()).add(draft.split)
        self.counts["subjects in more than one split"] = sum(
            len(found) > 1 for subject, found in splits.items() if subject
        )
        counts = {what: count for what, count in sorted(self.counts.items()) if count}
        return Annotations(tuple(videos), tuple(classes), tuple(classes.values()), counts)

    def _take_charades(self, row: Row, split: str | None) -> None:
        """Add a row of a Charades CSV: a video."""
        video_id = _video_id(row, "id")
        egocentric = row.text("egocentric").lower()
        if egocentric not in ("", "yes", "no"):
            row.refuse(
                "egocentric is neither Yes nor No", egocentric, "correct the column; is a quote missing before it?"
            )
        draft = _Draft(
            row,
            "charades",
            video_id,
            split or "train",
            row.text("subject"),
            row.text("scene"),
            egocentric == "yes",
            _seconds(row, row.cell("length")),
        )
        for action in filter(None, row.cell("actions").split(";")):
            words = action.split()
            if len(words) != 3:
                row.refuse(
                    "an action is not 'class start end'",
                    action,
                    "write it as c075 0.00 10.30, actions separated by ';'",
                )
            if words[0] not in (CHARADES_CLASSES if self.known is None else self.known):
                row.refuse("unknown class", words[0], "correct it, or give a list of `classes` that has it")
            draft.instances.append((words[0], _seconds(row, words[1]), _seconds(row, words[2])))
        first = self.drafts.setdefault(video_id, draft)
        if first is draft:
            return
        if not first.same_video(draft) or first.instances != draft.instances:
            row.refuse(
                f"contradicts what {first.row.place} says of the same video", video_id, "keep one of the two rows"
            )
        self.counts["duplicate rows"] += 1

    def _take_generic(self, row: Row, split: str | None) -> None:
        """Add a row of a generic CSV: an instance."""
        video_id = _video_id(row, "video")
        split = split or row.text("split").lower() or "train"
        label = row.text("label")
        if not label:
            row.refuse("the label is empty", video_id, "give every row a label")
        if self.known is not None and label not in self.known:
            row.refuse("unknown class", label, "correct it, or add it to the list of `classes`")
        if label == NO_ACTION:
            row.refuse(
                "the class name is reserved",
                label,
                "remove these rows (egoaudio adds the class itself), or rename it",
            )
        draft = _Draft(row, "generic", video_id, split, row.text("participant"), "", True, None)
        first = self.drafts.setdefault(video_id, draft)
        if not first.same_video(draft):
            row.refuse(
                f"contradicts what {first.row.place} says of the same video",
                video_id,
                "give a video one split and subject, in one kind of file",
            )
        first.instances.append((label, _seconds(row, row.cell("start")), _seconds(row, row.cell("end"))))


def _irregularities(draft: _Draft) -> Counter[str]:
    """Count what is irregular in one video's instances but kept."""
    times = [(start, stop) for _, start, stop in draft.instances]
    counts: Counter[str] = Counter()
    counts["videos without actions"] = not times
    counts["videos with unordered instances"] = times != sorted(times)
    counts["reversed instances"] = sum(stop < start for start, stop in times)
    counts["instances of no duration"] = sum(stop == start for start, stop in times)
    counts["duplicate instances"] = len(times) - len(set(draft.instances))
    if draft.length_seconds is not None:
        counts["instances that end beyond the video"] = sum(stop > draft.length_seconds for _, stop in times)
        counts["instances that start beyond the video"] = sum(start >= draft.length_seconds for start, _ in times)
    return counts


# ------------------------------------------------------------------------------------------------- classes


def _read_classes(path: StrPath) -> dict[str, str]:
    """Read a class list as ``{class id: name}``; a line that does not begin with a code is a label by itself."""
    classes: dict[str, str] = {}
    rows: dict[str, int] = {}
    with Lines(path) as lines:
        for number, line in lines:
            lines.begin_record()
            row = Row(path, number, {"class": " ".join(line.split())})
            text = row.text("class")
            if not text:
                continue
            code, _, name = text.partition(" ")
            class_id, name = (code, name.strip()) if name and _CODE.fullmatch(code) else (text, text)
            if class_id in rows:
                row.refuse(
                    f"the class was already given in row {rows[class_id]}", class_id, "keep one of the two lines"
                )
            if class_id == NO_ACTION:
                row.refuse("the class name is reserved", text, "remove it: egoaudio adds the class itself")
            classes[class_id], rows[class_id] = name, number
    if not classes:
        raise AnnotationError(f"{path}: has no classes: expected lines such as 'c000 Holding some clothes'")
    return classes


def _lookup(classes: Mapping[str, str]) -> dict[str, str]:
    """Return ``{label of a row: class id}``: the id itself, or a name that only one class has."""
    names = Counter(classes.values())
    return {name: class_id for class_id, name in classes.items() if names[name] == 1} | {
        class_id: class_id for class_id in classes
    }


# --------------------------------------------------------------------------------------------------- cells


def _video_id(row: Row, name: str) -> str:
    """Return the row's video id; one that could lead out of a folder is refused."""
    video_id = row.text(name)
    if not video_id:
        row.refuse("the video id is empty", video_id, "give every row the id of its video")
    if "/" in video_id or "\\" in video_id or ".." in video_id:
        row.refuse(
            "a video id may not hold '/', '\\' or '..'",
            video_id,
            "give the file's name only: folders under `videos` are searched",
        )
    return video_id


def _seconds(row: Row, text: str) -> float:
    """Return a time in seconds from ``12.5`` or ``HH:MM:SS.sss``, correctly rounded."""
    known = text if len(text) <= _TIME_LETTERS else ""
    if _NUMBER.fullmatch(known):
        seconds = float(text)
    elif clock := _CLOCK.fullmatch(known):
        whole, _, decimals = clock[3].partition(".")  # decimals stay text, so that 0.1 is exactly a tenth
        seconds = float(f"{int(clock[1]) * 3600 + int(clock[2]) * 60 + int(whole)}.{decimals}")
    else:
        row.refuse(
            "not a time", text, "expected seconds, finite and not negative, with a decimal point, or HH:MM:SS.sss"
        )
    if seconds > _LONGEST_SECONDS:
        row.refuse(
            f"a time beyond {_LONGEST_SECONDS:g} s",
            text,
            "did you give milliseconds, frames or samples? Seconds are expected",
        )
    return seconds
