"""The ground truth of an evaluation, read from a file."""

import types

import numpy as np
import pytest
import synthetic

from egoaudio.errors import EvaluationError, StoreError
from egoaudio.evaluation.ground_truth import class_frequencies, read_ground_truth
from egoaudio.hdf5 import reader


@pytest.fixture
def file(tmp_path):
    """A file of 8 videos of 5 clips; number 3 failed, and clip 7 holds no sound."""
    with reader.open(
        synthetic.make_file(
            tmp_path / "ego.h5", 8, 5, features={"mfcc": (4, 3)}, num_classes=10, failed=(3,), silent_clips=(7,)
        )
    ) as file:
        yield file


def facts(file, **changes):
    """Return what ``read_ground_truth`` reads of a file, with changes."""
    names = (
        "path",
        "clip_table",
        "video_table",
        "class_table",
        "num_videos",
        "num_classes",
        "labels",
        "video_labels",
        "instances",
    )
    return types.SimpleNamespace(**{**{name: getattr(file, name) for name in names}, **changes})


def test_everything_is_that_of_the_clips_and_videos_asked_for(file):
    truth = read_ground_truth(file, [22, 10, 5], [1, 2, 3, 4])
    np.testing.assert_array_equal(truth.labels, file.labels[[22, 10, 5]])
    np.testing.assert_array_equal(truth.labelled, file.clip_table["labelled"][[22, 10, 5]])
    np.testing.assert_array_equal(truth.clip_video, [3, 1, 0])
    np.testing.assert_array_equal(truth.start_seconds, [2, 0, 0])
    np.testing.assert_array_equal(truth.stop_seconds, [3, 1, 1])
    assert truth.video_ids == ("V0001EGO", "V0002EGO", "V0003EGO", "V0004EGO")
    np.testing.assert_array_equal(truth.video_labels, file.video_labels[1:5, :9])
    assert (truth.class_ids[-1], truth.class_names[0], truth.num_actions) == ("no_action", "Action 0", 9)
    expected = [
        (row["video"] - 1, row["class_index"], row["start_seconds"], row["stop_seconds"])
        for row in file.instances[1:5]
        if row["class_index"] < 9
    ]
    assert truth.instances.tolist() == expected


def test_without_videos_those_of_the_clips_are_taken(file):
    assert read_ground_truth(file, [22, 10, 11]).video_ids == ("V0002EGO", "V0004EGO")


def test_a_file_without_no_action_has_only_actions(file):
    classes = file.class_table.copy()
    classes["class_id"][-1] = b"c009"
    truth = read_ground_truth(facts(file, class_table=classes), [0])
    assert truth.num_actions == 10 and truth.video_labels.shape == (1, 10)


def test_a_file_without_instances_has_no_times(file):
    assert read_ground_truth(facts(file, instances=file.instances[:0]), [0]).instances is None


def test_the_file_itself_is_not_changed(file):
    before = file.instances.tolist()
    read_ground_truth(file, [22])
    assert file.instances.tolist() == before


def test_frequencies_are_shares_of_the_rows(file):
    np.testing.assert_allclose(class_frequencies(file.labels, np.array([1, 2, 8])), file.labels[[1, 2, 8]].mean(axis=0))


def test_the_last_annotated_time_stands_in_for_the_length_of_a_video_without_sound(file):
    videos = file.video_table.copy()
    videos["duration_seconds"][3] = 0
    instances = file.instances.copy()
    instances[[3, 4]] = [(3, 1, 7.5, 2.0), (4, 1, 0.0, 99.0)]
    truth = read_ground_truth(facts(file, video_table=videos, instances=instances), [10], [2, 3, 4])
    np.testing.assert_array_equal(truth.video_seconds, [5, 7.5, 5])


def test_clips_of_other_videos_are_refused(file):
    with pytest.raises(EvaluationError, match="V0001EGO"):
        read_ground_truth(file, [5], [0, 3])


def test_damaged_instances_are_refused(file):
    bad = file.instances.copy()
    bad["video"][3] = 99
    with pytest.raises(StoreError, match="row 3 of /instances"):
        read_ground_truth(facts(file, instances=bad), [0])
