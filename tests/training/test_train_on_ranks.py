"""Runs on several ranks: those of one process, resumed by another number of ranks, and ended by signals and kills."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from rank_processes import RankProcesses
from small_runs import SHAPE, TIMES, make_config, make_file, table, weights
from small_steps import relative_error
from sound_files import make_sound_file

from egoaudio.evaluation.evaluate import evaluate
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.models import checkpoints
from egoaudio.training.step import Stepper
from egoaudio.training.train import train

# 66 training clips in batches of 13, or with a class a row 100 in batches of 33: the ranks' shares differ, and the last
# batch has one clip.
HARD = {  # and the dropout that cnn has
    "batch_size": 13,
    "mixup": 0.4,
    "gain_db": 3.0,
    "spec_augment": True,
    "class_weights": True,
    "feature": "spectrogram",
    "epochs": 2,
}
AST = {"model": "ast", "dropout": 0.3, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "patch_size": 8, "stride": 4}
CONFIGS = {
    "cnn": HARD,
    "ast, a class a row, and an average of the weights": HARD
    | AST
    | {"feature": "logmel", "label_mode": "single", "balanced_sampling": True, "ema": 0.9, "batch_size": 33},
}
# The numbers of ranks that train a part of a run, and the rest.
RESUMED = dict(zip(CONFIGS, [(4, 1), (1, 3)], strict=True))


@pytest.fixture(scope="module")
def processes():
    with RankProcesses() as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    features = {"spectrogram": SHAPE, "logmel": SHAPE}
    return make_file(tmp_path_factory.mktemp("data") / "ego.h5", clips_per_video=11, features=features)


def _train(data, folder, changes, stop_after=None):
    """Train, or stop after some steps as if all ranks were killed; return losses and epochs as this rank has them."""
    step = Stepper.launch
    done = []

    def counted(self, features, labels):
        if len(done) == stop_after:
            raise KeyError("stopped by the test")
        done.append(float(value := step(self, features, labels)))
        return value

    Stepper.launch = counted
    try:
        with contextlib.suppress(KeyError):
            train(data, folder, make_config(**changes), device="cpu")
    finally:
        Stepper.launch = step
    return done


def assert_nearly_the_same(folder, other):
    """Compare the tables and the weights of two runs, up to rounding.

    All weights at once: of the bias of an attention's keys, which changes nothing, the gradient is rounding alone.
    """
    for row, other_row in zip(table(folder), table(other), strict=True):
        for name in set(row) - set(TIMES) - {"micro_batch_size"}:
            assert float(row[name] or 0) == pytest.approx(float(other_row[name] or 0), rel=1e-4, abs=1e-4), name
    for name in ("last.pt", "best.pt"):
        ours, theirs = weights(folder, name), weights(other, name)
        ours, theirs = (torch.cat([one[key].flatten() for key in ours]) for one in (ours, theirs))
        assert relative_error(ours, theirs) < 1e-5


@pytest.fixture(scope="module", params=CONFIGS)
def alone(request, processes, data, tmp_path_factory):
    """Return the name of a configuration, and the folder and the losses of its run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    losses = processes.run(1, _train, data, folder, CONFIGS[request.param], alone=True)[0]
    assert len(losses) == {13: 12, 33: 8}[CONFIGS[request.param]["batch_size"]]
    return request.param, folder, losses


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_run_on_ranks_is_that_of_one_process(processes, data, alone, num_ranks, tmp_path):
    name, folder, losses = alone
    for of_rank in processes.run(num_ranks, _train, data, tmp_path / "run", CONFIGS[name], alone=True):
        assert of_rank == pytest.approx(losses, rel=1e-5)
    assert_nearly_the_same(folder, tmp_path / "run")


def test_a_stopped_run_is_resumed_by_another_number_of_ranks(processes, data, alone, tmp_path):
    name, whole, losses = alone
    folder, changes = tmp_path / "run", CONFIGS[name] | {"checkpoint_minutes": 1e-9}
    first, then = RESUMED[name]
    processes.run(first, _train, data, folder, changes, len(losses) * 3 // 4, alone=True)
    state = checkpoints.load(folder / "last.pt")["resume"]["state"]
    assert state["epoch"] == 1 and state["batch"] > 0
    for resumed in processes.run(then, _train, data, folder, changes, alone=True):
        assert resumed == pytest.approx(losses[-len(resumed) :], rel=1e-5) and 0 < len(resumed) < len(losses) // 2
    assert_nearly_the_same(whole, folder)


def test_features_that_are_computed_on_the_fly_are_those_of_one_process(processes, tmp_path):
    sounds = make_sound_file(tmp_path / "sounds.h5", ("waveform",), 6, 11, n_fft=512, hop_length=200)
    changes = HARD | {"on_the_fly": True, "epochs": 1, "batch_size": 8}
    runs = [processes.run(size, _train, sounds, tmp_path / str(size), changes, alone=True) for size in (1, 2)]
    assert len(runs[0][0]) > 3
    for of_rank in runs[1]:
        assert of_rank == pytest.approx(runs[0][0], rel=1e-5)
    assert_nearly_the_same(tmp_path / "1", tmp_path / "2")


def _evaluate(checkpoint, data, output):
    return repr(evaluate(checkpoint, data, split="validation", output=output, num_resamples=20, device="cpu").scores)


def test_an_evaluation_on_ranks_has_the_same_numbers_to_the_last_digit(processes, data, alone, tmp_path):
    checkpoint = alone[1] / "best.pt"
    expected = processes.run(1, _evaluate, checkpoint, data, tmp_path / "1", alone=True)
    for num_ranks in (2, 3, 4):
        assert (
            processes.run(num_ranks, _evaluate, checkpoint, data, tmp_path / str(num_ranks), alone=True)
            == expected * num_ranks
        )
        for name in ("evaluation.json", "per_class.csv"):
            assert (tmp_path / str(num_ranks) / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_a_student_on_ranks_learns_from_the_same_scores(processes, data, tmp_path):
    assert processes.run(1, _train, data, tmp_path / "teacher", {"epochs": 1}, alone=True)
    changes = {"epochs": 1, "teacher": (str(tmp_path / "teacher" / "best.pt"),), "mixup": 0.4, "batch_size": 13}
    runs = [processes.run(size, _train, data, tmp_path / str(size), changes, alone=True) for size in (1, 2)]
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    assert (tmp_path / "1" / "teacher.npz").read_bytes() == (tmp_path / "2" / "teacher.npz").read_bytes()
    again = processes.run(2, _train, data, tmp_path / "2", changes, alone=True)
    assert again == [[], []]  # finished


def _train_differently(data, folders, changes):
    rank = int(os.environ["RANK"])
    train(data[rank], folders[rank], make_config(**changes[rank]), device="cpu")


BAD = {
    "another configuration": ({}, {"epochs": 7}, "has epochs 3, and rank 1 on .* has 7: start all ranks"),
    "fewer clips than ranks": (
        {"batch_size": 1},
        {"batch_size": 1},
        "`batch_size=1` is less than a clip for each of 2",
    ),
    "no such teacher": ({"teacher": ("x.pt",)}, {"teacher": ("x.pt",)}, "x.pt"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_told_once(processes, data, case, tmp_path):
    *changes, words = BAD[case]
    first, second = processes.run(2, _train_differently, [data] * 2, [tmp_path / "run"] * 2, changes, alone=True)
    assert second[2] and not first[2]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(first[1])


def test_a_rank_with_another_file_or_without_it_is_named(processes, data, tmp_path):
    other = make_file(tmp_path / "other.h5", num_videos=9)
    folders = [tmp_path / "run"] * 2
    first, second = processes.run(2, _train_differently, [data, other], folders, [{}, {}], alone=True)
    assert "has clips 110, and rank 1 on" in first[1] and "has 90" in first[1] and second[2]
    first, second = processes.run(2, _train_differently, [data, tmp_path / "no.h5"], folders, [{}, {}], alone=True)
    assert first == ("GroupError", second[1], True) and second[1].startswith("rank 1: ") and "no.h5" in second[1]
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_loss_that_is_not_finite_names_rows_of_all_ranks(processes, tmp_path):
    path = make_file(tmp_path / "ego.h5", 1, 16)
    with RowWriter(path, offsets(path)) as writer:
        writer.write("spectrogram", 0, np.full((16, *SHAPE), np.nan, "f4"))
    changes = [{"validation_fraction": 0, "normalize": "none", "batch_size": 16}] * 2
    first, second = processes.run(2, _train_differently, [path] * 2, [tmp_path / "run"] * 2, changes, alone=True)
    assert first[0] == second[0] == "TrainingError" and second[2] and "the loss is nan in epoch 1, batch 1" in first[1]
    named = first[1].split("of these, ")[1].split(" hold values")[0]
    assert sorted(map(int, named.split(", "))) == list(range(16))


# ------------------------------------------------------------------------------------------------ torchrun itself


EPOCHS = 16


def _start(data, folder, num_ranks=2):
    """Start the command on ranks; it saves after every batch."""
    options = ["--model", "cnn", "--epochs", str(EPOCHS), "--batch-size", "13", "--checkpoint-minutes", "1e-9"]
    options += ["--validation-fraction", "0.25", "--mixup", "0.4", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks), "--standalone"]
    return subprocess.Popen(
        [*torchrun, "-m", "egoaudio.training", str(data), "--output", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_for_steps(folder, process):
    """Wait until the run has done some steps more."""
    before = _steps(folder)
    while _steps(folder) < before + 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def _steps(folder):
    with contextlib.suppress(Exception):
        state = checkpoints.load(folder / "last.pt")["resume"]["state"]
        return 6 * state["epoch"] + state["batch"]
    return 0


def _find_rank(process, rank):
    """Return the process number of a rank; torchrun may have other children."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        children = [int(number) for number in file.read().split()]
    for number in children:
        with open(f"/proc/{number}/environ", "rb") as file:
            if f"RANK={rank}".encode() in file.read().split(b"\0"):
                return number
    raise AssertionError(f"no child of torchrun is rank {rank}: {children}")


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """Return the folder of a run whose rank 1 got SIGTERM, and SIGKILL in a second run; what they printed, and how
    long they took to end.
    """
    folder, said, seconds = tmp_path_factory.mktemp("torchrun") / "run", [], []
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = _start(data, folder)
        try:
            _wait_for_steps(folder, process)
            os.kill(_find_rank(process, 1), number)
            began = time.monotonic()
            said.append(process.communicate(timeout=100)[0])
            seconds.append(time.monotonic() - began)
        finally:
            process.kill()
        assert process.returncode != 0, (number, _steps(folder), said[-1])
    return folder, said, seconds


def test_a_signal_to_one_rank_stops_all_and_what_was_done_is_saved(stopped):
    folder, (said, _), _ = stopped
    assert said.count("interrupted; what was done is kept, and the same command resumes from there") == 1
    assert "had to stop" not in said
    assert "egoaudio/training" not in said  # torchrun's traceback names no file of ours
    assert _steps(folder) >= 2


def test_a_rank_that_is_killed_ends_the_run_soon_and_another_number_resumes_it(stopped, processes, data):
    folder, (_, said), seconds = stopped
    assert said.count("resuming") == 1
    assert seconds[1] < 30
    steps = _steps(folder)
    assert 2 <= steps < 6 * EPOCHS
    changes = {"epochs": EPOCHS, "batch_size": 13, "mixup": 0.4, "checkpoint_minutes": 1e-9}
    losses = processes.run(1, _train, data, folder, changes, alone=True)[0]
    assert len(losses) >= 6 * EPOCHS - steps - 6
    whole = processes.run(1, _train, data, folder.parent / "whole", changes, alone=True)[0]
    assert losses == pytest.approx(whole[-len(losses) :], rel=1e-3)
