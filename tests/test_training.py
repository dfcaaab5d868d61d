"""The loop: it learns, it can be stopped anywhere and ends in the same weights, and it says what went wrong."""

import csv
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import types

import numpy as np
import pytest
import synthetic
import torch

from egoaudio import checkpoints, evaluation, lock, runs, store, training
from egoaudio.configuration import TrainConfig, from_flat, to_json
from egoaudio.errors import CheckpointError, ConfigurationError, EgoAudioError, TrainingError
from egoaudio.microbatch import Stepper

SHAPE = (8, 16)
TIMES = ("clips_per_second", "data_wait_fraction", "peak_memory_mb", "seconds")  # columns that no two runs share


def make_file(path, num_videos=10, clips_per_video=10, **changes):
    """Return the path of a file of small clips, all of them labelled."""
    changes = {"features": {"spectrogram": SHAPE}, "unlabelled": 0.0, "num_classes": 5, **changes}
    return synthetic.make_file(path, num_videos, clips_per_video, **changes)


def make_config(**changes):
    return from_flat(TrainConfig, {"epochs": 3, "batch_size": 16, "validation_fraction": 0.25, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One file for all tests that only read it."""
    return make_file(tmp_path_factory.mktemp("data") / "ego.h5")


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    """Draw no curves, which takes longer than the runs here; ``finished`` has been drawn by then."""
    monkeypatch.setattr(training, "curves_png", lambda rows: b"curves")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that was never stopped, with what the loop has said."""
    folder = tmp_path_factory.mktemp("run") / "cnn"
    summary = training.train(data, folder, make_config())
    return types.SimpleNamespace(folder=folder, summary=summary)


def weights(folder, name="last.pt"):
    return checkpoints.load(folder / name)["weights"]


def table(folder):
    """Return metrics.csv as a list of dictionaries."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(folder, other):
    """Hold the weights of two runs, of the best epoch too, to bit-for-bit equality, and their tables besides the times."""
    for name in ("last.pt", "best.pt"):
        ours, theirs = weights(folder, name), weights(other, name)
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different, (name, different)
    assert checkpoints.load(folder / "last.pt")["resume"]["scaler"] == checkpoints.load(other / "last.pt")["resume"]["scaler"]
    rows, other_rows = ([{name: value for name, value in row.items() if name not in TIMES} for row in table(one)] for one in (folder, other))
    assert rows == other_rows


def on_step(monkeypatch, actions, result=None):
    """Have ``actions[n]`` called before the n-th step from now on; return the list of steps done."""
    done, step = [], Stepper.step

    def patched(self, features, labels):
        done.append(len(done))
        if done[-1] in actions:
            actions[done[-1]]()
        value = step(self, features, labels)
        return value if result is None else result(done[-1], value)

    monkeypatch.setattr(Stepper, "step", patched)
    return done


# ------------------------------------------------------------------------------------------------ it learns


def test_it_overfits_64_clips_to_top_1_accuracy_of_1(tmp_path):
    path = make_file(tmp_path / "noise.h5", 8, 8, class_dependent=False, test_fraction=0.0)  # noise: nothing but memory helps
    training.train(path, tmp_path / "run", make_config(epochs=60, validation_fraction=0.0, learning_rate=3e-3))
    found = evaluation.evaluate(tmp_path / "run/best.pt", path, split="train", num_resamples=0)
    assert found.num_clips == 64
    assert found.scores["top1"].value == 1.0


def shuffle_labels(path):
    """Give every clip the labels of another one."""
    with store.open(path) as file:
        labels = np.random.default_rng(3).permutation(np.asarray(file.labels))
    with store.RowWriter(path, store.offsets(path)) as writer:
        writer.write("labels", 0, labels)


def test_it_learns_what_can_be_heard_and_nothing_from_shuffled_labels(tmp_path):
    best = {}
    for name in ("true", "shuffled"):
        path = make_file(tmp_path / f"{name}.h5", 24, 10)
        if name == "shuffled":
            shuffle_labels(path)
        training.train(path, tmp_path / name, make_config(epochs=6))
        found = evaluation.evaluate(tmp_path / name / "best.pt", path, num_resamples=0).scores["map"]
        best[name] = found.value, found.prior
    assert best["true"][0] > 0.95
    assert best["shuffled"][0] < best["shuffled"][1] + 0.12


def test_every_epoch_takes_every_clip_once_in_an_order_of_its_own(tmp_path, data, monkeypatch):
    clips, step = [], Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, features, labels: clips.extend(features.sum(dim=(1, 2)).tolist()) or step(self, features, labels))
    training.train(data, tmp_path / "run", make_config(epochs=2))
    first, second = clips[: len(clips) // 2], clips[len(clips) // 2 :]
    assert len(set(first)) == len(first) == 60
    assert sorted(first) == sorted(second) and first != second


# ------------------------------------------------------------------------------------------------ what is left behind


def test_the_folder_holds_everything(finished):
    assert sorted(os.listdir(finished.folder)) == ["best.pt", "config.json", "curves.png", "last.pt", "metrics.csv"]
    assert (finished.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "3 epochs" in finished.summary and "egoaudio-evaluate" in finished.summary


def test_the_table_has_a_row_per_epoch_and_the_columns_that_were_promised(finished):
    with open(finished.folder / "metrics.csv") as file:
        header = file.readline().strip()
    assert header == "epoch,train_loss,val_loss,top1,top5,map,learning_rate,clips_per_second,data_wait_fraction,micro_batch_size,peak_memory_mb,seconds"
    rows = [{name: float(value) for name, value in row.items()} for row in table(finished.folder)]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["train_loss"] > rows[2]["train_loss"] > 0
    for row in rows:
        assert row["micro_batch_size"] == 16
        assert 0 <= row["data_wait_fraction"] <= 1 and 0 <= row["top1"] <= row["top5"] <= 1 and 0 <= row["map"] <= 1
        assert row["clips_per_second"] > 0 and row["peak_memory_mb"] > 50 and row["seconds"] > 0


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_clips(tmp_path, data, monkeypatch):
    losses, step = [], Stepper.step

    def noted(self, features, labels):
        value = step(self, features, labels)
        losses.extend([value] * len(features))
        return value

    monkeypatch.setattr(Stepper, "step", noted)
    training.train(data, tmp_path / "run", make_config())
    expected = np.reshape(losses, (3, 60)).mean(axis=1)
    assert [float(row["train_loss"]) for row in table(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)


def test_the_best_checkpoint_is_of_the_epoch_with_the_best_validation_map(tmp_path, data, monkeypatch):
    maps = iter([float("nan"), 0.7, float("nan"), 0.7, 0.2])
    score = training._Validator.__call__
    monkeypatch.setattr(training._Validator, "__call__", lambda self: {**score(self), "map": next(maps)})
    training.train(data, tmp_path / "run", make_config(epochs=5))
    best = checkpoints.load(tmp_path / "run/best.pt")
    assert best["epoch"] == 2 and best["metrics"]["map"] == 0.7


def test_the_checkpoint_holds_what_the_model_needs_to_be_used(finished, data):
    contents = checkpoints.load(finished.folder / "best.pt")
    with store.open(data) as file:
        assert contents["plan_sha256"] == file.plan_sha256
        assert contents["class_ids"] == ["c000", "c001", "c002", "c003", "no_action"]
        assert contents["sample_rate"] == file.sample_rate
        assert json.loads(contents["feature_attributes"])["n_fft"] == 2048
    assert contents["config"] == to_json(make_config())
    assert contents["feature"] == "spectrogram" and contents["feature_shape"] == list(SHAPE)
    assert contents["normalization"]["std"] > 0
    assert len(contents["thresholds"]) == 5
    assert contents["metrics"]["map"] == pytest.approx(max(float(row["map"]) for row in table(finished.folder)), rel=1e-5)
    assert "resume" not in contents


def test_the_configuration_can_be_read_by_people_and_other_programs(finished, data):
    contents = json.loads((finished.folder / "config.json").read_text())
    assert contents["file"] == str(data)
    assert contents["options"]["batch_size"] == 16 and contents["options"]["feature"] == "spectrogram"


def test_the_scores_in_the_table_are_those_of_the_command(finished, data, tmp_path):
    best = checkpoints.load(finished.folder / "best.pt")["metrics"]
    found = evaluation.evaluate(finished.folder / "best.pt", data, split="validation", output=tmp_path, num_resamples=0).scores
    assert {name: found[name].value for name in ("top1", "top5", "map")} == pytest.approx({name: best[name] for name in ("top1", "top5", "map")})


def test_without_a_validation_split_the_training_loss_chooses(tmp_path, data, capsys):
    training.train(data, tmp_path / "run", make_config(validation_fraction=0.0))
    rows = table(tmp_path / "run")
    assert all(row[name] == "" for row in rows for name in ("val_loss", "top1", "top5", "map"))
    losses = [float(row["train_loss"]) for row in rows]
    assert checkpoints.load(tmp_path / "run/best.pt")["epoch"] == 1 + losses.index(min(losses))
    assert "lowest training loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "cnn-small", "dropout": 0.3, "optimizer": "adamw", "weight_decay": 0.1, "clip_gradient": 0.5, "schedule": "constant"},
        {"label_mode": "single", "class_weights": True, "amp": True, "micro_batch_size": 5},
        {"model": "cnn", "amp": True, "amp_dtype": "float16", "loader_workers": 1, "activation_checkpointing": True},
    ],
)
def test_options_reach_the_loop(tmp_path, data, changes):
    training.train(data, tmp_path / "run", make_config(epochs=2, **changes))
    rows = table(tmp_path / "run")
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert int(rows[1]["micro_batch_size"]) == changes.get("micro_batch_size", 16)


def test_a_compiled_model_is_saved_as_the_model_it_is(tmp_path, data, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or torch.nn.Sequential(model))
    monkeypatch.setattr(torch.nn.Sequential, "activation_checkpointing", False, raising=False)
    training.train(data, tmp_path / "run", make_config(epochs=1, compile=True))
    assert len(compiled) == 1
    checkpoints.load_model(tmp_path / "run/best.pt")


def test_tensorboard_gets_the_columns(tmp_path, data, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            self.purge_step = purge_step

        def __enter__(self):
            return self

        def __exit__(self, *_):
            written.append("closed")

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    training.train(data, tmp_path / "run", make_config(epochs=2), tensorboard=True)
    assert written == [(name, epoch) for epoch in (1, 2) for name in runs.COLUMNS[1:]] + ["closed"]


def test_tensorboard_that_is_not_installed_is_named_before_anything_is_written(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigurationError, match="pip install tensorboard"):
        training.train(data, tmp_path / "run", make_config(), tensorboard=True)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ schedule, early stop


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_the_learning_rate_rises_in_a_line_then_follows_the_schedule(schedule, expected):
    options = make_config(schedule=schedule, warmup_fraction=0.5, learning_rate=2.0).optimization
    assert [training.learning_rate(step, 8, options) / 2 for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 7.0])
def test_any_share_of_warm_up_gives_a_learning_rate(warmup):
    options = make_config(warmup_fraction=warmup, learning_rate=1.0).optimization
    rates = [training.learning_rate(step, 5, options) for step in range(5)]
    assert all(0 < rate <= 1 for rate in rates)


def test_every_step_gets_its_learning_rate(tmp_path, data, monkeypatch):
    rates = []
    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, *batch: rates.append(self.optimizer.param_groups[0]["lr"]) or step(self, *batch))
    config = make_config(epochs=2)
    training.train(data, tmp_path / "run", config)
    assert rates == [training.learning_rate(number, len(rates), config.optimization) for number in range(len(rates))]
    assert float(table(tmp_path / "run")[-1]["learning_rate"]) == pytest.approx(rates[-1], rel=1e-5)


def test_it_stops_early_when_the_validation_gets_no_better(tmp_path, data):
    training.train(data, tmp_path / "run", make_config(epochs=20, patience=2, learning_rate=1e-12))
    assert len(table(tmp_path / "run")) == 3
    assert "finished" in training.train(data, tmp_path / "run", make_config(epochs=20, patience=2, learning_rate=1e-12))


# ------------------------------------------------------------------------------------------------ stop and go on


HARD = {"model": "cnn-small", "dropout": 0.3, "mixup": 0.4, "spec_augment": True, "gain_db": 3.0, "balanced_sampling": True}


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, [0, 3, 1, 3, 0]), (HARD, [2, 5, 0]), ({**HARD, "label_mode": "single", "shuffle": "block"}, [7]),
        ({"amp": True, "amp_dtype": "float16"}, [4, 1]), ({"loader_workers": 1, "mixup": 0.4}, [4]), ({"patience": 1, "learning_rate": 1e-9}, [6]),
    ],
)
def test_interrupted_and_run_again_it_ends_in_the_same_weights(tmp_path, data, monkeypatch, changes, stops):
    config = make_config(**changes)
    training.train(data, tmp_path / "whole", config)
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            training.train(data, tmp_path / "stopped", config)
    training.train(data, tmp_path / "stopped", config)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_interrupted_while_validating_it_goes_on_with_the_validation(tmp_path, data, monkeypatch, finished):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Validator, "__call__", lambda self: signal.raise_signal(signal.SIGINT))
        training.train(data, tmp_path / "run", make_config())
    steps = on_step(monkeypatch, {})
    training.train(data, tmp_path / "run", make_config())
    assert len(steps) == 2 * 4 and len(table(tmp_path / "run")) == 3  # 2 epochs of 4 batches were left
    assert_same_run(tmp_path / "run", finished.folder)


def test_a_row_that_the_checkpoint_does_not_know_is_taken_out_of_the_table(tmp_path, data, monkeypatch):
    # As a kill leaves it between the table and the checkpoint.
    for stop in (6, 0):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            training.train(data, tmp_path / "run", make_config())
        assert [row["epoch"] for row in table(tmp_path / "run")] == ["1"]
        with open(tmp_path / "run/metrics.csv", "a") as file:
            file.write("2" + ",0.5" * 11 + "\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_batch_and_the_checkpoint_then_does_what_it_always_does(tmp_path, data, monkeypatch, number):
    class Heard(Exception):
        pass

    def handler(number, frame):
        raise Heard(number)

    former = signal.signal(number, handler)
    try:
        on_step(monkeypatch, {5: lambda: signal.raise_signal(number)})
        with pytest.raises(Heard):
            training.train(data, tmp_path / "run", make_config())
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, former)
    state = checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]
    assert (state["epoch"], state["batch"]) == (1, 2)  # the sixth of 4 batches an epoch, finished


def test_a_second_signal_does_not_wait(tmp_path, data, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    steps = on_step(monkeypatch, {2: twice})
    with pytest.raises(KeyboardInterrupt):
        training.train(data, tmp_path / "run", make_config())
    assert len(steps) == 3
    assert checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]["batch"] == 1  # written when the micro-batch was found


def test_the_micro_batch_that_was_found_is_kept_at_once_and_not_found_again(tmp_path, data, monkeypatch):
    sizes = []
    accumulate = Stepper._accumulate

    def short_of_memory(self, *arguments):
        sizes.append(self.micro_batch_size)
        if len(sizes) == 3:  # in the third step of the run, once
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(self, *arguments)

    monkeypatch.setattr(Stepper, "_accumulate", short_of_memory)
    training.train(data, tmp_path / "whole", make_config())
    assert sizes[:5] == [16, 16, 16, 8, 8]
    sizes.clear()
    # As kill -9 does: nothing is written any more after the fourth step.
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        on_step(patch, {4: lambda: (_ for _ in ()).throw(MemoryError)})
        training.train(data, tmp_path / "killed", make_config())
    before = len(sizes)
    training.train(data, tmp_path / "killed", make_config())
    assert set(sizes[before:]) == {8}
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_checkpoint_is_written_within_an_epoch_when_it_is_time(tmp_path, data, monkeypatch):
    saved, save = [], checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda path, contents: saved.append((path.name, contents["epoch"])) or save(path, contents))
    training.train(data, tmp_path / "run", make_config(epochs=1, checkpoint_minutes=1e-9))
    # At the start; after each of 4 batches and after the last of them again, before the validation; at the end.
    assert saved == [("last.pt", 0)] * (1 + 4 + 1) + [("best.pt", 1), ("last.pt", 1)]


def _run(stepping, *arguments):
    """Train in a child process, one thread, in silence; set ``stepping`` at the first step."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    step = Stepper.step
    Stepper.step = lambda self, *batch: stepping.set() or step(self, *batch)
    training.train(*arguments)


def test_killed_at_ten_random_moments_it_ends_in_the_same_weights(tmp_path, data):
    # A server that has imported torch but never computed: its children start in a tenth of a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["egoaudio.training"])
    config = make_config(epochs=20, checkpoint_minutes=0.0005, **HARD)

    def start(name):
        stepping = context.Event()
        child = context.Process(target=_run, args=(stepping, data, tmp_path / name, config))
        child.start()
        return child, stepping

    def wait_for(child, stepping):
        while child.is_alive() and not stepping.wait(0.02):  # a run that was killed while it validated may have no step left
            pass

    def finish(name):
        started = time.monotonic()
        child, stepping = start(name)
        wait_for(child, stepping)
        before = time.monotonic() - started
        child.join()
        assert child.exitcode == 0
        return before, time.monotonic() - started - before

    server = context.Process(target=len, args=("",))  # the first child waits for the server's imports
    server.start()
    server.join()
    setting_up_seconds, stepping_seconds = finish("whole")
    rng, kills = random.Random(11), 0
    while kills < 10:
        child, stepping = start("killed")
        if kills % 5 == 4:
            child.join(rng.uniform(0, setting_up_seconds))
        else:
            wait_for(child, stepping)
            child.join(rng.uniform(0, stepping_seconds / 6))
        if child.is_alive():
            child.kill()
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if (tmp_path / "killed/last.pt").exists() and checkpoints.load(tmp_path / "killed/last.pt")["resume"]["state"]["finished"]:
            # Faster now than when it was measured: hold it to the same, and begin again.
            assert_same_run(tmp_path / "killed", tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    finish("killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))


# ------------------------------------------------------------------------------------------------ the same command again


def test_a_finished_run_says_so_and_ends_at_once(finished, data, monkeypatch):
    before = {name: (finished.folder / name).read_bytes() for name in os.listdir(finished.folder)}
    steps = on_step(monkeypatch, {})
    assert "finished run: nothing was done" in training.train(data, finished.folder, make_config())
    assert steps == []
    assert before == {name: (finished.folder / name).read_bytes() for name in os.listdir(finished.folder)}


def test_another_configuration_says_what_differs_and_stops(finished, data):
    with pytest.raises(TrainingError, match=r"--batch-size: 16, now 8; --model: cnn, now cnn-small|--model: cnn, now cnn-small; --batch-size: 16, now 8"):
        training.train(data, finished.folder, make_config(batch_size=8, model="cnn-small"))


def test_another_file_is_refused_with_both_sides_named(finished, tmp_path):
    other = make_file(tmp_path / "other.h5", plan_sha256="1" * 64)
    with pytest.raises(CheckpointError, match=r"plan_sha256: checkpoint 0{12}\.\.\., file 1{12}"):
        training.train(other, finished.folder, make_config())


def test_force_starts_anew_and_leaves_nothing_of_the_old_run(tmp_path, data):
    training.train(data, tmp_path / "run", make_config())
    (tmp_path / "run/evaluation.json").write_text("{}")
    (tmp_path / "run/notes.txt").write_text("mine")
    training.train(data, tmp_path / "run", make_config(epochs=1, batch_size=8), force=True)
    assert len(table(tmp_path / "run")) == 1
    assert sorted(os.listdir(tmp_path / "run")) == ["best.pt", "config.json", "curves.png", "last.pt", "metrics.csv", "notes.txt"]


def test_force_with_options_that_cannot_be_carried_out_keeps_the_old_run(tmp_path, data, finished):
    before = sorted(os.listdir(finished.folder))
    with pytest.raises(EgoAudioError, match="ast wants logmel"):
        training.train(data, finished.folder, make_config(model="ast"), force=True)
    assert sorted(os.listdir(finished.folder)) == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda folder: (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-1000]), CheckpointError, "cut off"),
        (lambda folder: (folder / "last.pt").unlink(), TrainingError, "holds best.pt but no last.pt"),
        (lambda folder: (folder / "last.pt").write_bytes((folder / "best.pt").read_bytes()), TrainingError, "not where its run was"),
    ],
)
def test_a_folder_that_cannot_be_gone_on_with_is_refused_until_forced(tmp_path, data, change, error, words):
    training.train(data, tmp_path / "run", make_config(epochs=1))
    change(tmp_path / "run")
    with pytest.raises(error, match=words):
        training.train(data, tmp_path / "run", make_config(epochs=1))
    training.train(data, tmp_path / "run", make_config(epochs=1), force=True)


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path, data):
    (tmp_path / "run").mkdir()
    with lock.held(tmp_path / "run"), pytest.raises(EgoAudioError, match="another process"):
        training.train(data, tmp_path / "run", make_config())


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_clip_that_is_not_a_number_stops_the_run_and_is_named(tmp_path):
    path = make_file(tmp_path / "ego.h5")
    with store.RowWriter(path, store.offsets(path)) as writer:
        writer.write("spectrogram", 17, np.full((1, *SHAPE), np.nan, "f4"))
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1, batch \d, of the clips .*\b17\b.*of these, 17 hold values that are not finite"):
        training.train(path, tmp_path / "run", make_config(validation_fraction=0.0))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_a_loss_that_diverges_stops_the_run_and_keeps_the_checkpoint_before(tmp_path, data, monkeypatch):
    on_step(monkeypatch, {}, lambda number, value: math.inf if number == 6 else value)
    with pytest.raises(TrainingError, match=r"the loss is inf in epoch 2, batch 3, of the clips .*\d+, \d+.*lower --learning-rate"):
        training.train(data, tmp_path / "run", make_config())
    assert checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]["epoch"] == 1


def test_a_file_that_changes_while_training_is_noticed_and_named(tmp_path, monkeypatch):
    path = make_file(tmp_path / "ego.h5")
    on_step(monkeypatch, {2: lambda: os.truncate(path, os.path.getsize(path) - 4096)})
    with pytest.raises(TrainingError, match="ego.h5 was changed during the run"):
        training.train(path, tmp_path / "run", make_config(epochs=20))


def test_a_file_that_disappears_while_training_is_named_and_the_run_ends_as_if_it_were_there(tmp_path, monkeypatch, finished):
    path = make_file(tmp_path / "ego.h5")
    on_step(monkeypatch, {2: lambda: os.unlink(path)})
    with pytest.warns(UserWarning, match="ego.h5 was moved or deleted"):
        training.train(path, tmp_path / "run", make_config())
    assert_same_run(tmp_path / "run", finished.folder)


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on_once_there_is_room(tmp_path, data, monkeypatch, finished):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    on_step(monkeypatch, {6: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))})
    try:
        with pytest.raises(CheckpointError, match=r"last.pt.*the checkpoint before it is kept"):
            training.train(data, tmp_path / "run", make_config())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]["epoch"] == 1
    assert not list((tmp_path / "run").glob("*.partial"))
    training.train(data, tmp_path / "run", make_config())
    assert_same_run(tmp_path / "run", finished.folder)


def test_time_spent_waiting_for_data_is_counted_and_said(tmp_path, data, monkeypatch, capsys):
    fetch = training.ClipDataset.fetch
    monkeypatch.setattr(training.ClipDataset, "fetch", lambda *arguments: time.sleep(0.1) or fetch(*arguments))
    training.train(data, tmp_path / "run", make_config(epochs=1))
    row = table(tmp_path / "run")[0]
    train_seconds = 60 / float(row["clips_per_second"])
    assert 0.1 <= float(row["data_wait_fraction"]) * train_seconds <= train_seconds  # at least the first batch was waited for
    said = capsys.readouterr().err
    assert "of the time was spent waiting for it" in said and "disk" in said


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"is_mapped": lambda feature: False, "num_bytes": 1}, r"h5repack -f spectrogram:NONE.*--loader-workers"),
        ({"is_mapped": lambda feature: True, "num_bytes": 1 << 50}, "--shuffle block.*--dtype float16"),
        ({"is_mapped": lambda feature: True, "num_bytes": 1}, "the first epoch reads from the disk"),
    ],
)
def test_what_to_change_when_data_is_slow_depends_on_the_file(facts, words):
    assert re.search(words, training._describe_wait(0.5, types.SimpleNamespace(**facts), "spectrogram", make_config().data))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_named(tmp_path, data, device):
    with pytest.raises(ConfigurationError, match=f"--device {device}"):
        training.train(data, tmp_path / "run", make_config(), device=device)


def test_an_output_that_is_a_file_is_named(tmp_path, data):
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match="--output .*run: cannot be made a folder"):
        training.train(data, tmp_path / "run", make_config())
