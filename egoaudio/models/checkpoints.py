r"""Checkpoints: written whole or not at all, found out when damaged, and unable to run code.

In: a dictionary of tensors, numbers, strings, lists and dictionaries; out: one file, and back. The file is what
``torch.save`` writes (a zip archive that ``torch.load(path, weights_only=True)`` opens without egoaudio), and its
zip comment, the last bytes of the file, is our seal: magic, version, and the SHA-256 of all bytes before it.

    egoaudio checkpoint 1 sha256=<64 hexadecimal digits>\n

Writing: a temporary name in the same folder, sync, rename, sync of the folder; a full disk therefore keeps the
checkpoint that was there. Reading: seal, then checksum, then ``weights_only=True``, then the fields; a file that is
cut, flipped or foreign stops at one of them with a CheckpointError. The seal finds damage; it is no signature, and
what keeps hostile files from running code is ``weights_only``.
"""

import hashlib
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import torch

from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json, to_flat, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.context import joined_shape
from egoaudio.errors import CheckpointError, EgoAudioError
from egoaudio.models import create_model
from egoaudio.system import files

VERSION = 1
_SEAL = re.compile(rb"egoaudio checkpoint (\d{1,6}) sha256=([0-9a-f]{64})\n")
_SEAL_BYTES = len(b"egoaudio checkpoint 1 sha256=") + 64 + 1

# What every checkpoint of ours holds. ``last.pt`` has "resume" besides: what the loop needs to go on.
FIELDS = {
    "egoaudio_version": str,
    "config": str,  # the whole TrainConfig, JSON
    "epoch": int,  # passes over the training clips that these weights have seen, rounded down
    "weights": dict,  # the model's state_dict
    "network": str,  # sizes of a transformer, JSON, for they may have come with published weights; else empty
    "class_ids": list,
    "class_names": list,
    "feature": str,
    "feature_shape": list,  # of one clip in the file: (num_frames, num_bins); what the model sees depends on context_clips, too
    "feature_attributes": str,  # the parameters that made the array, JSON
    "sample_rate": int,  # Hz
    "normalization": dict,  # {"mean": float, "std": float}, of the feature's values
    "build": (
        str,
        type(None),
    ),  # the whole BuildConfig of that file, JSON: how to make the same features of other sound
    "plan_sha256": str,  # of the file that was trained on
    "thresholds": (list, type(None)),  # a score per class, chosen on the validation split; None without one
    "metrics": dict,  # the epoch's row of metrics.csv
    "smooth_clips": int,  # scores are averaged over so many neighbouring clips on each side
}
# What a checkpoint without a later field means: that of the versions before the field came.
LATER_FIELDS = {"smooth_clips": 0, "build": None}


# ------------------------------------------------------------------------------------------------ save and load


def save(path, contents):
    """Write ``contents`` to ``path`` so that at every instant the old file or the new one is there, whole.

    Raises
    ------
    CheckpointError
        If the disk is full or the file cannot be written. What was at ``path`` is untouched, and no other file is left.
    """
    path = Path(path)
    _require_plain(contents, "checkpoint")
    try:
        with files.replacing(path) as file:
            torch.save(contents, file)
            _seal(file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns the OSError of a short write into a RuntimeError about positions.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        kept = "the checkpoint before it is kept as it was" if path.exists() else "there is no checkpoint before it"
        raise CheckpointError(
            f"{files.explain(path, cause)}; {kept}: mend that and run the same command again"
        ) from error


def load(path):
    """Return the contents of the checkpoint at ``path``, tensors on the CPU.

    Raises
    ------
    CheckpointError
        If it is missing, cut, damaged, of another version or program, or holds anything but plain data.
    """
    try:
        with open(path, "rb") as file:
            _check_seal(path, file)
            file.seek(0)
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{path}: is a folder; expected a checkpoint: if it is a run's, give {Path(path) / 'best.pt'}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); expected a checkpoint, such as best.pt in a run's folder"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        # Reached only by files with a right checksum: made by someone who knows the format, or by another torch.
        raise CheckpointError(
            f"{path}: refused, for it holds something other than tensors, numbers and strings, and could run code: {error}"
        ) from error
    if isinstance(contents, dict):
        contents = LATER_FIELDS | contents
    _check_fields(path, contents)
    return contents


def digest(path):
    """Return the hexadecimal SHA-256 that a checkpoint's seal states; ``load`` compares it with the contents."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL_BYTES))
        seal = _SEAL.fullmatch(file.read())
    if seal is None:
        raise CheckpointError(f"{path}: was changed while it was in use: give the same command again")
    return seal[2].decode()


def load_model(path, device="cpu"):
    """Return ``(model, contents)``: the trained network in evaluation mode, and the checkpoint it came from.

    Raises
    ------
    CheckpointError
        As ``load``, and if the weights do not fit the model that the configuration describes.
    """
    contents = load(path)
    try:
        with torch.random.fork_rng([]):  # the caller's random state is not ours to change
            model = _create(contents)
        model.load_state_dict(contents["weights"])
    except (EgoAudioError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the model that its configuration describes: {error}"
        ) from error
    return model.to(device).eval(), contents


def describe_network(model):
    """Return the field ``network``: what a model's configuration does not say where its sizes came with published weights."""
    return model.network.config.to_json_string(use_diff=True) if hasattr(model, "network") else ""


def _create(contents):
    """Return the network of a checkpoint with weights yet to be loaded; published ones are not needed again."""
    stored = from_json(TrainConfig, contents["config"])
    config, context_clips = stored.model, stored.data.context_clips or 0
    if config.pretrained is None or config.model == "yamnet":  # whose sizes are always the same
        config = replace(config, pretrained=None)
        shape = joined_shape(contents["feature_shape"], context_clips)
        return create_model(config.model, len(contents["class_ids"]), shape, config, context_clips=context_clips)
    from egoaudio.models.transformer import ASTConfig, AudioTransformer

    sizes = ASTConfig(attn_implementation="sdpa", **json.loads(contents["network"]))
    return AudioTransformer(sizes, config.patchout or 0.0)


def _seal(file):
    """Append the seal to the zip archive that ``file`` holds, as the archive's comment."""
    file.seek(-2, os.SEEK_END)  # the archive's last two bytes are its comment's length
    file.write(_SEAL_BYTES.to_bytes(2, "little"))
    file.seek(0)
    digest = _sha256(file, None)
    file.write(f"egoaudio checkpoint {VERSION} sha256={digest}\n".encode())


def _check_seal(path, file):
    """Raise CheckpointError unless ``file`` ends in our seal and the seal's checksum holds."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEAL_BYTES))
    seal = _SEAL.fullmatch(file.read())
    if seal is None:
        file.seek(0)
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            raise CheckpointError(
                f"{path}: is an HDF5 file, expected a checkpoint: the checkpoint comes first, then the file with the clips"
            )
        raise CheckpointError(
            f"{path}: {size} bytes that do not end as a checkpoint of egoaudio does: it was cut off, or another program wrote it"
        )
    version, expected = int(seal[1]), seal[2].decode()
    if version != VERSION:
        raise CheckpointError(f"{path}: a checkpoint of version {version}; this egoaudio reads version {VERSION}")
    file.seek(0)
    found = _sha256(file, size - _SEAL_BYTES)
    if found != expected:
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {found[:12]}..., written was {expected[:12]}...; use another copy"
        )


def _sha256(file, num_bytes):
    """Return the hexadecimal SHA-256 of the next ``num_bytes`` of ``file``, or of all that is left of it."""
    digest, left = hashlib.sha256(), num_bytes
    while block := file.read(1 << 20 if left is None else min(left, 1 << 20)):
        digest.update(block)
        left = None if left is None else left - len(block)
    return digest.hexdigest()


def _check_fields(path, contents):
    """Raise CheckpointError unless every field is there with its type."""
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, expected a dictionary")
    for name, kinds in FIELDS.items():
        if name not in contents:
            raise CheckpointError(f"{path}: has no {name!r}; expected {', '.join(FIELDS)}")
        if not isinstance(contents[name], kinds):
            raise CheckpointError(f"{path}: {name!r} is a {type(contents[name]).__name__}, expected {kinds}")


def _require_plain(value, where):
    """Hold what we write to what ``weights_only`` reads back; anything else is a mistake of ours."""
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


def describe_data(file, feature):
    """Return the fields of a checkpoint that say which data it belongs to; ``file`` is an open egoaudio file."""
    classes = file.class_table
    return {
        "class_ids": [text.decode() for text in classes["class_id"].tolist()],
        "class_names": [text.decode() for text in classes["name"].tolist()],
        "feature": feature,
        "feature_shape": [int(size) for size in file[feature].shape[1:]],
        "feature_attributes": json.dumps(file.attributes(feature), sort_keys=True),
        "sample_rate": int(file.sample_rate),
        "build": to_json(from_json(BuildConfig, json.dumps(file.config))),
        "plan_sha256": str(file.plan_sha256),
    }


# Options of a build that make other sound of the same recording, without a trace in the array's shape or attributes.
_SOUND = {
    "mode": "denoising",
    "scope": "scope of the denoising",
    "clip_seconds": "seconds of a clip",
    "context_seconds": "seconds of context",
}


def require_match(contents, file, same_plan=False):
    """Refuse a checkpoint whose classes or feature are not those of ``file``, naming both sides.

    With ``same_plan`` the file must also be a build of the same plan: a run goes on only with the data it began with,
    while a model may be evaluated on other recordings.

    Raises
    ------
    CheckpointError
        With every difference: what the checkpoint has, what the file has.
    """
    feature = contents["feature"]
    if feature not in file.features:
        has = ", ".join(file.features) or "no features"
        raise CheckpointError(
            f"{file.path} has no {feature}, which the checkpoint was trained on; it has {has}: rebuild with `features={(feature,)!r}`"
        )
    ours, theirs = contents, describe_data(file, feature)
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
    before, now = json.loads(ours["feature_attributes"]), json.loads(theirs["feature_attributes"])
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            problems.append(f"{name} of {feature}: checkpoint {before.get(name)}, file {now.get(name)}")
    if same_plan and ours["plan_sha256"] != theirs["plan_sha256"]:
        problems.append(
            f"plan_sha256: checkpoint {ours['plan_sha256'][:12]}..., file {theirs['plan_sha256'][:12]}... (built from other inputs or options)"
        )
    if problems:
        raise CheckpointError(f"the checkpoint does not fit {file.path}: " + "; ".join(problems))


def _class_difference(ours, theirs):
    """Return in words where two class lists part."""
    first = next(
        (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    one, other = (ids[first] if first < len(ids) else "none" for ids in (ours, theirs))
    return f"classes: checkpoint {len(ours)}, file {len(theirs)}; the first that differs is number {first}: checkpoint {one}, file {other}"
