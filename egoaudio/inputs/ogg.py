"""The links of a chained Ogg file: whole files in sequence, such as the songs of a radio, or a paused recording.

FFmpeg refuses a link of another rate or channel count, plays it at the rate of the first, or places it by its own
clock. One by one, links are ordinary files. A link begins with one page for each of its streams that has the flag
"beginning of stream".

Source: RFC 3533, section 6.
"""

import os
from collections.abc import Iterator, Sequence
from typing import IO

from egoaudio.inputs.containers import Part
from egoaudio.system.files import StrPath

_MAGIC = b"OggS"
_BEGIN = b"OggS\0\2"  # version 0, beginning of stream
_HEADER_BYTES = 27  # of a page, before its table of segments
_LONGEST_HEADER = 27 + 255
_CHUNK_BYTES = 1 << 20
_MOST_LINKS = 10_000


def links(path: StrPath) -> Sequence[Part | None]:
    """Return the parts of a chained Ogg file; ``[None]`` for any other file, which is one part."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            if file.read(4) != _MAGIC:
                return [None]
            starts = _starts(file)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return [None]  # opening it for decoding says why
    if not 1 < len(starts) <= _MOST_LINKS:
        return [None]
    return list(zip(starts, [*starts[1:], size], strict=True))


def _starts(file: IO[bytes]) -> list[int]:
    """Return where links begin: at pages that begin a stream, unless they directly follow another such page."""
    starts: list[int] = []
    after = -1
    for place, header in _beginnings(file):
        segments = header[_HEADER_BYTES : _HEADER_BYTES + header[26]]
        if place != after:
            starts.append(place)
        after = place + _HEADER_BYTES + len(segments) + sum(segments)
    return starts


def _beginnings(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield ``(place, header)`` of every page that begins a stream."""
    file.seek(0)
    kept, offset = b"", 0  # bytes from ``offset`` on
    while True:
        chunk = file.read(_CHUNK_BYTES)
        kept += chunk
        last = len(kept) if not chunk else max(0, len(kept) - _LONGEST_HEADER)
        place = kept.find(_BEGIN)
        while 0 <= place < last:
            header = kept[place : place + _LONGEST_HEADER]
            if len(header) > _HEADER_BYTES:
                yield offset + place, header
            place = kept.find(_BEGIN, place + 4)
        if not chunk:
            return
        kept, offset = kept[last:], offset + last


def guessed_seconds(parts: Sequence[Part | None], number: int, seconds: float) -> float:
    """Return how long a link that does not decode may last, at the bytes per second of those before it.

    ``seconds`` is the duration of all links before link ``number``.
    """
    sizes = [0 if part is None else part[1] - part[0] for part in parts[: number + 1]]
    before = sum(sizes[:number])
    return seconds * sizes[number] / before if before else 0.0
