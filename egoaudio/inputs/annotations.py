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
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import numpy as np

from egoaudio.errors import AnnotationError
from egoaudio.inputs.csv_rows import Lines, Row, Table
from egoaudio.inputs.videos import INSTANCE_COLUMNS, TEXTS, Videos, text_table
from egoaudio.system.files import StrPath

CHARADES_CLASSES = tuple(f"c{index:03d}" for index in range(157))
NO_ACTION = "no_action"  # the builder's own class; no annotation may use its name

_TIME_LETTERS = 32
_LONGEST_SECONDS = 1e7  # 115 days
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?|\.[0-9]+", re.ASCII)
_CLOCK = re.compile(r"([0-9]+):([0-5]?[0-9]):([0-5]?[0-9](\.[0-9]*)?)", re.ASCII)
_CODE = re.compile(r"[A-Za-z]{0,2}[0-9]+", re.ASCII)  # c000, 17


@dataclass(frozen=True)
class Annotations:
    """All that the CSV files say."""

    videos: Videos
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
    if not reading.videos:
        raise AnnotationError("no annotations were given: name at least one CSV file")
    return reading.finish()


class _Facts(NamedTuple):
    """What a row says of its video; many videos have the same."""

    kind: str
    split: str
    subject: str
    scene: str
    egocentric: bool


_NO_LENGTH = -1.0


class _Reading:
    """The state of one ``read_annotations``: flat columns, as a million videos are more than objects can hold."""

    def __init__(self, classes: Mapping[str, str] | None) -> None:
        self.classes = classes  # {class id: name} or None
        self.known = None if classes is None else _lookup(classes)
        self.counts: Counter[str] = Counter()
        self.paths: list[StrPath] = []
        self.videos: dict[str, int] = {}  # {video id: its number}, in the order of the files
        self.facts: dict[_Facts, int] = {}  # {facts: their number}
        self.labels: dict[str, int] = {}  # {label of a row: its number}
        # A value for each video: its facts, its length, and the file and row that first named it.
        self.facts_of, self.length_seconds = array("i"), array("d")
        self.path_of, self.row_of = array("i"), array("q")
        self.first_instance = array("q")
        # A value for each instance, in the order of the files.
        self.video_of, self.label_of = array("q"), array("i")
        self.start_seconds, self.stop_seconds = array("d"), array("d")

    def read(self, path: StrPath, split: str | None) -> None:
        """Add a file's videos; ``split`` overrides the file's."""
        self.paths.append(path)
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
            charades = CHARADES_CLASSES if any(facts.kind == "charades" for facts in self.facts) else ()
            classes = {label: label for label in (*charades, *sorted(set(self.labels).difference(charades)))}
        known = _lookup(classes)
        index = {class_id: number for number, class_id in enumerate(classes)}
        class_of = np.array([index[known[label]] for label in self.labels], np.int32)
        video_of = np.array(self.video_of, np.int64)
        order = np.argsort(video_of, kind="stable")  # rows of a generic file may alternate between videos
        video_of, labels = video_of[order], np.array(self.label_of, np.int32)[order]
        instances = np.zeros(len(order), INSTANCE_COLUMNS)
        instances["class_index"] = class_of[labels] if len(labels) else 0
        instances["start_seconds"] = np.array(self.start_seconds, np.float64)[order]
        instances["stop_seconds"] = np.array(self.stop_seconds, np.float64)[order]
        bounds = np.searchsorted(video_of, np.arange(len(self.videos) + 1))
        self._count(instances, labels, video_of, bounds)
        counts = {what: count for what, count in sorted(self.counts.items()) if count}
        videos = Videos(self._table(), instances, bounds)
        return Annotations(videos, tuple(classes), tuple(classes.values()), counts)

    def _table(self) -> np.ndarray:
        """Return what the rows say of each video."""
        facts_of = np.array(self.facts_of, np.int32)
        columns = {"video_id": np.array([video_id.encode() for video_id in self.videos])}
        for name in TEXTS[1:]:
            columns[name] = np.array([getattr(facts, name).encode() for facts in self.facts])[facts_of]
        return text_table(columns, np.array([facts.egocentric for facts in self.facts])[facts_of])

    def _count(self, instances: np.ndarray, labels: np.ndarray, video_of: np.ndarray, bounds: np.ndarray) -> None:
        """Count what is irregular but kept."""
        starts, stops = instances["start_seconds"], instances["stop_seconds"]
        lengths = np.array(self.length_seconds, np.float64)[video_of]
        has_length = lengths != _NO_LENGTH
        same = video_of[1:] == video_of[:-1]
        falls = (starts[1:] < starts[:-1]) | ((starts[1:] == starts[:-1]) & (stops[1:] < stops[:-1]))
        order = np.lexsort((stops, starts, labels, video_of))
        columns = [column[order] for column in (stops, starts, labels, video_of)]
        again = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        splits: dict[str, set[str]] = {}
        for facts in self.facts:
            splits.setdefault(facts.subject, set()).add(facts.split)
        self.counts.update(
            {
                "videos without actions": int((np.diff(bounds) == 0).sum()),
                "videos with unordered instances": len(np.unique(video_of[1:][same & falls])),
                "reversed instances": int((stops < starts).sum()),
                "instances of no duration": int((stops == starts).sum()),
                "duplicate instances": int(again.sum()),
                "instances that end beyond the video": int((has_length & (stops > lengths)).sum()),
                "instances that start beyond the video": int((has_length & (starts >= lengths)).sum()),
                "subjects in more than one split": sum(len(found) > 1 for subject, found in splits.items() if subject),
            }
        )

    def _video(self, row: Row, video_id: str, facts: _Facts, length_seconds: float) -> tuple[int, bool]:
        """Return a video's number, and whether this row is the first that names it; refuse one that contradicts."""
        number = self.videos.setdefault(video_id, len(self.videos))
        code = self.facts.setdefault(facts, len(self.facts))
        if number < len(self.facts_of):
            if self.facts_of[number] != code or self.length_seconds[number] != length_seconds:
                self._refuse(row, facts.kind, video_id, number)
            return number, False
        self.facts_of.append(code)
        self.length_seconds.append(length_seconds)
        self.path_of.append(len(self.paths) - 1)
        self.row_of.append(row.number)
        self.first_instance.append(len(self.video_of))
        return number, True

    def _refuse(self, row: Row, kind: str, video_id: str, number: int) -> NoReturn:
        """Refuse a row that contradicts the first of its video."""
        place = f"{self.paths[self.path_of[number]]}, row {self.row_of[number]}"
        fix = "give a video one split and subject, in one kind of file"
        if kind == "charades":
            fix = "keep one of the two rows"
        row.refuse(f"contradicts what {place} says of the same video", video_id, fix)

    def _instance(self, number: int, label: str, start_seconds: float, stop_seconds: float) -> None:
        """Add an instance of a video."""
        self.video_of.append(number)
        self.label_of.append(self.labels.setdefault(label, len(self.labels)))
        self.start_seconds.append(start_seconds)
        self.stop_seconds.append(stop_seconds)

    def _instances(self, number: int) -> list[tuple[str, float, float]]:
        """Return the instances of a video of a Charades CSV."""
        start = stop = self.first_instance[number]
        while stop < len(self.video_of) and self.video_of[stop] == number:
            stop += 1
        labels = list(self.labels) if stop > start else []
        return [
            (labels[self.label_of[place]], self.start_seconds[place], self.stop_seconds[place])
            for place in range(start, stop)
        ]

    def _take_charades(self, row: Row, split: str | None) -> None:
        """Add a row of a Charades CSV: a video."""
        video_id = _video_id(row, "id")
        egocentric = row.text("egocentric").lower()
        if egocentric not in ("", "yes", "no"):
            row.refuse(
                "egocentric is neither Yes nor No", egocentric, "correct the column; is a quote missing before it?"
            )
        facts = _Facts("charades", split or "train", row.text("subject"), row.text("scene"), egocentric == "yes")
        length_seconds = _seconds(row, row.cell("length"))
        instances = []
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
            instances.append((words[0], _seconds(row, words[1]), _seconds(row, words[2])))
        number, is_new = self._video(row, video_id, facts, length_seconds)
        if is_new:
            for instance in instances:
                self._instance(number, *instance)
            return
        if self._instances(number) != instances:
            self._refuse(row, "charades", video_id, number)
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
        facts = _Facts("generic", split, row.text("participant"), "", True)
        number, _ = self._video(row, video_id, facts, _NO_LENGTH)
        self._instance(number, label, _seconds(row, row.cell("start")), _seconds(row, row.cell("end")))


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
