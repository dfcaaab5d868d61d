"""What an evaluation came to, and how it is written: a table, evaluation.json, per_class.csv, per_class.png, submissions.

In: an ``Evaluation``. Out: text, or files that are there whole or not at all (written under another name, synced,
renamed). Scores are fractions from 0 to 1 in the files and per cent in the table; what is not defined (a class without
positives, an interval of one video) is null in JSON, empty in CSV and ``-`` in the table.

Submissions are the official Charades text format: ``id score1 ... score157`` a video, or ``id frame score1 ... score157``
with frames 1 to 25; a video without scores has no line, which the official scripts rank last.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egoaudio._version import __version__
from egoaudio.errors import TrainingError
from egoaudio.evaluation.charades import FRAMES_PER_VIDEO
from egoaudio.system import files
from egoaudio.system.terminal import one_line

# Name in evaluation.json, and what the table calls it.
TITLES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "mAP",
    "audible_map": "mAP, audible classes",  # the table says how many
    "mean_class_accuracy": "mean class accuracy",
    "mauc": "mAUC",
    "macro_f1": "macro F1",
    "video_map": "video mAP (Charades classification)",
    "localization_map": "frame mAP (Charades localization)",
}
NAMES = ("evaluation.json", "per_class.csv", "per_class.png")  # of what ``write`` writes
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
)


@dataclass(frozen=True)
class Score:
    """One number of an evaluation, a fraction; NaN where it is not defined."""

    value: float
    low: float = math.nan
    """Lower end of the 95 % interval over videos."""
    high: float = math.nan
    prior: float = math.nan
    """The same metric of scores that say nothing but how frequent each class is in the training split."""
    unsmoothed: float = math.nan
    """The same metric of each clip's own scores, where ``value`` is of those averaged over neighbouring clips."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything about one evaluation; ``str()`` is the table."""

    scores: dict[str, Score]
    """``{name of TITLES: Score}``."""
    per_class: dict[str, list]
    """``{name of PER_CLASS_COLUMNS: list}``, an entry per class; NaN where not defined."""
    num_clips: int
    """Clips behind the clip metrics: with sound and with labels."""
    num_videos: int
    """Videos of the split, with sound or not."""
    num_videos_scored: int
    num_resamples: int
    """Of the bootstrap; 0 if no intervals were asked for."""
    pool: str
    video_ids: tuple[str, ...]
    video_scores: np.ndarray
    """float32 (num_videos, num_actions); minus infinity for a video without sound."""
    frame_scores: np.ndarray | None
    """float32 (num_videos * 25, num_actions); None without localization."""
    notes: tuple[str, ...] = ()
    """Sentences that say what is missing and why."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was evaluated: checkpoint, file, split."""
    smooth_clips: int = 0
    """Over how many neighbouring clips on each side the scores are averaged."""

    def __str__(self) -> str:
        return table(self)


def table(evaluation: Evaluation) -> str:
    """Return the scores as lines of text, in per cent: value, 95 % interval, prior, and without smoothing where there is."""
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
            f"smoothed: each score is the mean over the clip and {neighbours} before and after it; unsmoothed: the clip's own"
        )
    if "audible_map" in evaluation.scores:
        lines.append(
            "audible: classes whose average precision clears the prior's by its interval, chosen on these same clips, which\n"
            "flatters their mean; to compare models, take the classes of one of them (per_class.csv)"
        )
    return "\n".join(lines + [f"note: {note}" for note in evaluation.notes])


def _count(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def prepare(
    folder: str | os.PathLike[str],
    submissions: Iterable[str | os.PathLike[str] | None] = (),
    inputs: Iterable[str | os.PathLike[str] | None] = (),
) -> None:
    """Make the folder, and refuse what could not or must not be written to, before hours of scoring rather than after them.

    Parameters
    ----------
    folder : pathlib.Path
        For the files of ``write``.
    submissions : iterable of path or None
        Other files that will be written.
    inputs : iterable of path
        What is read, and may not be replaced.

    Raises
    ------
    TrainingError
        The folder cannot be made; or a file is an input, no regular file, or wanted twice.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"--output {folder}: cannot be made a folder ({error.strerror}): give the name of a folder that can be written to"
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
            raise TrainingError(f"{path}: two results would be written there: give each a name of its own")
        taken.add(os.path.realpath(path))


def write(evaluation: Evaluation, folder: str | os.PathLike[str]) -> None:
    """Write evaluation.json, per_class.csv and per_class.png into ``folder``, which is made if it is not there.

    Raises
    ------
    TrainingError
        If they cannot be written; files of an earlier evaluation are then left as they were.
    """
    from egoaudio.figures import per_class_png  # matplotlib takes half a second

    folder = Path(folder)
    text = to_json(evaluation).encode(
        errors="backslashreplace"
    )  # names of files that are not UTF-8 become JSON's own escapes
    for name, contents in zip(NAMES, (text, to_csv(evaluation).encode(), per_class_png(evaluation)), strict=True):
        write_file(folder / name, contents)


def to_json(evaluation: Evaluation) -> str:
    """Return the evaluation as JSON text, without what is per class."""
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
        "audible_classes": audible,
        "notes": list(evaluation.notes),
    }
    return json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(evaluation: Evaluation) -> str:
    """Return the evaluation of each class as CSV text; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PER_CLASS_COLUMNS)
    for row in zip(*(evaluation.per_class[name] for name in PER_CLASS_COLUMNS), strict=True):
        writer.writerow([_harmless(value) if isinstance(value, str) else _defined(value) for value in row])
    return text.getvalue()


def _harmless(text: str) -> str:
    """Return a text that no spreadsheet runs: classes are called what somebody's CSV calls them."""
    text = one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _defined(value: Any) -> Any:
    """Return ``value``, or None where it is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_submission(evaluation: Evaluation, path: str | os.PathLike[str], frames: bool = False) -> None:
    """Write the scores of videos, or of frames, as the official evaluation scripts read them.

    Parameters
    ----------
    evaluation : Evaluation
    path : path
    frames : bool
        The format of ``Charades_v1_localize.m`` instead of ``Charades_v1_classify.m``.

    Raises
    ------
    TrainingError
        If an id holds white space, which the format cannot express, if there are no frames, or nothing can be written.
    """
    scores = evaluation.frame_scores if frames else evaluation.video_scores
    if scores is None:
        raise TrainingError(f"{path}: no submission of frames: " + " ".join(evaluation.notes))
    for video_id in evaluation.video_ids:
        if video_id.split() != [video_id]:
            raise TrainingError(
                f"{path}: no submission, for the id {video_id!r} holds white space, which separates the columns of the format"
            )
    per_video = FRAMES_PER_VIDEO if frames else 1
    number = " ".join(["%.9g"] * scores.shape[1])  # nine digits are all of a float32
    lines = []
    for row, values in enumerate(scores):
        if np.isfinite(values).all():
            frame = f" {row % per_video + 1}" if frames else ""
            lines.append(f"{evaluation.video_ids[row // per_video]}{frame} " + number % tuple(values.tolist()) + "\n")
    write_file(path, "".join(lines).encode())


def write_file(path: str | os.PathLike[str], contents: bytes) -> None:
    """Write bytes to ``path`` so that the old file or the new one is there, whole; make its folder.

    Raises
    ------
    TrainingError
        If it cannot be written.
    """
    try:
        files.write_file(path, contents)
    except OSError as error:
        raise TrainingError(
            f"{path}: could not be written ({error.strerror}): give another place, or make room"
        ) from error
