"""Runs of the trainer in tests: small files, short configurations, and the comparison of two runs."""

import csv

import synthetic
import torch

from egoaudio.config.options import from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.models import checkpoints
from egoaudio.training.pending_loss import PendingLoss
from egoaudio.training.step import Stepper

SHAPE = (8, 16)
HARD = {  # everything that is random
    "model": "cnn-small",
    "dropout": 0.3,
    "mixup": 0.4,
    "spec_augment": True,
    "gain_db": 3.0,
    "balanced_sampling": True,
    "feature": "spectrogram",
    "context_clips": 0,
}
TIMES = ("clips_per_second", "data_wait_fraction", "peak_memory_mb", "seconds")  # columns that no two runs share


def make_file(path, num_videos=10, clips_per_video=10, **changes):
    """Return the path of a file of small clips, all of them labelled."""
    changes = {"features": {"spectrogram": SHAPE}, "unlabelled": 0.0, "num_classes": 5, **changes}
    return synthetic.make_file(path, num_videos, clips_per_video, **changes)


def make_config(**changes):
    return from_flat(
        TrainConfig, {"model": "cnn", "epochs": 3, "batch_size": 16, "validation_fraction": 0.25, **changes}
    )


def weights(folder, name="last.pt"):
    return checkpoints.load(folder / name)["weights"]


def table(folder):
    """Return metrics.csv as a list of dictionaries."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(folder, other):
    """Compare the weights of two runs, also of the best epoch, bit for bit, and their tables except for the times."""
    for name in ("last.pt", "best.pt"):
        ours, theirs = weights(folder, name), weights(other, name)
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different, (name, different)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (checkpoints.load(one / name) for one in (folder, other))
        assert [ours[key] for key in ("thresholds", "calibration", "smooth_clips", "epoch")] == [
            theirs[key] for key in ("thresholds", "calibration", "smooth_clips", "epoch")
        ]
    ours, theirs = (checkpoints.load(one / "last.pt")["resume"].get("weights", {}) for one in (folder, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (
        checkpoints.load(folder / "last.pt")["resume"]["scaler"]
        == checkpoints.load(other / "last.pt")["resume"]["scaler"]
    )
    rows, other_rows = (
        [{name: value for name, value in row.items() if name not in TIMES} for row in table(one)]
        for one in (folder, other)
    )
    assert rows == other_rows


def on_step(monkeypatch, actions, result=None):
    """Call ``actions[n]`` before the n-th step from now on; return the list of steps done."""
    done, step = [], Stepper.launch

    def patched(self, features, labels):
        done.append(len(done))
        if done[-1] in actions:
            actions[done[-1]]()
        value = step(self, features, labels)
        return value if result is None else PendingLoss(torch.as_tensor(result(done[-1], float(value))))

    monkeypatch.setattr(Stepper, "launch", patched)
    return done
