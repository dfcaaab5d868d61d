"""The official Charades protocol, against a slow reading of its rules and cases worked out by hand."""

import numpy as np
import pytest

from egoaudio.errors import EvaluationError
from egoaudio.evaluation import charades
from egoaudio.evaluation.metrics import average_precision

INSTANCE = np.dtype([("video", "<i4"), ("class_index", "<i4"), ("start_seconds", "<f8"), ("stop_seconds", "<f8")])


def read_the_rules(rows, scored, num_actions):
    """Return the official APs, one step at a time: ``rows`` is [(id, actions)], ``scored`` maps an id to its scores."""
    result = []
    for action in range(num_actions):
        ranking = sorted(rows, key=lambda row: -scored[row[0]][action] if row[0] in scored else float("inf"))  # stable
        precisions, found = [], 0
        for rank, (_, actions) in enumerate(ranking, start=1):
            if action in actions:
                found += 1
                precisions.append(found / rank)
        result.append(sum(precisions) / len(precisions) if precisions else float("nan"))
    return result


@pytest.mark.parametrize("levels", [2, 5, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_classification_follows_the_official_rules(seed, levels):
    rng = np.random.default_rng(seed)
    num_videos, num_actions = 40, 6
    labels = rng.random((num_videos, num_actions)) < 0.15
    scores = rng.integers(0, levels, (num_videos, num_actions)) / levels
    scored = rng.random(num_videos) < 0.8  # the rest had no sound
    rows = [(f"V{video}", set(np.flatnonzero(labels[video]))) for video in range(num_videos)]
    # The script knows a video without actions by no id, so that its line of the submission finds no one.
    known = {f"V{video}": scores[video] for video in range(num_videos) if scored[video] and labels[video].any()}
    ours = charades.average_precision(
        charades.drop_empty_videos(np.where(scored[:, None], scores, -np.inf), labels), labels
    )
    np.testing.assert_allclose(ours, read_the_rules(rows, known, num_actions), rtol=1e-12)


def test_classification_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.7], [0.95]])
    labels = np.array([[0], [1], [0], [1], [0]])
    # Rank 3 goes to the earlier of the two videos at 0.7; hits at ranks 3 and 5.
    assert charades.average_precision(scores, labels)[0] == pytest.approx((1 / 3 + 2 / 5) / 2)
    swapped = [0, 1, 3, 2, 4]
    assert charades.average_precision(scores[swapped], labels[swapped])[0] == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_a_video_without_actions_ranks_last_whatever_its_scores():
    labels = np.array([[1, 0], [0, 0], [0, 1]])
    scores = charades.drop_empty_videos(np.array([[0.2, 0.1], [0.9, 0.9], [0.1, 0.3]]), labels)
    np.testing.assert_array_equal(charades.average_precision(scores, labels), [1, 1])


def test_a_video_without_sound_is_missed_not_left_out():
    labels = np.array([[1], [1], [0]])
    scores = np.array([[0.5], [-np.inf], [0.4]])
    assert charades.mean_average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)


def test_without_ties_the_official_precision_is_the_usual_one():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((100, 4)), rng.random((100, 4)) < 0.2
    np.testing.assert_allclose(charades.average_precision(scores, labels), average_precision(scores, labels))
    np.testing.assert_allclose(charades.chance_average_precision(scores, labels), average_precision(scores, labels))


def test_the_chance_precision_is_the_mean_over_orders_of_tied_rows():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 3, (9, 3)) / 3, rng.random((9, 3)) < 0.4
    orders = [rng.permutation(9) for _ in range(3000)]
    mean = np.mean([charades.average_precision(scores[order], labels[order]) for order in orders], axis=0)
    np.testing.assert_allclose(charades.chance_average_precision(scores, labels), mean, atol=0.015)
    # By hand: one positive among three tied rows is equally likely to be first, second or third.
    assert charades.chance_average_precision(np.zeros((3, 1)), np.array([[0], [1], [0]]))[0] == pytest.approx(
        (1 + 1 / 2 + 1 / 3) / 3
    )


def test_actions_that_never_occur_are_left_out_of_the_mean():
    assert charades.mean_average_precision(np.zeros((2, 2)), np.array([[1, 0], [1, 0]])) == 1
    assert np.isnan(charades.mean_average_precision(np.zeros((2, 2)), np.zeros((2, 2))))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("max", [[3, 1], [-np.inf, -np.inf], [5, 6]]), ("mean", [[2, 0.5], [-np.inf, -np.inf], [5, 6]])],
)
def test_a_videos_scores_are_its_clips_pooled(pool, expected):
    scores = np.array([[1.0, 1.0], [5.0, 6.0], [3.0, 0.0]])
    np.testing.assert_array_equal(charades.pool_videos(scores, np.array([0, 2, 0]), 3, pool), expected)


def test_another_pooling_is_refused():
    with pytest.raises(EvaluationError, match="expected max or mean"):
        charades.pool_videos(np.zeros((1, 1)), np.zeros(1, int), 1, "median")


def test_frames_lie_at_25ths_of_the_length():
    np.testing.assert_allclose(charades.frame_seconds([50.0])[0], np.arange(0, 50, 2))


def test_both_ends_of_an_action_are_in_it():
    instances = np.array(
        [(0, 1, 4.0, 8.0), (0, 0, 7.9, 8.1), (1, 1, 3.0, 1.0), (1, 0, 0.0, 0.0), (1, 2, 24.5, 40.0)], INSTANCE
    )
    on = charades.frame_labels([50.0, 25.0], instances, 3).reshape(2, 25, 3)
    assert np.flatnonzero(on[0, :, 1]).tolist() == [2, 3, 4]  # 4 s, 6 s, 8 s
    assert np.flatnonzero(on[0, :, 0]).tolist() == [4]
    assert np.flatnonzero(on[1, :, 0]).tolist() == [0]
    assert not on[1, :, 1].any()  # reversed: never on
    assert not on[1, :, 2].any()  # the last frame is at 24/25 of the length


@pytest.mark.parametrize("seed", range(3))
def test_frame_labels_equal_a_slow_reading_of_the_rule(seed):
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(5, 40, 6)
    instances = np.zeros(50, INSTANCE)
    instances["video"], instances["class_index"] = rng.integers(0, 6, 50), rng.integers(0, 4, 50)
    instances["start_seconds"], instances["stop_seconds"] = rng.uniform(0, 40, (2, 50)).round(1)
    on = charades.frame_labels(seconds, instances, 4)
    for video in range(6):
        for frame in range(25):
            time = frame / 25 * seconds[video]
            expected = {
                int(row["class_index"])
                for row in instances
                if row["video"] == video and row["start_seconds"] <= time <= row["stop_seconds"]
            }
            assert set(np.flatnonzero(on[video * 25 + frame])) == expected


def test_a_frames_scores_are_those_of_the_clip_that_contains_it():
    # A video of 25 s: frames at 0, 1, ..., 24 s. Clips [0, 10) and [10, 20); later frames take the nearest clip.
    scores = charades.frame_scores(
        np.array([[1.0], [2.0]]), np.zeros(2, int), np.array([0.0, 10.0]), np.array([10.0, 20.0]), [25.0], "max"
    )
    np.testing.assert_array_equal(scores[:, 0], [1] * 10 + [2] * 15)
    assert scores.dtype == np.float32


@pytest.mark.parametrize(("pool", "expected"), [("max", 3.0), ("mean", 2.0)])
def test_overlapping_clips_are_pooled_in_a_frame(pool, expected):
    clips = np.array([[1.0], [3.0]]), np.zeros(2, int), np.array([0.0, 5.0]), np.array([10.0, 15.0])
    scores = charades.frame_scores(*clips, [25.0], pool)[:, 0]
    np.testing.assert_array_equal(scores, [1] * 5 + [expected] * 5 + [3] * 15)


def test_gaps_between_clips_go_to_the_nearest():
    scores = charades.frame_scores(
        np.array([[2.0], [1.0]]), np.zeros(2, int), np.array([20.0, 0.0]), np.array([21.0, 1.0]), [25.0], "mean"
    )
    np.testing.assert_array_equal(scores[:, 0], [1] * 11 + [2] * 14)


def test_frames_of_a_video_without_clips_rank_last():
    scores = charades.frame_scores(
        np.ones((1, 2)), np.array([1]), np.zeros(1), np.ones(1), [10.0, 10.0, 10.0], "max"
    ).reshape(3, 25, 2)
    assert (scores[[0, 2]] == -np.inf).all() and (scores[1] == 1).all()
    assert (
        charades.frame_scores(np.ones((0, 2)), np.zeros(0, int), np.zeros(0), np.zeros(0), [10.0], "max") == -np.inf
    ).all()
