"""From scores to the Evaluation: each number against the module that defines it, and the mistakes that are caught."""

import types

import numpy as np
import pytest
import synthetic
from sklearn.metrics import average_precision_score

from egoaudio.config.options import from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.data.splits import split_rows
from egoaudio.errors import EvaluationError
from egoaudio.evaluation import bootstrap, charades, metrics
from egoaudio.evaluation.ground_truth import class_frequencies, read_ground_truth
from egoaudio.evaluation.scores import choose_thresholds, evaluate_scores
from egoaudio.evaluation.smoothing import smooth
from egoaudio.hdf5 import reader


@pytest.fixture
def path(tmp_path):
    """24 videos of 5 clips; the last 6 videos are test: number 19 failed, the third clip of number 20 has no sound."""
    return synthetic.make_file(
        tmp_path / "ego.h5",
        24,
        5,
        features={"spectrogram": (8, 16)},
        num_classes=10,
        failed=(2, 19),
        silent_clips=(102,),
    )


@pytest.fixture
def file(path):
    with reader.open(path) as file:
        yield file


def rows_of_test(file):
    """Return the clips with sound and the videos of the test split."""
    videos = np.flatnonzero(file.video_table["split"] == b"test")
    return np.flatnonzero(file.usable & np.isin(file.clip_table["video"], videos)), videos


def random_scores(truth, seed=0):
    return np.random.default_rng(seed).random(truth.labels.shape).astype(np.float32)


def test_every_number_is_the_one_that_its_module_defines(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores = random_scores(truth)
    thresholds = np.full(10, 0.7)
    found = evaluate_scores(scores, truth, thresholds=thresholds)
    clips = truth.labelled
    assert 0 < clips.sum() < len(clips)
    labels = truth.labels[clips]
    assert found.scores["top1"].value == metrics.top_k_accuracy(scores[clips], labels, 1)
    assert found.scores["top5"].value == metrics.top_k_accuracy(scores[clips], labels, 5)
    assert found.scores["map"].value == metrics.mean_average_precision(scores[clips], labels)
    assert found.scores["map"].value == pytest.approx(average_precision_score(labels, scores[clips], average="macro"))
    assert found.scores["mean_class_accuracy"].value == pytest.approx(
        metrics.mean_class_accuracy(scores[clips], labels)
    )
    assert found.scores["mauc"].value == metrics.mean_auc(scores[clips], labels)
    assert found.scores["macro_f1"].value == metrics.macro_f1(scores[clips], labels, thresholds)
    pooled = charades.pool_videos(scores[:, :9], truth.clip_video, 6, "max")
    assert found.scores["video_map"].value == charades.mean_average_precision(
        charades.drop_empty_videos(pooled, truth.video_labels), truth.video_labels
    )
    assert found.num_clips == clips.sum() and found.num_videos == 6 and found.num_videos_scored == 5


def test_unlabelled_clips_count_for_their_video_but_not_for_the_clip_metrics(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores = random_scores(truth)
    changed = scores.copy()
    changed[~truth.labelled] = 1 - changed[~truth.labelled] / 2
    before, after = (evaluate_scores(one, truth) for one in (scores, changed))
    assert before.scores["map"] == after.scores["map"]
    assert not np.array_equal(before.video_scores, after.video_scores)


def test_a_test_video_without_sound_counts_as_missed(file):
    rows, videos = rows_of_test(file)
    truth = read_ground_truth(file, rows, videos)
    found = evaluate_scores(random_scores(truth), truth)
    silent = list(videos).index(19)
    assert (found.video_scores[silent] == -np.inf).all()
    assert np.isfinite(np.delete(found.video_scores, silent, axis=0)).all()
    only_scored = read_ground_truth(file, rows)
    assert len(only_scored.video_ids) == 5
    perfect = np.where(truth.labels == 1, 0.9, 0.1).astype(np.float32)
    assert evaluate_scores(perfect, only_scored).scores["video_map"].value == 1
    assert evaluate_scores(perfect, truth).scores["video_map"].value < 1


def test_videos_without_actions_rank_last(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    empty = truth.video_labels.copy()
    empty[0] = 0
    empty = types.SimpleNamespace(**{**vars(truth), "video_labels": empty})
    low, high = random_scores(truth), random_scores(truth)
    high[truth.clip_video == 0] = 1
    low[truth.clip_video == 0] = 0
    (low_empty, high_empty), (low_full, high_full) = (
        [evaluate_scores(scores, which).scores["video_map"].value for scores in (low, high)] for which in (empty, truth)
    )
    assert low_empty == high_empty and low_full != high_full


def test_no_action_takes_no_part_in_the_official_metrics(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    assert truth.num_actions == 9 and truth.class_ids[-1] == "no_action"
    scores = random_scores(truth)
    other = scores.copy()
    other[:, -1] = 1 - other[:, -1]
    one, two = (evaluate_scores(each, truth) for each in (scores, other))
    same = [name for name in one.scores if one.scores[name].value == two.scores[name].value]
    assert {"video_map", "localization_map"} <= set(same) and "map" not in same
    assert one.video_scores.shape == (6, 9) and one.frame_scores.shape == (150, 9)
    assert one.per_class["video_average_precision"][-1] is None


def test_localization_uses_the_annotated_times(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores = random_scores(truth)
    found = evaluate_scores(scores, truth, pool="mean")
    # One instance a video: a class of its first clip, in its first half. Clips of 1 s: [0, 1), [1, 2), ..., the last to
    # 5 s.
    labels, expected = np.zeros((6, 25, 9), bool), np.full((6, 25, 9), -np.inf, np.float32)
    for video in range(6):
        instance = file.instances[18 + video]
        for frame in range(25):
            if instance["class_index"] < 9:
                labels[video, frame, instance["class_index"]] = frame / 5 <= 2.5
            second = frame // 5
            if video == 2 and second == 2:  # no sound there: the nearest clip; the one before where both are as near
                second = 1 if frame / 5 <= 2.5 else 3
            if video != 1:
                row = np.flatnonzero((truth.clip_video == video) & (truth.start_seconds == second))
                expected[video, frame] = scores[row[0], :9]
    np.testing.assert_array_equal(found.frame_scores, expected.reshape(150, 9))
    expected_map = charades.mean_average_precision(expected.reshape(150, 9), labels.reshape(150, 9))
    assert found.scores["localization_map"].value == pytest.approx(expected_map)


def test_a_file_without_annotated_times_says_what_is_missing(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    timeless = types.SimpleNamespace(**{**vars(truth), "instances": None})
    found = evaluate_scores(random_scores(truth), timeless)
    assert "localization_map" not in found.scores and found.frame_scores is None
    assert any("/instances" in note for note in found.notes) and "/instances" in str(found)


def test_the_prior_is_what_frequencies_alone_score(file):
    rows, videos = rows_of_test(file)
    truth = read_ground_truth(file, rows, videos)
    train = split_rows(file, from_flat(TrainConfig, {}).data, 0).train
    prior = class_frequencies(file.labels, train)
    np.testing.assert_allclose(prior, file.labels[train].mean(axis=0))
    found = evaluate_scores(random_scores(truth), truth, thresholds=np.full(10, 0.5), prior=prior)
    labels = truth.labels[truth.labelled] == 1
    positives = labels.any(axis=0)
    frequency = labels.mean(axis=0)[positives]
    assert found.scores["map"].prior == pytest.approx(frequency.mean())
    assert found.scores["mauc"].prior == 0.5
    assert found.scores["macro_f1"].prior == pytest.approx(
        np.mean(2 * frequency / (1 + frequency))
    )  # always claiming every class
    assert found.scores["top1"].prior == pytest.approx(labels[labels.any(axis=1), prior.argmax()].mean())
    guess = np.where(np.isfinite(found.video_scores), prior[:9], -np.inf)
    assert found.scores["video_map"].prior == pytest.approx(
        metrics.mean_over_classes(charades.chance_average_precision(guess, truth.video_labels))
    )
    itself = evaluate_scores(np.tile(prior, (len(rows), 1)), truth, prior=prior)
    for name in ("top1", "top5", "map", "mean_class_accuracy", "mauc"):
        assert itself.scores[name].value == pytest.approx(itself.scores[name].prior), name


def test_intervals_hold_their_scores_and_follow_from_the_seed(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores = np.clip(0.6 * truth.labels + 0.7 * random_scores(truth), 0, 1)
    settings = {"thresholds": np.full(10, 0.7), "num_resamples": 100}
    one, same, other = (evaluate_scores(scores, truth, **settings, seed=seed) for seed in (1, 1, 2))
    assert str(one.scores) == str(same.scores)
    assert str(one.scores) != str(other.scores)
    for name, found in one.scores.items():
        if name != "audible_map":  # of classes in 3 videos: there are none
            assert 0 <= found.low <= found.value <= found.high <= 1, name
    for value, low, high in zip(*(one.per_class[name] for name in ("average_precision", "low", "high")), strict=True):
        assert np.isnan(value) and np.isnan(low) or 0 <= low <= value <= high <= 1
    assert np.isnan(evaluate_scores(scores, truth).scores["map"].low)


def test_one_video_has_no_interval(file):
    rows, videos = rows_of_test(file)
    truth = read_ground_truth(file, rows[file.clip_table["video"][rows] == videos[0]], videos[:1])
    found = evaluate_scores(random_scores(truth), truth, num_resamples=50)
    assert found.num_resamples == 0
    assert all(np.isnan([score.low, score.high]).all() for score in found.scores.values())


def test_intervals_are_those_of_repeated_clips(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores, thresholds = random_scores(truth), np.full(10, 0.7)
    found = evaluate_scores(scores, truth, thresholds=thresholds, num_resamples=40, seed=5).scores
    weights = bootstrap.draw_weights(6, 40, 5)
    clips = truth.labelled
    scores, labels, video = scores[clips], truth.labels[clips], truth.clip_video[clips]
    of_repeated = {
        "top1": lambda rows: metrics.top_k_accuracy(scores[rows], labels[rows], 1),
        "top5": lambda rows: metrics.top_k_accuracy(scores[rows], labels[rows], 5),
        "map": lambda rows: metrics.mean_average_precision(scores[rows], labels[rows]),
        "mauc": lambda rows: metrics.mean_auc(scores[rows], labels[rows]),
        "mean_class_accuracy": lambda rows: metrics.mean_class_accuracy(scores[rows], labels[rows]),
        "macro_f1": lambda rows: metrics.macro_f1(scores[rows], labels[rows], thresholds),
    }
    for name, metric in of_repeated.items():
        samples = np.array(
            [metric(np.repeat(np.arange(len(video)), weights[video, resample].astype(int))) for resample in range(40)]
        )
        assert (found[name].low, found[name].high) == pytest.approx(
            bootstrap.interval(samples, found[name].value), abs=1e-5
        ), name


def test_thresholds_are_chosen_on_labelled_clips_and_none_means_no_f1(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores = random_scores(truth)
    chosen = choose_thresholds(scores, truth)
    np.testing.assert_array_equal(chosen, metrics.best_thresholds(scores[truth.labelled], truth.labels[truth.labelled]))
    assert evaluate_scores(scores, truth, thresholds=list(chosen)).scores["macro_f1"].value > 0
    without = evaluate_scores(scores, truth)
    assert np.isnan(without.scores["macro_f1"].value) and any("macro F1" in note for note in without.notes)


def test_every_metric_is_of_smoothed_scores_and_shows_the_unsmoothed_value(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    scores, thresholds = random_scores(truth), np.full(10, 0.6)
    found = evaluate_scores(scores, truth, thresholds=thresholds, smooth_clips=2, num_resamples=20)
    smoothed = smooth(scores, truth.rows, truth.clip_video, 2)
    by_hand = evaluate_scores(smoothed, truth, thresholds=thresholds, num_resamples=20)
    own = evaluate_scores(scores, truth)
    assert found.smooth_clips == 2 and by_hand.smooth_clips == 0
    for name, ours in found.scores.items():
        theirs = by_hand.scores[name]
        np.testing.assert_array_equal([ours.value, ours.low, ours.high], [theirs.value, theirs.low, theirs.high])
        if name not in ("macro_f1", "audible_map"):
            assert ours.unsmoothed == own.scores[name].value != ours.value, name
    assert np.isnan(found.scores["macro_f1"].unsmoothed)  # thresholds are those of the smoothed scores
    np.testing.assert_array_equal(found.video_scores, by_hand.video_scores)
    np.testing.assert_array_equal(found.frame_scores, by_hand.frame_scores)
    assert np.isnan(own.scores["map"].unsmoothed)


def test_the_map_of_audible_classes_is_that_of_the_classes_that_clear_the_prior(tmp_path):
    path = synthetic.make_file(
        tmp_path / "ego.h5", 40, 10, features={"spectrogram": (8, 16)}, num_classes=8, unlabelled=0.0, test_fraction=1.0
    )
    with reader.open(path) as opened:
        truth = read_ground_truth(opened, np.arange(400))
    scores = random_scores(truth)
    scores[:, :3] = 0.5 * scores[:, :3] + 0.5 * truth.labels[:, :3]  # the others cannot be heard
    found = evaluate_scores(scores, truth, prior=np.full(8, 0.1), num_resamples=200, smooth_clips=1)
    assert found.per_class["audible"] == [True] * 3 + [False] * 5
    precision = found.per_class["average_precision"]
    heard = found.scores["audible_map"]
    assert heard.value == pytest.approx(np.mean(precision[:3])) and heard.low < heard.value < heard.high
    assert heard.prior == pytest.approx(truth.labels[:, :3].mean())
    assert heard.unsmoothed == pytest.approx(metrics.mean_average_precision(scores[:, :3], truth.labels[:, :3]))
    assert heard.value > 2 * np.mean(precision[3:])
    for value, low, high in zip(precision, found.per_class["low"], found.per_class["high"], strict=True):
        assert low < value < high
    assert "audible_map" not in evaluate_scores(scores, truth).scores  # without intervals nobody knows


BAD = {
    "logits": (lambda scores: scores * 4 - 2, "are these logits"),
    "nan": (
        lambda scores: np.where(np.arange(scores.size).reshape(scores.shape) == 7, np.nan, scores),
        r"score nan of clip \d+, class c007.*diverged",
    ),
    "transposed": (lambda scores: scores.T, "transposed"),
    "too few": (lambda scores: scores[1:], "expected a row per clip"),
}


@pytest.mark.parametrize("name", BAD)
def test_scores_that_cannot_be_right_are_refused(file, name):
    truth = read_ground_truth(file, *rows_of_test(file))
    spoil, words = BAD[name]
    with pytest.raises(EvaluationError, match=words):
        evaluate_scores(spoil(random_scores(truth)), truth)


def test_clips_without_any_labels_are_refused(file):
    truth = read_ground_truth(file, *rows_of_test(file))
    blank = types.SimpleNamespace(**{**vars(truth), "labelled": np.zeros(len(truth.rows), bool)})
    with pytest.raises(EvaluationError, match="none of the .* clips to evaluate has labels"):
        evaluate_scores(random_scores(truth), blank)
