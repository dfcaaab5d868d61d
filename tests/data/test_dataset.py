"""Batches: every item once, in an order that seed and epoch decide, the same from every kind of process, never overwritten."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch
from synthetic import make_file

from egoaudio.config.train import DataConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import BLOCK_ITEMS, READ_AHEAD, Loader
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader

SHAPE = (6, 40)
AUGMENTED = {"mixup": 0.4, "gain_db": 6.0, "spec_augment": True}


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
def truth(path):
    """The trainable rows, all features, all labels, read once and plainly."""
    with reader.open(path) as file:
        return np.flatnonzero(file.trainable), np.array(file["spectrogram"]), file.labels.astype(np.float32)


def loader(path, batch_size=16, seed=3, training=True, label_mode="multi", **options):
    return Loader(
        ClipDataset(path, "spectrogram", label_mode=label_mode),
        batch_size,
        DataConfig(**options),
        seed,
        training=training,
    )


def rows_of(loader, epoch=0, start_batch=0):
    return np.concatenate([batch.rows for batch in loader.epoch(epoch, start_batch)])


# ------------------------------------------------------------------------------------------------------- dataset


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_items_are_the_trainable_rows_with_their_labels(path, truth, label_mode):
    rows, features, labels = truth
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


def test_given_rows_and_normalisation_are_used(path, truth):
    rows, features, labels = truth
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
def test_workers_of_every_kind_read_the_same(path, truth, start_method):
    rows, features, labels = truth
    batches = np.array_split(np.random.default_rng(1).permutation(len(rows)), 9)
    data = ClipDataset(path, "spectrogram")
    data.fetch(batches[0])  # the map is there before the fork
    workers = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=batches, num_workers=2, multiprocessing_context=start_method
    )
    for items, (got, targets) in zip(batches, workers, strict=True):
        np.testing.assert_array_equal(got, features[rows[items]])
        np.testing.assert_array_equal(targets, labels[rows[items]])


def test_a_plain_dataloader_reads_whole_batches(path, truth, monkeypatch):
    rows, features, labels = truth
    data = ClipDataset(path, "spectrogram")
    gathers = []
    take = data.source.take
    monkeypatch.setattr(data.source, "take", lambda rows, *rest: (gathers.append(len(rows)), take(rows, *rest)))
    batches = list(torch.utils.data.DataLoader(data, batch_size=50))
    assert gathers == [len(batch) for batch, _ in batches]
    np.testing.assert_array_equal(torch.cat([batch for batch, _ in batches]), features[rows])
    np.testing.assert_array_equal(torch.cat([targets for _, targets in batches]), labels[rows])


# --------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("options", [{}, {"shuffle": "block"}, {"label_mode": "single"}, {"training": False}])
def test_every_item_comes_once_an_epoch(path, options):
    batches = loader(path, **options)
    rows = rows_of(batches)
    assert len(batches) == -(-len(batches.dataset) // 16) == -(-len(rows) // 16)
    np.testing.assert_array_equal(np.sort(rows), np.sort(batches.dataset.rows))
    if not options.get("training", True):
        np.testing.assert_array_equal(rows, batches.dataset.rows)


@pytest.mark.parametrize("options", [{}, {"shuffle": "block"}, {"balanced_sampling": True}])
def test_the_order_follows_from_seed_and_epoch_alone(path, options):
    order = rows_of(loader(path, **options), epoch=4)
    np.testing.assert_array_equal(rows_of(loader(path, batch_size=7, **options), epoch=4), order)
    seen = loader(path, **options)
    rows_of(seen, epoch=0)
    np.testing.assert_array_equal(rows_of(seen, epoch=4), order)
    for other in (rows_of(loader(path, **options), epoch=5), rows_of(loader(path, seed=4, **options), epoch=4)):
        assert not np.array_equal(other, order)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start_batch", [1, 5, 8, 9])
def test_an_epoch_continues_in_its_middle(path, workers, start_batch):
    whole = list(loader(path, **AUGMENTED).epoch(2))
    rest = list(loader(path, loader_workers=workers, **AUGMENTED).epoch(2, start_batch))
    assert len(rest) == max(len(whole) - start_batch, 0)
    for expected, batch in zip(whole[start_batch:], rest, strict=True):
        np.testing.assert_array_equal(batch.rows, expected.rows)
        assert torch.equal(batch.features, expected.features) and torch.equal(batch.labels, expected.labels)


def test_blocks_of_neighbours_stay_together(path):
    order = loader(path, shuffle="block").order(0)
    blocks = order[: len(order) // BLOCK_ITEMS * BLOCK_ITEMS] // BLOCK_ITEMS
    changes = np.flatnonzero(np.diff(blocks))
    assert len(changes) <= -(-len(order) // BLOCK_ITEMS)
    assert not np.array_equal(order, np.arange(len(order)))


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_balanced_sampling_draws_rare_classes_as_often(path, label_mode):
    labels = ClipDataset(path, "spectrogram").file.labels
    rows = np.flatnonzero(labels.sum(axis=1) == 1)
    rows = rows[ClipDataset(path, "spectrogram").file.trainable[rows]]
    rare = rows[labels[rows, 0] == 1][:2]
    rows = np.r_[rare, rows[labels[rows, 0] == 0]]
    batches = Loader(
        ClipDataset(path, "spectrogram", rows, label_mode), 64, DataConfig(balanced_sampling=True), 0, training=True
    )
    drawn = np.concatenate([batches.dataset.rows[batches.order(epoch)] for epoch in range(300)])
    assert len(batches.order(0)) == len(rows)
    share = labels[drawn].mean(axis=0)
    np.testing.assert_allclose(share, 1 / 5, atol=0.02)


# ------------------------------------------------------------------------------------------------------- batches


def test_worker_processes_give_the_batches_of_the_thread(path):
    by_thread, by_workers = loader(path, **AUGMENTED), loader(path, loader_workers=2, **AUGMENTED)
    for epoch in range(2):
        for expected, batch in zip(by_thread.epoch(epoch), by_workers.epoch(epoch), strict=True):
            np.testing.assert_array_equal(batch.rows, expected.rows)
            assert torch.equal(batch.features, expected.features) and torch.equal(batch.labels, expected.labels)
        for _ in by_workers.epoch(7):
            break  # what was read ahead for an epoch that was left must not turn up in the next


def test_only_training_shuffles_and_augments(path, truth):
    _, features, labels = truth
    for batch in loader(path, training=False, balanced_sampling=True, **AUGMENTED).epoch(0):
        np.testing.assert_array_equal(batch.features, features[batch.rows])
        np.testing.assert_array_equal(batch.labels, labels[batch.rows])
    for batch in loader(path, **AUGMENTED).epoch(0):
        assert not np.array_equal(batch.features, features[batch.rows])


def test_gain_is_in_units_of_the_normalised_feature(path, truth):
    _, features, _ = truth
    data = ClipDataset(path, "spectrogram", normalization=(1.0, 4.0))
    for batch in Loader(data, 16, DataConfig(gain_db=6), 0, training=True).epoch(0):
        change = batch.features.numpy() - (features[batch.rows] - 1) / 4
        assert 0.5 < np.abs(change).max() <= 6 / 4 + 1e-5


def test_changes_differ_between_batches_and_epochs(path, truth):
    _, features, _ = truth
    batches = loader(path, gain_db=6.0)
    gains = [
        (batch.features.numpy() - features[batch.rows])[:, 0, 0] for epoch in range(2) for batch in batches.epoch(epoch)
    ]
    assert len({round(float(gain[0]), 4) for gain in gains}) == len(gains) == 2 * len(batches)


def test_a_batch_that_is_kept_is_never_overwritten(path, truth):
    _, features, _ = truth
    batches = loader(path, batch_size=4)
    kept, views = [], []
    for epoch in range(2):
        for number, batch in enumerate(batches.epoch(epoch)):
            if number % 3 == 0:
                kept.append((batch.features, batch.rows))
            elif number % 3 == 1:
                views.append(
                    (batch.features[1:3].reshape(-1).numpy()[5:], batch.rows)
                )  # the storage lives on in a view alone
    for tensor, rows in kept:
        np.testing.assert_array_equal(tensor, features[rows])
    for view, rows in views:
        np.testing.assert_array_equal(view, features[rows[1:3]].reshape(-1)[5:])


def test_memory_of_batches_that_are_gone_is_used_again(path):
    batches = loader(path, batch_size=4)
    places = {batch.features.data_ptr() for epoch in range(3) for batch in batches.epoch(epoch)}
    assert len(places) <= READ_AHEAD + 2 < len(batches)


def test_leaving_the_loop_ends_the_thread(path):
    before = threading.active_count()
    batches = loader(path)
    for _ in batches.epoch(0):
        break
    assert threading.active_count() == before


def test_a_reader_that_is_slower_than_the_consumer_shows_in_wait_seconds(path, monkeypatch):
    batches = loader(path, batch_size=64)
    ready = threading.Event()
    fetch = batches.dataset.fetch

    def late(items, out=None):
        ready.wait(0.05)
        return fetch(items, out)

    monkeypatch.setattr(batches.dataset, "fetch", late)
    assert len(list(batches.epoch(0))) == 2 and batches.wait_seconds >= 0.05
    ready.set()
    for _ in batches.epoch(0):
        assert batches.wait_seconds < 0.05  # counted anew for each epoch
        break


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_changes_in_mid_epoch_stops_the_loop(tmp_path, workers):
    path = make_file(tmp_path / "ego.h5", num_videos=11, clips_per_video=13, features={"spectrogram": SHAPE})
    batches = loader(path, batch_size=4, loader_workers=workers)
    seen = 0
    with pytest.raises(TrainingError, match="ego.h5 was changed during the run"):
        for _ in batches.epoch(0):
            seen += 1
            if workers:
                os.truncate(path, 4096)  # a worker that is just reading dies of it
            else:
                os.utime(path)
    assert 1 <= seen < len(batches)
    del batches
    assert not multiprocessing.active_children()  # without waiting for the garbage collector


def test_a_worker_started_after_the_file_was_replaced_refuses_it(path, tmp_path):
    old = make_file(tmp_path / "ego.h5", num_videos=11, clips_per_video=13, features={"spectrogram": SHAPE})
    batches = loader(old, loader_workers=1)
    os.replace(
        make_file(tmp_path / "new.h5", num_videos=11, clips_per_video=13, features={"spectrogram": SHAPE}, seed=1), old
    )
    with (
        pytest.raises(TrainingError, match="ego.h5 was replaced by another file"),
        pytest.warns(UserWarning, match="replaced.*goes on"),
    ):
        list(batches.epoch(0))
