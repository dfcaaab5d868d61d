"""The links of a chained Ogg file: whole files one after another, such as an internet radio's songs, or a phone's pauses.

FFmpeg refuses a link of another rate or channel count, plays one at the rate of the first, or places it by its own clock. Taken
one by one they are ordinary files. A link begins with one page for each of its streams that has the flag "beginning of
stream".

Source: RFC 3533, section 6.
"""

import os

_MAGIC = b"OggS"
_BEGIN = b"OggS\0\2"  # version 0, beginning of stream
_HEADER_BYTES = 27  # of a page, before its table of segments
_LONGEST_HEADER = 27 + 255
_CHUNK_BYTES = 1 << 20
_MOST_LINKS = 10_000


def links(path):
    """Return the parts ``(start, stop)`` of a chained Ogg file in bytes; ``[None]`` for any other file, which is one part."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            if file.read(4) != _MAGIC:
                return [None]
            starts = _starts(file)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return [None]  # whoever opens it next says why
    if not 1 < len(starts) <= _MOST_LINKS:
        return [None]
    return list(zip(starts, [*starts[1:], size], strict=True))


def _starts(file):
    """Return where links begin: pages that begin a stream, but for those that follow directly on another one."""
    starts, after = [], -1
    for place, header in _beginnings(file):
        segments = header[_HEADER_BYTES : _HEADER_BYTES + header[26]]
        if place != after:
            starts.append(place)
        after = place + _HEADER_BYTES + len(segments) + sum(segments)
    return starts


def _beginnings(file):
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


def guessed_seconds(parts, number, seconds):
    """Return how long a link that does not decode may last: what its bytes took in the links before it, ``seconds`` in all."""
    before = sum(stop - start for start, stop in parts[:number])
    start, stop = parts[number]
    return seconds * (stop - start) / before if before else 0.0
