"""Which clips are trained on: whole units are held out, only rows with data, the same for a seed."""

from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import make_file

from egoaudio.config.train import DataConfig
from egoaudio.data import splits
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("splits") / "ego.h5"
    make_file(path, num_videos=24, clips_per_video=9, failed=(3,), silent_clips=(0, 40), seed=5)
    with reader.open(path) as file:
        yield file


def units_of(file, rows, unit):
    video = file.clip_table["video"][rows]
    return set({"video": video, "subject": file.video_table["subject"][video], "clip": rows}[unit].tolist())


def stand_in(subjects, split="train", labelled=1):
    """Return tables of videos with four clips each, without a file."""
    videos = np.zeros(len(subjects), [("video_id", "S8"), ("split", "S10"), ("subject", "S8"), ("status", "u1")])
    videos["video_id"] = [f"V{k}" for k in range(len(subjects))]
    videos["split"], videos["subject"], videos["status"] = split, subjects, 1
    clips = np.zeros(4 * len(subjects), [("video", "i4"), ("labelled", "u1"), ("status", "u1")])
    clips["video"], clips["labelled"], clips["status"] = np.repeat(np.arange(len(subjects)), 4), labelled, 1
    usable = np.ones(len(clips), bool)
    return SimpleNamespace(
        path="ego.h5",
        video_table=videos,
        clip_table=clips,
        usable=usable,
        trainable=usable & (labelled == 1),
        num_clips=len(clips),
    )


def quiet_split(file, unit="video", fraction=0.25, seed=0):
    config = DataConfig(split_unit=unit, validation_fraction=fraction)
    if unit != "clip":
        return splits.split_rows(file, config, seed)
    with pytest.warns(UserWarning, match="neighbouring clips"):
        return splits.split_rows(file, config, seed)


@pytest.mark.parametrize("unit", ["video", "subject", "clip"])
def test_units_are_held_out_whole_and_nothing_is_lost(file, unit):
    split = quiet_split(file, unit, fraction=0.35)  # rounds up here, where int() would not
    assert not units_of(file, split.train, unit) & units_of(file, split.validation, unit)
    of_train_videos = (file.video_table["split"] == b"train")[file.clip_table["video"]]
    np.testing.assert_array_equal(
        np.sort(np.r_[split.train, split.validation]), np.flatnonzero(file.trainable & of_train_videos)
    )
    np.testing.assert_array_equal(split.test, np.flatnonzero(file.trainable & ~of_train_videos))
    num_units = len(units_of(file, np.r_[split.train, split.validation], unit))
    assert len(units_of(file, split.validation, unit)) == round(0.35 * num_units)


def test_only_rows_with_data_and_labels_are_used(file):
    split = quiet_split(file)
    rows = np.r_[split.train, split.validation, split.test]
    assert (file.clip_table["status"][rows] == 1).all() and (file.clip_table["labelled"][rows] == 1).all()
    assert 3 not in file.clip_table["video"][rows] and 40 not in rows
    assert len(rows) < np.count_nonzero(file.clip_table["status"] == 1)  # some clips are unlabelled


def test_the_seed_decides_the_split(file):
    again, other = quiet_split(file, seed=0), quiet_split(file, seed=1)
    np.testing.assert_array_equal(quiet_split(file, seed=0).validation, again.validation)
    assert not np.array_equal(other.validation, again.validation)


def test_the_order_of_the_videos_in_the_file_does_not_decide():
    forward, backward = stand_in(["A"] * 6), stand_in(["A"] * 6)
    backward.video_table["video_id"] = backward.video_table["video_id"][::-1].copy()
    held = [
        set(tables.video_table["video_id"][tables.clip_table["video"][quiet_split(tables).validation]].tolist())
        for tables in (forward, backward)
    ]
    assert held[0] == held[1]


def test_fraction_zero_holds_nothing_out_and_a_small_one_holds_one_out(file):
    assert len(quiet_split(file, fraction=0).validation) == 0
    assert len(units_of(file, quiet_split(file, fraction=0.001).validation, "video")) == 1
    assert len(units_of(file, quiet_split(file, fraction=0.999).train, "video")) == 1


@pytest.mark.parametrize(
    ("tables", "unit", "message"),
    [
        (stand_in(["A"]), "video", "a single video, which.*smaller unit, or `validation_fraction=0`"),
        (stand_in(["A", "A"]), "subject", "a single subject"),
        (
            stand_in(["A", ""]),
            "subject",
            "1 of the 2 train videos of ego.h5 name no subject: give `split_unit='video'`",
        ),
        (
            stand_in(["A", "B"], split="test"),
            "video",
            "none is in the split 'train' .the file's splits: test.*`annotations`",
        ),
        (stand_in(["A", "B"], labelled=0), "video", "8 clips 8 have sound and 0 of those have labels"),
    ],
)
def test_a_split_that_cannot_be_made_says_why_and_what_to_do(tables, unit, message):
    with pytest.raises(TrainingError, match=message):
        quiet_split(tables, unit)


def test_other_splits_are_named_when_they_are_ignored():
    tables = stand_in(["A", "B", "C"])
    tables.video_table["split"][2] = "validation"
    with pytest.warns(UserWarning, match="splits validation are ignored"):
        split = quiet_split(tables, fraction=0.5)
    assert max(np.r_[split.train, split.validation]) < 8


def test_an_empty_split_is_refused_when_it_is_asked_for():
    split = quiet_split(stand_in(["A", "B"]), fraction=0)
    np.testing.assert_array_equal(split.rows("train"), np.arange(8))
    with pytest.raises(TrainingError, match="'test' has no usable clips: build with `test_annotations`"):
        split.rows("test")
    with pytest.raises(TrainingError, match="`validation_fraction=0.2`"):
        split.rows("validation")


def test_a_subject_may_be_in_train_and_test():
    tables = stand_in(["A", "B", "A"])
    tables.video_table["split"][2] = "test"
    split = quiet_split(tables, "subject", 0.5)
    assert len(split.train) == len(split.validation) == len(split.test) == 4
