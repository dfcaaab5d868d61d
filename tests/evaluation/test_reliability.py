"""Reliability against a loop over the bins, and for scores that are right by design."""

import numpy as np
import pytest

from egoaudio.evaluation.reliability import reliability


def test_bins_are_those_of_a_loop():
    generator = np.random.default_rng(0)
    scores, labels = generator.random((200, 3)), generator.random((200, 3)) < 0.3
    found = reliability(scores, labels, 5)
    error = 0.0
    for number in range(5):
        inside = (scores >= number / 5) & (scores < (number + 1) / 5)
        assert found.count[number] == inside.sum()
        assert found.mean_score[number] == pytest.approx(scores[inside].mean())
        assert found.share_true[number] == pytest.approx(labels[inside].mean())
        error += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    assert found.expected_calibration_error == pytest.approx(error)


def test_probabilities_are_reliable_and_overconfident_ones_are_not():
    generator = np.random.default_rng(1)
    scores = generator.random((20_000, 1)).astype(np.float32)
    labels = generator.random((20_000, 1)) < scores
    assert reliability(scores, labels).expected_calibration_error < 0.02
    assert reliability(np.round(scores), labels).expected_calibration_error == pytest.approx(0.25, abs=0.02)


def test_the_ends_belong_to_a_bin_and_empty_bins_are_not_defined():
    found = reliability(np.array([[0.0], [1.0]]), np.array([[0], [1]]))
    assert found.count.tolist() == [1, *[0] * 8, 1] and np.isnan(found.mean_score[1:9]).all()
    assert found.expected_calibration_error == 0
