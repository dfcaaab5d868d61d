"""Audible classes: tables of videos and clips, unrelated scores, and how often silent classes pass as audible."""

import numpy as np
import pytest

from egoaudio.evaluation import bootstrap, metrics
from egoaudio.evaluation.audible import audible_classes, has_enough, selection_classes, unrelated_precision


def labels_of(*classes, num_videos=6, num_clips=20):
    """Return labels and videos; a class is ``{video: how many of its clips}``."""
    labels = np.zeros((num_videos, num_clips, len(classes)), "u1")
    for column, videos in enumerate(classes):
        for video, count in videos.items():
            labels[video, :count, column] = 1
    return labels.reshape(-1, len(classes)), np.repeat(np.arange(num_videos), num_clips)


EVERYWHERE = dict.fromkeys(range(6), 20)
MANY, FEW_VIDEOS, FEW_CLIPS, ONE_VIDEO, NONE = {0: 4, 1: 4, 5: 2}, {0: 20, 1: 20}, {0: 3, 1: 3, 2: 3}, {3: 20}, {}


def test_a_class_needs_3_videos_and_10_clips():
    labels, video = labels_of(MANY, FEW_VIDEOS, FEW_CLIPS, ONE_VIDEO, NONE)
    assert has_enough(labels, video).tolist() == [True, False, False, False, False]
    order = np.random.default_rng(0).permutation(len(labels))
    assert has_enough(labels[order] == 1, video[order]).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [
        ((MANY, MANY, MANY, FEW_VIDEOS, FEW_CLIPS, NONE), [1, 1, 1, 0, 0, 0]),
        ((MANY, MANY, FEW_VIDEOS, FEW_CLIPS, ONE_VIDEO, NONE), [1, 1, 1, 1, 0, 0]),  # too few: 2 videos, 5 clips
        ((MANY, ONE_VIDEO, ONE_VIDEO, {2: 1}, NONE), [1, 1, 1, 1, 0]),  # any clip at all
        ((*[MANY] * 3, *[FEW_VIDEOS] * 5, *[ONE_VIDEO] * 3), [1] * 8 + [0] * 3),  # 3 of 11 would leave most out
        ((*[MANY] * 3, *[FEW_VIDEOS] * 2, *[ONE_VIDEO] * 6), [1] * 11),
        ((*[MANY] * 10, *[FEW_VIDEOS] * 75), [1] * 10 + [0] * 75),  # plenty: the others would add noise
        ((*[MANY] * 9, *[FEW_VIDEOS] * 76), [1] * 85),
        ((MANY, NONE, NONE), [1, 0, 0]),  # there are no others
        ((MANY, MANY, NONE), [1, 1, 0]),
        ((NONE, NONE), [0, 0]),
        ((EVERYWHERE, MANY, ONE_VIDEO), [0, 1, 1]),  # any scores have a precision of 1
        ((EVERYWHERE, NONE), [0, 0]),
    ],
)
def test_the_epoch_is_chosen_by_classes_with_enough_positives_where_there_are_such(classes, chosen):
    assert selection_classes(*labels_of(*classes)).tolist() == [bool(one) for one in chosen]


def test_audible_is_what_clears_the_share_of_its_clips_and_has_enough_of_them():
    labels, video = labels_of(MANY, MANY, MANY, FEW_VIDEOS)
    share = 10 / 120
    low = np.array([share + 0.01, share, np.nan, 0.9])
    assert audible_classes(low, labels, video).tolist() == [True, False, False, False]


def test_unrelated_scores_are_those_of_other_videos():
    rng = np.random.default_rng(0)
    video = np.repeat(np.arange(5), [8, 3, 8, 6, 5])
    labels = rng.random((30, 3)) < 0.3
    labels[:, 2] = False
    scores = rng.integers(0, 6, (30, 3)) / 6  # with ties
    found = unrelated_precision(scores, labels, video)
    shifts = range(8, 23)  # whatever is nearer could meet its own video
    assert found.shape == (len(shifts), 3)
    for row, shift in zip(found, shifts, strict=True):
        assert not (np.roll(video, -shift) == video).any()
        np.testing.assert_allclose(row, metrics.average_precision(scores, np.roll(labels, -shift, axis=0)))


def test_where_one_video_is_half_of_the_clips_there_are_no_unrelated_scores():
    labels, _ = labels_of(MANY)
    assert unrelated_precision(np.zeros(labels.shape), labels, np.repeat([0, 1], [61, 59])).shape == (0, 1)
    assert unrelated_precision(np.zeros(labels.shape), labels, np.repeat([0, 1], [60, 60])).shape == (1, 1)


def test_scores_that_know_the_labels_beat_unrelated_ones_and_random_ones_do_not():
    rng = np.random.default_rng(1)
    labels = np.repeat(rng.random((60, 6)) < 0.15, 5, axis=0)
    video = np.repeat(np.arange(30), 10)
    noise = rng.random(labels.shape)
    for scores, beats in ((noise + labels, True), (noise, False)):
        means = unrelated_precision(scores, labels, video).mean(axis=1)
        assert (metrics.mean_average_precision(scores, labels) > means.mean() + 3 * means.std()) == beats


def test_silent_classes_are_not_called_audible():
    """60 silent classes in 30 videos: scores that vary by video and hang together in time, as a model's do."""
    rng = np.random.default_rng(0)
    labels, scores = (
        np.zeros((30, 26, 60), bool),
        0.7 * rng.standard_normal((30, 1, 60)) + rng.standard_normal((30, 26, 60)),
    )
    for column in range(60):
        for video in np.flatnonzero(rng.random(30) < rng.choice([0.1, 0.2, 0.4])):
            start = rng.integers(0, 23)
            labels[video, start : start + rng.integers(4, 16), column] = True
    scores[:, :, :5] += 4 * labels[:, :, :5]  # these can be heard
    scores, labels, video = scores.reshape(-1, 60), labels.reshape(-1, 60), np.repeat(np.arange(30), 26)
    precisions, _ = bootstrap.resample_ranking(scores, labels, video, bootstrap.draw_weights(30, 300, 0))
    own = metrics.average_precision(scores, labels)
    low = np.array([bootstrap.interval(one, value)[0] for one, value in zip(precisions, own, strict=True)])
    audible = audible_classes(low, labels, video)
    enough = has_enough(labels, video)
    assert enough[:5].any() and enough[5:].sum() > 20
    assert audible[:5].tolist() == enough[:5].tolist() and audible[5:].sum() <= 1
