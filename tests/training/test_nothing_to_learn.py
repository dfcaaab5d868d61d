"""Files with nothing to learn, and runs that learnt nothing, end in an error or a warning, never in quiet success."""

import subprocess
import sys

import numpy as np
import pytest
import small_runs

from egoaudio.data.splits import split_rows
from egoaudio.errors import StoreError, TrainingError
from egoaudio.evaluation import evaluate
from egoaudio.evaluation.ground_truth import read_ground_truth
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.models import checkpoints
from egoaudio.training import train
from egoaudio.training.validation import Validation, Validator


def edit(path, name, change):
    """Change an array of a file: ``change(rows, test, train)`` in place, with the rows of /clips of either split."""
    with EgoAudioFile(path) as file:
        rows = np.array(file[name] if name in file.features else getattr(file, name))
        test, trained = (
            np.flatnonzero((file.video_table["split"] == split)[file.clip_table["video"]])
            for split in (b"test", b"train")
        )
    change(rows, test, trained)
    with RowWriter(path, offsets(path)) as writer:
        writer.write(name, 0, rows)
    return path


def run(path, folder, **changes):
    return train.train(path, folder, small_runs.make_config(**{"epochs": 1, **changes}))


def test_clips_that_are_all_unlabelled_are_named_as_such(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5", unlabelled=1.0)
    with pytest.raises(
        TrainingError,
        match="of 100 clips 100 have sound and 0 of those have labels: the annotations say nothing about them",
    ):
        run(path, tmp_path / "run")


def test_a_file_whose_only_class_is_no_action_is_refused(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5", num_classes=1)
    with pytest.raises(TrainingError, match="its only class is no_action, so there is nothing to learn"):
        run(path, tmp_path / "run")


def _erase(rows, *_):
    rows[:] = 0


def test_a_file_without_positives_is_refused(tmp_path):
    path = edit(small_runs.make_file(tmp_path / "ego.h5"), "labels", _erase)
    with pytest.raises(TrainingError, match=r"no class is active in any of the \d+ clips to train on"):
        run(path, tmp_path / "run")


def test_a_validation_split_without_positives_is_refused(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5")
    config = small_runs.make_config(epochs=1)
    with EgoAudioFile(path) as file:
        held_out = split_rows(file, config.data, 0).validation
    edit(path, "labels", lambda rows, *_: rows.__setitem__(held_out, 0))
    with pytest.raises(TrainingError, match=r"no class is active in any of the \d+ clips of the validation split"):
        run(path, tmp_path / "run")
    assert "not validated" in str(run(path, tmp_path / "run", validation_fraction=0.0))


@pytest.mark.parametrize("changes", [{}, {"label_mode": "single"}])
def test_labels_other_than_0_and_1_are_not_learnt(tmp_path, changes):
    path = edit(
        small_runs.make_file(tmp_path / "ego.h5"),
        "labels",
        lambda rows, test, trained: rows.__setitem__((trained[3], 1), 2),
    )
    with pytest.raises(StoreError, match=r"/labels holds 2 in row 3, class c001: expected 0 or 1"):
        run(path, tmp_path / "run", **changes)


@pytest.mark.parametrize("name", ["labels", "video_labels"])
def test_labels_other_than_0_and_1_are_not_evaluated(tmp_path, name):
    path = edit(small_runs.make_file(tmp_path / "ego.h5"), name, lambda rows, *_: rows.__setitem__((-1, 1), 7))
    with EgoAudioFile(path) as file, pytest.raises(StoreError, match=rf"/{name} holds 7 in row \d+, class c001"):
        read_ground_truth(file, np.arange(file.num_clips))


def test_a_test_clip_that_holds_no_numbers_is_named_and_not_the_model(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5")
    run(path, tmp_path / "run")
    edit(path, "spectrogram", lambda rows, test, trained: rows.__setitem__(test[3], np.nan))
    with pytest.raises(
        TrainingError,
        match=r"1 clips of a batch hold values that are not finite \(rows of the file: 83\): check .* egoaudio-inspect",
    ):
        evaluate.evaluate(tmp_path / "run/best.pt", path)


def test_an_evaluation_without_positives_says_so(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5")
    run(path, tmp_path / "run")
    edit(path, "labels", lambda rows, test, trained: rows.__setitem__(test, 0))
    assert "note: no class is active in any of these clips" in str(evaluate.evaluate(tmp_path / "run/best.pt", path))


def test_a_run_that_classifies_nothing_correctly_ends_with_a_warning(tmp_path, monkeypatch):
    path = small_runs.make_file(tmp_path / "ego.h5")
    nothing = Validation(1.0, 0.0, 0.4, 0.3, 0.2, 0.3, 0.1, 0, [0.5] * 5)
    monkeypatch.setattr(Validator, "__call__", lambda self: nothing)
    monkeypatch.setattr(Validator, "calibrate", lambda self: {})
    assert "warning: no clip of the validation split was classified correctly" in str(run(path, tmp_path / "run"))


def test_a_run_begun_by_another_version_is_resumed_with_a_warning(tmp_path, capsys):
    path = small_runs.make_file(tmp_path / "ego.h5")
    whole = run(path, tmp_path / "run")
    contents = checkpoints.load(whole.last)
    contents["resume"]["state"] |= {"finished": False, "epoch": 0, "history": []}
    checkpoints.save(whole.last, {**contents, "egoaudio_version": "0.0.7"})
    run(path, tmp_path / "run")
    assert "the run was begun by egoaudio 0.0.7, and this is" in capsys.readouterr().err


def test_a_source_of_rows_ends_quietly_with_the_interpreter(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5")
    code = f"""
import builtins, os
from egoaudio.data.rows import RowSource
builtins.kept = RowSource({str(path)!r}, "spectrogram")
del os.close
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
