"""The metrics against scikit-learn, ties included, and against cases worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    top_k_accuracy_score,
)

from egoaudio.errors import EvaluationError
from egoaudio.evaluation import metrics


def case(seed, num_rows=200, num_classes=7, density=0.2, levels=None, dtype=np.float32):
    """Return random scores and labels; with ``levels``, scores take so few values that most rows tie."""
    rng = np.random.default_rng(seed)
    scores = (
        rng.random((num_rows, num_classes))
        if levels is None
        else rng.integers(0, levels, (num_rows, num_classes)) / levels
    )
    return scores.astype(dtype), rng.random((num_rows, num_classes)) < density


CASES = {
    "distinct": case(0),
    "float64": case(1, dtype=np.float64),
    "many ties": case(2, levels=6),
    "all tie": case(3, levels=1),
    "rare classes": case(4, num_rows=400, num_classes=30, density=0.005, levels=50),
    "common classes": case(5, density=0.97),
    "two rows": case(6, num_rows=2, density=0.5),
    "one class": case(7, num_classes=1),
    "logits": (case(8)[0] * 40 - 20, case(8)[1]),
}


def both_kinds(labels):
    """Return the classes with positives and negatives."""
    return np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))


@pytest.mark.parametrize("name", CASES)
def test_average_precision_equals_scikit_learn(name):
    scores, labels = CASES[name]
    ours = metrics.average_precision(scores, labels)
    for column in range(labels.shape[1]):
        if labels[:, column].any():
            assert ours[column] == pytest.approx(
                average_precision_score(labels[:, column], scores[:, column]), abs=1e-12
            )
        else:
            assert np.isnan(ours[column])
    with_positives = labels.any(axis=0)
    expected = average_precision_score(labels[:, with_positives], scores[:, with_positives], average="macro")
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_area_under_roc_equals_scikit_learn(name):
    scores, labels = CASES[name]
    ours, defined = metrics.area_under_roc(scores, labels), both_kinds(labels)
    expected = [roc_auc_score(labels[:, column], scores[:, column]) for column in defined]
    np.testing.assert_allclose(ours[defined], expected, atol=1e-12)
    assert np.isnan(np.delete(ours, defined)).all()
    if len(defined):
        assert metrics.mean_auc(scores, labels) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_f1_equals_scikit_learn_at_any_thresholds(name):
    scores, labels = CASES[name]
    thresholds = np.quantile(scores, 0.7, axis=0)
    ours = metrics.f1(scores, labels, thresholds)
    for column, threshold in enumerate(thresholds):
        if labels[:, column].any():
            assert ours[column] == pytest.approx(f1_score(labels[:, column], scores[:, column] >= threshold), abs=1e-12)
        else:
            assert np.isnan(ours[column])


@pytest.mark.parametrize("name", CASES)
def test_no_threshold_has_a_higher_f1_than_the_chosen_one(name):
    scores, labels = CASES[name]
    thresholds = metrics.best_thresholds(scores, labels)
    reached = metrics.f1(scores, labels, thresholds)
    for column in range(labels.shape[1]):
        if not labels[:, column].any():
            assert thresholds[column] == np.inf
            continue
        precision, recall, _ = precision_recall_curve(labels[:, column], scores[:, column])
        assert reached[column] == pytest.approx(
            np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)), abs=1e-12
        )


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn_with_one_class_a_row(k):
    rng = np.random.default_rng(k)
    scores, classes = rng.random((300, 9)), rng.integers(0, 9, 300)
    expected = top_k_accuracy_score(classes, scores, k=k, labels=np.arange(9))
    assert metrics.top_k_accuracy(scores, np.eye(9)[classes], k) == pytest.approx(expected)


def test_mean_class_accuracy_equals_scikit_learn_with_one_class_a_row():
    rng = np.random.default_rng(3)
    scores, classes = rng.random((300, 9)), rng.integers(0, 9, 300)
    expected = balanced_accuracy_score(classes, scores.argmax(axis=1))
    assert metrics.mean_class_accuracy(scores, np.eye(9)[classes]) == pytest.approx(expected)


def test_a_hit_is_any_true_class_among_the_first_k():
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    labels = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(
        metrics.top_k_hits(scores, labels, 1), [0, 1, np.nan, 0]
    )  # nothing to hit in the third
    np.testing.assert_array_equal(
        metrics.top_k_hits(scores, labels, 2), [1, 1, np.nan, 1]
    )  # ties: the lower class first
    assert metrics.top_k_accuracy(scores, labels, 1) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, labels, 9) == 1  # more than there are classes


def test_class_accuracy_names_as_many_classes_as_are_true():
    scores = np.array([[0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.9, 0.5, 0.1]])
    labels = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(metrics.class_hits(scores, labels), [[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx((2 / 2 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("name", ["distinct", "rare classes", "common classes"])
def test_perfect_scores_are_worth_one(name):
    labels = CASES[name][1]
    scores = labels + 0.1 * np.random.default_rng(0).random(labels.shape)
    assert metrics.mean_average_precision(scores, labels) == 1
    assert metrics.mean_auc(scores, labels) == 1
    assert metrics.mean_class_accuracy(scores, labels) == 1
    assert metrics.top_k_accuracy(scores, labels, 1) == 1
    assert metrics.macro_f1(scores, labels, metrics.best_thresholds(scores, labels)) == 1


def test_a_constant_guess_is_worth_the_frequency_of_the_class():
    labels = CASES["distinct"][1]
    np.testing.assert_allclose(metrics.average_precision(np.zeros(labels.shape), labels), labels.mean(axis=0))
    np.testing.assert_allclose(metrics.area_under_roc(np.zeros(labels.shape), labels), 0.5)


@pytest.mark.parametrize("metric", [metrics.average_precision, metrics.area_under_roc, metrics.best_thresholds])
@pytest.mark.parametrize("name", ["distinct", "many ties"])
def test_the_order_of_the_rows_never_matters(metric, name):
    scores, labels = CASES[name]
    order = np.random.default_rng(1).permutation(len(scores))
    np.testing.assert_allclose(metric(scores, labels), metric(scores[order], labels[order]), rtol=1e-12)


def test_average_precision_by_hand():
    scores = np.array([[4.0], [3.0], [2.0], [2.0], [1.0]])
    labels = np.array([[1], [0], [1], [0], [1]])
    # Found at ranks 1, then 2 of the first 4 (a tie is one threshold), then 3 of 5.
    assert metrics.average_precision(scores, labels)[0] == pytest.approx((1 / 1 + 2 / 4 + 3 / 5) / 3)


def test_only_undefined_classes_give_nan():
    scores = np.random.default_rng(0).random((5, 2))
    assert np.isnan(metrics.mean_average_precision(scores, np.zeros((5, 2))))
    assert np.isnan(metrics.mean_auc(scores, np.ones((5, 2))))
    assert np.isnan(metrics.top_k_accuracy(scores, np.zeros((5, 2)), 1))
    assert np.isnan(metrics.mean_class_accuracy(scores, np.zeros((5, 2))))
    assert np.isnan(metrics.macro_f1(scores, np.zeros((5, 2)), np.zeros(2)))
    assert metrics.mean_average_precision(scores, np.ones((5, 2))) == 1


def test_a_missing_score_ranks_last():
    scores = np.array([[-np.inf], [-5.0], [0.0]])
    assert metrics.average_precision(scores, np.array([[1], [0], [0]]))[0] == pytest.approx(1 / 3)
    assert metrics.area_under_roc(scores, np.array([[1], [0], [0]]))[0] == 0


BAD = {
    "transposed": (np.zeros((3, 2)), np.zeros((2, 3)), "transposed"),
    "class numbers": (np.zeros((3, 2)), np.zeros(3), "a column per class"),
    "one dimension": (np.zeros(3), np.zeros(3), r"expected \(num_rows, num_classes\)"),
    "no rows": (np.zeros((0, 2)), np.zeros((0, 2)), "nothing to evaluate"),
    "swapped": (np.zeros((1, 2)), np.array([[0.0, 0.25]]), "label 0.25 in row 0, class 1.*swapped"),
    "nan": (np.array([[0.0, np.nan]]), np.zeros((1, 2)), "score nan in row 0, class 1.*diverged"),
    "infinite": (np.array([[np.inf, 0.0]]), np.zeros((1, 2)), "score inf in row 0, class 0"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize(
    "metric", [metrics.average_precision, metrics.area_under_roc, metrics.mean_class_accuracy, metrics.best_thresholds]
)
def test_bad_input_is_refused_with_a_guess_at_the_mistake(name, metric):
    scores, labels, words = BAD[name]
    with pytest.raises(EvaluationError, match=words):
        metric(scores, labels)


def test_thresholds_of_another_number_of_classes_are_refused():
    with pytest.raises(EvaluationError, match="expected one per class"):
        metrics.f1(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(3))


@pytest.mark.parametrize("module", ["metrics", "charades", "bootstrap"])
def test_metrics_need_numpy_alone(module):
    heavy = ("torch", "scipy", "sklearn", "pandas", "h5py")
    code = f"import sys, egoaudio.evaluation.{module}; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
