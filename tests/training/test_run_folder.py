"""A run's folder: its files, and that a run stopped anywhere ends with the same weights when it is resumed."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import types

import numpy as np
import pytest
import torch
from small_runs import HARD, SHAPE, assert_same_run, make_config, make_file, on_step, table

from egoaudio.config.options import to_json
from egoaudio.errors import CheckpointError, EgoAudioError, TrainingError
from egoaudio.evaluation import evaluate
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints
from egoaudio.system import lock, signals
from egoaudio.training import train
from egoaudio.training.step import Stepper
from egoaudio.training.validation import Validator


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


# ------------------------------------------------------------------------------------------------ what is left behind


def test_the_folder_holds_everything(finished):
    assert sorted(os.listdir(finished.folder)) == ["best.pt", "config.json", "curves.png", "last.pt", "metrics.csv"]
    assert (finished.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert str(finished.run).startswith("3 epochs") and "next: egoaudio-evaluate" in str(finished.run)


def test_the_table_has_a_row_per_epoch_and_the_documented_columns(finished):
    with open(finished.folder / "metrics.csv") as file:
        header = file.readline().strip()
    assert header == (
        "epoch,train_loss,val_loss,top1,top5,map,map_prior,selection,learning_rate,clips_per_second,data_wait_fraction,"
        "micro_batch_size,peak_memory_mb,seconds"
    )
    rows = [{name: float(value) for name, value in row.items()} for row in table(finished.folder)]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["train_loss"] > rows[2]["train_loss"] > 0
    for row in rows:
        assert row["micro_batch_size"] == 16
        assert 0 <= row["data_wait_fraction"] <= 1 and 0 <= row["top1"] <= row["top5"] <= 1 and 0 <= row["map"] <= 1
        assert row["clips_per_second"] > 0 and row["peak_memory_mb"] > 50 and row["seconds"] > 0


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_clips(tmp_path, data, monkeypatch):
    losses, step = [], Stepper.launch

    def noted(self, features, labels):
        value = step(self, features, labels)
        losses.extend([value] * len(features))
        return value

    monkeypatch.setattr(Stepper, "launch", noted)
    train.train(data, tmp_path / "run", make_config())
    expected = np.reshape([float(loss) for loss in losses], (3, 60)).mean(axis=1)
    assert [float(row["train_loss"]) for row in table(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)


def test_the_best_checkpoint_is_of_the_epoch_with_the_best_validation_score(tmp_path, data, monkeypatch):
    maps = iter([0.2, 0.8, 0.3, 0.7, 0.2])  # with the epoch before: 0.2, 0.5, 0.55, 0.5, 0.45
    score = Validator.__call__
    monkeypatch.setattr(Validator, "__call__", lambda self: dataclasses.replace(score(self), selection_map=next(maps)))
    train.train(data, tmp_path / "run", make_config(epochs=5))
    best = checkpoints.load(tmp_path / "run/best.pt")
    assert best["epoch"] == 3 and best["metrics"]["selection"] == 0.55


def test_the_checkpoint_holds_what_the_model_needs_to_be_used(finished, data):
    contents = checkpoints.load(finished.folder / "best.pt")
    with reader.open(data) as file:
        assert contents["plan_sha256"] == file.plan_sha256
        assert contents["class_ids"] == ["c000", "c001", "c002", "c003", "no_action"]
        assert contents["sample_rate"] == file.sample_rate
        assert json.loads(contents["feature_attributes"])["n_fft"] == 2048
    assert contents["config"] == to_json(make_config().resolved())
    assert contents["feature"] == "spectrogram" and contents["feature_shape"] == list(SHAPE)
    assert contents["normalization"]["std"] > 0
    assert len(contents["thresholds"]) == 5
    assert contents["metrics"]["map"] == pytest.approx(
        max(float(row["map"]) for row in table(finished.folder)), rel=1e-5
    )
    assert "resume" not in contents


def test_the_configuration_can_be_read_by_people_and_other_programs(finished, data):
    contents = json.loads((finished.folder / "config.json").read_text())
    assert contents["file"] == str(data)
    assert contents["options"]["batch_size"] == 16 and contents["options"]["feature"] == "spectrogram"


def test_the_scores_in_the_table_are_those_of_the_command(finished, data, tmp_path):
    best = checkpoints.load(finished.folder / "best.pt")["metrics"]
    found = evaluate.evaluate(
        finished.folder / "best.pt", data, split="validation", output=tmp_path, num_resamples=0
    ).scores
    assert {name: found[name].value for name in ("top1", "top5", "map")} == pytest.approx(
        {name: best[name] for name in ("top1", "top5", "map")}
    )


# ------------------------------------------------------------------------------------------------ stop and resume


def test_the_second_epoch_replaces_the_first_in_a_run_that_was_stopped_between_them_too(tmp_path, data, monkeypatch):
    score = Validator.__call__
    maps = iter([0.9, 0.2, 0.3] * 2)  # with the epoch before: 0.9 alone, 0.55, 0.25
    monkeypatch.setattr(Validator, "__call__", lambda self: dataclasses.replace(score(self), selection_map=next(maps)))
    train.train(data, tmp_path / "whole", make_config())

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        on_step(patch, {5: stop})  # in the second epoch
        with pytest.raises(KeyboardInterrupt):
            train.train(data, tmp_path / "stopped", make_config())
    assert checkpoints.load(tmp_path / "stopped/best.pt")["epoch"] == 1
    train.train(data, tmp_path / "stopped", make_config())
    assert checkpoints.load(tmp_path / "stopped/best.pt")["epoch"] == 2
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_begun_by_a_version_that_chose_by_other_classes_chooses_anew(tmp_path, data, monkeypatch, capsys):
    score = Validator.__call__
    maps = iter([0.9, 0.9, 0.2, 0.3])
    monkeypatch.setattr(Validator, "__call__", lambda self: dataclasses.replace(score(self), selection_map=next(maps)))

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        on_step(patch, {9: stop})  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            train.train(data, tmp_path, make_config(epochs=4))
    last = tmp_path / "last.pt"
    contents = checkpoints.load(last)
    assert contents["resume"]["state"]["best_epoch"] == 2
    del contents["resume"]["state"]["basis"]  # as earlier versions wrote it
    checkpoints.save(last, contents)
    capsys.readouterr()
    run = train.train(data, tmp_path, make_config(epochs=4))
    assert "the best epoch is chosen anew from here on" in capsys.readouterr().err
    assert run.best_epoch == 4 and run.history["selection"].tolist() == pytest.approx([0.9, 0.9, 0.2, 0.25])


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, [0, 3, 1, 3, 0]),
        (HARD, [2, 5, 0]),
        ({**HARD, "context_clips": 1, "time_shift_seconds": 0.5}, [3, 6]),
        ({**HARD, "label_mode": "single", "shuffle": "block"}, [7]),
        ({"amp": True, "amp_dtype": "float16"}, [4, 1]),
        ({"loader_workers": 1, "mixup": 0.4}, [4]),
        ({"patience": 1, "learning_rate": 1e-9}, [6]),
    ],
)
def test_interrupted_and_run_again_it_ends_in_the_same_weights(tmp_path, data, monkeypatch, changes, stops):
    config = make_config(**changes)
    train.train(data, tmp_path / "whole", config)
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), signals.listening():
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            train.train(data, tmp_path / "stopped", config)
    train.train(data, tmp_path / "stopped", config)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    "handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored, as after nohup or &", "a handler that returns"]
)
def test_a_signal_that_stops_nothing_does_not_cut_the_epoch_short(tmp_path, data, monkeypatch, handler):
    train.train(data, tmp_path / "whole", make_config())
    former = signal.signal(signal.SIGINT, handler)
    try:
        steps = on_step(monkeypatch, {1: lambda: signal.raise_signal(signal.SIGINT)})
        train.train(data, tmp_path / "run", make_config())
    finally:
        signal.signal(signal.SIGINT, former)
    assert len(steps) == 3 * 4
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_interrupted_while_validating_it_resumes_with_the_validation(tmp_path, data, monkeypatch, finished):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), signals.listening():
        patch.setattr(Validator, "__call__", lambda self: signal.raise_signal(signal.SIGINT))
        train.train(data, tmp_path / "run", make_config())
    steps = on_step(monkeypatch, {})
    train.train(data, tmp_path / "run", make_config())
    assert len(steps) == 2 * 4 and len(table(tmp_path / "run")) == 3  # 2 epochs of 4 batches were left
    assert_same_run(tmp_path / "run", finished.folder)


def test_a_row_that_the_checkpoint_does_not_know_is_taken_out_of_the_table(tmp_path, data, monkeypatch):
    # As a kill leaves it between the table and the checkpoint.
    for stop in (6, 0):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), signals.listening():
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            train.train(data, tmp_path / "run", make_config())
        assert [row["epoch"] for row in table(tmp_path / "run")] == ["1"]
        with open(tmp_path / "run/metrics.csv", "a") as file:
            file.write("2" + ",0.5" * 11 + "\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_batch_and_the_checkpoint_then_does_what_it_always_does(
    tmp_path, data, monkeypatch, number
):
    on_step(monkeypatch, {5: lambda: signal.raise_signal(number)})
    with pytest.raises(signals.Interrupted), signals.listening():
        train.train(data, tmp_path / "run", make_config())
    state = checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]
    assert (state["epoch"], state["batch"]) == (1, 2)  # the sixth of 4 batches an epoch, finished


def test_a_second_signal_does_not_wait_and_the_first_says_so(tmp_path, data, monkeypatch, capfd):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    steps = on_step(monkeypatch, {2: twice})
    with pytest.raises(signals.Interrupted), signals.listening():
        train.train(data, tmp_path / "run", make_config())
    assert len(steps) == 3
    saved = checkpoints.load(tmp_path / "run/last.pt")["resume"]["state"]
    assert saved["batch"] == 1  # written when the micro-batch was found
    message = "stopping as soon as this batch is done and saved; a second Ctrl-C stops at once"
    assert capfd.readouterr().err.count(message) == 1


def test_the_micro_batch_that_was_found_is_kept_at_once_and_not_found_again(tmp_path, data, monkeypatch):
    sizes = []
    accumulate = Stepper._accumulate

    def short_of_memory(self, *arguments):
        sizes.append(self.micro_batch_size)
        if len(sizes) == 3:  # in the third step of the run, once
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(self, *arguments)

    monkeypatch.setattr(Stepper, "_accumulate", short_of_memory)
    train.train(data, tmp_path / "whole", make_config())
    assert sizes[:5] == [16, 16, 16, 8, 8]
    sizes.clear()
    # As kill -9 does: nothing is written any more after the fourth step.
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        on_step(patch, {4: lambda: (_ for _ in ()).throw(MemoryError)})
        train.train(data, tmp_path / "killed", make_config())
    before = len(sizes)
    train.train(data, tmp_path / "killed", make_config())
    assert set(sizes[before:]) == {8}
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_checkpoint_is_written_within_an_epoch_when_it_is_time(tmp_path, data, monkeypatch):
    saved, save = [], checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda path, contents: saved.append((path.name, contents["epoch"])) or save(path, contents)
    )
    train.train(data, tmp_path / "run", make_config(epochs=1, checkpoint_minutes=1e-9))
    # At the start; after each of 4 batches and after the last of them again, before the validation; at the end.
    assert saved == [("last.pt", 0)] * (1 + 4 + 1) + [("best.pt", 1), ("last.pt", 1)]


def _run(stepping, *arguments):
    """Train in a child process, one thread, in silence; set ``stepping`` at the first step."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    step = Stepper.launch
    Stepper.launch = lambda self, *batch: stepping.set() or step(self, *batch)
    train.train(*arguments)


def test_killed_at_ten_random_moments_it_ends_in_the_same_weights(tmp_path, data):
    # A server that has imported torch but never computed: its children start in a tenth of a second. The first
    # optimiser imports torch's compiler, which takes a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["egoaudio.training.train", "torch._dynamo"])
    config = make_config(epochs=10, checkpoint_minutes=0.0005, **HARD)

    def start(name):
        stepping = context.Event()
        child = context.Process(target=_run, args=(stepping, data, tmp_path / name, config))
        child.start()
        return child, stepping

    def wait_for(child, stepping):
        while child.is_alive() and not stepping.wait(
            0.02
        ):  # a run that was killed while it validated may have no step left
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
        if (tmp_path / "killed/last.pt").exists() and checkpoints.load(tmp_path / "killed/last.pt")["resume"]["state"][
            "finished"
        ]:
            # Faster now than when it was measured: it must be the same run; begin again.
            assert_same_run(tmp_path / "killed", tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    finish("killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))


# ------------------------------------------------------------------------------------------------ the same command
# again


def test_a_finished_run_says_so_and_ends_at_once(finished, data, monkeypatch):
    before = {name: (finished.folder / name).read_bytes() for name in os.listdir(finished.folder)}
    steps = on_step(monkeypatch, {})
    assert "finished run: nothing was done" in str(train.train(data, finished.folder, make_config()))
    assert steps == []
    assert before == {name: (finished.folder / name).read_bytes() for name in os.listdir(finished.folder)}


def test_another_configuration_says_what_differs_and_stops(finished, data):
    with pytest.raises(TrainingError, match="`model`: cnn, now cnn-small.*`batch_size`: 16, now 8"):
        train.train(data, finished.folder, make_config(batch_size=8, model="cnn-small", feature="spectrogram"))


def test_another_file_is_refused_with_both_sides_named(finished, tmp_path):
    other = make_file(tmp_path / "other.h5", plan_sha256="1" * 64)
    with pytest.raises(
        CheckpointError,
        match=r"last.pt: .*plan_sha256: checkpoint 0{12}\.\.\., file 1{12}.*another `output`, or `force=True`",
    ):
        train.train(other, finished.folder, make_config())


def test_force_starts_over_and_leaves_nothing_of_the_old_run(tmp_path, data):
    train.train(data, tmp_path / "run", make_config())
    (tmp_path / "run/evaluation.json").write_text("{}")
    (tmp_path / "run/notes.txt").write_text("mine")
    train.train(data, tmp_path / "run", make_config(epochs=1, batch_size=8), force=True)
    assert len(table(tmp_path / "run")) == 1
    assert sorted(os.listdir(tmp_path / "run")) == [
        "best.pt",
        "config.json",
        "curves.png",
        "last.pt",
        "metrics.csv",
        "notes.txt",
    ]


def test_force_with_options_that_cannot_be_carried_out_keeps_the_old_run(tmp_path, data, finished):
    before = sorted(os.listdir(finished.folder))
    with pytest.raises(EgoAudioError, match="ast wants logmel"):
        train.train(data, finished.folder, make_config(model="ast"), force=True)
    assert sorted(os.listdir(finished.folder)) == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda folder: (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-1000]),
            CheckpointError,
            "truncated.*`force=True` to start over",
        ),
        (
            lambda folder: (folder / "last.pt").unlink(),
            TrainingError,
            "holds best.pt, config.json, metrics.csv, curves.png but no last.pt",
        ),
        (
            lambda folder: (folder / "last.pt").write_bytes((folder / "best.pt").read_bytes()),
            TrainingError,
            "not the state of its run",
        ),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_refused_until_forced(tmp_path, data, change, error, words):
    train.train(data, tmp_path / "run", make_config(epochs=1))
    change(tmp_path / "run")
    with pytest.raises(error, match=words):
        train.train(data, tmp_path / "run", make_config(epochs=1))
    train.train(data, tmp_path / "run", make_config(epochs=1), force=True)


def test_a_run_of_another_network_is_refused_with_the_fix_and_kept(tmp_path, data):
    """As an earlier version's run of a network that has changed since."""
    folder = tmp_path / "run"
    train.train(data, folder, make_config(epochs=1))
    contents = checkpoints.load(folder / "last.pt")
    contents["resume"]["state"]["finished"] = False
    del contents["weights"]["classifier.bias"]
    checkpoints.save(folder / "last.pt", contents)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    words = (
        "last.pt: its weights do not fit.*no classifier.bias.*train again.*another `output`, or `force=True` to start"
    )
    with pytest.raises(CheckpointError, match=words):
        train.train(data, folder, make_config(epochs=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_files_of_another_program_are_not_replaced_unasked(tmp_path, data):
    (tmp_path / "config.json").write_text("theirs")
    (tmp_path / "tensorboard").mkdir()
    with pytest.raises(
        TrainingError,
        match=r"holds config.json, tensorboard but no last.pt to resume from: give another `output`, or `force=True`",
    ):
        train.train(data, tmp_path, make_config(epochs=1))
    assert (tmp_path / "config.json").read_text() == "theirs" and sorted(os.listdir(tmp_path)) == [
        "config.json",
        "tensorboard",
    ]


def test_a_configuration_that_is_lost_is_written_again(tmp_path, data, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), signals.listening():
        on_step(patch, {1: lambda: signal.raise_signal(signal.SIGINT)})
        train.train(data, tmp_path / "run", make_config(epochs=1))
    before = (tmp_path / "run/config.json").read_text()
    (tmp_path / "run/config.json").unlink()  # as a kill between last.pt and config.json
    train.train(data, tmp_path / "run", make_config(epochs=1))
    assert (tmp_path / "run/config.json").read_text() == before


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path, data):
    (tmp_path / "run").mkdir()
    with lock.held(tmp_path / "run"), pytest.raises(EgoAudioError, match="another process"):
        train.train(data, tmp_path / "run", make_config())
