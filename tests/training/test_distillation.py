"""Distillation: the loss follows its formula, each clip gets its own scores, a stopped run resumes."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_runs import HARD, SHAPE, assert_same_run, make_config, make_file, on_step, table, weights
from small_steps import batch, catch_gradient, make_stepper
from torch.nn import functional

from egoaudio import cli
from egoaudio.config.options import from_json
from egoaudio.config.train import DistillationConfig, TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.splits import split_rows
from egoaudio.errors import CheckpointError, ConfigurationError, TrainingError
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints
from egoaudio.training import distillation, train
from egoaudio.training.distillation import DistillationLoss, TeacherScores
from egoaudio.training.losses import Loss

FEATURES = {"spectrogram": SHAPE, "mfcc": (8, 12)}


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    """Draw no curves, which takes longer than the runs here."""
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("data") / "ego.h5", features=FEATURES)


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """Return the checkpoints of two teachers of ``multi`` and one of ``single``, on different features."""
    folder, found = tmp_path_factory.mktemp("teachers"), {}
    for name, changes in (
        ("mfcc", {"feature": "mfcc"}),
        ("spectrogram", {"batch_size": 8}),
        ("single", {"feature": "mfcc", "label_mode": "single"}),
    ):
        train.train(data, folder / name, make_config(epochs=6, learning_rate=3e-3, **changes))
        found[name] = str(folder / name / "best.pt")
    return found


def targets(num_clips=12, seed=0, single=False):
    """Return logits, labels and teacher's scores of random clips."""
    generator = torch.Generator().manual_seed(seed)
    logits, theirs = (2 * torch.randn(num_clips, 5, generator=generator) for _ in range(2))
    if single:
        return logits, functional.one_hot(torch.randint(5, (num_clips,), generator=generator), 5).float(), theirs
    return logits, (torch.rand(num_clips, 5, generator=generator) < 0.4).float(), theirs


# ----------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("class_weights", [None, [0.2, 1.0, 3.0, 0.5, 2.0]])
def test_the_loss_of_many_labels_is_its_formula(class_weights):
    logits, labels, theirs = targets()
    temperature, weight = 2.5, 0.3
    loss = DistillationLoss(Loss("multi", class_weights), DistillationConfig(("a",), weight, temperature))
    found = loss.mean(logits, torch.cat((labels, (theirs / temperature).sigmoid()), dim=1))
    scale = None if class_weights is None else torch.tensor(class_weights)
    expected = (1 - weight) * functional.binary_cross_entropy_with_logits(logits, labels, weight=scale)
    student, teacher = ((one / temperature).sigmoid() for one in (logits, theirs))
    soft = functional.binary_cross_entropy(student, teacher, weight=scale)
    torch.testing.assert_close(found, expected + weight * temperature**2 * soft)


@pytest.mark.parametrize("class_weights", [None, [0.2, 1.0, 3.0, 0.5, 2.0]])
def test_the_loss_of_one_label_is_its_formula(class_weights):
    logits, labels, theirs = targets(single=True)
    temperature, weight = 2.5, 0.3
    loss = DistillationLoss(Loss("single", class_weights), DistillationConfig(("a",), weight, temperature))
    found = loss.mean(logits, torch.cat((labels, (theirs / temperature).softmax(dim=1)), dim=1))
    scale = torch.ones(5) if class_weights is None else torch.tensor(class_weights)
    expected = (1 - weight) * functional.cross_entropy(logits, labels.argmax(dim=1), weight=scale)
    p, q = (theirs / temperature).softmax(dim=1), (logits / temperature).softmax(dim=1)
    of_clips = (p * (p.log() - q.log())).sum(dim=1)
    share = scale[labels.argmax(dim=1)]
    torch.testing.assert_close(found, expected + weight * temperature**2 * (of_clips * share).sum() / share.sum())


def test_next_to_no_share_is_the_labels_loss_and_all_is_the_teachers():
    logits, labels, theirs = targets()
    both = torch.cat((labels, theirs.sigmoid()), dim=1)
    none, all_ = (DistillationLoss(Loss("multi"), DistillationConfig(("a",), weight)) for weight in (1e-9, 1.0))
    torch.testing.assert_close(none.mean(logits, both), Loss("multi").mean(logits, labels))
    soft = functional.binary_cross_entropy_with_logits(logits, theirs.sigmoid())
    torch.testing.assert_close(all_.mean(logits, both), soft)


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_any_cut_of_a_batch_gives_the_same_gradient(label_mode, monkeypatch):
    single = label_mode == "single"
    _, labels, theirs = targets(64, single=single)
    scores = theirs.softmax(dim=1) if single else theirs.sigmoid()
    features = batch()[0]
    monkeypatch.setattr("small_steps.batch", lambda: (features, torch.cat((labels, scores), dim=1)))
    loss = DistillationLoss(Loss(label_mode, [0.2, 1.0, 3.0, 0.5, 2.0]), DistillationConfig(("a",), 0.6, 2.0))
    whole, cut = (catch_gradient(make_stepper("cnn", loss, micro_batch_size=size)) for size in (64, 7))
    assert float((cut - whole).norm() / whole.norm()) < 1e-5
    without = DistillationLoss(loss.loss, DistillationConfig(("a",), 1e-9))
    labels_only = catch_gradient(make_stepper("cnn", without, micro_batch_size=64))
    assert float((labels_only - whole).norm() / whole.norm()) > 0.05


# --------------------------------------------------------------------------------------------------------- the batches


def test_mixup_mixes_the_teachers_scores_as_it_mixes_the_labels(data):
    dataset = ClipDataset(data, "spectrogram")
    with reader.open(data) as file:
        of_rows = np.asarray(file.labels, np.float32)[dataset.rows]  # a teacher that repeats the labels
    config = make_config(mixup=0.5, gain_db=5.0, shuffle="block").data
    loader = Loader(dataset, 16, config, training=True, teacher=TeacherScores(dataset.rows, of_rows, {}, False))
    mixed = 0
    for found in loader.epoch(0):
        labels, scores = found.labels.chunk(2, dim=1)
        assert torch.equal(labels, scores)
        mixed += int(((labels > 0) & (labels < 1)).any(dim=1).sum())
    assert mixed > 10


@pytest.mark.parametrize("label_mode", ["multi", "single"])
@pytest.mark.parametrize("loader_workers", [0, 1])
def test_each_clip_comes_with_its_own_scores(data, label_mode, loader_workers):
    dataset = ClipDataset(data, "spectrogram", label_mode=label_mode)
    rows = np.unique(dataset.rows)
    scores = np.stack([rows, -rows], axis=1).astype(np.float32)
    config = make_config(loader_workers=loader_workers, balanced_sampling=True).data
    loader = Loader(dataset, 16, config, training=True, teacher=TeacherScores(rows, scores, {}, False))
    for found in loader.epoch(0):
        assert found.labels.shape[1] == 5 + 2
        assert np.array_equal(found.labels[:, 5:].numpy(), np.stack([found.rows, -found.rows], axis=1))


def test_the_scores_are_the_mean_of_what_the_teachers_say_of_the_clean_clips(tmp_path, data, teachers):
    chosen = teachers["mfcc"], teachers["spectrogram"]
    config = make_config(epochs=1, teacher=chosen, teacher_temperature=2.0, gain_db=6.0, mixup=0.4)
    train.train(data, tmp_path / "run", config)
    with np.load(tmp_path / "run/teacher.npz") as stored, reader.open(data) as file:
        rows = split_rows(file, config.data, config.optimization.seed).train
        assert np.array_equal(stored["rows"], rows)
        expected = 0
        for teacher in chosen:
            model, contents = checkpoints.load_model(teacher)
            mean, std = contents["normalization"]["mean"], contents["normalization"]["std"]
            features = torch.from_numpy((np.asarray(file[contents["feature"]])[rows] - mean) / std).float()
            expected = expected + (model(features).detach() / 2.0).sigmoid().numpy() / 2
        np.testing.assert_allclose(stored["scores"], expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ the runs


def test_a_student_of_nothing_but_a_teacher_learns_its_classes(tmp_path, data, teachers):
    """The labels have no weight: the student learns from the teacher alone, which was trained on another feature."""
    config = make_config(epochs=8, teacher=(teachers["mfcc"],), teacher_weight=1.0, learning_rate=3e-3)
    train.train(data, tmp_path / "run", config)
    rows = table(tmp_path / "run")
    assert float(rows[-1]["map"]) > 0.8 > float(rows[0]["train_loss"])
    stored = from_json(TrainConfig, checkpoints.load(tmp_path / "run/best.pt")["config"])
    assert stored.distillation == DistillationConfig((teachers["mfcc"],), 1.0)


def test_the_validation_loss_is_that_of_the_labels(tmp_path, data, teachers):
    """Nothing is learnt at so small a learning rate: with and without a teacher the weights get the same loss."""
    found = []
    for changes in ({}, {"teacher": (teachers["mfcc"],), "teacher_weight": 0.9}):
        train.train(data, tmp_path / "run", make_config(epochs=1, learning_rate=1e-12, **changes), force=True)
        found.append(table(tmp_path / "run")[0])
    assert float(found[0]["val_loss"]) == pytest.approx(float(found[1]["val_loss"]), rel=1e-5)
    assert float(found[0]["train_loss"]) != pytest.approx(float(found[1]["train_loss"]), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "stops"),
    [
        ("mfcc", HARD, [0, 5, 2]),
        ("single", {"label_mode": "single", "mixup": 0.4}, [7]),
        ("mfcc", {"loader_workers": 1}, [4]),
    ],
)
def test_interrupted_and_run_again_it_ends_in_the_same_weights_and_scores_once(
    tmp_path, data, teachers, monkeypatch, name, changes, stops
):
    config = make_config(**changes, teacher=(teachers[name],), teacher_temperature=2.0)
    train.train(data, tmp_path / "whole", config)
    scored, score = [], distillation._score

    def score_otherwise_each_time(*arguments):
        scored.append(1)
        return score(*arguments) + np.float32(1e-3 * (len(scored) - 1))

    monkeypatch.setattr(distillation, "_score", score_otherwise_each_time)
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            train.train(data, tmp_path / "stopped", config)
    train.train(data, tmp_path / "stopped", config)
    assert scored == [1]
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def stop_at(step, data, folder, config, monkeypatch):
    """Begin a run and interrupt it at a step."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        on_step(patch, {step: lambda: signal.raise_signal(signal.SIGINT)})
        train.train(data, folder, config)


def test_a_run_keeps_the_scores_it_began_with_though_the_teacher_is_gone_or_another(
    tmp_path, data, teachers, monkeypatch
):
    teacher = str(shutil.copy(teachers["mfcc"], tmp_path / "teacher.pt"))
    config = make_config(teacher=(teacher,))
    train.train(data, tmp_path / "whole", config)
    stop_at(3, data, tmp_path / "run", config, monkeypatch)
    shutil.copy(teachers["spectrogram"], teacher)
    with pytest.warns(UserWarning, match=f"`teacher=.{teacher}.` has changed since the run began"):
        stop_at(1, data, tmp_path / "run", config, monkeypatch)
    os.unlink(teacher)
    train.train(data, tmp_path / "run", config)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def of_another_run(path):
    identity = np.array(json.dumps({"plan_sha256": "f" * 64}))
    np.savez(path, rows=np.arange(3), scores=np.zeros((3, 5), np.float32), identity=identity)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-500]),
            "cannot be read .*: the teachers score again, which may",
        ),
        (lambda path: path.write_bytes(b"scores"), "cannot be read"),
        (of_another_run, "belongs to another run: the teachers score again"),
    ],
)
def test_scores_that_cannot_be_used_are_computed_again_and_said_so(
    tmp_path, data, teachers, monkeypatch, change, words
):
    config = make_config(teacher=(teachers["mfcc"],))
    train.train(data, tmp_path / "whole", config)
    stop_at(3, data, tmp_path / "run", config, monkeypatch)
    change(tmp_path / "run/teacher.npz")
    with pytest.warns(UserWarning, match=words):
        train.train(data, tmp_path / "run", config)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/teacher.npz").read_bytes() == (tmp_path / "whole/teacher.npz").read_bytes()


def test_killed_before_the_scores_were_written_it_scores_again(tmp_path, data, teachers, monkeypatch):
    config = make_config(teacher=(teachers["mfcc"],))
    train.train(data, tmp_path / "whole", config)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TeacherScores, "save", lambda self, folder: signal.raise_signal(signal.SIGINT))
        train.train(data, tmp_path / "run", config)
    train.train(data, tmp_path / "run", config)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_new_run_by_force_forgets_the_old_ones_scores(tmp_path, data, teachers):
    for name in ("mfcc", "spectrogram"):
        train.train(data, tmp_path / name, make_config(epochs=1, teacher=(teachers[name],)))
    train.train(data, tmp_path / "mfcc", make_config(epochs=1, teacher=(teachers["spectrogram"],)), force=True)
    ours, theirs = weights(tmp_path / "mfcc"), weights(tmp_path / "spectrogram")
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    train.train(data, tmp_path / "mfcc", make_config(epochs=1), force=True)
    assert not (tmp_path / "mfcc/teacher.npz").exists()


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_classes": 6}, "classes: checkpoint 5, file 6"),
        ({"sample_rate": 8000}, "sample rate in Hz: checkpoint 16000, file 8000"),
        (
            {"features": {"spectrogram": SHAPE}},
            "has no mfcc, which .*; it has spectrogram: rebuild with `features=.*mfcc",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_the_file_is_refused_with_both_sides_named(tmp_path, teachers, changes, words):
    path = make_file(tmp_path / "other.h5", **{"features": FEATURES, **changes})
    words = f"`teacher=.{teachers['mfcc']}.`: .*{words}.*Give a teacher of the same classes"
    with pytest.raises(CheckpointError, match=words):
        train.train(path, tmp_path / "run", make_config(teacher=(teachers["mfcc"],)))
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith((".pt", ".npz", ".json"))]


@pytest.mark.parametrize(
    "name, error, words",
    [
        (
            "missing.pt",
            CheckpointError,
            "`teacher`: .*missing.pt: cannot be read .*expected a checkpoint, such as best.pt",
        ),
        ("", CheckpointError, "`teacher`: .*: is a folder, .*give .*best.pt"),
        ("notes.txt", CheckpointError, "`teacher`: .*notes.txt: 5 bytes that do not end as a checkpoint"),
        ("run/best.pt", ConfigurationError, "`teacher=.*run/best.pt.` is in .*run, where .*: give another `output`"),
        ("sub/../run/last.pt", ConfigurationError, "is in .*run"),
    ],
)
def test_what_is_no_teacher_is_refused_in_words(tmp_path, data, name, error, words):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "sub").mkdir()
    with pytest.raises(error, match=words):
        train.train(data, tmp_path / "run", make_config(teacher=(str(tmp_path / name),)))


def test_a_run_is_not_replaced_when_it_is_named_as_its_own_teacher(tmp_path, data):
    train.train(data, tmp_path / "run", make_config(epochs=1))
    with pytest.raises(TrainingError, match="best.pt: it is an input of this command"):
        train.train(data, tmp_path / "run", make_config(epochs=1, teacher=(str(tmp_path / "run/best.pt"),)), force=True)
    assert (tmp_path / "run/best.pt").exists()


def test_a_teacher_of_another_label_mode_is_refused(tmp_path, data, teachers):
    with pytest.raises(ConfigurationError, match="was trained with `label_mode=.single.` and this run has .multi."):
        train.train(data, tmp_path / "run", make_config(teacher=(teachers["single"],)))


def test_a_teacher_whose_scores_are_no_numbers_is_refused(tmp_path, data, teachers):
    contents = checkpoints.load(teachers["mfcc"])
    name = [key for key in contents["weights"] if key.endswith("bias")][-1]
    contents["weights"][name] = contents["weights"][name] * float("nan")
    checkpoints.save(tmp_path / "bad.pt", contents)
    with pytest.raises(
        TrainingError, match=r"bad.pt.` gives \d+ clips scores that are not numbers, the first in row 0"
    ):
        train.train(data, tmp_path / "run", make_config(teacher=(str(tmp_path / "bad.pt"),)))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"teacher_weight": 0.3}, "`teacher_weight=0.3` has no effect without `teacher`"),
        ({"teacher_temperature": 2.0}, "`teacher_temperature=2` has no effect without `teacher`"),
        ({"teacher": ("a",), "teacher_weight": 1.5}, "`teacher_weight=1.5`: expected 0 to 1"),
        ({"teacher": "a.pt"}, "`teacher='a.pt'`: expected tuple"),
        ({"teacher": (3,)}, "expected paths of checkpoints as text"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused(values, words):
    with pytest.raises(ConfigurationError, match=words):
        DistillationConfig(**values)


def test_a_teacher_that_learnt_what_validates_the_student_is_told_of(tmp_path, data, teachers):
    config = make_config(epochs=1, seed=1, teacher=(teachers["mfcc"],))
    with pytest.warns(UserWarning, match=r"trained on \d+ clips that this run holds out for validation"):
        train.train(data, tmp_path / "run", config)


def test_the_command_takes_several_teachers(tmp_path, data, teachers):
    arguments = [str(data), "--output", str(tmp_path / "run"), "--model", "cnn", "--epochs", "1"]
    both = f"{teachers['mfcc']}, {teachers['spectrogram']}"
    result = CliRunner().invoke(cli.train, [*arguments, "--teacher", both, "--teacher-weight", "0.4"])
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "run/config.json").read_text())["options"]
    assert stored["teacher"] == [teachers["mfcc"], teachers["spectrogram"]] and stored["teacher_weight"] == 0.4
