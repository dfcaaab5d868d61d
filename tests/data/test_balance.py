"""Counts of classes, and the weights and probabilities that follow from them by their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import make_file

from egoaudio.data import balance
from egoaudio.hdf5 import reader


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("balance") / "ego.h5"
    make_file(path, num_videos=24, clips_per_video=9, failed=(3,), silent_clips=(0, 40), seed=5)
    with reader.open(path) as file:
        yield file


@pytest.mark.parametrize("block", [7, 65536])
def test_counts_pairs_and_probabilities_follow_their_definitions(file, monkeypatch, block):
    monkeypatch.setattr(balance, "BLOCK_ROWS", block)
    rows = np.flatnonzero(file.trainable)[::-1]
    labels = file.labels.copy()
    labels[rows[:5]] = 0  # rows without any class
    pairs = [(row, k) for row in rows.tolist() for k in range(labels.shape[1]) if labels[row, k]]
    at, classes = balance.expand_single(labels, rows)
    assert list(zip(at.tolist(), classes.tolist(), strict=True)) == pairs
    counts = [sum(k == other for _, other in pairs) for k in range(labels.shape[1])]
    assert balance.class_counts(labels, rows).tolist() == counts

    single = balance.balanced_probabilities(labels, at, classes)
    np.testing.assert_allclose([single[classes == k].sum() for k in range(labels.shape[1])], 1 / labels.shape[1])
    multi = balance.balanced_probabilities(labels, rows)
    expected = [sum(1 / counts[k] for k in np.flatnonzero(labels[row])) if labels[row].any() else 1 / 5 for row in rows]
    np.testing.assert_allclose(multi, np.array(expected) / np.sum(expected))
    assert multi.sum() == pytest.approx(1)


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_class_weights_are_the_papers_and_name_absent_classes(label_mode):
    labels = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]], np.uint8)
    file = SimpleNamespace(
        labels=labels, class_table=np.array([(b"c000",), (b"c001",), (b"c002",), (b"no_action",)], [("class_id", "S9")])
    )
    total = {"multi": 3, "single": 5}[label_mode]
    with pytest.warns(UserWarning, match="1 classes have no training clip and get weight 0: c002"):
        weights = balance.class_weights(file, np.array([0, 1, 2]), label_mode)
    np.testing.assert_allclose(weights, [total / (4 * 3), total / (4 * 1), 0, total / (4 * 1)])
    assert weights.dtype == np.float32
