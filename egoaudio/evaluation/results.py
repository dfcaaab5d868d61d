"""The results of an evaluation and their files: evaluation.json, per_class.csv, per_class.png, submissions.

In: an ``Evaluation``. Out: text, or files, each written atomically (``system.files``). Scores are fractions from 0 to 1
in the files and per cent in the table; what is not defined (a class without positives, an interval of one video) is
null in JSON, empty in CSV and ``-`` in the table.

Submissions are in the official Charades text format: ``id score1 ... score157`` per video, or
``id frame score1 ... score157`` with frames 1 to 25; a video without scores has no line, and the official scripts rank
it last.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egoaudio._version import __version__
from egoaudio.errors import TrainingError
from egoaudio.evaluation.charades import FRAMES_PER_VIDEO
from egoaudio.evaluation.segment_metrics import Counts
from egoaudio.system import files
from egoaudio.system.terminal import harmless

# Name in evaluation.json, and title in the table.
TITLES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "mAP",
    "audible_map": "mAP, audible classes",  # the table replaces this by their number
    "mean_class_accuracy": "mean class accuracy",
    "mauc": "mAUC",
    "macro_f1": "macro F1",
    "video_map": "video mAP (Charades classification)",
    "localization_map": "frame mAP (Charades localization)",
    "event_f1": "event F1 (collar 0.5 s)",
    "intersection_f1": "intersection F1 (one half)",
    "segment_f1": "segment F1 (seconds)",
}
NAMES = ("evaluation.json", "per_class.csv", "per_class.png")  # the files that ``write`` writes
PER_CLASS_COLUMNS = (
    "class_id",
    "name",
    "num_clips",
    "prior",
    "average_precision",
    "low",
    "high",
    "audible",
    "auc",
    "class_accuracy",
    "f1",
    "threshold",
    "num_videos",
    "video_average_precision",
    "localization_average_precision",
    "event_f1",
    "intersection_f1",
    "segment_f1",
)


@dataclass(frozen=True)
class Score:
    """One number of an evaluation, a fraction; NaN where it is not defined."""

    value: float
    low: float = math.nan
    """Lower end of the 95 % interval over videos."""
    high: float = math.nan
    prior: float = math.nan
    """The same metric when the scores are the classes' frequencies in the training split."""
    unsmoothed: float = math.nan
    """The same metric of each clip's own scores, if ``value`` is of scores averaged over neighbouring clips."""


@dataclass(frozen=True)
class CalibrationErrors:
    """How far scores are from being probabilities: expected calibration errors, fractions."""

    method: str
    """``temperature``, ``platt``, or ``none`` where nothing is done to the scores."""
    before: float
    """Of the scores."""
    after: float
    """Of the probabilities made of them."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of one evaluation; ``str()`` is the table."""

    scores: dict[str, Score]
    """``{name of TITLES: Score}``."""
    per_class: dict[str, list]
    """``{name of PER_CLASS_COLUMNS: list}``, an entry per class; NaN where not defined."""
    num_clips: int
    """Clips that count in the clip metrics: with sound and with labels."""
    num_videos: int
    """Videos of the split, with sound or not."""
    num_videos_scored: int
    num_resamples: int
    """Of the bootstrap; 0 if there are no intervals."""
    pool: str
    video_ids: tuple[str, ...]
    video_scores: np.ndarray
    """float32 (num_videos, num_actions); minus infinity for a video without sound."""
    frame_scores: np.ndarray | None
    """float32 (num_videos * 25, num_actions); None without localization."""
    notes: tuple[str, ...] = ()
    """What is missing and why, in sentences."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was evaluated: checkpoint, file, split."""
    smooth_clips: int = 0
    """Over how many neighbouring clips on each side the scores are averaged."""
    segment_counts: dict[str, Counts] = field(default_factory=dict)
    """``{name of segment_metrics.KINDS: Counts}``, by video and action; empty without segments."""
    calibration: CalibrationErrors | None = None
    """None where the checkpoint comes from a run without validation."""

    def __str__(self) -> str:
        return table(self)


def table(evaluation: Evaluation) -> str:
    """Return the scores as lines of text, in per cent: value, 95 % interval, prior, and unsmoothed value if any."""
    heading = f"{evaluation.about['split']} split: " if "split" in evaluation.about else ""
    silent = evaluation.num_videos - evaluation.num_videos_scored
    without = f" ({silent:,} of them without sound)" if silent else ""
    videos = f"{evaluation.num_videos:,} video{'s' * (evaluation.num_videos != 1)}{without}"
    lines = [
        f"{heading}{evaluation.num_clips:,} clips of {videos}, {len(evaluation.per_class['class_id'])} classes",
        "",
    ]
    width = max(len(title) for title in TITLES.values())
    smoothed = evaluation.smooth_clips > 0
    unsmoothed = f"  {'unsmoothed':>10}" if smoothed else ""
    lines.append(f"{'per cent':{width}}  {'score':>6}  {'95 % interval':>15}  {'prior':>6}{unsmoothed}")
    for name, title in TITLES.items():
        if name in evaluation.scores:
            score = evaluation.scores[name]
            if name == "audible_map":
                title = f"mAP, {_count(sum(evaluation.per_class['audible']), 'audible class', 'es')}"
            between = "-" if math.isnan(score.low) else f"{_percent(score.low)} to {_percent(score.high)}"
            unsmoothed = f"  {_percent(score.unsmoothed):>10}" if smoothed else ""
            lines.append(
                f"{title:{width}}  {_percent(score.value):>6}  {between:>15}  {_percent(score.prior):>6}{unsmoothed}"
            )
    lines += ["", "prior: always guessing each class by its frequency in the training split"]
    if smoothed:
        neighbours = _count(evaluation.smooth_clips, "clip", "s")
        lines.append(
            f"smoothed: each score is the mean over the clip and {neighbours} before and after it; unsmoothed: the "
            "clip's own"
        )
    if "audible_map" in evaluation.scores:
        lines.append(
            "audible: classes whose interval of average precision is above the prior, chosen on these same clips, "
            "which\nmakes their mean too high; to compare models, use the audible classes of one of them "
            "(per_class.csv)"
        )
    if "event_f1" in evaluation.scores:
        lines.append(
            "event, intersection, segment F1: of the segments that egoaudio-predict would write, by sed_eval's and "
            "psds_eval's definitions"
        )
    errors = evaluation.calibration
    if errors is not None and errors.method != "none":
        lines.append(
            f"calibration: expected error {_percent(errors.before)} per cent of the scores, {_percent(errors.after)} "
            f"of the probabilities ({errors.method})"
        )
    return "\n".join(lines + [f"note: {note}" for note in evaluation.notes])


def _count(number: int, noun: str, plural: str) -> str:
    """Return a number and its noun; ``plural`` is the ending to add."""
    return f"{number} {noun}{'' if number == 1 else plural}"


def _percent(fraction: float) -> str:
    """Return a fraction in per cent, ``-`` for NaN."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def prepare(
    folder: str | os.PathLike[str],
    submissions: Iterable[str | os.PathLike[str] | None] = (),
    inputs: Iterable[str | os.PathLike[str] | None] = (),
) -> None:
    """Make the folder, and refuse outputs that cannot or must not be written, before hours of scoring, not after.

    Parameters
    ----------
    folder : path
        For the files of ``write``.
    submissions : iterable of path or None
        Other files that will be written.
    inputs : iterable of path or None
        Files that are read and may not be replaced.

    Raises
    ------
    TrainingError
        When the folder cannot be made, or an output is an input, not a regular file, or named twice.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"`output={str(folder)!r}`: this folder cannot be made ({error.strerror}): give a folder that can be "
            "written to"
        ) from error
    taken = set()
    for path in (*(folder / name for name in NAMES), *submissions):
        if path is None:
            continue
        try:
            files.check_output(path, inputs)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
        if os.path.realpath(path) in taken:
            raise TrainingError(f"{path}: two results would be written there: give each its own name")
        taken.add(os.path.realpath(path))


def write(evaluation: Evaluation, folder: str | os.PathLike[str]) -> None:
    """Write evaluation.json, per_class.csv and per_class.png into ``folder``, which is made if it does not exist.

    Raises
    ------
    TrainingError
        If one cannot be written; that file of an earlier evaluation is then left as it was.
    """
    from egoaudio.figures import per_class_png  # matplotlib takes half a second

    folder = Path(folder)
    text = to_json(evaluation).encode(errors="backslashreplace")  # names of files that are not UTF-8: JSON's escapes
    for name, contents in zip(NAMES, (text, to_csv(evaluation).encode(), per_class_png(evaluation)), strict=True):
        write_file(folder / name, contents)


def to_json(evaluation: Evaluation) -> str:
    """Return the evaluation as JSON text, without the values per class."""
    parts = ("value", "low", "high", "prior", "unsmoothed")
    scores = {
        name: {part: _defined(getattr(score, part)) for part in parts} for name, score in evaluation.scores.items()
    }
    audible = None
    if "audible_map" in evaluation.scores:
        each = zip(evaluation.per_class["class_id"], evaluation.per_class["audible"], strict=True)
        audible = [class_id for class_id, heard in each if heard]
    contents = {
        "egoaudio_version": __version__,
        **evaluation.about,
        "pool": evaluation.pool,
        "smooth_clips": evaluation.smooth_clips,
        "num_clips": evaluation.num_clips,
        "num_videos": evaluation.num_videos,
        "num_videos_scored": evaluation.num_videos_scored,
        "num_resamples": evaluation.num_resamples,
        "scores": scores,
        "calibration": None
        if evaluation.calibration is None
        else {name: _defined(value) for name, value in asdict(evaluation.calibration).items()},
        "audible_classes": audible,
        "notes": list(evaluation.notes),
    }
    return json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(evaluation: Evaluation) -> str:
    """Return the evaluation of each class as CSV text, in which no text can be taken for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PER_CLASS_COLUMNS)
    for row in zip(*(evaluation.per_class[name] for name in PER_CLASS_COLUMNS), strict=True):
        writer.writerow([harmless(value) if isinstance(value, str) else _defined(value) for value in row])
    return text.getvalue()


def _defined(value: Any) -> Any:
    """Return ``value``, or None if it is a float that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_submission(evaluation: Evaluation, path: str | os.PathLike[str], frames: bool = False) -> None:
    """Write the scores of videos, or of frames, in the format of the official evaluation scripts.

    Parameters
    ----------
    evaluation : Evaluation
    path : path
    frames : bool
        The format of ``Charades_v1_localize.m`` instead of ``Charades_v1_classify.m``.

    Raises
    ------
    TrainingError
        If an id holds white space, which the format cannot express, there are no frames, or the file cannot be written.
    """
    scores = evaluation.frame_scores if frames else evaluation.video_scores
    if scores is None:
        raise TrainingError(f"{path}: no submission of frames: " + " ".join(evaluation.notes))
    for video_id in evaluation.video_ids:
        if video_id.split() != [video_id]:
            raise TrainingError(
                f"{path}: no submission can be written: the id {video_id!r} holds white space, which separates the "
                "columns"
            )
    per_video = FRAMES_PER_VIDEO if frames else 1
    number = " ".join(["%.9g"] * scores.shape[1])  # nine digits hold any float32
    lines = []
    for row, values in enumerate(scores):
        if np.isfinite(values).all():
            frame = f" {row % per_video + 1}" if frames else ""
            lines.append(f"{evaluation.video_ids[row // per_video]}{frame} " + number % tuple(values.tolist()) + "\n")
    write_file(path, "".join(lines).encode())


def write_file(path: str | os.PathLike[str], contents: bytes) -> None:
    """Write bytes to ``path`` atomically, so that the old file or the new one is there, whole; make its folder.

    Raises
    ------
    TrainingError
        If it cannot be written.
    """
    try:
        files.write_file(path, contents)
    except OSError as error:
        raise TrainingError(
            f"{path}: could not be written ({error.strerror}): give another path, or free some space"
        ) from error
