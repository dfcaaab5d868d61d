"""What a page says of a run: curves, scores, what can be heard, confusions, reliability, clips.

In: the scores of a split, and the run's folder. Out: a ``RunSection``, values alone.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egoaudio.config.options import from_flat, to_flat
from egoaudio.config.train import TrainConfig
from egoaudio.errors import ReportError
from egoaudio.evaluation.evaluate import SplitScores
from egoaudio.evaluation.reliability import reliability
from egoaudio.evaluation.results import TITLES, CalibrationErrors, Evaluation, Score
from egoaudio.inputs.annotations import NO_ACTION
from egoaudio.reporting import charts, names
from egoaudio.reporting.confusions import Confusion, find_confusions
from egoaudio.reporting.notable_clips import NotableClips, ScoredClip, ScoredClips

_MOST_CLASSES = 1000
_LONGEST_TABLE_BYTES = 16 << 20  # of metrics.csv
_FEWEST_CLIPS = 10  # of a class whose labels can be doubted


@dataclass(frozen=True)
class ClassScore:
    """How well a class is heard; fractions, NaN where not defined."""

    title: str
    num_clips: int
    num_videos: int
    average_precision: float
    low: float
    high: float
    prior: float
    """What always guessing reaches on these clips: the share that has the class."""
    is_audible: bool
    area: float
    """Under the ROC curve."""
    f1: float
    threshold: float
    """A probability; infinity for a class that is never claimed."""
    clips: NotableClips


@dataclass(frozen=True)
class RunSection:
    """All that is said of a run."""

    name: str
    anchor: str
    """Of the section in the page."""
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    losses: charts.Chart | None
    shares: charts.Chart | None
    scores: tuple[tuple[str, Score], ...]
    """Titles and scores, in the order of ``results.TITLES``."""
    is_smoothed: bool
    classes: tuple[ClassScore, ...]
    """The best heard first; those without a clip in the split are left out."""
    class_names: tuple[str, ...]
    """Of all columns."""
    confusions: tuple[Confusion, ...]
    confusion_matrix: charts.Matrix | None
    reliability: tuple[charts.Chart, ...]
    """Of the scores, and of the probabilities made of them where they are calibrated."""
    calibration: CalibrationErrors | None
    missing_labels: tuple[ScoredClip, ...]
    empty_labels: tuple[ScoredClip, ...]

    @property
    def num_audible(self) -> int:
        """How many classes can be heard."""
        return sum(row.is_audible for row in self.classes)


def describe(
    scored: SplitScores, evaluation: Evaluation, checkpoint: Path, name: str, anchor: str, num_examples: int
) -> RunSection:
    """Return what a page says of a run.

    Parameters
    ----------
    scored : SplitScores
    evaluation : Evaluation
        Of these scores.
    checkpoint : pathlib.Path
        The run's metrics.csv is looked for beside it.
    name, anchor : str
        What the run is called, and its section's id in the page.
    num_examples : int
        Clips of each kind for each class.

    Raises
    ------
    ReportError
        metrics.csv is none.
    """
    truth = scored.truth
    titles = [names.class_title(*pair) for pair in zip(truth.class_ids, truth.class_names, strict=True)]
    clips = truth.labelled
    scores, rules = scored.smoothed[clips], scored.rules
    probabilities = scores if rules is None else rules.calibration.apply(scores)
    own = ScoredClips(probabilities, truth.labels[clips], truth.rows[clips], truth.clip_video[clips])
    confusions, matrix = find_confusions(scores, own.labels, titles)
    thresholds = np.array(evaluation.per_class["threshold"], np.float64)
    if rules is not None:
        thresholds = np.where(
            np.isfinite(thresholds), rules.calibration.apply(np.nan_to_num(thresholds, posinf=1)), np.inf
        )
    classes = _classes(evaluation, own, thresholds, titles, num_examples)
    doubted = _doubted(evaluation)
    losses, shares = _curves(checkpoint.parent / "metrics.csv")
    return RunSection(
        name,
        anchor,
        _facts(scored, evaluation),
        tuple(evaluation.notes),
        losses,
        shares,
        tuple((title, evaluation.scores[key]) for key, title in TITLES.items() if key in evaluation.scores),
        evaluation.smooth_clips > 0,
        classes,
        tuple(titles),
        confusions,
        matrix,
        tuple(_reliability(title, values, own.labels) for title, values in _to_judge(scores, probabilities)),
        evaluation.calibration,
        own.missing_labels(doubted),
        own.empty_labels(doubted),
    )


def _to_judge(scores: np.ndarray, probabilities: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what is held to be probabilities, with its name."""
    yield "Scores", scores
    if probabilities is not scores:
        yield "Calibrated scores, the probabilities", probabilities


def _reliability(title: str, values: np.ndarray, labels: np.ndarray) -> charts.Chart:
    """Return the reliability diagram of scores or probabilities (num_clips, num_classes)."""
    found = reliability(values, labels)
    bins = np.nan_to_num(found.mean_score)
    error = f"{title}, expected calibration error {100 * found.expected_calibration_error:.2f} %"
    lines = {"as they are": found.share_true, "as they should be": found.mean_score}
    ends = (0.0, 1.0)
    chart = charts.lines(
        bins, lines, error, "mean score", "share that has the class", x_whole=False, x_range=ends, y_range=ends
    )
    assert chart is not None  # scores are in some bin
    return chart


def _facts(scored: SplitScores, evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Return facts as pairs of texts."""
    config, contents = scored.config, scored.contents
    usual = to_flat(
        from_flat(TrainConfig, {"model": config.model.model, "pretrained": config.model.pretrained}).resolved()
    )
    changed = {
        name: value
        for name, value in to_flat(config).items()
        if value != usual[name] and name not in ("model", "feature", "pretrained") and value not in (None, ())
    }
    silent = evaluation.num_videos - evaluation.num_videos_scored
    facts = {
        "Checkpoint": f"{scored.about['checkpoint']}, epoch {contents['epoch']}",
        "Model": f"{config.model.model} on {contents['feature']}, {_num_weights(contents):,} weights",
        "Options": ", ".join(f"{name} {value}" for name, value in changed.items()) or "as they are by default",
        "Judged on": f"the {scored.about['split']} split: {evaluation.num_clips:,} clips with labels of "
        f"{evaluation.num_videos:,} videos" + (f", {silent:,} of them without sound" if silent else ""),
        "Smoothing": f"scores are averaged over {evaluation.smooth_clips} neighbours on each side"
        if evaluation.smooth_clips
        else "",
    }
    return tuple((name, names.clean(text, 1000)) for name, text in facts.items() if text)


def _num_weights(contents: dict[str, Any]) -> int:
    return sum(getattr(tensor, "numel", int)() for tensor in contents["weights"].values())


def _curves(path: Path) -> tuple[charts.Chart | None, charts.Chart | None]:
    """Return the chart of the losses and that of the validation scores; None where there is no metrics.csv."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(io.StringIO(file.read(_LONGEST_TABLE_BYTES))))
    except FileNotFoundError:
        return None, None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"{path}: cannot be read as a table: {error}") from error
    if not rows:
        return None, None
    epochs = _column(path, rows, "epoch")
    losses = {"training": _column(path, rows, "train_loss"), "validation": _column(path, rows, "val_loss")}
    shares = {"top1": "top-1", "top5": "top-5", "map": "mAP", "map_prior": "mAP of the prior"}
    scores = {title: [100 * value for value in _column(path, rows, name)] for name, title in shares.items()}
    return (
        charts.lines(epochs, losses, "Loss", "epoch", "mean over the clips"),
        charts.lines(epochs, scores, "Scores of the validation split", "epoch", "per cent", y_range=(0.0, None)),
    )


def _column(path: Path, rows: list[dict[str, str]], name: str) -> list[float]:
    """Return a column of metrics.csv, NaN where it is empty or missing."""
    try:
        return [float(row.get(name) or "nan") for row in rows]
    except ValueError as error:
        raise ReportError(f"{path}: its column {name} holds something that is no number: {error}") from error


def _classes(
    evaluation: Evaluation, clips: ScoredClips, thresholds: np.ndarray, titles: list[str], num_examples: int
) -> tuple[ClassScore, ...]:
    """Return the classes that have a clip in the split, the best heard first."""
    columns = evaluation.per_class
    precision = np.array(columns["average_precision"], np.float64)
    shown = [int(k) for k in np.argsort(-np.nan_to_num(precision), kind="stable") if not np.isnan(precision[k])]
    share = clips.labels.mean(axis=0)
    return tuple(
        ClassScore(
            titles[k],
            int(columns["num_clips"][k]),
            int(columns["num_videos"][k] or 0),
            float(precision[k]),
            float(columns["low"][k]),
            float(columns["high"][k]),
            float(share[k]),
            columns["audible"][k] == 1,
            float(columns["auc"][k]),
            float(columns["f1"][k]),
            float(thresholds[k]),
            clips.notable(k, num_examples),
        )
        for k in shown[:_MOST_CLASSES]
    )


def _doubted(evaluation: Evaluation) -> np.ndarray:
    """Return the classes whose labels can be doubted: actions that the model hears, often enough."""
    columns = evaluation.per_class
    rows = zip(columns["class_id"], columns["num_clips"], columns["audible"], strict=True)
    return np.array(
        [
            k
            for k, (class_id, num_clips, audible) in enumerate(rows)
            if class_id != NO_ACTION and num_clips >= _FEWEST_CLIPS and not math.isnan(audible) and audible
        ],
        np.int64,
    )
