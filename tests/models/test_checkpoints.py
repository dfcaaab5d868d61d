"""Checkpoints: written atomically, refused when damaged or foreign, unable to run code."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_flat, to_json
from egoaudio.config.train import ModelConfig, TrainConfig
from egoaudio.errors import CheckpointError
from egoaudio.models import checkpoints, create_model

NUM_MUTATIONS = 50


def make_contents(options=None, model=None, shape=(8, 16), num_classes=3, **changes):
    options = options or TrainConfig(model=ModelConfig(model="cnn"))
    torch.manual_seed(3)
    model = create_model(options.model.model, num_classes, shape, options.model) if model is None else model
    contents = {
        "egoaudio_version": "0.1.0",
        "config": to_json(options),
        "epoch": 2,
        "weights": dict(model.state_dict()),
        "network": checkpoints.describe_network(model),
        "class_ids": ["c000", "c001", "no_action"],
        "class_names": ["Holding", "Eating", "No action"],
        "feature": "spectrogram",
        "feature_shape": list(shape),
        "feature_attributes": json.dumps({"hop_length": 512, "n_fft": 2048}),
        "sample_rate": 16000,
        "normalization": {"mean": -4.5, "std": 2.25},
        "build": to_json(BuildConfig()),
        "plan_sha256": "a" * 64,
        "thresholds": [0.5, 0.25, 0.125],
        "calibration": {"method": "temperature", "slope": [0.5] * 3, "intercept": [0.0] * 3},
        "metrics": {"map": 0.5, "val_loss": None},
        "smooth_clips": 2,
    }
    return {**contents, **changes}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One good checkpoint; tests copy its bytes."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    checkpoints.save(path, make_contents())
    return path


def make_file(**changes):
    """Return what ``require_match`` asks of an open file."""
    classes = {"class_id": [b"c000", b"c001", b"no_action"], "name": [b"Holding", b"Eating", b"No action"]}
    fields = {
        "path": "/data/ego.h5",
        "features": ("spectrogram", "mfcc"),
        "sample_rate": 16000,
        "plan_sha256": "a" * 64,
        "shape": (100, 8, 16),
        "config": {},
        "parameters": {"n_fft": 2048, "hop_length": 512},
        "class_ids": classes["class_id"],
        **changes,
    }
    names = [b"name"] * len(fields["class_ids"])

    class File:
        path, features, sample_rate, plan_sha256, config = (
            fields[name] for name in ("path", "features", "sample_rate", "plan_sha256", "config")
        )
        class_table = {"class_id": np.array(fields["class_ids"]), "name": np.array(names)}

        def __getitem__(self, name):
            return types.SimpleNamespace(shape=fields["shape"])

        def attributes(self, name):
            return fields["parameters"]

    return File()


# ------------------------------------------------------------------------------------------------ save and load


def test_a_checkpoint_of_an_earlier_version_has_defaults_for_later_fields(tmp_path):
    contents = make_contents()
    del contents["smooth_clips"], contents["build"], contents["calibration"]
    checkpoints.save(tmp_path / "best.pt", contents)
    loaded = checkpoints.load(tmp_path / "best.pt")
    assert (loaded["smooth_clips"], loaded["build"], loaded["calibration"]) == (0, None, None)


def test_what_is_saved_comes_back_equal(saved):
    contents, expected = checkpoints.load(saved), make_contents()
    weights, expected_weights = contents.pop("weights"), expected.pop("weights")
    assert contents == expected
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


def test_the_model_comes_back_in_evaluation_mode_with_its_weights(saved):
    model, contents = checkpoints.load_model(saved)
    features = torch.randn(2, 8, 16)
    expected = create_model("cnn", 3, (8, 16))
    expected.load_state_dict(contents["weights"])
    assert not model.training
    assert torch.equal(model(features), expected(features))


def test_a_model_that_began_from_published_weights_is_loaded_without_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "published"
    sizes = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=64,
        num_mel_bins=32,
    )
    transformers.ASTModel(sizes).save_pretrained(folder)
    config = from_flat(TrainConfig, {"model": "ast", "pretrained": str(folder), "dropout": 0.25, "patchout": 0.4})
    model = create_model("ast", 3, (40, 32), config.model).eval()
    checkpoints.save(tmp_path / "best.pt", make_contents(config, model, (40, 32), feature="logmel"))
    folder.rename(tmp_path / "gone")
    loaded, _ = checkpoints.load_model(tmp_path / "best.pt")
    features = torch.randn(2, 40, 32)
    assert torch.equal(loaded(features), model(features))
    assert [str(part) for part in loaded.modules()] == [str(part) for part in model.modules()]


def test_it_is_a_plain_torch_file_and_a_plain_zip_archive(saved):
    assert torch.load(saved, weights_only=True)["epoch"] == 2
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"egoaudio checkpoint 1 sha256=")


def test_the_seal_is_the_checksum_of_all_bytes_before_it(saved):
    content = saved.read_bytes()
    seal = content[-94:]
    assert seal == f"egoaudio checkpoint 1 sha256={hashlib.sha256(content[:-94]).hexdigest()}\n".encode()


def test_saving_leaves_one_file(tmp_path):
    for _ in range(2):
        checkpoints.save(tmp_path / "last.pt", make_contents())
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("value", [object(), {1.5: 0}, {"a": [{"b": ModelConfig()}]}, Path("x")])
def test_values_that_could_not_be_read_back_are_not_written(tmp_path, value):
    with pytest.raises(AssertionError):
        checkpoints.save(tmp_path / "last.pt", make_contents(metrics={"x": value}))
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ damage, and worse


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def seal(content):
    """Return a torch archive with a right seal, as somebody who knows the format could make it."""
    content = content[:-2] + (94).to_bytes(2, "little")
    return content + f"egoaudio checkpoint 1 sha256={hashlib.sha256(content).hexdigest()}\n".encode()


def mutate(content, kind, rng):
    """Return ``content`` damaged at a random place."""
    at = rng.randrange(len(content))
    if kind == "truncated":
        return content[:at]
    if kind == "flipped byte":
        return content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]
    if kind == "zeroed block":
        block = bytes(min(512, len(content) - at))
        return (
            content[:at] + block + content[at + len(block) :]
            if content[at : at + len(block)] != block
            else content[:at]
        )
    if kind == "repeated part":
        return content[:at] + content[at // 2 :]
    return content + rng.randbytes(rng.randrange(1, 2000))  # appended to


KINDS = ("truncated", "flipped byte", "zeroed block", "repeated part", "appended to")


@pytest.mark.parametrize("number", range(NUM_MUTATIONS))
def test_a_mutated_checkpoint_is_refused(saved, tmp_path, number):
    rng = random.Random(number)
    path = tmp_path / "last.pt"
    path.write_bytes(mutate(saved.read_bytes(), KINDS[number % len(KINDS)], rng))
    with pytest.raises(CheckpointError, match="last.pt"):
        checkpoints.load(path)


def foreign(kind, trap, good, path):
    """Write a foreign file, which makes the folder ``trap`` if its code is run."""
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    elif kind == "old torch format":
        torch.save({"weights": Trap(trap)}, path, _use_new_zipfile_serialization=False)
    elif kind == "torch archive":
        torch.save({**make_contents(), "weights": Trap(trap)}, path)
    elif kind == "torch archive with our seal":
        torch.save({**make_contents(), "weights": Trap(trap)}, path)
        path.write_bytes(seal(path.read_bytes()))
    elif kind == "plain pickle with our seal":
        path.write_bytes(seal(pickle.dumps(Trap(trap), protocol=2) + b".."))
    elif kind == "whole module with our seal":
        torch.save(torch.nn.Linear(2, 2), path)
        path.write_bytes(seal(path.read_bytes()))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("plain pickle", "truncated, or another program"),
        ("old torch format", "truncated, or another program"),
        ("torch archive", "truncated, or another program"),
        ("torch archive with our seal", "could run code"),
        ("plain pickle with our seal", "could run code"),
        ("whole module with our seal", "could run code"),
    ],
)
def test_a_foreign_file_is_refused_and_its_code_never_runs(saved, tmp_path, kind, words):
    trap, path = tmp_path / "trap", tmp_path / "foreign.pt"
    foreign(kind, trap, saved, path)
    with pytest.raises(CheckpointError, match=words):
        checkpoints.load(path)
    assert not trap.exists()


def test_the_trap_would_run_if_it_were_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder, expected a checkpoint"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"checkpoint 1 sha", b"checkpoint 7 sha")),
            "version 7, and this egoaudio reads version 1",
        ),
        (lambda path: checkpoints.save(path, {"epoch": 1}), "has no 'egoaudio_version'"),
        (lambda path: checkpoints.save(path, make_contents(epoch="two")), "'epoch' is a str"),
        (lambda path: checkpoints.save(path, [1, 2]), "holds a list"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_named(saved, tmp_path, change, words):
    path = tmp_path / "best.pt"
    path.write_bytes(saved.read_bytes())
    change(path)
    with pytest.raises(CheckpointError, match=words):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {}},
        {"config": "{"},
        {"config": '{"epochz": 3}'},
        {"class_ids": ["c000"]},
        {"feature_shape": [64, 64]},
        {"feature_shape": ["a", "b"]},
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path, changes):
    checkpoints.save(tmp_path / "best.pt", make_contents(**changes))
    with pytest.raises(CheckpointError, match="that its configuration describes"):
        checkpoints.load_model(tmp_path / "best.pt")


def weights_of_the_first_small_cnn(num_classes=3):
    """Return a state of the first ``cnn-small``: three convolutions with batch norm, global average pooling."""
    channels = (1, 16, 32, 64)
    state = {}
    for block, (before, after) in enumerate(itertools.pairwise(channels)):
        state[f"convolutions.{block}.weight"] = torch.zeros(after, before, 3, 3)
        norm = torch.nn.BatchNorm2d(after).state_dict()
        state |= {f"norms.{block}.{name}": tensor for name, tensor in norm.items()}
    return state | {"classifier.weight": torch.zeros(num_classes, 64), "classifier.bias": torch.zeros(num_classes)}


def weights_of_a_wider_small_cnn():
    """Return a state of ``cnn-small`` with a hidden layer of 128, as it was for some time."""
    state = create_model("cnn-small", 3, (8, 16)).state_dict()
    hidden, classifier = state["hidden.weight"], state["classifier.weight"]
    wider = {"hidden.weight": torch.zeros(128, hidden.shape[1]), "hidden.bias": torch.zeros(128)}
    return state | wider | {"classifier.weight": torch.zeros(len(classifier), 128)}


def weights_of_a_small_cnn_of_one_map():
    """Return a state of ``cnn-small`` without the levels above each bin's mean."""
    state = create_model("cnn-small", 3, (8, 16)).state_dict()
    return state | {"convolutions.0.weight": torch.zeros(16, 1, 3, 3)}


@pytest.mark.parametrize(
    ("make_weights", "problem"),
    [
        (
            weights_of_a_small_cnn_of_one_map,
            r"convolutions.0.weight has shape \(16, 1, 3, 3\), expected \(16, 2, 3, 3\)",
        ),
        (weights_of_the_first_small_cnn, "there is no band_norm.running_mean"),
        (weights_of_a_wider_small_cnn, r"hidden.weight has shape \(128, \d+\), expected \(64, \d+\)"),
        (lambda: create_model("cnn", 3, (8, 16)).state_dict(), "there is no band_norm.running_mean"),
        (
            lambda: create_model("cnn-small", 3, (8, 16)).state_dict() | {"extra": torch.zeros(1)},
            "the model has no extra",
        ),
        (
            lambda: create_model("cnn-small", 3, (8, 16)).state_dict() | {"hidden.bias": [0.0] * 64},
            "hidden.bias is a list, expected a tensor",
        ),
    ],
)
def test_weights_of_another_network_are_refused_with_the_fix(tmp_path, make_weights, problem):
    options = TrainConfig(model=ModelConfig(model="cnn-small"))
    contents = make_contents(options, weights=dict(make_weights()), egoaudio_version="0.0.9")
    checkpoints.save(tmp_path / "best.pt", contents)
    words = (
        f"best.pt: its weights do not fit the model that its configuration describes: {problem}. It was written by "
        r"egoaudio 0.0.9, and cnn-small of this version \(.*\) is another network: train again, or use the version that"
    )
    with pytest.raises(CheckpointError, match=words):
        checkpoints.load_model(tmp_path / "best.pt")


# ------------------------------------------------------------------------------------------------ full disks


@contextlib.contextmanager
def small_files(num_bytes):
    """Limit the size of files this process writes; the kernel then refuses, as a full disk does.

    The limit is lifted before the test ends: the runner's own output may go to a longer file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 100, 5000, 20000, -1, -50, -95])
def test_a_full_disk_keeps_the_previous_checkpoint_and_leaves_nothing_else(tmp_path, room):
    path = tmp_path / "last.pt"
    checkpoints.save(path, make_contents(epoch=1))
    before = path.read_bytes()
    limit = room if room >= 0 else len(before) + room
    with (
        pytest.raises(CheckpointError, match=r"last.pt.*the previous checkpoint is unchanged"),
        small_files(limit),
    ):
        checkpoints.save(path, make_contents(epoch=2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_full_disk_without_a_previous_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="there is no previous checkpoint"), small_files(5000):
        checkpoints.save(tmp_path / "last.pt", make_contents())
    assert os.listdir(tmp_path) == []


def test_a_full_device_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(CheckpointError, match="no space left"):
        checkpoints.save(tmp_path / "last.pt", make_contents())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoints.save(tmp_path / "gone" / "last.pt", make_contents())


def test_an_interruption_while_writing_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoints.save(path, make_contents(epoch=1))
    monkeypatch.setattr(checkpoints.os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, make_contents(epoch=2))
    assert os.listdir(tmp_path) == ["last.pt"]
    assert checkpoints.load(path)["epoch"] == 1


def test_the_file_is_whole_and_on_disk_before_it_gets_its_name_and_the_name_is_synced_after(tmp_path, monkeypatch):
    path, calls = tmp_path / "last.pt", []
    checkpoints.save(path, make_contents(epoch=1))
    replace, fsync, sync_folder = os.replace, os.fsync, checkpoints.files.sync_folder

    def noted(temporary, final):
        calls.append(("rename", checkpoints.load(temporary)["epoch"], checkpoints.load(final)["epoch"]))
        replace(temporary, final)

    monkeypatch.setattr(checkpoints.os, "replace", noted)
    monkeypatch.setattr(checkpoints.os, "fsync", lambda descriptor: calls.append("sync") or fsync(descriptor))
    monkeypatch.setattr(
        checkpoints.files, "sync_folder", lambda path: calls.append("sync the folder") or sync_folder(path)
    )
    checkpoints.save(path, make_contents(epoch=2))
    assert calls[:3] == ["sync", ("rename", 2, 1), "sync the folder"]


def test_killed_while_writing_at_any_moment_a_whole_checkpoint_is_there(tmp_path):
    path = tmp_path / "last.pt"
    program = (
        "import sys, torch; from egoaudio.models import checkpoints; contents = checkpoints.load(sys.argv[1])\n"
        "while True: contents['epoch'] += 1; checkpoints.save(sys.argv[1], contents); "
        "print(contents['epoch'], flush=True)"
    )
    checkpoints.save(path, make_contents(epoch=0, weights={"a": torch.zeros(200_000)}))
    rng = random.Random(5)
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as child:
        for _ in range(rng.randrange(5, 15)):
            announced = int(child.stdout.readline())
        child.kill()
    assert checkpoints.load(path)["epoch"] >= announced


# ------------------------------------------------------------------------------------------------ fit to the data


def test_a_checkpoint_fits_the_file_it_came_from_and_other_recordings_of_the_same_kind():
    contents = {**make_contents(), **checkpoints.describe_data(make_file(), "spectrogram")}
    checkpoints.require_match(contents, make_file(), same_plan=True)
    checkpoints.require_match(contents, make_file(plan_sha256="b" * 64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ("mfcc",)}, r"ego.h5 has no spectrogram.*it has mfcc.*`features=.'mfcc', 'spectrogram'.`"),
        ({"sample_rate": 44100}, "sample rate in Hz: checkpoint 16000, file 44100"),
        ({"shape": (5, 4, 16)}, r"shape of spectrogram: checkpoint \[8, 16\], file \[4, 16\]"),
        ({"parameters": {"n_fft": 1024, "hop_length": 512}}, "n_fft of spectrogram: checkpoint 2048, file 1024"),
        ({"parameters": {"n_fft": 2048}}, "hop_length of spectrogram: checkpoint 512, file None"),
        ({"class_ids": [b"c000", b"c007", b"no_action"]}, "number 1: checkpoint c001, file c007"),
        (
            {"class_ids": [b"c000"]},
            "checkpoint 3, file 1; the first that differs is number 1: checkpoint c001, file none",
        ),
        ({"plan_sha256": "b" * 64}, r"plan_sha256: checkpoint aaaaaaaaaaaa\.\.\., file bbbbbbbbbbbb"),
    ],
)
def test_a_mismatch_with_the_data_is_refused_with_both_sides_named(changes, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoints.require_match(make_contents(), make_file(**changes), same_plan=True)
