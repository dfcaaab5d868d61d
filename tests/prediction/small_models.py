"""Small videos, their egoaudio file and models of it, trained or of random weights, for the tests of predictions."""

import sys
from pathlib import Path

import numpy as np
import torch
from yamnet_reference import make_bundle, random_tensors

from egoaudio._version import __version__
from egoaudio.builder.build import build
from egoaudio.builder.plan import Inputs
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_flat, from_json, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.evaluation import evaluate
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints, create_model

sys.path.insert(0, str(Path(__file__).parents[2] / "bin"))
import demo_data  # noqa: E402

CPU = torch.device("cpu")


def make_videos(folder, num_videos=6, seconds=(2.2, 3.7)):
    """Write videos (of six or more one has no sound, one is cut off), CSVs and classes; return a build's ``Inputs``."""
    demo_data.make(folder, num_videos, 1, *seconds)
    return Inputs((folder / "train.csv",), folder / "videos", (folder / "test.csv",), folder / "classes.txt")


def make_file(inputs, path, **options):
    """Build an egoaudio file; return its path."""
    build(inputs, path, from_flat(BuildConfig, {"features": ("logmel",), "mode": "none", **options}))
    return path


def make_checkpoint(path, folder, feature="logmel", model="cnn-small", changes=(), **options):
    """Write a checkpoint of random weights that fits a file; return its path."""
    folder.mkdir(exist_ok=True)
    normalization = {"mean": -9.5, "std": 4.25}
    if model == "yamnet":  # a random network in the form of the published one; its features are never normalised
        options["pretrained"] = str(make_bundle(folder / "published", random_tensors()))
        normalization = {"mean": 0.0, "std": 1.0}
    config = from_flat(TrainConfig, {"model": model, "feature": feature, **options}).resolved()
    with reader.open(path) as file:
        description = checkpoints.describe_data(file, feature)
    num_classes, context = len(description["class_ids"]), config.data.context_clips
    shape = checkpoints.joined_shape(description["feature_shape"], context)
    torch.manual_seed(5)
    network = create_model(model, num_classes, shape, config.model, context_clips=context)
    contents = {
        "egoaudio_version": __version__,
        "config": to_json(config),
        "epoch": 1,
        "weights": dict(network.state_dict()),
        "network": checkpoints.describe_network(network),
        **description,
        "normalization": normalization,
        "thresholds": [0.5] * num_classes,
        "calibration": None,
        "metrics": {},
        "smooth_clips": 1,
        **dict(changes),
    }
    checkpoints.save(folder / "best.pt", contents)
    return folder / "best.pt"


def evaluated_scores(checkpoint, path):
    """Return what ``evaluate`` scores the clips of a file with, ``{video id: float32 (n, C)}``, NaN without sound."""
    model, contents = checkpoints.load_model(checkpoint, CPU)
    with reader.open(path) as file:
        usable, video, ids = file.usable, np.array(file.clip_table["video"]), file.video_table["video_id"].tolist()
    config = from_json(TrainConfig, contents["config"])
    scored = evaluate._score(model, contents, config, path, np.flatnonzero(usable), CPU)
    scores = np.full((len(usable), len(contents["class_ids"])), np.nan, np.float32)
    scores[scored.rows] = scored.scores
    return {video_id.decode(): scores[video == number] for number, video_id in enumerate(ids)}
