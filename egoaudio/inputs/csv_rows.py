"""Annotation files -> checked lines, rows and cells, whatever the files are.

``Table`` recognises a CSV by its header and yields its rows; ``Row`` has a row's cells and refuses invalid ones, naming
file, row, text and fix; ``Lines`` reads any text file in bounded memory. What the cells mean is up to ``annotations``.

Read: commas, semicolons (Excel) or tabs, quotes doubled within quotes; UTF-8 with or without a BOM; LF or CRLF.
A row's number is that of its first line in the file, from 1, as an editor shows it.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NoReturn

from egoaudio.errors import AnnotationError
from egoaudio.system.files import StrPath

_CHARADES_COLUMNS: dict[str, tuple[str, ...]] = {
    name: (name,) for name in ("id", "subject", "scene", "actions", "length")
}
_GENERIC_COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video", "video_id"),
    "start": ("start", "start_timestamp"),
    "end": ("end", "stop", "stop_timestamp"),
    "label": ("label", "class"),
}
_OPTIONAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "egocentric": ("egocentric",),
    "split": ("split",),
    "participant": ("participant_id", "subject"),
}

_RECORD_BYTES = 1 << 20  # a row of the real files has 3 KiB at most
_TEXT_BYTES = 255  # the limit of a file name; also keeps the file's fixed-length strings short
_FOREIGN_BYTE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that is not UTF-8


class Row:
    """One record of a CSV: its cells under the package's names of the columns, and its place in the file."""

    __slots__ = ("path", "number", "_cells")

    def __init__(self, path: StrPath, number: int, cells: Mapping[str, str]) -> None:
        self.path, self.number, self._cells = path, number, cells

    @property
    def place(self) -> str:
        """File and row for a message."""
        return f"{self.path}, row {self.number}"

    def cell(self, name: str) -> str:
        """Return the cell without surrounding space; empty where the file has no such column."""
        text = self._cells.get(name, "").strip()
        foreign = _FOREIGN_BYTE.search(text)
        if foreign:
            byte = ord(foreign[0]) - 0xDC00
            self.refuse(
                f"byte 0x{byte:02x} at position {foreign.start() + 1} of '{name}' is not UTF-8",
                text,
                "save the file as CSV in UTF-8",
            )
        return text

    def text(self, name: str) -> str:
        """Return a cell that is stored in the HDF5 file: at most 255 bytes, no control characters."""
        text = self.cell(name)
        if len(text.encode()) > _TEXT_BYTES:
            self.refuse(
                f"'{name}' has {len(text.encode())} bytes, more than {_TEXT_BYTES}",
                text,
                "shorten it; is a quote missing before it?",
            )
        if not text.isprintable() and any(unicodedata.category(letter) == "Cc" for letter in text):
            self.refuse(f"'{name}' has control characters", text, "remove them; is a quote missing before them?")
        return text

    def refuse(self, problem: str, text: str, fix: str) -> NoReturn:
        """Raise an AnnotationError that names the row."""
        raise AnnotationError(f"{self.place}: {problem}: {shown(text)}: {fix}")


class Table:
    """A CSV file with a known header, which gives its ``kind``; iterate over it, once, for its rows."""

    def __init__(self, lines: "Lines") -> None:
        self.path = lines.path
        self.counts: Counter[str] = Counter()
        self._lines = lines
        header = next((line for _, line in lines), None)
        if header is None:
            raise AnnotationError(f"{self.path}: is empty: expected a CSV with a header")
        self._delimiter, names = max(
            (_read_header(header, delimiter) for delimiter in ",;\t"), key=lambda reading: len(reading[1])
        )
        self._num_columns = len(names)
        if {"id", "actions"} <= set(names):
            self.kind, required = "charades", _CHARADES_COLUMNS
        elif {"video", "video_id"} & set(names):
            self.kind, required = "generic", _GENERIC_COLUMNS
        else:
            self._refuse_header(
                header,
                "not a known header",
                "expected the columns of Charades (id, subject, scene, actions, length), "
                "video,start,end,label[,split], "
                "or those of EPIC-SOUNDS (video_id, start_timestamp, stop_timestamp, class)",
            )
        aliases = required | _OPTIONAL_COLUMNS
        self._columns = {name: names.index(found) for name in aliases for found in names if found in aliases[name]}
        missing = [name for name in required if name not in self._columns]
        if missing:
            self._refuse_header(header, f"no column {', '.join(missing)}", "add the column, or correct its name")
        doubled = [name for name in aliases if sum(found in aliases[name] for found in names) > 1]
        if doubled:
            self._refuse_header(
                header,
                f"more than one column for {', '.join(doubled)}",
                f"keep one of {', '.join(aliases[doubled[0]])}",
            )

    def __iter__(self) -> Iterator[Row]:
        """Yield a Row for each record that is not blank."""
        reader = csv.reader((line for _, line in self._lines), delimiter=self._delimiter, strict=True)
        while True:
            number = self._lines.begin_record()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                fix = "is a quote missing, or do the lines end in something other than LF or CRLF?"
                raise AnnotationError(f"{self.path}, row {number}: not a CSV row ({error}): {fix}") from error
            if cells is None:
                return
            if not any(cells):
                self.counts["blank rows"] += 1
                continue
            row = Row(
                self.path,
                number,
                {name: cells[column] for name, column in self._columns.items() if column < len(cells)},
            )
            if len(cells) != self._num_columns:
                row.refuse(
                    f"{len(cells)} columns, but the header has {self._num_columns}",
                    self._delimiter.join(cells),
                    "is a quote or a separator missing?",
                )
            if any(map(_FOREIGN_BYTE.search, cells)):
                self.counts["rows with text that is not UTF-8"] += 1  # in a column that is read, it is refused
            yield row

    def _refuse_header(self, header: str, problem: str, fix: str) -> NoReturn:
        raise AnnotationError(f"{self.path}, row 1: {problem}: {shown(header.strip())}: {fix}")


def _read_header(line: str, delimiter: str) -> tuple[str, list[str]]:
    """Return ``(delimiter, column names)`` of a header line, the names in lower case."""
    try:
        names = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        names = []
    return delimiter, [name.strip().lower() for name in names]


class Lines:
    """The lines of a text file as ``(number, text)``; refuses what would not fit in memory or is not text.

    A byte that is not UTF-8 becomes a surrogate (``surrogateescape``): columns that are not read may hold one, and
    ``Row.cell`` refuses it in those that are. The file is open within a ``with`` block.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = path
        self.number = 0
        self._record_bytes = 0
        self._file: BinaryIO

    def __enter__(self) -> "Lines":
        try:
            self._file = open(self.path, "rb")
        except OSError as error:
            self._refuse(error)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __iter__(self) -> "Lines":
        """Continue where the last loop stopped."""
        return self

    def __next__(self) -> tuple[int, str]:
        try:
            line = self._file.readline(_RECORD_BYTES + 1 - self._record_bytes)
        except OSError as error:
            self._refuse(error)
        if not line:
            raise StopIteration
        self.number += 1
        self._record_bytes += len(line)
        return self.number, self._decode(line)

    def begin_record(self) -> int:
        """Start to count the bytes of a record, which may have several lines; return the number of its first line."""
        self._record_bytes = 0
        return self.number + 1

    def _refuse(self, error: OSError) -> NoReturn:
        raise AnnotationError(f"{self.path}: cannot be read: {error.strerror}: check the path") from error

    def _decode(self, line: bytes) -> str:
        place = f"{self.path}, row {self.number}"
        if self.number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
            what = (
                "is UTF-16"
                if line[:2] in (b"\xff\xfe", b"\xfe\xff")
                else f"holds a NUL byte at position {line.index(0) + 1}"
            )
            text = shown(line[:60].decode("latin-1"))
            raise AnnotationError(f"{place}: {what}: {text}: save the file as CSV in UTF-8")
        if self._record_bytes > _RECORD_BYTES:
            text = shown(line[:100].decode("latin-1"))
            raise AnnotationError(
                f"{place}: more than {_RECORD_BYTES} bytes in one row: {text}: "
                "is it a CSV, or is a quote missing before it?"
            )
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8", errors="surrogateescape")


def shown(text: str) -> str:
    """Return text for a message: quoted, control characters escaped, shortened."""
    return repr(text) if len(text) <= 80 else f"{repr(text[:60])}... ({len(text)} characters)"
