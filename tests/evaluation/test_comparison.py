"""Two models on the same clips: the difference and its interval against resampling by hand, and what they promise."""

import numpy as np
import pytest
import synthetic

from egoaudio.config.predict import SegmentConfig
from egoaudio.errors import EvaluationError
from egoaudio.evaluation import bootstrap, metrics
from egoaudio.evaluation.comparison import compare
from egoaudio.evaluation.ground_truth import read_ground_truth
from egoaudio.evaluation.scores import evaluate_scores
from egoaudio.evaluation.segments import make_rules
from egoaudio.hdf5 import reader

NUM_RESAMPLES = 40
RULES = make_rules(SegmentConfig(), np.full(4, 0.6), 4, 0)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    path = synthetic.make_file(
        tmp_path_factory.mktemp("two") / "ego.h5", 20, 8, features={"mfcc": (2, 3)}, num_classes=4
    )
    with reader.open(path) as file:
        return read_ground_truth(file, np.flatnonzero(file.usable))


def _scores(truth, seed, hearing):
    """Return scores that know so much of the labels."""
    noise = np.random.default_rng(seed).random(truth.labels.shape)
    return ((noise + hearing * truth.labels) / (1 + hearing)).astype(np.float32)


def _compare(truth, first, second):
    evaluations = [
        evaluate_scores(scores, truth, thresholds=np.full(4, 0.6), num_resamples=NUM_RESAMPLES, rules=RULES)
        for scores in (first, second)
    ]
    return compare(truth, (first, second), evaluations, NUM_RESAMPLES), evaluations


def test_differences_and_intervals_are_those_of_repeated_rows(truth):
    first, second = _scores(truth, 1, 0.3), _scores(truth, 2, 0.6)
    comparison, evaluations = _compare(truth, first, second)
    weights = bootstrap.draw_weights(len(truth.video_ids), NUM_RESAMPLES, 0)
    clips = truth.labelled
    labels, video = truth.labels[clips] == 1, truth.clip_video[clips]
    functions = {
        "map": metrics.mean_average_precision,
        "mauc": metrics.mean_auc,
        "top1": lambda scores, labels: metrics.top_k_accuracy(scores, labels, 1),
        "macro_f1": lambda scores, labels: metrics.macro_f1(scores, labels, np.full(4, 0.6)),
    }
    for name, function in functions.items():
        samples = []
        for resample in range(NUM_RESAMPLES):
            rows = np.repeat(np.arange(len(video)), weights[video, resample].astype(int))
            one, other = (function(scores[clips][rows], labels[rows]) for scores in (first, second))
            samples.append(other - one)
        value = evaluations[1].scores[name].value - evaluations[0].scores[name].value
        low, high = np.percentile(samples, (2.5, 97.5)) - np.mean(samples) + value
        found = comparison.scores[name]
        assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-5)
    precisions = [np.array(evaluation.per_class["average_precision"]) for evaluation in evaluations]
    assert [each.value for each in comparison.per_class] == pytest.approx((precisions[1] - precisions[0]).tolist())


def test_a_model_differs_from_itself_by_nothing(truth):
    scores = _scores(truth, 1, 0.5)
    comparison, evaluations = _compare(truth, scores, scores)
    assert set(comparison.scores) == set(evaluations[0].scores)
    for each in (*comparison.scores.values(), *comparison.per_class):
        assert (each.value, each.low, each.high) == pytest.approx((0, 0, 0), abs=1e-6) or np.isnan(each.value)
        assert not each.is_clear


def test_pairing_finds_what_separate_intervals_hide(truth):
    first = _scores(truth, 1, 0.5)
    second = (
        np.where(truth.labels == 1, first + 0.02, first).clip(0, 1).astype(np.float32)
    )  # a little better everywhere
    comparison, evaluations = _compare(truth, first, second)
    found, (low, high) = comparison.scores["map"], (each.scores["map"] for each in evaluations)
    assert low.high > high.low and found.is_clear and found.low > 0
    assert found.high - found.low < (low.high - low.low) / 2
    turned = _compare(truth, second, first)[0].scores["map"]
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low), abs=1e-5)


def test_scores_of_other_clips_are_refused(truth):
    scores = _scores(truth, 1, 0.5)
    evaluation = evaluate_scores(scores, truth)
    with pytest.raises(EvaluationError, match="both models must have scored the same clips"):
        compare(truth, (scores, scores[1:]), (evaluation, evaluation))
