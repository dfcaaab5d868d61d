"""Labels of clips and of whole videos, against a reading of the rules one clip and one instance at a time."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clips import RATES, configs, exact

from egoaudio.audio.clips import place_clips, plan_clips
from egoaudio.audio.labels import label_clips, label_videos
from egoaudio.config.build import ClipConfig
from egoaudio.inputs.videos import Instance, Video, Videos


def slow_labels(plan, instances, num_classes, config):
    """Ask every instance about every clip, in exact seconds."""
    end = Fraction(plan.recording_samples, plan.sample_rate)
    kept = [
        (i.class_index, exact(i.start_seconds), exact(i.stop_seconds))
        for i in instances
        if i.start_seconds <= i.stop_seconds
    ]
    annotated_end = max((min(stop, end) for _, _, stop in kept), default=0)
    labels, labelled = [], []
    for start, samples in zip(plan.starts.tolist(), plan.num_samples.tolist(), strict=True):
        clip_start, clip_stop = Fraction(start, plan.sample_rate), Fraction(start + samples, plan.sample_rate)
        row = [0] * num_classes
        for class_index, begin, stop in kept:
            if min(stop, end, clip_stop) - max(begin, clip_start) > exact(config.min_overlap_seconds):
                row[class_index] = 1
        says_something = config.no_action != "interior" or clip_start < annotated_end
        if config.no_action != "none" and not any(row) and says_something:
            row[-1] = 1
        labels.append(row)
        labelled.append(int(says_something))
    return np.array(labels, np.uint8).reshape(-1, num_classes), np.array(labelled, np.uint8)


seconds = st.one_of(
    st.integers(0, 3000).map(lambda n: n / 100), st.floats(0, 30, allow_nan=False), st.sampled_from([0.0, 1.0, 1e9])
)
instances_lists = st.lists(st.builds(Instance, st.integers(0, 4), seconds, seconds), max_size=12)


def columns(instances):
    """Return the instances of each recording as ``label_clips`` takes them: rows, and where each recording's are."""
    videos = Videos.of([Video("A", "train", "", "", True, tuple(those)) for those in instances])
    return videos.instances, videos.bounds


# ------------------------------------------------------------------------------------------------ the labels


@settings(max_examples=300, deadline=None)
@given(
    config=configs(),
    sample_rate=st.sampled_from(RATES),
    recordings=st.lists(st.tuples(st.integers(0, 60_000), instances_lists), max_size=4),
)
def test_labels_equal_the_rules_clip_by_clip(config, sample_rate, recordings):
    plans = [plan_clips(samples, config, sample_rate) for samples, _ in recordings]
    num_classes = 6 if config.no_action != "none" else 5
    placed = place_clips(np.array([samples for samples, _ in recordings], np.int64), config, sample_rate)
    labels, labelled = label_clips(placed, *columns([those for _, those in recordings]), num_classes, config)
    assert labels.dtype == labelled.dtype == np.uint8 and labels.shape == (placed.num_clips, num_classes)
    for plan, (_, those), first in zip(plans, recordings, placed.first.tolist(), strict=False):
        expected, expected_labelled = slow_labels(plan, those, num_classes, config)
        np.testing.assert_array_equal(labels[first : first + plan.num_clips], expected)
        np.testing.assert_array_equal(labelled[first : first + plan.num_clips], expected_labelled)


@pytest.mark.parametrize("least_seconds", [0.0, 0.1, 1e-7, 0.123456789012345])
def test_times_of_any_number_of_decimals_are_exact(least_seconds):
    """Whole microseconds are computed in 64 bits, other times in fractions."""
    rng, config = np.random.default_rng(0), ClipConfig(clip_seconds=0.1, min_overlap_seconds=least_seconds)
    times = np.sort(rng.uniform(0, 4, (200, 2)), axis=1)
    for decimals in (1, 2, 6, 7, 12):
        those = [Instance(k % 5, *pair) for k, pair in enumerate(np.round(times, decimals).tolist())]
        plan = plan_clips(160_001, config, 44100)
        labels, _ = label_clips(place_clips([160_001], config, 44100), *columns([those]), 6, config)
        np.testing.assert_array_equal(labels, slow_labels(plan, those, 6, config)[0])


def labels_of(instances, recording_seconds=4.0, sample_rate=1000, **options):
    """Label one class and no_action; return the class's column, no_action's, and ``labelled``."""
    config = ClipConfig(**options)
    placed = place_clips([round(recording_seconds * sample_rate)], config, sample_rate)
    labels, labelled = label_clips(placed, *columns([[Instance(0, *times) for times in instances]]), 2, config)
    return labels[:, 0].tolist(), labels[:, 1].tolist(), labelled.tolist()


@pytest.mark.parametrize(
    ("instances", "on"),
    [
        ([], [0, 0, 0, 0]),
        ([(1.0, 2.0)], [0, 1, 0, 0]),  # touching is not overlapping
        ([(0.999, 2.001)], [1, 1, 1, 0]),
        ([(1.9999999, 2.0000001)], [0, 1, 1, 0]),  # less than a sample, yet some
        ([(1.5, 1.5)], [0, 0, 0, 0]),
        ([(3.0, 1.0)], [0, 0, 0, 0]),  # reversed
        ([(3.5, 99.0)], [0, 0, 0, 1]),  # cut at the end
        ([(4.0, 5.0), (6.0, 7.0)], [0, 0, 0, 0]),
        ([(2.0, 3.0), (0.0, 0.5), (2.0, 3.0)], [1, 0, 1, 0]),
    ],
)
def test_a_class_is_on_where_it_overlaps(instances, on):
    assert labels_of(instances) == (on, [1 - one for one in on], [1, 1, 1, 1])


@pytest.mark.parametrize(("stop", "on"), [(1.29, [1, 0, 0, 0]), (1.3, [1, 0, 0, 0]), (1.301, [1, 1, 0, 0])])
def test_an_overlap_must_be_more_than_the_minimum(stop, on):
    assert labels_of([(0.1, stop)], min_overlap_seconds=0.3)[0] == on


def test_a_minimum_as_long_as_the_last_clip_leaves_that_clip_off():
    assert labels_of([(0.0, 9.0)], recording_seconds=2.6, min_overlap_seconds=0.6)[0] == [1, 1, 0]


@pytest.mark.parametrize(("least", "on"), [(0.999, [1, 1, 1, 1]), (1.0, [0, 0, 0, 0]), (1.5, [0, 0, 0, 0])])
def test_no_clip_can_overlap_by_more_than_its_length(least, on):
    assert labels_of([(0.0, 9.0)], min_overlap_seconds=least)[0] == on


def test_tenths_of_a_second_fall_where_they_are_written():
    # in binary floating point 3 * 0.1 > 0.3, and the third clip would be on
    on, _, _ = labels_of([(0.3, 0.7)], recording_seconds=1.0, sample_rate=16000, clip_seconds=0.1)
    assert on == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_interior_leaves_clips_after_the_last_annotated_end_unlabelled():
    assert labels_of([(1.0, 2.5), (3.9, 0.5)], no_action="interior") == ([0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0])


def test_interior_without_any_action_labels_nothing():
    assert labels_of([], no_action="interior") == ([0] * 4, [0] * 4, [0] * 4)


def test_without_a_no_action_class_all_columns_are_the_annotation():
    assert labels_of([(1.0, 2.0)], no_action="none") == ([0, 1, 0, 0], [0] * 4, [1] * 4)


def test_context_does_not_change_the_labels():
    times = [(0.55, 0.95)]
    assert labels_of(times, clip_seconds=0.1, context_seconds=1.0) == labels_of(times, clip_seconds=0.1)


def test_a_video_has_its_reversed_classes_too_and_never_no_action():
    those = [Instance(2, 9.0, 1.0), Instance(0, 0.0, 1.0), Instance(0, 2.0, 3.0)]
    assert label_videos(*columns([those, [], those[:1]]), 5).tolist() == [[1, 0, 1, 0, 0], [0] * 5, [0, 0, 1, 0, 0]]
