"""Recordings -> their scores: workers make the features, the network runs here.

``score_media`` hears files, ``score_files`` takes the features of egoaudio files as they are; both yield ``Scored``
recordings as they finish. What a recording costs when it is broken, or crashes or hangs its worker, is itself.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from egoaudio.builder import pool
from egoaudio.data.rows import RowSource
from egoaudio.errors import Status, StoreError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.schema import CLIP_DTYPE
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.prediction.channel import Disconnected, Receiver
from egoaudio.prediction.find import Recordings
from egoaudio.prediction.messages import PredictionProgress
from egoaudio.prediction.predictor import Predictor
from egoaudio.prediction.recording import COLUMNS, NO_SCORES, Scored, describe, failure, from_heard
from egoaudio.prediction.scoring import Batches, Scores, Scoring
from egoaudio.prediction.worker import Heard, send_features
from egoaudio.system.files import StrPaths


def score_media(
    predictor: Predictor,
    recordings: Recordings,
    numbers: Sequence[int],
    progress: PredictionProgress,
    *,
    num_workers: int,
    timeout_seconds: float,
) -> Iterator[Scored]:
    """Hear and score recordings.

    Parameters
    ----------
    predictor : Predictor
    recordings : Recordings
    numbers : sequence of int
        Which of them, in the order in which they are begun.
    progress : PredictionProgress
    num_workers : int
        Processes that decode.
    timeout_seconds : float
        A recording without progress for this long is marked as failed.

    Yields
    ------
    Scored
        In the order in which they finish.

    Raises
    ------
    ResourceError
        Memory does not suffice for the network.
    """
    windows = predictor.windows
    for number in numbers:
        if number in recordings.refused:
            name, file = recordings.names[number], recordings.files[number]
            progress.finish(number, failed=True)
            yield failure(file or name, name, file, Status.MISSING, recordings.refused[number], predictor.num_classes)
    jobs = [(number, recordings.files[number]) for number in numbers if number not in recordings.refused]
    with (
        Receiver(windows.row_shape, windows.dtype) as receiver,
        Scoring(receiver, predictor.scorer, windows, predictor.num_classes, progress.scored) as scoring,
    ):
        call = partial(send_features, receiver.address, predictor.build)
        waiting: list[tuple[int, Heard]] = []
        try:
            for (number, _), heard in pool.map_unordered(
                call, jobs, num_workers=num_workers, timeout_seconds=timeout_seconds
            ):
                scoring.check()
                if isinstance(heard, pool.Death):
                    heard = Heard(Status.CRASHED, heard.reason, fingerprint=fingerprint(recordings.files[number]))
                waiting.append((number, heard))
                yield from _finished(predictor, recordings, scoring, waiting, progress)
        except Disconnected:
            scoring.check()  # why
            raise
        yield from _finished(predictor, recordings, scoring, waiting, progress, wait=True)


def _finished(
    predictor: Predictor,
    recordings: Recordings,
    scoring: Scoring,
    waiting: list[tuple[int, Heard]],
    progress: PredictionProgress,
    wait: bool = False,
) -> Iterator[Scored]:
    """Yield those of the recordings that wait for their scores which have them, and take them out."""
    for number, heard in list(waiting):
        none = np.empty((0, predictor.num_classes), np.float32)
        scores = scoring.take(heard.attempt, wait) if heard.status == Status.OK else none
        if scores is None:
            continue
        waiting.remove((number, heard))
        scored = from_heard(recordings.names[number], recordings.files[number], heard, scores, predictor.build)
        progress.finish(number, scored.failed)
        yield scored


def score_files(
    predictor: Predictor, paths: StrPaths, videos: Sequence[int], progress: PredictionProgress
) -> Iterator[Scored]:
    """Score the features of egoaudio files as they are.

    Parameters
    ----------
    predictor : Predictor
    paths : path or sequence of path
    videos : sequence of int
        Rows of /videos, numbered through the files.
    progress : PredictionProgress

    Yields
    ------
    Scored
        In the order of ``videos``.

    Raises
    ------
    StoreError, TrainingError
        A file cannot be read, or they do not belong together.
    """
    source = RowSource(paths, predictor.row, context_clips=predictor.context_clips)
    batches = Batches(predictor.scorer, lambda scores, count: progress.scored(scores.number, count, len(scores.values)))
    waiting: list[tuple[int, Scores]] = []
    with contextlib.closing(source.file) as file:
        for video in videos:
            rows = _clips_of(file, video)
            scores = Scores(video, len(rows), predictor.num_classes)
            usable = np.flatnonzero(file.usable[rows])
            for some in np.array_split(usable, max(1, -(-len(usable) // predictor.scorer.batch_size))):
                features = np.empty((len(some), *predictor.scorer.feature_shape), np.float32)
                source.take(rows[some], features, *predictor.normalization)
                batches.add(scores, some, features)
            waiting.append((video, scores))
            while waiting and not waiting[0][1].num_waiting:
                yield _scored_of_file(file, *waiting.pop(0), progress)
        batches.run()
        for video, scores in waiting:
            yield _scored_of_file(file, video, scores, progress)


def _clips_of(file: EgoAudioFile, video: int) -> np.ndarray:
    """Return the rows of a video's clips."""
    row = file.video_table[video]
    rows = np.arange(row["num_clips"]) + int(row["first_clip"])
    if len(rows) and not (
        0 <= rows[0] and rows[-1] < file.num_clips and (file.clip_table["video"][rows] == video).all()
    ):
        raise StoreError(f"{file.path}: /videos: row {video} names clips of other videos; the file is damaged")
    return rows


def _scored_of_file(file: EgoAudioFile, video: int, scores: Scores, progress: PredictionProgress) -> Scored:
    """Return a video of a file with its scores."""
    row = file.video_table[video]
    columns = {name: row[name] for name in COLUMNS if name in (row.dtype.names or ())}
    columns = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value.item()
        for name, value in columns.items()
    }
    clips = np.array(file.clip_table[_clips_of(file, video)], CLIP_DTYPE)
    clips["video"] = 0
    fixed = [columns.pop(name) for name in ("video_id", "file", "status", "error")]
    if np.isnan(scores.values[file.usable[_clips_of(file, video)]]).any():
        fixed[2:], clips, values = [Status.UNREADABLE, NO_SCORES], clips[:0], scores.values[:0]
    else:
        values = scores.values
    described = describe(*fixed, **columns)
    scored = Scored(described["video_id"], described, file.fingerprints[video].tobytes(), clips, values)
    progress.finish(video, scored.failed)
    return scored
