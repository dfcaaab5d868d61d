"""Batches: every item once, in an order that follows from seed and epoch, and never overwritten."""

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
def stored(path):
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
    dataset = ClipDataset(path, "spectrogram")  # the file is closed with it
    labels = dataset.file.labels
    rows = np.flatnonzero(labels.sum(axis=1) == 1)
    rows = rows[dataset.file.trainable[rows]]
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


def test_only_training_shuffles_and_augments(path, stored):
    _, features, labels = stored
    for batch in loader(path, training=False, balanced_sampling=True, **AUGMENTED).epoch(0):
        np.testing.assert_array_equal(batch.features, features[batch.rows])
        np.testing.assert_array_equal(batch.labels, labels[batch.rows])
    for batch in loader(path, **AUGMENTED).epoch(0):
        assert not np.array_equal(batch.features, features[batch.rows])


def test_gain_is_in_units_of_the_normalised_feature(path, stored):
    _, features, _ = stored
    data = ClipDataset(path, "spectrogram", normalization=(1.0, 4.0))
    for batch in Loader(data, 16, DataConfig(gain_db=6), 0, training=True).epoch(0):
        change = batch.features.numpy() - (features[batch.rows] - 1) / 4
        assert 0.5 < np.abs(change).max() <= 6 / 4 + 1e-5


def test_changes_differ_between_batches_and_epochs(path, stored):
    _, features, _ = stored
    batches = loader(path, gain_db=6.0)
    gains = [
        (batch.features.numpy() - features[batch.rows])[:, 0, 0] for epoch in range(2) for batch in batches.epoch(epoch)
    ]
    assert len({round(float(gain[0]), 4) for gain in gains}) == len(gains) == 2 * len(batches)


def test_a_batch_that_is_kept_is_never_overwritten(path, stored):
    _, features, _ = stored
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_for_which_memory_ran_out_is_made_again(path, monkeypatch, workers):
    options = {**AUGMENTED, "loader_workers": workers}
    expected = list(loader(path, **options).epoch(0))
    batches, calls, finish = loader(path, **options), [], Loader._finish
    batches._makes_again = True  # as on a GPU

    def sometimes(self, *batch):
        calls.append(batch)
        if len(calls) in (1, 4):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return finish(self, *batch)

    monkeypatch.setattr(Loader, "_finish", sometimes)
    found = list(batches.epoch(0))
    assert len(calls) == len(found) + 2 == len(expected) + 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.features, other.features) and torch.equal(one.labels, other.labels)


def test_memory_that_suffices_for_no_batch_is_told_with_the_size_to_give(path, monkeypatch):
    def never(self, *batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Loader, "_finish", never)
    batches = loader(path)
    with pytest.raises(torch.OutOfMemoryError):
        list(batches.epoch(0))
    batches._makes_again = True
    with pytest.raises(TrainingError, match="a batch of 16 clips is copied .*2 GiB.*batch_size=8"):
        list(batches.epoch(0))


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

    def late(items, *others, **options):
        ready.wait(0.05)
        return fetch(items, *others, **options)

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
        pytest.warns(UserWarning, match="replaced.*continues"),
    ):
        list(batches.epoch(0))
