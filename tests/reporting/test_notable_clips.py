"""Which clips of a run are shown, and which labels are doubted, on scores made for it."""

import numpy as np
import pytest

from egoaudio.reporting.confusions import count_confusions, find_confusions
from egoaudio.reporting.notable_clips import ScoredClips


@pytest.fixture
def case():
    """Scores, labels, rows and videos of 60 clips of 6 videos; rows of the file are not without gaps."""
    generator = np.random.default_rng(0)
    labels = generator.random((60, 4)) < 0.3
    scores = np.clip(0.6 * labels + 0.35 * generator.random((60, 4)), 0, 1).astype(np.float32)
    return scores, labels, np.arange(60) * 2, np.repeat(np.arange(6), 10)


def test_best_missed_and_false_alarms_are_the_ends_of_the_ranking(case):
    scores, labels, rows, video = case
    found = ScoredClips(*case).notable(1, most=100)
    on = labels[:, 1]
    assert [clip.row // 2 for clip in found.best] == sorted(np.flatnonzero(on), key=lambda place: -scores[place, 1])
    assert [clip.row for clip in found.missed] == [clip.row for clip in found.best][::-1]
    assert [clip.score for clip in found.false_alarms] == sorted(scores[~on, 1].tolist(), reverse=True)
    few = ScoredClips(*case).notable(1, most=3)
    assert len({video[clip.row // 2] for clip in few.best}) == 3 and few.best[0] == found.best[0]
    assert [clip.score for clip in few.missed] == sorted(clip.score for clip in few.missed)


def test_others_are_the_highest_scores_besides(case):
    scores, *_ = case
    for clip in ScoredClips(*case).notable(2, most=5).best:
        own = scores[clip.row // 2]
        expected = [k for k in np.argsort(-own, kind="stable") if k != 2 and own[k] >= 0.05]
        assert [k for k, _ in clip.others] == expected[:3]


def test_a_class_without_clips_has_only_false_alarms(case):
    scores, labels, *rest = case
    labels[:, 3] = False
    clips = ScoredClips(scores, labels, *rest)
    found = clips.notable(3, most=2)
    assert found.best == found.missed == () and len(found.false_alarms) == 2
    assert clips.missing_labels(np.array([3])) == clips.empty_labels(np.array([3])) == ()


def test_labels_that_were_taken_away_or_invented_are_doubted():
    generator = np.random.default_rng(1)
    true = np.zeros((80, 2), bool)
    true[::8, 0] = True  # no clip beside another
    scores = np.clip(0.8 * true + 0.1 * generator.random((80, 2)), 0, 1)
    labels = true.copy()
    labels[16, 0] = False
    labels[20, 0] = True
    scores[20, 0] = 0
    clips = ScoredClips(scores, labels, np.arange(80), np.repeat(np.arange(8), 10))
    scores[16, 0] = 0.95
    assert [clip.row for clip in clips.missing_labels(np.array([0, 1]))] == [16]
    assert [clip.row for clip in clips.empty_labels(np.array([0, 1]))] == [20]


@pytest.mark.parametrize("rows, doubted", [((10, 11), False), ((10, 12), True), ((9, 10), True)])
def test_a_clip_beside_a_label_is_a_matter_of_where_it_begins(rows, doubted):
    """(9, 10) are beside each other in the file, and of different videos."""
    scores, labels = np.full((3, 1), 0.1), np.array([[True], [False], [False]])
    scores[:2] = 0.9
    video = np.array(rows + (100,)) // 10
    clips = ScoredClips(scores, labels, np.array([*rows, 100]), video)
    assert (len(clips.missing_labels(np.array([0]))) == 1) == doubted


def test_confusions_are_those_of_a_loop(case):
    scores, labels, *_ = case
    scores = np.random.default_rng(2).random(scores.shape)
    expected = np.zeros((4, 4), int)
    for own, on in zip(scores, labels, strict=True):
        best = int(np.argmax(own))
        if on.any() and not on[best]:
            expected[on, best] += 1
    assert (count_confusions(scores, labels) == expected).all()
    found, matrix = find_confusions(scores, labels, list("abcd"))
    assert {(row.true, row.taken_for): row.num_clips for row in found} == {
        ("abcd"[i], "abcd"[j]): expected[i, j] for i, j in np.argwhere(expected)
    }
    assert [row.num_clips for row in found] == sorted((row.num_clips for row in found), reverse=True)
    for row, column, share in matrix.cells:
        i, j = ("abcd".index(matrix.names[k]) for k in (row, column))
        assert share == pytest.approx(expected[i, j] / labels[:, i].sum())


def test_nothing_is_confused_where_the_highest_score_is_right():
    labels = np.eye(3) == 1
    assert find_confusions(labels.astype(float), labels, list("abc")) == ((), None)
