r"""Checkpoints: written atomically, verified when they are read, and unable to run code.

In: a dictionary of tensors, numbers, strings, lists and dictionaries; out: one file, and back. The file is what
``torch.save`` writes (a zip archive that ``torch.load(path, weights_only=True)`` opens without egoaudio). Its zip
comment, the last bytes of the file, is a seal: magic, version, and the SHA-256 of all bytes before it.

    egoaudio checkpoint 1 sha256=<64 hexadecimal digits>\n

Writing: under a temporary name in the same folder, sync, rename, sync of the folder; if the disk is full, the previous
checkpoint remains. Reading: seal, then checksum, then ``weights_only=True``, then the fields; a file that is truncated,
damaged or foreign fails at one of them with a CheckpointError. The seal detects damage; it is not a signature, and it
is ``weights_only`` that keeps hostile files from running code.
"""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from egoaudio._version import __version__
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json, to_flat, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.context import joined_shape
from egoaudio.errors import CheckpointError, ConfigurationError, EgoAudioError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.models import create_model, seal
from egoaudio.models.frontend import front_end_of_file
from egoaudio.system import files

# The fields of every checkpoint. ``last.pt`` also has "resume": what the loop needs to continue.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "egoaudio_version": str,
    "config": str,  # the whole TrainConfig, JSON
    "epoch": int,  # passes over the training clips that these weights have seen, rounded down
    "weights": dict,  # the model's state_dict
    "network": str,  # sizes of a transformer, JSON, as they may have come with published weights; else empty
    "class_ids": list,
    "class_names": list,
    "feature": str,
    "feature_shape": list,  # of one clip in the file, (num_frames, num_bins), without its context
    "feature_attributes": str,  # the parameters that made the array, JSON
    "sample_rate": int,  # Hz
    "normalization": dict,  # {"mean": float, "std": float}, of the feature's values
    "build": (str, type(None)),  # the file's whole BuildConfig, JSON: how to make the same features of other sound
    "plan_sha256": str,  # of the file that was trained on
    "thresholds": (list, type(None)),  # a score per class, chosen on the validation split; None without one
    "calibration": (
        dict,
        type(None),
    ),  # evaluation.calibration: how scores become probabilities; None without a validation split
    "metrics": dict,  # the epoch's row of metrics.csv
    "smooth_clips": int,  # scores are averaged over this many neighbouring clips on each side
}
# The values of fields that checkpoints of earlier versions lack.
LATER_FIELDS = {"smooth_clips": 0, "build": None, "calibration": None}


# ------------------------------------------------------------------------------------------------ save and load


def save(path: str | os.PathLike[str], contents: dict[str, Any]) -> None:
    """Write ``contents`` to ``path`` atomically: at every instant the old file or the new one is there, whole.

    Raises
    ------
    CheckpointError
        If the disk is full or the file cannot be written. The previous file is unchanged, and no other file is left.
    """
    path = Path(path)
    _require_plain(contents, "checkpoint")
    try:
        with files.replacing(path) as file:
            torch.save(contents, file)
            seal.add(file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns the OSError of a failed write into a RuntimeError about positions.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        kept = "the previous checkpoint is unchanged" if path.exists() else "there is no previous checkpoint"
        raise CheckpointError(
            f"{files.explain(path, cause)}; {kept}: fix this and run the same command again"
        ) from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of the checkpoint at ``path``, tensors on the CPU.

    Raises
    ------
    CheckpointError
        If it is missing, truncated, damaged, of another version or program, or holds anything but plain data.
    """
    try:
        with open(path, "rb") as file:
            seal.check(path, file)
            file.seek(0)
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{path}: is a folder, expected a checkpoint: if it is a run's folder, give {Path(path) / 'best.pt'}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); expected a checkpoint, such as best.pt in a run's "
            "folder"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        # Only for files with a correct checksum: made by someone who knows the format, or by another torch.
        raise CheckpointError(
            f"{path}: refused, as it holds something other than tensors, numbers and strings, and could run code; use "
            f"a checkpoint that egoaudio-train wrote: {error}"
        ) from error
    if isinstance(contents, dict):
        contents = LATER_FIELDS | contents
    _check_fields(path, contents)
    return contents


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return ``(model, contents)``: the trained network in evaluation mode, and the checkpoint's contents.

    Raises
    ------
    CheckpointError
        As ``load``, and if the weights do not fit the model that the configuration describes.
    """
    contents = load(path)
    try:
        with torch.random.fork_rng([]):  # leaves the caller's random state unchanged
            model = _create(contents)
    except (EgoAudioError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the model that its configuration describes cannot be made: {error}. Train it again"
        ) from error
    load_weights(path, model, contents, contents["weights"])
    return model.to(device).eval(), contents


def load_weights(
    path: str | os.PathLike[str], model: torch.nn.Module, contents: Mapping[str, Any], weights: Mapping[str, Any]
) -> None:
    """Set the weights of ``model`` to those of a checkpoint.

    Parameters
    ----------
    path : str or os.PathLike
        Of the checkpoint, for messages.
    model : torch.nn.Module
        Made by this version from the checkpoint's configuration.
    contents : dict
        Of the checkpoint.
    weights : dict
        The state of a model in it.

    Raises
    ------
    CheckpointError
        If they are another network's, such as that of the same name in an earlier version.
    """
    problem = _weights_difference(weights, model.state_dict())
    if problem:
        name = from_json(TrainConfig, contents["config"]).model.model
        raise CheckpointError(
            f"{path}: its weights do not fit the model that its configuration describes: {problem}. It was written by "
            f"egoaudio {contents['egoaudio_version']}, and {name} of this version ({__version__}) is another network: "
            "train again, or use the version that wrote it"
        )
    model.load_state_dict(weights)


def _weights_difference(stored: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> str:
    """Return the first difference between the weights of a checkpoint and a model's, in words; empty without one."""
    for name, tensor in own.items():
        if name not in stored:
            return f"there is no {name}"
        if not isinstance(stored[name], torch.Tensor):
            return f"{name} is a {type(stored[name]).__name__}, expected a tensor"
        if stored[name].shape != tensor.shape:
            return f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(tensor.shape)}"
    unknown = [str(name) for name in stored if name not in own]
    return f"the model has no {unknown[0]}" if unknown else ""


def describe_network(model: Any) -> str:
    """Return the field ``network``: sizes that came with published weights and are not in the configuration."""
    return model.network.config.to_json_string(use_diff=True) if hasattr(model, "network") else ""


def _create(contents: dict[str, Any]) -> torch.nn.Module:
    """Return the network of a checkpoint before its weights are loaded; published weights are not needed again."""
    stored = from_json(TrainConfig, contents["config"])
    config, context_clips = stored.model, stored.data.context_clips or 0
    if config.pretrained is None or config.model == "yamnet":  # yamnet has always the same sizes
        config = replace(config, pretrained=None)
        shape = joined_shape(contents["feature_shape"], context_clips)
        return create_model(config.model, len(contents["class_ids"]), shape, config, context_clips=context_clips)
    from egoaudio.models.transformer import AudioTransformer, efficient_config

    return AudioTransformer(efficient_config(**json.loads(contents["network"])), config.patchout or 0.0)


def _check_fields(path: str | os.PathLike[str], contents: Any) -> None:
    """Raise CheckpointError unless every field is there with its type."""
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, expected a dictionary")
    for name, kinds in FIELDS.items():
        if name not in contents:
            raise CheckpointError(f"{path}: has no {name!r}; expected {', '.join(FIELDS)}")
        if not isinstance(contents[name], kinds):
            raise CheckpointError(f"{path}: {name!r} is a {type(contents[name]).__name__}, expected {kinds}")


def _require_plain(value: Any, where: str) -> None:
    """Assert that ``weights_only`` can read a value back; anything else is a defect of the package."""
    if isinstance(value, dict):
        for key, inner in value.items():
            assert isinstance(key, (str, int)), f"{where}: key {key!r}"
            _require_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _require_plain(inner, f"{where}[{index}]")
    else:
        plain = value is None or type(value) in (str, int, float, bool, bytes) or isinstance(value, torch.Tensor)
        assert plain, f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers and strings only"


# ------------------------------------------------------------------------------------------------ fit to the data


def describe_data(file: EgoAudioFile, feature: str, on_the_fly: bool = False) -> dict[str, Any]:
    """Return the fields of a checkpoint that describe its data; ``file`` is open.

    ``on_the_fly``: the feature is computed from the file's waveforms, and need not be in it.
    """
    classes = file.class_table
    if on_the_fly:
        front_end, attributes = front_end_of_file(file, feature)
        shape = front_end.feature_shape
    else:
        attributes, shape = file.attributes(feature), file[feature].shape[1:]
    return {
        "class_ids": [text.decode() for text in classes["class_id"].tolist()],
        "class_names": [text.decode() for text in classes["name"].tolist()],
        "feature": feature,
        "feature_shape": [int(size) for size in shape],
        "feature_attributes": json.dumps(attributes, sort_keys=True),
        "sample_rate": int(file.sample_rate),
        "build": to_json(from_json(BuildConfig, json.dumps(file.config))),
        "plan_sha256": str(file.plan_sha256),
    }


# Options of a build that change the sound of a recording without a change in the array's shape or attributes.
_SOUND = {
    "mode": "denoising",
    "scope": "scope of the denoising",
    "clip_seconds": "seconds of a clip",
    "context_seconds": "seconds of context",
}


def require_match(
    contents: dict[str, Any], file: EgoAudioFile, same_plan: bool = False, on_the_fly: bool = False
) -> bool:
    """Refuse a checkpoint whose classes or feature are not those of ``file``.

    With ``same_plan`` the file must also be a build of the same plan: a run is resumed only with the data that it began
    with, while a model may be evaluated on other recordings.

    Returns
    -------
    bool
        Whether the feature is to be computed from the file's waveforms: if it is asked for (``on_the_fly``), or the run
        did so, unless the file has only the feature itself.

    Raises
    ------
    CheckpointError
        With every difference: the value in the checkpoint and the value in the file.
    """
    feature = contents["feature"]
    if feature not in file.features or "waveform" in file.features:
        on_the_fly = on_the_fly or from_json(TrainConfig, contents["config"]).data.on_the_fly
    on_the_fly = on_the_fly and feature != "waveform"
    if feature not in file.features and not on_the_fly:
        has = ", ".join(file.features) or "no features"
        raise CheckpointError(
            f"{file.path} has no {feature}, which the checkpoint was trained on; it has {has}: "
            + ("give `on_the_fly=True`, or " if _is_computable(file, feature) else "")
            + f"rebuild with `features={(*file.features, feature)!r}`"
        )
    ours, theirs = contents, describe_data(file, feature, on_the_fly)
    problems = []
    for name, words in (("sample_rate", "sample rate in Hz"), ("feature_shape", f"shape of {feature}")):
        if ours[name] != theirs[name]:
            problems.append(f"{words}: checkpoint {ours[name]}, file {theirs[name]}")
    if ours["build"] is not None:
        before, now = (to_flat(from_json(BuildConfig, one["build"])) for one in (ours, theirs))
        problems += [
            f"{words}: checkpoint {before[name]}, file {now[name]}"
            for name, words in _SOUND.items()
            if before[name] != now[name]
        ]
    if ours["class_ids"] != theirs["class_ids"]:
        problems.append(_class_difference(ours["class_ids"], theirs["class_ids"]))
    before, now = (
        {name: value for name, value in json.loads(one["feature_attributes"]).items() if name != "scale"}
        for one in (ours, theirs)  # the scale is that of the stored numbers, which is applied when they are read
    )
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            problems.append(f"{name} of {feature}: checkpoint {before.get(name)}, file {now.get(name)}")
    if same_plan and ours["plan_sha256"] != theirs["plan_sha256"]:
        problems.append(
            f"plan_sha256: checkpoint {ours['plan_sha256'][:12]}..., file {theirs['plan_sha256'][:12]}... (built from "
            "other inputs or options)"
        )
    if problems:
        raise CheckpointError(f"the checkpoint does not fit {file.path}: " + "; ".join(problems))
    return on_the_fly


def _is_computable(file: EgoAudioFile, feature: str) -> bool:
    """Return whether a feature can be computed from the file's waveforms."""
    try:
        front_end_of_file(file, feature)
    except ConfigurationError:
        return False
    return True


def _class_difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Return the first difference between two class lists in words."""
    first = next(
        (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    one, other = (ids[first] if first < len(ids) else "none" for ids in (ours, theirs))
    return (
        f"classes: checkpoint {len(ours)}, file {len(theirs)}; the first that differs is number {first}: "
        f"checkpoint {one}, file {other}"
    )
