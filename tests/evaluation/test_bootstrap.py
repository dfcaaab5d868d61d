"""Resampling by weights against resampling by hand, and what the intervals promise."""

import numpy as np
import pytest

from egoaudio.evaluation import bootstrap, charades, metrics


def case(seed, levels, num_videos=12, num_rows=90, num_classes=5, density=0.25):
    """Return scores (with few levels: tied), labels and the video of each row."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (num_rows, num_classes)) / levels).astype(np.float32)
    return scores, rng.random((num_rows, num_classes)) < density, np.sort(rng.integers(0, num_videos, num_rows))


def repeated(video, weights, resample):
    """Return the rows of one resample, each as often as its video was drawn."""
    return np.repeat(np.arange(len(video)), weights[video, resample].astype(int))


CASES = {
    "distinct": case(0, 10**6),
    "ties": case(1, 4),
    "rare": case(2, 9, density=0.02),
    "crowded": case(3, 9, density=0.9),
    "one level": case(4, 1),
}
WEIGHTS = bootstrap.draw_weights(12, 20, 0)


@pytest.mark.parametrize("block", [1, 3, 512])
@pytest.mark.parametrize("name", CASES)
def test_ranking_metrics_equal_those_of_repeated_rows(name, block, monkeypatch):
    monkeypatch.setattr(bootstrap, "_POSITIVES_AT_ONCE", block)
    scores, labels, video = CASES[name]
    precision, area = bootstrap.resample_ranking(scores, labels, video, WEIGHTS)
    assert precision.shape == area.shape == (labels.shape[1], WEIGHTS.shape[1])
    mean_precision, mean_area = bootstrap.mean_over_classes(precision), bootstrap.mean_over_classes(area)
    for resample in range(WEIGHTS.shape[1]):
        rows = repeated(video, WEIGHTS, resample)
        here = scores[rows], labels[rows]
        np.testing.assert_allclose(precision[:, resample], metrics.average_precision(*here), rtol=1e-5)
        np.testing.assert_allclose(area[:, resample], metrics.area_under_roc(*here), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean_precision[resample], metrics.mean_average_precision(*here), rtol=1e-5)
        np.testing.assert_allclose(mean_area[resample], metrics.mean_auc(*here), rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_official_metric_equals_that_of_repeated_rows(name):
    scores, labels, video = CASES[name]
    scores = scores.copy()
    scores[video == 3] = -np.inf  # a video that was not scored
    ours = bootstrap.resample_official(scores, labels, video, WEIGHTS)
    for resample in range(WEIGHTS.shape[1]):
        rows = repeated(video, WEIGHTS, resample)
        np.testing.assert_allclose(
            ours[resample], charades.mean_average_precision(scores[rows], labels[rows]), rtol=1e-5
        )


def test_ratios_equal_those_of_repeated_rows():
    scores, labels, video = CASES["ties"]
    video = np.random.default_rng(0).permutation(video)  # rows in any order
    hits = np.nan_to_num(metrics.top_k_hits(scores, labels, 1))[:, None]
    top1 = bootstrap.resample_ratio(hits, labels.any(axis=1, keepdims=True), video, WEIGHTS)
    accuracy = bootstrap.resample_ratio(metrics.class_hits(scores, labels), labels, video, WEIGHTS)
    for resample in range(WEIGHTS.shape[1]):
        rows = repeated(video, WEIGHTS, resample)
        np.testing.assert_allclose(top1[resample], metrics.top_k_accuracy(scores[rows], labels[rows], 1), rtol=1e-6)
        np.testing.assert_allclose(
            accuracy[resample], metrics.mean_class_accuracy(scores[rows], labels[rows]), rtol=1e-6
        )


def test_f1_leaves_out_classes_that_a_resample_has_no_clip_of():
    scores, labels, video = CASES["rare"]
    claimed = scores >= 0.5
    ours = bootstrap.resample_ratio(
        2 * (claimed & labels), claimed.astype(np.float32) + labels, video, WEIGHTS, needed=labels
    )
    absent = 0
    for resample in range(WEIGHTS.shape[1]):
        rows = repeated(video, WEIGHTS, resample)
        absent += (~labels[rows].any(axis=0) & labels.any(axis=0)).sum()
        np.testing.assert_allclose(
            ours[resample], metrics.macro_f1(scores[rows], labels[rows], np.full(5, 0.5)), rtol=1e-6
        )
    assert absent  # else nothing was tested


def test_weights_follow_from_the_seed_and_draw_as_many_videos_as_there_are():
    weights = bootstrap.draw_weights(30, 50, 7)
    np.testing.assert_array_equal(weights, bootstrap.draw_weights(30, 50, 7))
    assert not np.array_equal(weights, bootstrap.draw_weights(30, 50, 8))
    np.testing.assert_array_equal(weights.sum(axis=0), 30)


def test_an_interval_holds_its_score_and_stays_between_0_and_1():
    assert bootstrap.interval(np.array([0.5, 0.6, 0.7]), 0.4) == pytest.approx((0.305, 0.495))
    assert bootstrap.interval(np.array([0.9, 1.0, np.nan]), 1.0)[1] == 1
    assert np.isnan(bootstrap.interval(np.array([np.nan]), 0.5)).all()
    assert np.isnan(bootstrap.interval(np.array([0.5, 0.6]), np.nan)).all()


def test_intervals_cover_the_expected_score_about_as_often_as_they_say():
    # 80 test sets of 60 videos, scored at random: there the range that is not moved to the score covers 75 % only.
    rng = np.random.default_rng(0)
    ranges, values = [], []
    for seed in range(80):
        labels, scores = rng.random((60, 50)) < 0.1, rng.random((60, 50))
        values.append(charades.mean_average_precision(scores, labels))
        ranges.append(
            bootstrap.interval(
                bootstrap.resample_official(scores, labels, np.arange(60), bootstrap.draw_weights(60, 200, seed)),
                values[-1],
            )
        )
    low, high = np.transpose(ranges)
    covered = np.mean((low <= np.mean(values)) & (np.mean(values) <= high))
    assert covered >= 0.9
