"""The loop: it learns, every option reaches it, and problems are reported."""

import math
import os
import resource
import sys
import time
import types

import numpy as np
import pytest
import torch
from small_runs import SHAPE, assert_same_run, make_config, make_file, on_step, table, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from egoaudio.data.dataset import ClipDataset
from egoaudio.errors import CheckpointError, ConfigurationError, TrainingError
from egoaudio.evaluation import evaluate
from egoaudio.hdf5 import reader
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.models import checkpoints
from egoaudio.training import run_folder, train
from egoaudio.training.optimizer import learning_rate
from egoaudio.training.step import Stepper


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One file for all tests that only read it."""
    return make_file(tmp_path_factory.mktemp("data") / "ego.h5")


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    """Draw no curves, which takes longer than the runs here; ``finished`` has been drawn by then."""
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that was never stopped, and the messages of the loop."""
    folder = tmp_path_factory.mktemp("run") / "cnn"
    run = train.train(data, folder, make_config())
    return types.SimpleNamespace(folder=folder, run=run)


# ------------------------------------------------------------------------------------------------ it learns


def test_it_overfits_64_clips_to_top_1_accuracy_of_1(tmp_path):
    path = make_file(
        tmp_path / "noise.h5", 8, 8, class_dependent=False, test_fraction=0.0
    )  # noise: nothing but memory helps
    train.train(path, tmp_path / "run", make_config(epochs=60, validation_fraction=0.0, learning_rate=3e-3))
    found = evaluate.evaluate(tmp_path / "run/best.pt", path, split="train", num_resamples=0)
    assert found.num_clips == 64
    assert found.scores["top1"].value == 1.0


def shuffle_labels(path):
    """Give every clip the labels of another one."""
    with reader.open(path) as file:
        labels = np.random.default_rng(3).permutation(np.asarray(file.labels))
    with RowWriter(path, offsets(path)) as writer:
        writer.write("labels", 0, labels)


def test_it_learns_what_can_be_heard_and_nothing_from_shuffled_labels(tmp_path):
    best = {}
    for name in ("true", "shuffled"):
        path = make_file(tmp_path / f"{name}.h5", 24, 10)
        if name == "shuffled":
            shuffle_labels(path)
        train.train(path, tmp_path / name, make_config(epochs=6))
        found = evaluate.evaluate(tmp_path / name / "best.pt", path, num_resamples=0).scores["map"]
        best[name] = found.value, found.prior
    assert best["true"][0] > 0.95
    assert best["shuffled"][0] < best["shuffled"][1] + 0.12


def test_every_epoch_takes_every_clip_once_in_an_order_of_its_own(tmp_path, data, monkeypatch):
    clips, step = [], Stepper.launch
    monkeypatch.setattr(
        Stepper,
        "launch",
        lambda self, features, labels: clips.extend(features.sum(dim=(1, 2)).tolist()) or step(self, features, labels),
    )
    train.train(data, tmp_path / "run", make_config(epochs=2))
    first, second = clips[: len(clips) // 2], clips[len(clips) // 2 :]
    assert len(set(first)) == len(first) == 60
    assert sorted(first) == sorted(second) and first != second


# ------------------------------------------------------------------------------------------------ every option reaches
# the loop


def test_without_a_validation_split_the_training_loss_chooses(tmp_path, data, capsys):
    train.train(data, tmp_path / "run", make_config(validation_fraction=0.0))
    rows = table(tmp_path / "run")
    assert all(row[name] == "" for row in rows for name in ("val_loss", "top1", "top5", "map"))
    losses = [float(row["train_loss"]) for row in rows]
    assert checkpoints.load(tmp_path / "run/best.pt")["epoch"] == 1 + losses.index(min(losses))
    assert "lowest training loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {
            "model": "cnn-small",
            "feature": "spectrogram",
            "dropout": 0.3,
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "clip_gradient": 0.5,
            "schedule": "constant",
        },
        {"label_mode": "single", "class_weights": True, "amp": True, "micro_batch_size": 5},
        {"model": "cnn", "amp": True, "amp_dtype": "float16", "loader_workers": 1, "activation_checkpointing": True},
    ],
)
def test_options_reach_the_loop(tmp_path, data, changes):
    train.train(data, tmp_path / "run", make_config(epochs=2, **changes))
    rows = table(tmp_path / "run")
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert int(rows[1]["micro_batch_size"]) == changes.get("micro_batch_size", 16)


@pytest.mark.parametrize("model", ["cnn", "cnn-small"])
def test_context_reaches_training_validation_evaluation_and_the_network_of_a_checkpoint(tmp_path, data, model):
    config = make_config(model=model, feature="spectrogram", epochs=1, context_clips=2, time_shift_seconds=0.5)
    train.train(data, tmp_path / "run", config)
    network, contents = checkpoints.load_model(tmp_path / "run/best.pt")
    assert contents["feature_shape"] == list(SHAPE)  # the file's, which another file must match
    assert network(torch.zeros(3, 5 * SHAPE[0], SHAPE[1])).shape == (3, 5)
    found = evaluate.evaluate(tmp_path / "run/best.pt", data, split="validation", num_resamples=0)
    assert found.scores["map"].value == pytest.approx(float(table(tmp_path / "run")[0]["map"]), abs=1e-6)


def test_a_compiled_model_is_saved_as_the_model_it_is(tmp_path, data, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or torch.nn.Sequential(model))
    monkeypatch.setattr(torch.nn.Sequential, "activation_checkpointing", False, raising=False)
    train.train(data, tmp_path / "run", make_config(epochs=1, compile=True))
    assert len(compiled) == 1
    checkpoints.load_model(tmp_path / "run/best.pt")


def test_tensorboard_gets_the_columns_once_however_often_the_run_is_stopped(tmp_path, data, monkeypatch):
    save = checkpoints.save

    def killed_before_the_end_of_epoch_2(path, contents):
        if path.name == "last.pt" and contents["epoch"] == 2:
            raise MemoryError  # as kill -9 between TensorBoard's files and last.pt
        save(path, contents)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(checkpoints, "save", killed_before_the_end_of_epoch_2)
        train.train(data, tmp_path / "run", make_config(), tensorboard=True)
    train.train(data, tmp_path / "run", make_config(), tensorboard=True)
    written = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert sorted(written.Tags()["scalars"]) == sorted(run_folder.COLUMNS[1:])
    for name in run_folder.COLUMNS[1:]:
        scalars = written.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx(
            [float(row[name]) for row in table(tmp_path / "run")], rel=1e-5
        )


def test_tensorboard_that_is_not_installed_is_named_before_anything_is_written(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigurationError, match="pip install tensorboard"):
        train.train(data, tmp_path / "run", make_config(), tensorboard=True)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ schedule, early stop


def test_every_step_gets_its_learning_rate(tmp_path, data, monkeypatch):
    rates = []
    step = Stepper.launch
    monkeypatch.setattr(
        Stepper, "launch", lambda self, *batch: rates.append(self.optimizer.param_groups[0]["lr"]) or step(self, *batch)
    )
    config = make_config(epochs=2).resolved()
    train.train(data, tmp_path / "run", config)
    assert rates == [learning_rate(number, len(rates), config.optimization) for number in range(len(rates))]
    assert float(table(tmp_path / "run")[-1]["learning_rate"]) == pytest.approx(rates[-1], rel=1e-5)


def test_it_stops_early_when_the_validation_gets_no_better(tmp_path, data):
    train.train(data, tmp_path / "run", make_config(epochs=20, patience=2, learning_rate=1e-12))
    assert len(table(tmp_path / "run")) == 4  # the best is the second, as the first epoch stands alone
    assert "finished" in str(
        train.train(data, tmp_path / "run", make_config(epochs=20, patience=2, learning_rate=1e-12))
    )


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_clip_that_is_not_a_number_stops_the_run_and_is_named(tmp_path):
    path = make_file(tmp_path / "ego.h5")
    with RowWriter(path, offsets(path)) as writer:
        writer.write("spectrogram", 17, np.full((1, *SHAPE), np.nan, "f4"))
    with pytest.raises(
        TrainingError,
        match=r"the loss is nan in epoch 1, batch \d, of the clips .*\b17\b.*, 17 hold values that are not finite",
    ):
        train.train(path, tmp_path / "run", make_config(validation_fraction=0.0))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_a_loss_that_diverges_stops_the_run_and_keeps_the_checkpoint_before(tmp_path, data, monkeypatch):
    on_step(monkeypatch, {}, lambda number, value: math.inf if number == 6 else value)
    with pytest.raises(
        TrainingError, match=r"the loss is inf in epoch 2, batch 3, of the clips .*\d+, \d+.*lower `learning_rate`"
    ):
        train.train(data, tmp_path / "run", make_config())
    assert checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]["epoch"] == 1


def test_weights_that_are_not_numbers_never_become_a_checkpoint(tmp_path, data, monkeypatch):
    def spoil(stepper, features, labels, step=Stepper.launch):
        loss = step(stepper, features, labels)
        with torch.no_grad():
            next(stepper.model.parameters()).view(-1)[3] = math.nan
        return loss

    monkeypatch.setattr(Stepper, "launch", spoil)
    with pytest.raises(
        TrainingError, match=r"the weights are not finite after epoch 1, batch \d.*lower `learning_rate`"
    ):
        train.train(data, tmp_path / "run", make_config(batch_size=1000))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_a_file_that_changes_while_training_is_noticed_and_named(tmp_path, monkeypatch):
    path = make_file(tmp_path / "ego.h5")
    on_step(monkeypatch, {2: lambda: os.truncate(path, os.path.getsize(path) - 4096)})
    with pytest.raises(TrainingError, match="ego.h5 was changed during the run"):
        train.train(path, tmp_path / "run", make_config(epochs=20))


def test_a_file_that_disappears_while_training_is_named_and_the_run_ends_as_if_it_were_there(
    tmp_path, monkeypatch, finished
):
    path = make_file(tmp_path / "ego.h5")
    on_step(monkeypatch, {2: lambda: os.unlink(path)})
    with pytest.warns(UserWarning, match="ego.h5 was moved or deleted"):
        train.train(path, tmp_path / "run", make_config())
    assert_same_run(tmp_path / "run", finished.folder)


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_resumes_once_there_is_space(
    tmp_path, data, monkeypatch, finished
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    on_step(monkeypatch, {6: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))})
    try:
        with pytest.raises(CheckpointError, match=r"last.pt.*the previous checkpoint is unchanged"):
            train.train(data, tmp_path / "run", make_config())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]["epoch"] == 1
    assert not list((tmp_path / "run").glob("*.partial"))
    train.train(data, tmp_path / "run", make_config())
    assert_same_run(tmp_path / "run", finished.folder)


def test_time_spent_waiting_for_data_is_counted_and_reported(tmp_path, data, monkeypatch, capsys):
    fetch = ClipDataset.fetch
    monkeypatch.setattr(ClipDataset, "fetch", lambda *rows, **how: time.sleep(0.1) or fetch(*rows, **how))
    train.train(data, tmp_path / "run", make_config(epochs=1))
    row = table(tmp_path / "run")[0]
    train_seconds = 60 / float(row["clips_per_second"])
    assert (
        0.1 <= float(row["data_wait_fraction"]) * train_seconds <= train_seconds
    )  # at least the first batch was waited for
    said = capsys.readouterr().err
    assert "of the time was spent waiting for it" in said and "disk" in said


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_named(tmp_path, data, device):
    with pytest.raises(ConfigurationError, match=f"`device={device!r}`"):
        train.train(data, tmp_path / "run", make_config(), device=device)


def test_an_output_that_is_a_file_is_named(tmp_path, data):
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match="`output=.*run.`: this folder cannot be made"):
        train.train(data, tmp_path / "run", make_config())
