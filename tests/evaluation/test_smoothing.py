"""Scores averaged over neighbouring clips, against a slow loop; and the choice of how many."""

import types

import numpy as np
import pytest

from egoaudio.evaluation import metrics
from egoaudio.evaluation.smoothing import choose_neighbours, smooth


def slowly(scores, rows, video, num_neighbours):
    """Return what ``smooth`` should: for each clip, look at every other one."""
    result = np.empty_like(scores)
    for one in range(len(rows)):
        near = [k for k in range(len(rows)) if video[k] == video[one] and abs(rows[k] - rows[one]) <= num_neighbours]
        result[one] = scores[near].mean(axis=0)
    return result


ROWS = {
    "whole videos": np.arange(30),
    "clips without sound": np.delete(np.arange(40), [0, 3, 4, 5, 17, 18, 25, 38, 39, 20]),
    "rows of another part of the file": 1000 + np.arange(30),
    "any order": np.random.default_rng(0).permutation(40)[:30],
    "none beside another": 10 * np.arange(30),
}


@pytest.mark.parametrize("num_neighbours", [0, 1, 2, 3, 7, 50])
@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_mean_over_the_neighbours_of_the_same_video_that_have_a_score(name, num_neighbours):
    rows = ROWS[name]
    video = np.array([0, 0, 1, 2, 2, 2, 3, 0, 1, 1])[rows // 4 % 10]  # 4 to 12 clips long; number 0 and 1 come again
    scores = np.random.default_rng(1).random((30, 4)).astype(np.float32)
    before = scores.copy()
    found = smooth(scores, rows, video, num_neighbours)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found, slowly(scores, rows, video, num_neighbours), rtol=1e-5)
    np.testing.assert_array_equal(scores, before)


def test_scores_that_are_the_same_stay_the_same_and_within_0_and_1():
    for value in (0.0, 0.1, 1.0):
        scores = np.full((9, 2), value, np.float32)
        np.testing.assert_allclose(smooth(scores, np.arange(9), np.zeros(9, int), 3), scores, rtol=1e-6)
    assert smooth(np.ones((9, 2), np.float32), np.arange(9), np.zeros(9, int), 3).max() == 1


def truth_of(labels, labelled=None):
    """Return what the choice needs of a ``GroundTruth``: two videos of one half of the clips each."""
    count = len(labels)
    labelled = np.ones(count, bool) if labelled is None else labelled
    video = np.arange(count) * 2 // count
    return types.SimpleNamespace(labels=labels.astype("u1"), labelled=labelled, rows=np.arange(count), clip_video=video)


def events(length, noise, seed=0, count=600):
    """Return labels that stay on for ``length`` clips, and scores that hear them through noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.random((count // length, 3)) < 0.3, length, axis=0)
    return labels, np.clip(0.3 + 0.3 * labels + noise * rng.standard_normal(labels.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize(("length", "expected"), [(1, [0]), (12, [2, 3])])
def test_the_number_follows_from_how_long_things_sound(length, expected):
    labels, scores = events(length, 0.3)
    truth = truth_of(labels)
    chosen = choose_neighbours(scores, truth, np.ones(3, bool))
    assert chosen in expected
    of_each = [
        metrics.mean_average_precision(smooth(scores, truth.rows, truth.clip_video, k), labels) for k in range(4)
    ]
    assert of_each[chosen] == max(of_each)


def test_ties_go_to_the_smaller_number():
    labels, _ = events(1, 0)
    truth = truth_of(labels)
    assert choose_neighbours(np.full(labels.shape, 0.5, np.float32), truth, np.ones(3, bool)) == 0
    assert choose_neighbours(np.full(labels.shape, 0.5, np.float32), truth, np.ones(3, bool), candidates=(2, 3)) == 2
    assert (
        choose_neighbours(np.zeros(labels.shape, np.float32), truth_of(0 * labels), np.ones(3, bool)) == 0
    )  # no positives


def test_only_the_classes_and_clips_that_count_choose():
    (short, of_short), (long, of_long) = events(1, 0.2, 1), events(12, 0.3, 2)
    labels, scores = np.hstack([short, long]), np.hstack([of_short, of_long])
    classes = np.arange(6) < 3
    assert choose_neighbours(scores, truth_of(labels), classes) == 0
    assert choose_neighbours(scores, truth_of(labels), ~classes) > 0
    # Clips without labels count in the means of their neighbours, not in the metric.
    labelled = np.arange(600) % 2 == 0
    wrong = np.where(labelled[:, None], labels, ~labels)
    assert choose_neighbours(scores, truth_of(wrong, labelled), ~classes) > 0


@pytest.mark.timeout(20)
def test_more_neighbours_than_there_are_cost_no_more():
    rows, video = np.array([9, 2, 3, 0, 7]), np.array([2, 1, 2, 1, 1])
    scores = np.random.default_rng(0).random((5, 2), np.float32)
    found = smooth(scores, rows, video, 2_000_000_000)
    for number in (1, 2):
        mean = np.broadcast_to(scores[video == number].mean(axis=0), found[video == number].shape)
        np.testing.assert_allclose(found[video == number], mean, rtol=1e-6)
    assert smooth(scores[:0], rows[:0], video[:0], 5).shape == (0, 2)
