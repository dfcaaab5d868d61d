"""What a prediction leaves in its folder: scores.h5, segments.csv and label files, each there whole or not at all.

In: the recordings in their order, each read when it is needed. Out: files whose bytes follow from the scores and the
options alone, not from when and in how many goes they were made. A text in a CSV that a spreadsheet would run begins
with an apostrophe.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from egoaudio.config.options import to_json
from egoaudio.config.predict import PredictConfig
from egoaudio.errors import PredictionError, Status
from egoaudio.hdf5 import schema, scores_file
from egoaudio.prediction.formats import render, suffix_of
from egoaudio.prediction.predictor import Predictor
from egoaudio.prediction.recording import TEXTS
from egoaudio.prediction.result import Prediction
from egoaudio.system import files
from egoaudio.system.terminal import harmless

_LEFTOVER = re.compile(r"\..*\.[0-9a-f]{16}\.partial", re.DOTALL)  # names of ``files.replacing``
SEGMENT_COLUMNS = ("file", "start_seconds", "end_seconds", "class_id", "name", "score", "mean_score", "checkpoint")
Read = Callable[[], Iterator[Prediction]]


def write_scores(path: Path, predictions: Read, predictor: Predictor, config: PredictConfig, source: str) -> None:
    """Write scores.h5.

    Parameters
    ----------
    path : pathlib.Path
    predictions : callable
        Gives all recordings in their order, as often as it is called.
    predictor : Predictor
    config : PredictConfig
    source : str
        The egoaudio files that were scored, one a line; empty where it was media.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    longest, num_videos, num_clips = dict.fromkeys(TEXTS, ""), 0, 0
    for prediction in predictions():
        num_videos, num_clips = num_videos + 1, num_clips + len(prediction.scored.clips)
        for name in TEXTS:
            longest[name] = max(
                longest[name], str(prediction.scored.video[name]), key=lambda text: len(schema.encode(text))
            )
    rules, build = predictor.rules, predictor.build
    classes = scores_file.class_table(
        predictor.class_ids,
        predictor.class_names,
        onset=rules.onset,
        offset=rules.offset,
        slope=rules.calibration.slope,
        intercept=rules.calibration.intercept,
    )
    attributes = {
        "sample_rate": build.sample_rate,
        "clip_seconds": float(build.clips.clip_seconds),
        "hop_seconds": float(build.clips.step_seconds),
        "smooth_clips": rules.smooth_clips,
        "config": to_json(config),
        "build": to_json(build),
        "feature": predictor.feature,
        "label_mode": predictor.label_mode,
        "calibration": rules.calibration.method,
        "checkpoint": predictor.checkpoint,
        "checkpoint_sha256": predictor.sha256,
        "plan_sha256": predictor.contents["plan_sha256"],
        "scoring_sha256": predictor.scoring_sha256,
        "source": source,
    }
    video_dtype = schema.video_dtype(**{name: [text] for name, text in longest.items()})
    with scores_file.writing(path, attributes, classes, video_dtype, num_videos, num_clips) as writer:
        first = 0
        for video, prediction in enumerate(predictions()):
            scored = prediction.scored
            row = np.zeros(1, video_dtype)
            for name, value in scored.video.items():
                text = isinstance(value, str)
                row[name] = schema.encode(value, row.dtype[name].itemsize) if text else value
            row["first_clip"], row["num_clips"] = first, len(scored.clips)
            clips = scored.clips.copy()
            clips["video"] = video
            writer.write("videos", video, row)
            writer.write("fingerprints", video, np.frombuffer(scored.fingerprint, "u1")[None])
            writer.write("clips", first, clips)
            writer.write("scores", first, scored.scores.astype("<f4"))
            classes["num_clips"] += prediction.count_active()
            first += len(clips)
        writer.write("classes", 0, classes)


def write_segments(path: Path, predictions: Iterator[Prediction], num_classes: int) -> tuple[int, np.ndarray]:
    """Write segments.csv, a row a segment; return their number, and the seconds of each class (num_classes,).

    Raises
    ------
    PredictionError
        The file cannot be written.
    """
    count, class_seconds = 0, np.zeros(num_classes)
    try:
        with files.replacing(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(SEGMENT_COLUMNS)
            for prediction in predictions:
                for segment in prediction.named_segments():
                    writer.writerow(
                        [
                            harmless_path(prediction.file),
                            seconds(segment.start_seconds),
                            seconds(segment.stop_seconds),
                            harmless(segment.class_id),
                            harmless(segment.name),
                            f"{segment.score:.6f}",
                            f"{segment.mean_score:.6f}",
                            harmless_path(prediction.labelling.checkpoint),
                        ]
                    )
                    count += 1
                    class_seconds[segment.class_index] += segment.stop_seconds - segment.start_seconds
            text.detach()
    except OSError as error:
        raise PredictionError(files.explain(path, error)) from error
    return count, class_seconds


def with_label_files(folder: Path, formats: tuple[str, ...], predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """Write ``FOLDER/FORMAT/NAME.ENDING`` for other programs, for each recording with scores, and yield it on.

    Raises
    ------
    PredictionError
        A file cannot be written, or a link would lead it out of the folder.
    """
    for name in formats:
        require_inside(folder, folder / name)
        _remove_leftovers(folder / name)
    for prediction in predictions:
        for name in formats if prediction.status == Status.OK else ():
            path = folder / name / f"{prediction.name}{suffix_of(name)}"
            try:
                _write_label_file(folder, path, render(name, prediction))
            except OSError as error:
                raise PredictionError(files.explain(path, error)) from error
        yield prediction


def require_inside(folder: Path, path: Path) -> None:
    """Raise PredictionError where a link would lead a path out of the folder that it is in."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise PredictionError(
            f"{path}: a symbolic link there leads out of {folder}: remove it, or give another `output`"
        )


def _write_label_file(folder: Path, path: Path, contents: bytes) -> None:
    """Write a file that follows from a recording's name, within the folder, unless it is there as it should be."""
    require_inside(folder, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.is_file() and path.stat().st_size == len(contents) and path.read_bytes() == contents):
        files.write_file(path, contents)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed prediction has left beside label files."""
    for path in folder.rglob(".*.partial"):
        if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def seconds(value: float) -> str:
    """Return a time in seconds with as many digits as matter, at most microseconds: ``2.5``."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def harmless_path(path: str) -> str:
    """Return a path that no spreadsheet runs and that leads where it did."""
    return os.path.join(".", path) if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path
