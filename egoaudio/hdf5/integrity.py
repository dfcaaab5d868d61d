"""Checksums and statistics of a video's rows, and the check of a whole file against them.

In: rows as they are stored, block by block while a worker writes them; later an opened file. Out: numbers for
``/checksums`` and ``/statistics``; a list of problems in words, each naming its video.

Conventions: a video's checksum is the CRC-32 of all of its rows of an array, in order, as stored (rows of clips without
sound are zeros). Its statistics are taken over its clips with status 1 only, in float64, row by row, so that they do
not depend on how the rows were grouped into blocks.

Source: FORMAT.md; CRC-32 as in zlib.
"""

import zlib
from collections.abc import Callable

import numpy as np

from egoaudio.errors import Status, StoreError
from egoaudio.hdf5.reader import EgoAudioFile

_BLOCK_BYTES = 1 << 20  # stay in the processor's cache between the checksum and the sums


def checksum(rows: np.ndarray, previous: int = 0) -> int:
    """Return the CRC-32 of rows as stored; ``previous`` is that of the rows before them."""
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view("u1").data, previous)


def statistics(rows: np.ndarray, previous: np.ndarray | None = None) -> np.ndarray:
    """Return count, sum and sum of squares of rows with status 1.

    Parameters
    ----------
    rows : ndarray (n, ...)
        As stored.
    previous : ndarray float64 (3,), optional
        The result for the rows before them.

    Returns
    -------
    ndarray float64 (3,)
    """
    count, total, squares = (0.0, 0.0, 0.0) if previous is None else previous
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # values that are not finite give such sums, which verify reports
        for row in rows:
            values = row.astype(np.float64).reshape(-1)
            count += values.size
            total += values.sum()
            squares += np.square(values, out=values).sum()  # not np.dot, which adds in another order with other threads
    return np.array([count, total, squares])


def verify(file: EgoAudioFile, progress: Callable[[int], object] | None = None) -> list[str]:
    """Read a whole file and return what is wrong with it.

    Parameters
    ----------
    file : EgoAudioFile
    progress : callable, optional
        Called as ``progress(1)`` after each video.

    Returns
    -------
    list of str
        Empty if every checksum, status and count is right. Videos that an unfinished build has only planned are not a
        problem.
    """
    problems = verify_tables(file)
    for video in range(file.num_videos):
        problems += verify_video(file, video)
        if progress is not None:
            progress(1)
    return problems


def verify_tables(file: EgoAudioFile) -> list[str]:
    """Return what is wrong with the tables of a file as a whole."""
    videos = file.video_table
    problems: list[str] = []
    stops = np.cumsum(videos["num_clips"], dtype=np.int64)
    if (
        (videos["num_clips"] < 0).any()
        or (videos["first_clip"] != stops - videos["num_clips"]).any()
        or (stops[-1] if len(stops) else 0) != file.num_clips
    ):
        problems.append("/videos: the videos' clips do not follow each other from the first clip to the last")
    if not np.isin(videos["status"], [status for status in Status if status != Status.NO_SOUND]).all():
        problems.append("/videos: a status that the format does not have")
    if file.complete and (videos["status"] == Status.PLANNED).any():
        problems.append("/videos: the file is marked complete, but has videos that were only planned")
    for name in ("labels", "video_labels"):
        if not _all_below(getattr(file, name), 2):
            problems.append(f"/{name}: a value other than 0 and 1")
    if file.complete:
        counts = file.count_classes()
        wrong = np.flatnonzero(counts != file.class_table["num_clips"])
        for k in wrong:
            name, stored = file.class_table["class_id"][k].decode(errors="replace"), file.class_table["num_clips"][k]
            problems.append(
                f"/classes: class {name} is active in {counts[k]} clips that can be trained on, not in {stored}"
            )
    return problems


def _all_below(array: np.ndarray, limit: int) -> bool:
    return all((array[start : start + 65536] < limit).all() for start in range(0, len(array), 65536))


def verify_clips(file: EgoAudioFile, video: int) -> list[str]:
    """Return what is wrong with the rows of one video in /videos and /clips, without reading its features."""
    row = file.video_table[video]
    first, count, status = int(row["first_clip"]), int(row["num_clips"]), int(row["status"])
    where = _where(file, video)
    if first < 0 or count < 0 or first + count > file.num_clips:
        return [f"{where}: its clips {first} to {first + count} are not all among the file's {file.num_clips}"]
    if status == Status.PLANNED:
        return []
    clips = file.clip_table[first : first + count]
    problems: list[str] = []
    allowed = (Status.OK, Status.NO_SOUND) if status == Status.OK else (status,)
    if not np.isin(clips["status"], allowed).all():
        problems.append(
            f"{where}: status {status}, but clips of status {sorted(set(clips['status'].tolist()) - set(allowed))}"
        )
    if (clips["video"] != video).any():
        problems.append(f"{where}: clips that name another video")
    if (
        not (clips["start_seconds"] < clips["stop_seconds"]).all()
        or (clips["num_samples"] < 0).any()
        or (clips["labelled"] > 1).any()
    ):
        problems.append(f"{where}: clips with impossible times, samples or labels")
    return problems


def _where(file: EgoAudioFile, video: int) -> str:
    return f"video {video} ({file.video_table['video_id'][video].decode(errors='replace')})"


def verify_video(file: EgoAudioFile, video: int) -> list[str]:
    """Read the rows of one video and return what is wrong with them.

    Parameters
    ----------
    file : EgoAudioFile
    video : int
        Row in /videos.

    Returns
    -------
    list of str
        Empty if all is right; each problem names the video.
    """
    row = file.video_table[video]
    problems = verify_clips(file, video)
    first, count, status = int(row["first_clip"]), int(row["num_clips"]), int(row["status"])
    if status == Status.PLANNED or first < 0 or count < 0 or first + count > file.num_clips:
        return problems
    where, clips = _where(file, video), file.clip_table[first : first + count]
    for name in file.features:
        try:
            found = _verify_rows(file, name, video, slice(first, first + count), clips["status"] == Status.OK)
        except StoreError as error:  # a repacked array whose bytes cannot be unpacked
            found = [str(error)]
        problems += [f"{where}: /{name} {problem}" for problem in found]
    return problems


def _verify_rows(file: EgoAudioFile, name: str, video: int, rows: slice, usable: np.ndarray) -> list[str]:
    """Check one video's rows of one array against checksum, statistics and status."""
    array, crc = file[name], 0
    sums: np.ndarray | None = None
    block_rows = max(1, _BLOCK_BYTES // max(1, array.dtype.itemsize * int(np.prod(array.shape[1:]))))
    stray = False
    for start in range(rows.start, rows.stop, block_rows):
        block = np.asarray(array[start : min(start + block_rows, rows.stop)])
        good = usable[start - rows.start :][: len(block)]
        crc = checksum(block, crc)
        sums = statistics(block if good.all() else block[good], sums)
        stray = stray or (not good.all() and block[~good].view("u1").any())
    problems: list[str] = []
    if stray:
        problems.append("has values in clips that are marked as without data")
    if file.video_table["status"][video] != Status.OK:
        return problems
    if crc != file.checksums(name)[video]:
        return [
            *problems,
            f"is damaged: its checksum is {crc:08x}, not {int(file.checksums(name)[video]):08x}. Build the video again",
        ]
    sums = np.zeros(3) if sums is None else sums
    if not np.isfinite(sums).all():
        return [*problems, "holds values that are not finite"]
    # Other processors add in another order: equal up to rounding, relative to the sum of magnitudes, which this bounds.
    scale = np.array([0.0, np.sqrt(sums[0] * sums[2]), sums[2]])
    if not (np.abs(sums - file.statistics(name)[video]) <= 1e-9 * scale).all():
        problems.append(f"has statistics {file.statistics(name)[video].tolist()}, but its rows give {sums.tolist()}")
    return problems


def require_binary(file: EgoAudioFile, name: str, rows: np.ndarray) -> None:
    """Raise unless these rows of ``labels`` or ``video_labels`` hold nothing but 0 and 1.

    Other values would be trained on as they are: the loss would fall below zero, and scores would be meaningless.

    Raises
    ------
    StoreError
    """
    labels = getattr(file, name)
    for start in range(0, len(rows), 65536):
        some = rows[start : start + 65536]
        if labels[some].max(initial=0) > 1:
            place, column = np.argwhere(labels[some] > 1)[0]
            row, class_id = some[place], file.class_table["class_id"][column].decode(errors="replace")
            raise StoreError(
                f"{file.path}: /{name} holds {labels[row, column]} in row {row}, class {class_id}: expected 0 or 1. "
                "The file is damaged, or another program wrote it: check it with egoaudio-inspect --verify, and build "
                "it again"
            )
