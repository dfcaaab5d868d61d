"""Files of published weights: folders, wheels and other zips, and the encoding of their contents, protocol buffers.

In: a path. Out: bytes, and a message's fields by number. Neither TensorFlow nor onnx nor protobuf is needed.
Files are not trusted: every length is compared with the data that are left before that much memory is taken, and any
inconsistency is a ``DamagedFile`` that says where.
Source: https://protobuf.dev/programming-guides/encoding.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 2**28  # of one file; YAMNet has 15 MB, with an optimiser's state 45
MAX_FIELDS = 500_000  # in all messages of a file; YAMNet's have 10,000. Two bytes may become a hundred in memory
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Fields = dict[int, list[Any]]


class DamagedFile(ValueError):
    """A published file that is truncated, damaged, or not what its name says; the message says what and where."""


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

    def __init__(self, path: str | Path) -> None:
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
            raise DamagedFile(f"is not a complete zip: {error}") from error

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def read(self, name: str) -> bytes:
        """Return the contents of the file ``name``, at most 256 MB."""
        if name not in self.names:
            raise DamagedFile(f"there is no {name}, which is part of it")
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
    """Return the number at ``place`` of ``data``, below 2**64, and its end."""
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
    """Reads the messages of one file, and counts their fields, so that a small file cannot take much memory."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def read(self, data: memoryview) -> Fields:
        """Return ``{field number: values}`` of a message: int for numbers, memoryview for everything else."""
        fields: Fields = {}
        place = 0
        while place < len(data):
            key, place = read_varint(data, place)
            kind = key & 7
            value: int | memoryview
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

    def _count(self) -> None:
        """Count one field, or number."""
        self._left -= 1
        if self._left < 0:
            raise DamagedFile(f"has more than {MAX_FIELDS:,} fields; no weights of YAMNet have as many")


def _sized(data: memoryview, place: int, kind: int) -> tuple[int | memoryview, int]:
    """Return the value at ``place``, whose size is stored or follows from ``kind``, and its end."""
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
    """Return the number in field ``key``; 0, which is not stored, if it is missing."""
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
    """Return the message, text or bytes in field ``key``; empty if it is missing."""
    return (parts(fields, key) or [memoryview(b"")])[-1]


def text(value: memoryview) -> str:
    """Return UTF-8 as text, with replacement characters for invalid bytes."""
    return bytes(value).decode("utf-8", "replace")
