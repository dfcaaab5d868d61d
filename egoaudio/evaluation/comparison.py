"""The difference between two models on the same clips, by a paired bootstrap over videos. NumPy only.

In: the scores of two models, the ground truth of both, and their evaluations. Out: a ``Difference`` of each metric and
of each class's average precision, second minus first. Each resample draws the same videos for both, so the difficulty
of a video cancels out: the interval of a difference is narrower than those of the two scores, and may exclude 0 where
they overlap.

Audible classes are those of the first model, for both, as they are chosen on these same clips.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.errors import EvaluationError
from egoaudio.evaluation import bootstrap, charades, metrics
from egoaudio.evaluation.ground_truth import GroundTruth
from egoaudio.evaluation.results import Evaluation
from egoaudio.evaluation.scores import NUM_RESAMPLES, resample_accuracies


@dataclass(frozen=True)
class Difference:
    """The second model's score minus the first one's, a fraction; NaN where it is not defined."""

    value: float
    low: float
    """Lower end of the 95 % interval over videos."""
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same clips."""

    scores: dict[str, Difference]
    """``{name of results.TITLES: Difference}``."""
    per_class: tuple[Difference, ...]
    """Of each class's average precision."""


def compare(
    truth: GroundTruth,
    scores: tuple[np.ndarray, np.ndarray],
    evaluations: tuple[Evaluation, Evaluation],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Return by how much the second model differs from the first.

    Parameters
    ----------
    truth : GroundTruth
        The same for both.
    scores : tuple of array (n, C)
        Of ``truth.rows``, averaged over neighbouring clips as each evaluation had them.
    evaluations : tuple of Evaluation
        Of these scores.
    num_resamples, seed : int
        Of the bootstrap.

    Raises
    ------
    EvaluationError
        If the scores are not those of the same clips and classes.
    """
    for each in scores:
        if np.shape(each) != truth.labels.shape:
            raise EvaluationError(
                f"scores {np.shape(each)} for {truth.labels.shape[0]} clips and {truth.labels.shape[1]} classes: both "
                "models must have scored the same clips"
            )
    weights = bootstrap.draw_weights(len(truth.video_ids), num_resamples if len(truth.video_ids) > 1 else 0, seed)
    audible = np.nan_to_num(np.array(evaluations[0].per_class["audible"], np.float64)) == 1
    values, resampled = {}, {}
    for place, (own, evaluation) in enumerate(zip(scores, evaluations, strict=True)):
        precision = np.array(evaluation.per_class["average_precision"])
        values[place] = {name: score.value for name, score in evaluation.scores.items()}
        values[place]["audible_map"] = metrics.mean_over_classes(precision[audible])
        resampled[place] = _resample(own, truth, audible, evaluation, weights)
    found = {
        name: _difference((values[0][name], values[1][name]), (samples, resampled[1][0][name]))
        for name, samples in resampled[0][0].items()
        if name in values[0] and name in values[1] and name in resampled[1][0]
    }
    precisions = [evaluation.per_class["average_precision"] for evaluation in evaluations]
    per_class = tuple(
        _difference((first, second), (resampled[0][1][k], resampled[1][1][k]))
        for k, (first, second) in enumerate(zip(*precisions, strict=True))
    )
    return Comparison(found, per_class)


def _difference(values: tuple[float, float], resampled: tuple[np.ndarray, np.ndarray]) -> Difference:
    """Return the difference of two values, with the interval of their resamples, which are of the same videos."""
    value = float(values[1] - values[0])
    return Difference(value, *bootstrap.interval(resampled[1] - resampled[0], value, lowest=-1))


def _resample(
    scores: np.ndarray, truth: GroundTruth, audible: np.ndarray, evaluation: Evaluation, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return each metric in each resample, and the average precision of each class (C, num_resamples)."""
    clips = truth.labelled
    labels, video = truth.labels[clips] == 1, truth.clip_video[clips]
    thresholds = np.array(evaluation.per_class["threshold"], np.float64)
    precisions, areas = bootstrap.resample_ranking(scores[clips], labels, video, weights)
    known = None if np.isnan(thresholds).any() else thresholds
    resampled = resample_accuracies(scores[clips], labels, video, known, weights)
    resampled |= {
        "map": bootstrap.mean_over_classes(precisions),
        "mauc": bootstrap.mean_over_classes(areas),
        "audible_map": bootstrap.mean_over_classes(precisions[audible]),
    }
    counted = charades.drop_empty_videos(evaluation.video_scores, truth.video_labels)
    places = np.arange(len(counted))
    resampled["video_map"] = bootstrap.resample_official(counted, truth.video_labels, places, weights)
    if evaluation.frame_scores is not None and truth.instances is not None:
        on = charades.frame_labels(truth.video_seconds, truth.instances, truth.num_actions)
        frames = np.repeat(places, charades.FRAMES_PER_VIDEO)
        resampled["localization_map"] = bootstrap.resample_official(evaluation.frame_scores, on, frames, weights)
    resampled |= {name: counts.resampled(weights) for name, counts in evaluation.segment_counts.items()}
    return resampled, precisions
