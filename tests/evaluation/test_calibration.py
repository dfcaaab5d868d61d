"""Calibration: known distortions are found, as by scikit-learn; ranks stay, and the better method is chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from egoaudio.evaluation import calibration_fit
from egoaudio.evaluation.calibration import Calibration, logit, sigmoid
from egoaudio.evaluation.calibration_fit import fit
from egoaudio.evaluation.metrics import average_precision
from egoaudio.evaluation.reliability import reliability


def make_clips(slope, intercept, num_clips=3000, num_classes=4, seed=0):
    """Return scores, labels and videos such that ``sigmoid(slope * logit(score) + intercept)`` is the probability."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 2, (num_clips, num_classes))
    labels = generator.random(logits.shape) < sigmoid(np.asarray(slope) * logits + np.asarray(intercept))
    return sigmoid(logits).astype(np.float32), labels.astype("u1"), np.arange(num_clips) // 20


def error(scores, labels):
    return reliability(scores, labels).expected_calibration_error


def test_one_temperature_is_found_where_it_is_all_there_is():
    scores, labels, video = make_clips(0.4, 0.0)
    found = fit(scores, labels, video)
    assert found.method == "temperature" and (found.intercept == 0).all()
    np.testing.assert_allclose(found.slope, 0.4, rtol=0.1)
    assert error(found.apply(scores), labels) < 0.3 * error(scores, labels)


def test_a_line_for_each_class_is_found_where_classes_differ():
    slopes, intercepts = [0.3, 1.0, 2.0, 0.7], [-1.0, 0.5, -0.5, 1.0]
    scores, labels, video = make_clips(slopes, intercepts)
    found = fit(scores, labels, video)
    assert found.method == "platt"
    np.testing.assert_allclose(found.slope, slopes, rtol=0.2)
    np.testing.assert_allclose(found.intercept, intercepts, atol=0.25)
    assert error(found.apply(scores), labels) < 0.35 * error(scores, labels)


def test_the_lines_are_those_of_scikit_learn():
    """Platt's targets are clips with both labels, weighted."""
    scores, labels, _ = make_clips([0.3, 1.5], [-1.0, 0.5], 400, 2, seed=3)
    slope, intercept = calibration_fit._platt(logit(scores), labels == 1)
    for column in range(2):
        on = labels[:, column] == 1
        high, low = (on.sum() + 1) / (on.sum() + 2), 1 / ((~on).sum() + 2)
        share = np.where(on, high, low)
        x = np.tile(logit(scores)[:, [column]], (2, 1))
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        model.fit(x, np.r_[np.ones(len(on)), np.zeros(len(on))], sample_weight=np.r_[share, 1 - share])
        assert slope[column] == pytest.approx(model.coef_[0, 0], rel=1e-4)
        assert intercept[column] == pytest.approx(model.intercept_[0], abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0, 1))
def test_nothing_ranks_otherwise_and_no_number_is_lost_however_odd_the_clips(seed, num_clips, share):
    generator = np.random.default_rng(seed)
    scores = generator.choice([0.0, 1e-9, 0.25, 0.5, 1.0], (num_clips, 3)).astype(np.float32)
    labels = (generator.random((num_clips, 3)) < share).astype("u1")
    found = fit(scores, labels, generator.integers(0, 5, num_clips))
    assert (found.slope > 0).all() and np.isfinite(found.intercept).all()
    probabilities = found.apply(scores)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    order = np.argsort(scores[:, 0], kind="stable")
    assert (np.diff(probabilities[order, 0]) >= 0).all()


def test_a_class_with_few_clips_takes_the_temperature():
    scores, labels, video = make_clips([0.3, 2.0, 1.0, 0.6], [-1, 1, 0, 0.5])
    labels[:, 3] = 0
    labels[:4, 3] = 1
    found = fit(scores, labels, video)
    assert found.method == "platt" and found.intercept[3] == 0
    assert found.slope[3] == pytest.approx(calibration_fit._temperature_slope(logit(scores), labels == 1))


def test_labels_that_are_all_alike_calibrate_nothing():
    scores, labels, video = make_clips(1.0, 0.0, 50)
    assert fit(scores, 0 * labels, video).method == "none" and fit(scores, 0 * labels + 1, video).method == "none"


def test_average_precision_is_that_of_the_scores():
    scores, labels, video = make_clips([0.3, 1.0, 2.0, 0.7], [-1.0, 0.5, -0.5, 1.0], 500)
    found = fit(scores, labels, video)
    np.testing.assert_allclose(
        average_precision(found.apply(scores), labels), average_precision(scores, labels), atol=1e-4
    )


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(0.05, 20), st.floats(-5, 5))
def test_a_probability_leads_back_to_its_score(probabilities, slope, intercept):
    found = Calibration(np.full(2, slope), np.full(2, intercept), "platt")
    scores = found.invert(np.array(probabilities))
    inside = (scores > 1e-6) & (scores < 1 - 1e-6)
    np.testing.assert_allclose(found.apply(scores)[inside], np.array(probabilities)[inside], rtol=1e-4, atol=1e-6)
    none = Calibration.none(2)
    np.testing.assert_array_equal(none.invert(none.apply(np.array(probabilities))), probabilities)
