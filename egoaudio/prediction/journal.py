r"""The recordings that are done while a prediction is unfinished: a file to which each is appended with its scores.

In: ``Scored`` recordings, in the order in which they finish. Out: the same, by their keys, after any stop. A record
counts if its checksum is right; what a kill or a power failure has left of one at the end is cut off. The first line
says of which model and options the scores are.

    egoaudio scores 1 <scoring_sha256>\n
    then, for each recording: CRC-32 and number of the bytes that follow (12 bytes), ``recording.to_bytes``
"""

import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from egoaudio.errors import PredictionError
from egoaudio.prediction.recording import Scored, from_bytes, to_bytes
from egoaudio.system import files

_FIRST_LINE = re.compile(rb"egoaudio scores 1 ([0-9a-f]{64})\n")
_LINE_BYTES = len(b"egoaudio scores 1 ") + 64 + 1
_RECORD = struct.Struct("<Iq")
_SYNC_SECONDS = 30.0
_READ_BYTES = 1 << 30  # one call to the system may read no more than 2 GiB


class Journal:
    """Recordings that are done, appended to a file and read back; a context manager.

    Parameters
    ----------
    path : pathlib.Path
        Made if it is not there.
    scoring_sha256 : str
        Of all that decides the scores of a recording.

    Raises
    ------
    PredictionError
        What is there is of something else, or the file cannot be written.
    """

    def __init__(self, path: Path, scoring_sha256: str) -> None:
        self._path = path
        self._index: dict[str, tuple[int, bytes, bool]] = {}  # place, fingerprint, whether it failed
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise PredictionError(files.explain(path, error)) from error
        try:
            self._end = self._begin(scoring_sha256)
        except OSError as error:
            os.close(self._descriptor)
            raise PredictionError(files.explain(path, error)) from error
        except BaseException:
            os.close(self._descriptor)
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def add(self, scored: Scored) -> None:
        """Append a recording; it replaces an earlier one of the same key."""
        raw = to_bytes(scored)
        record = _RECORD.pack(zlib.crc32(raw), len(raw)) + raw
        try:
            files.write_all(self._descriptor, record, self._end)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            raise PredictionError(files.explain(self._path, error, len(record))) from error
        self._index[scored.key] = self._end, scored.fingerprint, scored.failed
        self._end += len(record)

    def state(self, key: str) -> tuple[bytes, bool]:
        """Return the fingerprint of the file that was heard, and whether that failed."""
        _, fingerprint, failed = self._index[key]
        return fingerprint, failed

    def read(self, key: str) -> Scored:
        """Return a recording that is done."""
        raw = self._record(self._index[key][0])
        if raw is None:
            raise PredictionError(f"{self._path} was changed while it was in use: give the same command again")
        return from_bytes(raw)

    def remove(self) -> None:
        """Remove the file: what it held stands elsewhere now."""
        self._path.unlink(missing_ok=True)

    def _begin(self, scoring_sha256: str) -> int:
        """Read what is there, or write the first line; return where the next record goes."""
        line = b"egoaudio scores 1 " + scoring_sha256.encode() + b"\n"
        found = os.pread(self._descriptor, _LINE_BYTES, 0)
        if len(found) < len(line) and line.startswith(found):  # new, or stopped at once
            files.write_all(self._descriptor, line, 0)
            return len(line)
        if not _FIRST_LINE.fullmatch(found):
            raise PredictionError(f"{self._path} is no journal of egoaudio's: move it away, or give another `output`")
        if found != line:
            raise PredictionError(
                f"{self._path} is an unfinished prediction of another model, or with other options: give the same "
                "ones, another `output`, or `force=True` to start anew"
            )
        end = len(line)
        for offset, size, scored in self._records(end):
            self._index[scored.key] = offset, scored.fingerprint, scored.failed
            end = offset + size
        os.ftruncate(self._descriptor, end)
        return end

    def _records(self, offset: int) -> Iterator[tuple[int, int, Scored]]:
        """Yield place, size and content of each record that is whole, up to the first that is not."""
        while (raw := self._record(offset)) is not None:
            size = _RECORD.size + len(raw)
            yield offset, size, from_bytes(raw)
            offset += size

    def _record(self, offset: int) -> bytes | None:
        """Return the content of the record at a place, None where there is none or it is torn."""
        head = os.pread(self._descriptor, _RECORD.size, offset)
        if len(head) < _RECORD.size:
            return None
        crc, length = _RECORD.unpack(head)
        offset += _RECORD.size
        if not 0 <= length <= os.fstat(self._descriptor).st_size - offset:
            return None
        raw = b"".join(
            os.pread(self._descriptor, min(_READ_BYTES, length - done), offset + done)
            for done in range(0, length, _READ_BYTES)
        )
        return raw if len(raw) == length and zlib.crc32(raw) == crc else None
