"""Take over the rows of finished videos from egoaudio files into another that was laid out for them.

In: opened files, and the places of their videos in the new one. Out: the new file's rows, byte for byte; and what could
not be taken over, in words. Every row with a checksum is read and checked against it; the kernel makes the copy, from
memory.

A video's row in ``/videos``, which says that it is done, is written last: after a kill at any instant, what was taken
over is done and the rest is planned.
"""

import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from egoaudio.errors import Status, StoreError
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import Extents, RowWriter
from egoaudio.system import signals

_BLOCK_BYTES = 1 << 20
_THREADS = 4  # checksums and copies release the interpreter's lock
_SUBMITTED = 1024  # at once: a million futures would be a gigabyte
_OF_THE_PLAN = ("first_clip", "num_clips")  # columns of /videos that the new file has its own of


@dataclass(frozen=True, eq=False)
class Move:
    """A video to take over."""

    file: EgoAudioFile
    """The old file."""
    source: int
    """Its row in the old file's /videos."""
    target: int
    """Its row in the new one's."""


def take_over(
    moves: Iterable[Move], path: str, extents: Extents, with_labels: bool = False
) -> Iterator[tuple[Move, str]]:
    """Copy videos that are done into the file at ``path``; nothing is synced.

    Parameters
    ----------
    moves : iterable of Move
        Videos of any status except planned.
    path, extents
        The new file, whose rows are planned, and where they lie.
    with_labels : bool
        Copy the labels, too, instead of keeping those of the plan.

    Yields
    ------
    move, problem
        After each video. ``problem`` is empty, or says why the video was not taken over and stays planned.

    Raises
    ------
    StoreError
        The new file cannot be written.
    """
    call, left = partial(_take_video, path, extents, with_labels), iter(moves)
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="egoaudio-copy")
    try:
        while some := list(itertools.islice(left, _SUBMITTED)):
            for move, problem in zip(some, threads.map(call, some), strict=True):
                signals.check()
                yield move, problem
    finally:
        threads.shutdown(cancel_futures=True)


def _take_video(path: str, extents: Extents, with_labels: bool, move: Move) -> str:
    """Take over one video; return why not, or nothing. Opens its own files, so that threads share no position."""
    file = move.file
    old = file.video_table[move.source]
    with RowWriter(path, extents) as writer:
        new = writer.read("videos", move.target, 1)
        problem = _why_not(file, move.source, old, new[0])
        if problem:
            return problem
        first = int(new["first_clip"][0])
        rows = slice(int(old["first_clip"]), int(old["first_clip"]) + int(old["num_clips"]))
        if old["status"] == Status.OK:
            damaged = _copy_features(move, rows, writer, first)
            if damaged:
                return damaged
        else:
            for name in file.features:
                writer.erase(name, first, rows.stop - rows.start)
        for name in file.features:
            for kind, values in (("checksums", file.checksums(name)), ("statistics", file.statistics(name))):
                writer.write(f"{kind}/{name}", move.target, values[move.source : move.source + 1])
        clips = writer.read("clips", first, rows.stop - rows.start)
        for column in ("num_samples", "status", *(("labelled",) if with_labels else ())):
            clips[column] = file.clip_table[column][rows]
        writer.write("clips", first, clips)
        if with_labels:
            writer.write("labels", first, file.labels[rows])
            writer.write("video_labels", move.target, file.video_labels[move.source : move.source + 1])
        for column in new.dtype.names or ():
            if column in (old.dtype.names or ()) and column not in _OF_THE_PLAN:
                new[column] = old[column]
        writer.write("videos", move.target, new)
    return ""


def _why_not(file: EgoAudioFile, number: int, old: np.void, new: np.void) -> str:
    """Return why a video cannot be the one that was planned, judging by the tables."""
    if old["video_id"] != new["video_id"] or old["num_clips"] != new["num_clips"]:
        return "it is another video than was planned, or has another number of clips"
    if old["status"] == Status.PLANNED:
        return "it is not done"
    return "; ".join(integrity.verify_clips(file, number))


def _copy_features(move: Move, rows: slice, writer: RowWriter, first: int) -> str:
    """Copy the rows of every feature array after checking all of them; return what is damaged."""
    file = move.file
    mapped = [name for name in file.features if file.is_mapped(name)]
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if (info := os.fstat(descriptor)) and (info.st_dev, info.st_ino) != file.identity:
            return f"{file.path} was replaced meanwhile"
        for name in file.features:
            if name in mapped:
                extent = file.extents[name]
                start, stop = (extent.offset + row * extent.row_bytes for row in (rows.start, rows.stop))
                crc = _checksum(descriptor, start, stop)
            else:
                crc = integrity.checksum(np.asarray(file[name][rows]))
            if crc != file.checksums(name)[move.source]:
                return f"its {name} is damaged: its checksum is not the stored one"
        for name in file.features:
            if name in mapped:
                extent = file.extents[name]
                start = extent.offset + rows.start * extent.row_bytes
                writer.copy(name, first, descriptor, start, rows.stop - rows.start)
            else:
                writer.write(name, first, np.asarray(file[name][rows]))
    except StoreError:
        raise
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""


def _checksum(descriptor: int, start: int, stop: int) -> int:
    """Return the CRC-32 of a range of a file; read rather than mapped, so that a bad disk is an error, not a SIGBUS."""
    block, crc = bytearray(min(_BLOCK_BYTES, stop - start)), 0
    view = memoryview(block)
    while start < stop:
        count = os.preadv(descriptor, [view[: stop - start]], start)
        if not count:
            return -1  # it was cut short
        crc = zlib.crc32(view[:count], crc)
        start += count
    return crc
