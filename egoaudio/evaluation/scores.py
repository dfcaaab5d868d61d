"""From scores to the numbers of the paper's table, for the training loop and the command alike.

``evaluate_scores``, which knows neither models nor files, compares scores (num_clips, num_classes) with a
``GroundTruth`` and returns the ``Evaluation``.

Clip metrics (``metrics``) are over the clips that have sound and labels. Video metrics (``charades``, the official
protocol) are over every video of the split, with sound or not, and use all clips that have sound. Thresholds for F1
come from the validation split (``choose_thresholds``), never from the rows that are reported, and so does the number of
neighbouring clips over which scores are averaged (``smoothing``). Each number comes with that of the prior, the class
frequencies of the training split, and with an interval over videos (``bootstrap``).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from egoaudio.errors import EvaluationError
from egoaudio.evaluation import bootstrap, charades, metrics
from egoaudio.evaluation.audible import audible_classes
from egoaudio.evaluation.calibration import Calibration
from egoaudio.evaluation.ground_truth import GroundTruth
from egoaudio.evaluation.reliability import reliability
from egoaudio.evaluation.results import CalibrationErrors, Evaluation, Score
from egoaudio.evaluation.segment_metrics import KINDS, Counts
from egoaudio.evaluation.segment_scores import evaluate_segments
from egoaudio.evaluation.segments import SegmentRules
from egoaudio.evaluation.smoothing import smooth

# The ends of the interval are accurate to a tenth of its width; 3 s for 21,150 frames, 157 classes, 846 videos.
NUM_RESAMPLES = 500


def choose_thresholds(scores: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """Return the threshold of each class with the best F1 on these clips, float64 (C,).

    For the checkpoint, from the validation split's scores, averaged over neighbouring clips as all later ones will be.
    """
    return metrics.best_thresholds(scores[truth.labelled], truth.labels[truth.labelled])


def evaluate_scores(
    scores: np.ndarray,
    truth: GroundTruth,
    *,
    thresholds: Sequence[float] | np.ndarray | None = None,
    prior: np.ndarray | None = None,
    pool: str = "max",
    smooth_clips: int = 0,
    num_resamples: int = 0,
    seed: int = 0,
    rules: SegmentRules | None = None,
) -> Evaluation:
    """Return the ``Evaluation`` of scores.

    Parameters
    ----------
    scores : float array (n, C)
        Of ``truth.rows``, from 0 to 1.
    truth : GroundTruth
    thresholds : array (C,), optional
        From the validation split; without them there is no F1.
    prior : array (C,), optional
        Class frequencies of the training split; without them the prior's columns are empty.
    pool : str
        How a video's scores follow from its clips': ``max`` or ``mean``.
    smooth_clips : int
        Average the scores over this many neighbouring clips on each side first; the result holds the unsmoothed values
        as well.
    num_resamples : int
        Of the bootstrap; with 0, or with a single video, there are no intervals.
    seed : int
        Of the bootstrap.
    rules : SegmentRules, optional
        How the scores become segments and probabilities; without them neither is evaluated.

    Raises
    ------
    EvaluationError
        If the scores are not those of these clips, not numbers, or not between 0 and 1.
    """
    own_scores = _check(scores, truth)
    scores = smooth(own_scores, truth.rows, truth.clip_video, smooth_clips)
    clips = truth.labelled
    limits = None if thresholds is None else np.asarray(thresholds, np.float64)
    num_resamples = num_resamples if len(truth.video_ids) > 1 else 0  # one video tells nothing about another
    weights = bootstrap.draw_weights(len(truth.video_ids), num_resamples, seed)
    all_scores, per_class = _evaluate_clips(
        scores[clips], truth.labels[clips], truth.clip_video[clips], limits, prior, weights
    )
    official, video_scores, frame_scores, more_per_class = _evaluate_videos(
        scores, truth, pool, weights, prior is not None
    )
    all_scores |= official
    segment_scores, segment_counts, of_segments = _evaluate_segments(scores, truth, rules, prior, weights)
    all_scores |= segment_scores
    per_class |= of_segments
    per_class |= {"class_id": list(truth.class_ids), "name": list(truth.class_names), **more_per_class}
    if smooth_clips:
        all_scores = _beside_unsmoothed(all_scores, per_class, evaluate_scores(own_scores, truth, pool=pool))
    return Evaluation(
        all_scores,
        per_class,
        int(clips.sum()),
        len(truth.video_ids),
        len(np.unique(truth.clip_video)),
        num_resamples,
        pool,
        truth.video_ids,
        video_scores,
        frame_scores,
        _notes(truth, limits, prior, rules),
        smooth_clips=smooth_clips,
        segment_counts=segment_counts,
        calibration=None
        if rules is None
        else _calibration_errors(scores[clips], truth.labels[clips], rules.calibration),
    )


def _evaluate_segments(
    scores: np.ndarray,
    truth: GroundTruth,
    rules: SegmentRules | None,
    prior: np.ndarray | None,
    weights: np.ndarray,
) -> tuple[dict[str, Score], dict[str, Counts], dict[str, list[Any]]]:
    """Return the F1 of segments, its counts, and ``{column: values}``; empty without rules or annotated times."""
    found: dict[str, Score] = {}
    counts: dict[str, Counts] = {}
    if rules is not None and truth.instances is not None:
        found, counts = evaluate_segments(scores, truth, rules, prior, weights)
    nothing = np.full(truth.num_actions, np.nan)
    columns = {name: _for_all(counts[name].f1() if name in counts else nothing, truth) for name in KINDS}
    return found, counts, columns


def _calibration_errors(scores: np.ndarray, labels: np.ndarray, calibration: Calibration) -> CalibrationErrors:
    """Return how far scores, and the probabilities made of them, are from being any."""
    before, after = (
        reliability(values, labels).expected_calibration_error for values in (scores, calibration.apply(scores))
    )
    return CalibrationErrors(calibration.method, before, after)


def _check(scores: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """Return the scores as float32, after checking them."""
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != truth.labels.shape:
        hint = "; are they transposed?" if scores.shape == truth.labels.shape[::-1] else ""
        raise EvaluationError(
            f"scores {scores.shape} for {truth.labels.shape[0]} clips and {truth.labels.shape[1]} classes: expected a "
            f"row per clip and a column per class{hint}"
        )
    if not truth.labelled.any():
        raise EvaluationError(
            f"none of the {len(scores)} clips to evaluate has labels: give another split, or a file built with "
            "`no_action='all'`"
        )
    wrong = ~((scores >= 0) & (scores <= 1))
    if wrong.any():
        clip, column = np.argwhere(wrong)[0]
        hint = (
            "are these logits? They need a sigmoid or softmax first"
            if np.isfinite(scores).all()
            else "the model has diverged: train with a lower learning rate"
        )
        raise EvaluationError(
            f"score {scores[clip, column]} of clip {truth.rows[clip]}, class {truth.class_ids[column]} "
            f"({np.count_nonzero(wrong)} such): expected 0 to 1; {hint}"
        )
    return scores


def _evaluate_clips(
    scores: np.ndarray,
    labels: np.ndarray,
    video: np.ndarray,
    thresholds: np.ndarray | None,
    prior: np.ndarray | None,
    weights: np.ndarray,
) -> tuple[dict[str, Score], dict[str, list[Any]]]:
    """Return the clip metrics, ``({name: Score}, {column: values})``."""
    labels = labels == 1
    values, per_class = _clip_values(scores, labels, thresholds)
    priors: dict[str, float] = {}
    if prior is not None:
        guess = np.broadcast_to(np.asarray(prior, np.float64), labels.shape)
        priors = _clip_values(guess, labels, np.where(guess[0] > 0, guess[0], np.inf))[0]
    per_class["prior"] = np.full(labels.shape[1], np.nan) if prior is None else prior
    if not weights.shape[1]:
        per_class |= {name: np.full(labels.shape[1], np.nan) for name in ("low", "high", "audible")}
        intervals: dict[str, tuple[float, float]] = {}
    else:
        precisions, areas = bootstrap.resample_ranking(scores, labels, video, weights)
        ends = np.array(
            [bootstrap.interval(*pair) for pair in zip(precisions, per_class["average_precision"], strict=True)]
        )
        audible = audible_classes(ends[:, 0], labels, video)
        per_class |= {"low": ends[:, 0], "high": ends[:, 1], "audible": audible}
        values["audible_map"] = metrics.mean_over_classes(per_class["average_precision"][audible])
        if prior is not None:
            priors["audible_map"] = metrics.mean_over_classes(labels.mean(axis=0)[audible])
        resampled = resample_accuracies(scores, labels, video, thresholds, weights)
        resampled |= {
            "map": bootstrap.mean_over_classes(precisions),
            "mauc": bootstrap.mean_over_classes(areas),
            "audible_map": bootstrap.mean_over_classes(precisions[audible]),
        }
        intervals = {name: bootstrap.interval(samples, values[name]) for name, samples in resampled.items()}
    found = {}
    for name, value in values.items():
        low, high = intervals.get(name, (np.nan, np.nan))
        found[name] = Score(value, low, high, priors.get(name, np.nan))
    return found, {name: np.asarray(column).tolist() for name, column in per_class.items()}


def resample_accuracies(
    scores: np.ndarray, labels: np.ndarray, video: np.ndarray, thresholds: np.ndarray | None, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the accuracies, and the F1, of each resample, ``{name: array (num_resamples,)}``."""
    resampled = {}
    some = labels.sum(axis=1, keepdims=True) > 0
    for name, k in (("top1", 1), ("top5", 5)):
        hits = np.nan_to_num(metrics.top_k_hits(scores, labels, k))[:, None]
        resampled[name] = bootstrap.resample_ratio(hits, some, video, weights)
    hits = metrics.class_hits(scores, labels)
    resampled["mean_class_accuracy"] = bootstrap.resample_ratio(hits, labels, video, weights)
    if thresholds is not None:
        predicted = scores >= thresholds
        both, either = 2 * (predicted & labels).astype(np.float32), predicted.astype(np.float32) + labels
        resampled["macro_f1"] = bootstrap.resample_ratio(both, either, video, weights, needed=labels)
    return resampled


def _clip_values(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return ``({metric: value}, {column of per_class.csv: array (C,)})``."""
    positives = labels.sum(axis=0)
    per_class = {
        "num_clips": positives,
        "average_precision": metrics.average_precision(scores, labels),
        "auc": metrics.area_under_roc(scores, labels),
        "class_accuracy": metrics.ratio(metrics.class_hits(scores, labels).sum(axis=0), positives),
        "f1": np.full(len(positives), np.nan) if thresholds is None else metrics.f1(scores, labels, thresholds),
        "threshold": np.full(len(positives), np.nan) if thresholds is None else thresholds,
    }
    values = {
        "top1": metrics.top_k_accuracy(scores, labels, 1),
        "top5": metrics.top_k_accuracy(scores, labels, 5),
        **{
            name: metrics.mean_over_classes(per_class[column])
            for name, column in (
                ("map", "average_precision"),
                ("mean_class_accuracy", "class_accuracy"),
                ("mauc", "auc"),
                ("macro_f1", "f1"),
            )
        },
    }
    return values, per_class


def _evaluate_videos(
    scores: np.ndarray, truth: GroundTruth, pool: str, weights: np.ndarray, with_prior: bool
) -> tuple[dict[str, Score], np.ndarray, np.ndarray | None, dict[str, list[Any]]]:
    """Return the official metrics, ``{name: Score}``, the scores of videos and of frames, and ``{column: values}``."""
    actions = scores[:, : truth.num_actions]
    video_scores = charades.pool_videos(actions, truth.clip_video, len(truth.video_ids), pool)
    counted = charades.drop_empty_videos(video_scores, truth.video_labels)
    found, frame_scores, frame_ap = {}, None, np.full(truth.num_actions, np.nan)
    found["video_map"], video_ap = _official_score(
        counted, truth.video_labels, np.arange(len(counted)), weights, with_prior
    )
    if truth.instances is not None:
        frame_scores = charades.frame_scores(
            actions, truth.clip_video, truth.start_seconds, truth.stop_seconds, truth.video_seconds, pool
        )
        labels = charades.frame_labels(truth.video_seconds, truth.instances, truth.num_actions)
        video = np.repeat(np.arange(len(counted)), charades.FRAMES_PER_VIDEO)
        found["localization_map"], frame_ap = _official_score(frame_scores, labels, video, weights, with_prior)
    return (
        found,
        video_scores,
        frame_scores,
        {
            "num_videos": _for_all(truth.video_labels.sum(axis=0), truth),
            "video_average_precision": _for_all(video_ap, truth),
            "localization_average_precision": _for_all(frame_ap, truth),
        },
    )


def _official_score(
    scores: np.ndarray, labels: np.ndarray, video: np.ndarray, weights: np.ndarray, with_prior: bool
) -> tuple[Score, np.ndarray]:
    """Return the official mAP with its interval and prior, and the AP of each action."""
    per_class = charades.average_precision(scores, labels)
    value = metrics.mean_over_classes(per_class)
    low, high = (
        bootstrap.interval(bootstrap.resample_official(scores, labels, video, weights), value)
        if weights.shape[1]
        else (np.nan, np.nan)
    )
    # The same score in every row that has one: the class frequencies rank as any other number.
    guess = np.where(np.isfinite(scores), 0, -np.inf)
    prior = metrics.mean_over_classes(charades.chance_average_precision(guess, labels)) if with_prior else np.nan
    return Score(value, low, high, prior), per_class


def _beside_unsmoothed(
    all_scores: dict[str, Score], per_class: dict[str, list[Any]], own: Evaluation
) -> dict[str, Score]:
    """Return the scores with the unsmoothed ones, those of the evaluation ``own``."""
    values = {name: score.value for name, score in own.scores.items()}
    if "audible_map" in all_scores:  # over the same classes
        audible = np.array(per_class["audible"])
        values["audible_map"] = metrics.mean_over_classes(np.array(own.per_class["average_precision"])[audible])
    return {name: replace(score, unsmoothed=values.get(name, np.nan)) for name, score in all_scores.items()}


def _for_all(values: np.ndarray, truth: GroundTruth) -> list[Any]:
    """Return a value per class from one per action: None for ``no_action``, which is not in the official protocol."""
    return values.tolist() + [None] * (len(truth.class_ids) - truth.num_actions)


def _notes(
    truth: GroundTruth, thresholds: np.ndarray | None, prior: np.ndarray | None, rules: SegmentRules | None
) -> tuple[str, ...]:
    """Return what is missing, and why."""
    notes = []
    if not truth.labels[truth.labelled].any():
        notes.append(
            "no class is active in any of these clips, so the clip metrics are not defined: do the annotations belong "
            "to these videos?"
        )
    if thresholds is None:
        notes.append(
            "no macro F1, no segments, and no probabilities: thresholds and calibration are found on a validation "
            "split, and the checkpoint comes from a run without one"
        )
    elif rules is not None and rules.calibration.method == "none":
        notes.append(
            "the scores are not calibrated: an earlier version wrote the checkpoint, or no class is in its validation "
            "split"
        )
    if prior is None:
        notes.append("no prior: the file has no training split to count the classes in")
    if truth.instances is None:
        notes.append(
            "no frame mAP: the file holds no annotated times (/instances): nothing is annotated in it, or an earlier "
            "version of egoaudio built it"
        )
    return tuple(notes)
