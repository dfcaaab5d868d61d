"""The dataset: the rows it is given with their labels, read the same by every kind of process."""

import numpy as np
import pytest
import torch
from synthetic import make_file

from egoaudio.data.dataset import ClipDataset
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader

SHAPE = (6, 40)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_file(
        tmp_path_factory.mktemp("dataset") / "ego.h5",
        num_videos=11,
        clips_per_video=13,
        features={"spectrogram": SHAPE},
        failed=(2,),
    )


@pytest.fixture(scope="module")
def stored(path):
    """The trainable rows, all features, all labels, read once and plainly."""
    with reader.open(path) as file:
        return np.flatnonzero(file.trainable), np.array(file["spectrogram"]), file.labels.astype(np.float32)


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_items_are_the_trainable_rows_with_their_labels(path, stored, label_mode):
    rows, features, labels = stored
    data = ClipDataset(path, "spectrogram", label_mode=label_mode)
    pairs = (
        [(row, None) for row in rows]
        if label_mode == "multi"
        else [(row, k) for row in rows for k in np.flatnonzero(labels[row])]
    )
    assert len(data) == len(pairs) and data.num_classes == 5 and data.feature_shape == SHAPE
    items = np.random.default_rng(0).permutation(len(data))
    got, targets = data.fetch(items)
    np.testing.assert_array_equal(got, features[[pairs[item][0] for item in items]])
    for target, item in zip(targets, items, strict=True):
        row, k = pairs[item]
        np.testing.assert_array_equal(target, labels[row] if k is None else np.eye(5)[k])


def test_given_rows_and_normalisation_are_used(path, stored):
    rows, features, labels = stored
    data = ClipDataset(path, "spectrogram", rows[::-3], normalization=(1.5, 2.0))
    got, targets = data[np.array([4, 0, 4])]
    chosen = rows[::-3][[4, 0, 4]]
    np.testing.assert_allclose(got, (features[chosen] - 1.5) / 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(targets, labels[chosen])
    np.testing.assert_array_equal(data[4][0], got[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature": "mfcc"}, "has no mfcc; it has spectrogram"),
        ({"rows": [0, 30]}, "1 of the rows to read hold no data .status is not 1., the first is row 30"),
        ({"rows": []}, "no usable clip"),
        ({"label_mode": "Single"}, "'Single': expected 'multi' or 'single'"),
    ],
)
def test_what_cannot_be_read_is_refused(path, arguments, message):
    with pytest.raises((TrainingError, ValueError), match=message):
        ClipDataset(path, **{"feature": "spectrogram", **arguments})


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_read_the_same(path, stored, start_method):
    rows, features, labels = stored
    batches = np.array_split(np.random.default_rng(1).permutation(len(rows)), 9)
    data = ClipDataset(path, "spectrogram")
    data.fetch(batches[0])  # the map is there before the fork
    workers = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=batches, num_workers=2, multiprocessing_context=start_method
    )
    for items, (got, targets) in zip(batches, workers, strict=True):
        np.testing.assert_array_equal(got, features[rows[items]])
        np.testing.assert_array_equal(targets, labels[rows[items]])


def test_a_plain_dataloader_reads_whole_batches(path, stored, monkeypatch):
    rows, features, labels = stored
    data = ClipDataset(path, "spectrogram")
    gathers = []
    take = data.source.take
    monkeypatch.setattr(data.source, "take", lambda rows, *rest: (gathers.append(len(rows)), take(rows, *rest)))
    batches = list(torch.utils.data.DataLoader(data, batch_size=50))
    assert gathers == [len(batch) for batch, _ in batches]
    np.testing.assert_array_equal(torch.cat([batch for batch, _ in batches]), features[rows])
    np.testing.assert_array_equal(torch.cat([targets for _, targets in batches]), labels[rows])
