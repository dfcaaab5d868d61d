"""From scores to the numbers of the paper's table: one way, for the training loop and the command.

``evaluate_scores``, which knows neither models nor files, compares scores (num_clips, num_classes) with a ``Truth`` and
makes the ``Evaluation``.

Clip metrics (``metrics``) are over the clips that have sound and labels. Video metrics (``charades``, the official
protocol) are over every video of the split, with sound or not, and use all clips that have sound. Thresholds for F1 come
from the validation split (``choose_thresholds``), never from the rows that are reported, and so does the number of
neighbouring clips that scores are averaged over (``smoothing``). Each number stands beside that of the prior, the class
frequencies of the training split, and in an interval over videos (``bootstrap``).
"""

from dataclasses import replace

import numpy as np

from egoaudio.errors import EvaluationError
from egoaudio.evaluation import bootstrap, charades, metrics
from egoaudio.evaluation.audible import audible_classes
from egoaudio.evaluation.results import Evaluation, Score
from egoaudio.evaluation.smoothing import smooth

NUM_RESAMPLES = 500  # ends of the interval good to a tenth of its width; 3 s for 21,150 frames, 157 classes, 846 videos


def choose_thresholds(scores, truth):
    """Return the threshold of each class with the best F1 on these clips, float64 (C,).

    For the checkpoint, from the validation split's scores, averaged over neighbouring clips as all later ones will be.
    """
    return metrics.best_thresholds(scores[truth.labelled], truth.labels[truth.labelled])


def evaluate_scores(scores, truth, *, thresholds=None, prior=None, pool="max", smooth_clips=0, num_resamples=0, seed=0):
    """Return the ``Evaluation`` of scores.

    Parameters
    ----------
    scores : float array (n, C)
        Of ``truth.rows``, from 0 to 1.
    truth : Truth
    thresholds : array (C,), optional
        From the validation split; without them there is no F1.
    prior : array (C,), optional
        Class frequencies of the training split; without them nothing stands beside the scores.
    pool : str
        ``max`` or ``mean``: how a video's scores follow from its clips'.
    smooth_clips : int
        Average the scores over so many neighbouring clips on each side first; the numbers without that stand beside.
    num_resamples : int
        Of the bootstrap; 0 gives no intervals, nor does a single video.
    seed : int
        Of the bootstrap.

    Raises
    ------
    EvaluationError
        If the scores are not those of these clips, not numbers, or not between 0 and 1.
    """
    own_scores = _check(scores, truth)
    scores = smooth(own_scores, truth.rows, truth.clip_video, smooth_clips)
    clips = truth.labelled
    thresholds = None if thresholds is None else np.asarray(thresholds, np.float64)
    num_resamples = num_resamples if len(truth.video_ids) > 1 else 0  # one video tells nothing about another
    weights = bootstrap.draw_weights(len(truth.video_ids), num_resamples, seed)
    all_scores, per_class = _judge_clips(
        scores[clips], truth.labels[clips], truth.clip_video[clips], thresholds, prior, weights
    )
    official, video_scores, frame_scores, more_per_class = _judge_videos(
        scores, truth, pool, weights, prior is not None
    )
    all_scores |= official
    per_class |= {"class_id": truth.class_ids, "name": truth.class_names, **more_per_class}
    per_class = {name: list(values) for name, values in per_class.items()}
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
        _notes(truth, thresholds, prior),
        smooth_clips=smooth_clips,
    )


def _check(scores, truth):
    """Return the scores as float32, or say what is wrong with them."""
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != truth.labels.shape:
        hint = "; are they transposed?" if scores.shape == truth.labels.shape[::-1] else ""
        raise EvaluationError(
            f"scores {scores.shape} for {truth.labels.shape[0]} clips and {truth.labels.shape[1]} classes: expected a row per clip{hint}"
        )
    if not truth.labelled.any():
        raise EvaluationError(
            f"none of the {len(scores)} clips to evaluate has labels: another split, or a file built with --no-action all, has some"
        )
    wrong = ~((scores >= 0) & (scores <= 1))
    if wrong.any():
        clip, column = np.argwhere(wrong)[0]
        logits = np.isfinite(scores).all()
        hint = (
            "are these logits? they need a sigmoid or softmax first"
            if logits
            else "the model has diverged: train with a lower learning rate"
        )
        raise EvaluationError(
            f"score {scores[clip, column]} of clip {truth.rows[clip]}, class {truth.class_ids[column]} ({np.count_nonzero(wrong)} such): "
            f"expected 0 to 1; {hint}"
        )
    return scores


def _judge_clips(scores, labels, video, thresholds, prior, weights):
    """Return the clip metrics, ``({name: Score}, {column: values})``."""
    labels = labels == 1
    values, per_class = _clip_values(scores, labels, thresholds)
    priors = {}
    if prior is not None:
        guess = np.broadcast_to(np.asarray(prior, np.float64), labels.shape)
        priors = _clip_values(guess, labels, np.where(guess[0] > 0, guess[0], np.inf))[0]
    per_class["prior"] = np.full(labels.shape[1], np.nan) if prior is None else prior
    if not weights.shape[1]:
        per_class |= {name: [np.nan] * labels.shape[1] for name in ("low", "high", "audible")}
        intervals = {}
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
        resampled = _resample_accuracies(scores, labels, video, thresholds, weights)
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


def _resample_accuracies(scores, labels, video, thresholds, weights):
    """Return the accuracies, and the F1, of each resample, ``{name: array (num_resamples,)}``."""
    resampled = {}
    some = labels.any(axis=1, keepdims=True)
    for name, k in (("top1", 1), ("top5", 5)):
        hits = np.nan_to_num(metrics.top_k_hits(scores, labels, k))[:, None]
        resampled[name] = bootstrap.resample_ratio(hits, some, video, weights)
    hits = metrics.class_hits(scores, labels)
    resampled["mean_class_accuracy"] = bootstrap.resample_ratio(hits, labels, video, weights)
    if thresholds is not None:
        claimed = scores >= thresholds
        both, either = 2 * (claimed & labels).astype(np.float32), claimed.astype(np.float32) + labels
        resampled["macro_f1"] = bootstrap.resample_ratio(both, either, video, weights, needed=labels)
    return resampled


def _clip_values(scores, labels, thresholds):
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


def _judge_videos(scores, truth, pool, weights, with_prior):
    """Return the official metrics, ``{name: Score}``, the scores of videos and of frames, and ``{column: values}``."""
    actions = scores[:, : truth.num_actions]
    video_scores = charades.pool_videos(actions, truth.clip_video, len(truth.video_ids), pool)
    judged = charades.drop_empty_videos(video_scores, truth.video_labels)
    found, frame_scores, frame_ap = {}, None, np.full(truth.num_actions, np.nan)
    found["video_map"], video_ap = _judge_official(
        judged, truth.video_labels, np.arange(len(judged)), weights, with_prior
    )
    if truth.instances is not None:
        frame_scores = charades.frame_scores(
            actions, truth.clip_video, truth.start_seconds, truth.stop_seconds, truth.video_seconds, pool
        )
        on = charades.frame_labels(truth.video_seconds, truth.instances, truth.num_actions)
        video = np.repeat(np.arange(len(judged)), charades.FRAMES_PER_VIDEO)
        found["localization_map"], frame_ap = _judge_official(frame_scores, on, video, weights, with_prior)
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


def _judge_official(scores, labels, video, weights, with_prior):
    """Return the official mAP with its interval and prior, and the AP of each action."""
    per_class = charades.average_precision(scores, labels)
    value = metrics.mean_over_classes(per_class)
    low, high = (
        bootstrap.interval(bootstrap.resample_official(scores, labels, video, weights), value)
        if weights.shape[1]
        else (np.nan, np.nan)
    )
    # The same score in every row that has one: the class frequencies, or any other number, rank alike.
    guess = np.where(np.isfinite(scores), 0, -np.inf)
    prior = metrics.mean_over_classes(charades.chance_average_precision(guess, labels)) if with_prior else np.nan
    return Score(value, low, high, prior), per_class


def _beside_unsmoothed(all_scores, per_class, own):
    """Return the scores with those of each clip alone, the evaluation ``own``, beside them."""
    values = {name: score.value for name, score in own.scores.items()}
    if "audible_map" in all_scores:  # over the same classes
        audible = np.array(per_class["audible"])
        values["audible_map"] = metrics.mean_over_classes(np.array(own.per_class["average_precision"])[audible])
    return {name: replace(score, unsmoothed=values.get(name, np.nan)) for name, score in all_scores.items()}


def _for_all(values, truth):
    """Return one value a class from one an action: None for ``no_action``, which the official protocol does not know."""
    return values.tolist() + [None] * (len(truth.class_ids) - truth.num_actions)


def _notes(truth, thresholds, prior):
    """Return what is missing, and why."""
    notes = []
    if not truth.labels[truth.labelled].any():
        notes.append(
            "no class is on in any of these clips, so the clip metrics are not defined: do the annotations belong to these videos?"
        )
    if thresholds is None:
        notes.append(
            "no macro F1: its thresholds are chosen on a validation split, and the checkpoint comes from a run without one"
        )
    if prior is None:
        notes.append("no prior: the file has no training split to count the classes in")
    if truth.instances is None:
        notes.append(
            "no frame mAP: the file holds no annotated times (/instances): nothing is annotated in it, or an earlier egoaudio built it"
        )
    return tuple(notes)
