"""From checkpoint and file to the Evaluation and its files, and the inputs that are refused."""

import csv
import json

import numpy as np
import pytest
import synthetic
import torch

from egoaudio.config.options import from_flat, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.splits import split_rows
from egoaudio.errors import CheckpointError, ConfigurationError, TrainingError
from egoaudio.evaluation import evaluate
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints, create_model, seal


@pytest.fixture
def path(tmp_path):
    """24 videos of 5 clips; the last 6 videos are test: number 19 failed, the third clip of number 20 has no sound."""
    return synthetic.make_file(
        tmp_path / "ego.h5",
        24,
        5,
        features={"spectrogram": (8, 16)},
        num_classes=10,
        failed=(2, 19),
        silent_clips=(102,),
    )


@pytest.fixture
def file(path):
    with reader.open(path) as file:
        yield file


def save_checkpoint(path, file, changes=None, **options):
    """Write a checkpoint of an untrained network that fits ``file``."""
    torch.manual_seed(0)
    config = from_flat(TrainConfig, {"model": "cnn-small", "batch_size": 16, **options})
    description = checkpoints.describe_data(file, "spectrogram")
    model = create_model("cnn-small", file.num_classes, tuple(description["feature_shape"]), config.model)
    contents = {
        "egoaudio_version": "0",
        "config": to_json(config),
        "epoch": 3,
        "weights": dict(model.state_dict()),
        "network": checkpoints.describe_network(model),
        **description,
        "normalization": {"mean": 0.5, "std": 2.0},
        "thresholds": [0.5] * file.num_classes,
        "metrics": {},
        **(changes or {}),
    }
    checkpoints.save(path, contents)
    return model.eval(), contents


def test_the_command_writes_everything_beside_the_checkpoint(file, path, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run / "best.pt", file)
    found = evaluate.evaluate(run / "best.pt", path, submission=run / "submission.txt", device="cpu", num_resamples=50)
    assert sorted(one.name for one in run.iterdir()) == [
        "best.pt",
        "evaluation.json",
        "per_class.csv",
        "per_class.png",
        "submission.txt",
    ]
    contents = json.loads((run / "evaluation.json").read_text())
    assert contents["split"] == "test" and contents["epoch"] == 3 and contents["num_videos"] == 6
    assert contents["checkpoint_sha256"] == seal.digest(run / "best.pt")  # an export tells other runs' by it
    assert contents["scores"]["map"]["value"] == found.scores["map"].value
    heard = contents["scores"].pop("audible_map")
    assert contents["audible_classes"] == [] and heard["value"] is None
    assert all(score["prior"] is not None and score["low"] is not None for score in contents["scores"].values())
    with open(run / "per_class.csv", newline="") as text:
        assert [row["class_id"] for row in csv.DictReader(text)] == list(found.per_class["class_id"])
    assert len((run / "submission.txt").read_text().splitlines()) == 5
    assert "scoring 100%" in capsys.readouterr().err
    assert "test split" in str(found) and "video mAP" in str(found)


@pytest.mark.parametrize("smooth_clips", [None, 0, 2])
def test_the_checkpoint_says_over_how_many_clips_scores_are_averaged(file, path, tmp_path, smooth_clips):
    save_checkpoint(tmp_path / "best.pt", file, {} if smooth_clips is None else {"smooth_clips": smooth_clips})
    found = evaluate.evaluate(tmp_path / "best.pt", path, device="cpu", num_resamples=0)
    assert found.smooth_clips == (smooth_clips or 0)  # a checkpoint of version 0.1.0 lacks the field
    assert ("unsmoothed" in str(found)) == bool(smooth_clips)
    assert json.loads((tmp_path / "evaluation.json").read_text())["smooth_clips"] == (smooth_clips or 0)


@pytest.mark.parametrize("split", ["validation", "train"])
def test_the_command_evaluates_the_runs_own_split(file, path, tmp_path, split):
    save_checkpoint(tmp_path / "best.pt", file)
    found = evaluate.evaluate(
        tmp_path / "best.pt", path, split=split, output=tmp_path / "out", device="cpu", num_resamples=0
    )
    rows = split_rows(file, from_flat(TrainConfig, {}).data, 0).rows(split)
    assert found.num_clips == len(rows)
    assert found.video_ids == tuple(
        one.decode() for one in file.video_table["video_id"][np.unique(file.clip_table["video"][rows])]
    )


def test_another_file_may_be_tested_but_has_no_validation_split_of_the_run(file, path, tmp_path):
    save_checkpoint(tmp_path / "best.pt", file, {"plan_sha256": "1" * 64})
    assert evaluate.evaluate(tmp_path / "best.pt", path, device="cpu", num_resamples=0).num_clips
    with pytest.raises(CheckpointError, match="plan_sha256"):
        evaluate.evaluate(tmp_path / "best.pt", path, split="validation", device="cpu")


def test_the_prior_of_another_file_counts_all_its_train_clips(file, path, tmp_path):
    save_checkpoint(tmp_path / "own.pt", file)
    # A split that the other file could not be divided by, and need not be.
    save_checkpoint(tmp_path / "other.pt", file, {"plan_sha256": "1" * 64}, validation_fraction=0.9)
    own, other = (
        evaluate.evaluate(tmp_path / name, path, device="cpu", num_resamples=0).per_class["prior"]
        for name in ("own.pt", "other.pt")
    )
    rows = np.flatnonzero(file.trainable & (file.video_table["split"] == b"train")[file.clip_table["video"]])
    assert other == pytest.approx(file.labels[rows].mean(axis=0))
    assert (
        own
        == pytest.approx(file.labels[split_rows(file, from_flat(TrainConfig, {}).data, 0).train].mean(axis=0))
        != other
    )


def test_a_checkpoint_of_other_classes_is_refused_before_anything_is_written(file, path, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run / "best.pt", file, {"class_ids": [f"d{k}" for k in range(10)]})
    with pytest.raises(CheckpointError, match="checkpoint d0, file c000"):
        evaluate.evaluate(run / "best.pt", path, device="cpu")
    assert [one.name for one in run.iterdir()] == ["best.pt"]


def test_a_file_without_train_videos_has_no_prior(tmp_path):
    path = synthetic.make_file(
        tmp_path / "t.h5", 4, 6, features={"spectrogram": (8, 16)}, num_classes=6, test_fraction=1.0
    )
    with reader.open(path) as file:
        save_checkpoint(tmp_path / "best.pt", file, {"plan_sha256": "1" * 64})
    found = evaluate.evaluate(tmp_path / "best.pt", path, device="cpu", num_resamples=0)
    assert np.isnan(found.scores["map"].prior) and any("no prior" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"split": "dev"}, ConfigurationError, "`split='dev'`: expected one of test, validation, train"),
        ({"device": "gpu"}, ConfigurationError, "`device='gpu'`"),
        ({"pool": "median"}, ConfigurationError, "`pool='median'`: expected one of max, mean"),
    ],
)
def test_options_that_do_not_exist_are_refused(file, path, tmp_path, options, error, words):
    save_checkpoint(tmp_path / "best.pt", file)
    with pytest.raises(error, match=words):
        evaluate.evaluate(tmp_path / "best.pt", path, **{"device": "cpu", **options})


def test_a_split_without_sound_is_refused(tmp_path):
    path = synthetic.make_file(tmp_path / "t.h5", 4, 6, features={"spectrogram": (8, 16)}, num_classes=6, failed=(3,))
    with reader.open(path) as file:
        save_checkpoint(tmp_path / "best.pt", file)
    with pytest.raises(TrainingError, match="1 videos of the split test, none with sound"):
        evaluate.evaluate(tmp_path / "best.pt", path, device="cpu")
