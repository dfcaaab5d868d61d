"""What whoever runs an exported model has to know, as text: the metadata of the graph and of the weights.

In: a checkpoint's contents and its ``SoundInput``. Out: ``{name: str}``; lists and numbers are JSON. Thresholds are
probabilities, as the graph's output is; null stands for a class that no score claims.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from egoaudio._version import __version__
from egoaudio.config.options import from_json
from egoaudio.config.predict import SegmentConfig
from egoaudio.config.train import TrainConfig
from egoaudio.evaluation.segments import rules_of
from egoaudio.models.sound import SoundInput

# What each entry of ``facts`` says, for the card.
MEANINGS = {
    "class_names": "names of the classes, in the order of the columns (JSON)",
    "class_ids": "their ids in the dataset (JSON)",
    "thresholds": "a class is heard from this probability on; null: never (JSON)",
    "sample_rate": "Hz, of the sound",
    "num_samples": "samples of the input",
    "clip_seconds": "length of the clip, in the middle of the input, that the probabilities are for",
    "context_seconds": "length of the input: the clip and the sound around it",
    "hop_seconds": "from one clip's start to the next one's, in training",
    "smooth_clips": "egoaudio-predict averages over so many neighbouring clips on each side; the graph does not",
    "denoise": "how the sound has to be denoised before; none: not at all",
    "calibration": "how scores became probabilities; none: they are not calibrated",
    "label_mode": "multi: several classes at once; single: one of them",
    "model": "name of the network",
    "feature": "what the network takes; the graph computes it",
    "normalization": "mean and standard deviation by which the graph normalises it (JSON)",
    "epoch": "passes over the training clips",
    "checkpoint_sha256": "of the checkpoint",
    "plan_sha256": "of the egoaudio file that was trained on",
    "egoaudio_version": "that exported the model",
    "trained_with": "egoaudio version that trained it",
    "torch_version": "that exported the model",
}


def facts(contents: Mapping[str, Any], sound: SoundInput, checkpoint_sha256: str) -> dict[str, str]:
    """Return the facts of a checkpoint: the keys of ``MEANINGS``."""
    config = from_json(TrainConfig, contents["config"])
    calibration = contents["calibration"]
    clips = sound.build.clips
    normalization = {name: contents["normalization"][name] for name in ("mean", "std")}
    return {
        "class_names": json.dumps(list(contents["class_names"]), ensure_ascii=False),
        "class_ids": json.dumps(list(contents["class_ids"]), ensure_ascii=False),
        "thresholds": json.dumps(thresholds(contents)),
        "sample_rate": str(sound.sample_rate),
        "num_samples": str(sound.num_samples),
        "clip_seconds": f"{clips.clip_seconds:g}",
        "context_seconds": f"{sound.num_samples / sound.sample_rate:g}",
        "hop_seconds": f"{clips.step_seconds:g}",
        "smooth_clips": str(contents["smooth_clips"]),
        "denoise": sound.denoising or "none",
        "calibration": "none" if calibration is None else calibration["method"],
        "label_mode": config.data.label_mode,
        "model": config.model.model,
        "feature": sound.feature,
        "normalization": json.dumps(normalization),
        "epoch": str(contents["epoch"]),
        "checkpoint_sha256": checkpoint_sha256,
        "plan_sha256": contents["plan_sha256"],
        "egoaudio_version": __version__,
        "trained_with": contents["egoaudio_version"],
        "torch_version": str(torch.__version__),
    }


def published_config(contents: Mapping[str, Any]) -> TrainConfig:
    """Return the options of a checkpoint's run, of paths the last part only: folders of this machine are nobody's."""
    config = from_json(TrainConfig, contents["config"])
    pretrained = config.model.pretrained
    if pretrained is not None and (os.path.exists(pretrained) or not re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained)):
        pretrained = _last_part(pretrained)  # otherwise it is a name on the hub
    teacher = tuple(map(_last_part, config.distillation.teacher))
    return replace(
        config,
        model=replace(config.model, pretrained=pretrained),
        distillation=replace(config.distillation, teacher=teacher),
    )


def _last_part(path: str) -> str:
    """Return the last part of a path."""
    return os.path.basename(path.rstrip("/"))


def thresholds(contents: Mapping[str, Any]) -> list[float | None]:
    """Return from which probability on each class counts as heard; None for a class that no score claims."""
    rules = rules_of(contents, SegmentConfig(), contents["smooth_clips"])
    claimed = np.isfinite(rules.onset)
    probabilities = rules.calibration.apply(np.where(claimed, rules.onset, 1.0))
    return [float(value) if known else None for value, known in zip(probabilities, claimed, strict=True)]
