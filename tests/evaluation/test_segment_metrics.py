"""F1 of segments against sed_eval and psds_eval."""

import importlib.util
import sys
import types
import warnings

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egoaudio.evaluation import segment_metrics
from egoaudio.evaluation.segments import SEGMENT_DTYPE
from egoaudio.hdf5.schema import INSTANCE_DTYPE

if importlib.util.find_spec("pkg_resources") is None:
    # What sed_eval imports asks for it, and uses nothing of it; setuptools has it no longer.
    sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sed_eval
    from psds_eval import PSDSEval

LABELS = ("a", "b", "c")
times = st.integers(0, 80).map(lambda tenths: tenths / 8)  # eighths are exact: no library decides a tie by rounding
event = (
    st.tuples(st.integers(0, 2), times, times)
    .map(lambda one: (one[0], *sorted(one[1:])))
    .filter(lambda one: one[1] < one[2])
)
video = st.tuples(st.lists(event, max_size=6), st.lists(event, max_size=6), st.sampled_from([10.0, 10.5, 12.0]))
videos = st.lists(video, min_size=1, max_size=3)


def instances(events):
    table = np.zeros(len(events), INSTANCE_DTYPE)
    for row, (index, start, stop) in zip(table, events, strict=True):
        row["class_index"], row["start_seconds"], row["stop_seconds"] = index, start, stop
    return table


def as_segments(events):
    """Return events as segments: none of a class overlaps another."""
    merged = segment_metrics.true_events(instances(events), 1e9)
    table = np.zeros(len(merged), SEGMENT_DTYPE)
    for name in ("class_index", "start_seconds", "stop_seconds"):
        table[name] = merged[name]
    return table


def prepared(drawn):
    true = [segment_metrics.true_events(instances(events), length) for events, _, length in drawn]
    found = [as_segments(segments) for _, segments, _ in drawn]
    return true, found, [length for *_, length in drawn]


def as_dicts(table, file):
    columns = ("class_index", "start_seconds", "stop_seconds")
    return [
        {"event_label": LABELS[index], "event_onset": float(start), "event_offset": float(stop), "file": file}
        for index, start, stop in zip(*(table[name] for name in columns), strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(videos)
def test_events_and_seconds_are_those_of_sed_eval(drawn):
    true, found, lengths = prepared(drawn)
    events = sed_eval.sound_event.EventBasedMetrics(list(LABELS), t_collar=0.5, percentage_of_length=0.5)
    seconds = sed_eval.sound_event.SegmentBasedMetrics(list(LABELS), time_resolution=1.0)
    for number, (truth, segments, length) in enumerate(zip(true, found, lengths, strict=True)):
        references, estimates = as_dicts(truth, f"{number}.wav"), as_dicts(segments, f"{number}.wav")
        if references or estimates:  # it cannot count nothing
            events.evaluate(references, estimates)
            seconds.evaluate(references, estimates, evaluated_length_seconds=length)
    counts = segment_metrics.count_all(true, found, lengths, len(LABELS))
    for name, theirs in (("event_f1", events), ("segment_f1", seconds)):
        ours = counts[name]
        for column, label in enumerate(LABELS):
            expected = theirs.class_wise[label]
            assert [values[:, column].sum() for values in (ours.hits, ours.true, ours.claims)] == [
                expected["Ntp"], expected["Nref"], expected["Nsys"],
            ]  # fmt: skip
            if expected["Nref"]:
                value = theirs.class_wise_f_measure(label)["f_measure"]
                assert ours.f1()[column] == pytest.approx(0 if np.isnan(value) else value)
            else:
                assert np.isnan(ours.f1()[column])


@settings(max_examples=40, deadline=None)
@given(videos)
def test_intersections_are_those_of_psds_eval(drawn):
    true, found, lengths = prepared(drawn)

    def frame(tables):
        rows = [row for number, table in enumerate(tables) for row in as_dicts(table, str(number))]
        columns = {"file": "filename", "event_onset": "onset", "event_offset": "offset"}
        names = ["filename", "onset", "offset", "event_label"]
        return pandas.DataFrame(rows, columns=["event_label", *columns]).rename(columns=columns)[names]

    truth, detections = frame(true), frame(found)
    if not (len(truth) and len(detections)):
        return
    files = pandas.DataFrame({"filename": [str(number) for number in range(len(lengths))], "duration": lengths})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = PSDSEval(0.5, 0.5, 0.3, ground_truth=truth, metadata=files)
        try:
            _, expected = oracle.compute_macro_f_score(detections)
        except KeyError:  # a class that is only found, never true: it does not know that one
            return
    ours = segment_metrics.count_all(true, found, lengths, len(LABELS))["intersection_f1"].f1()
    for column, label in enumerate(LABELS):
        # Where no action is found it divides 0 by 0, and gives no number for what is 0.
        wanted = expected.get(label, np.nan)
        if not np.isnan(wanted):
            assert ours[column] == pytest.approx(wanted)
        else:
            assert np.isnan(ours[column]) or ours[column] == 0


def test_actions_of_one_class_that_overlap_are_one_and_what_is_no_time_is_left_out():
    events = [
        (1, 5.0, 8.0),
        (0, 1.0, 2.0),
        (1, 2.0, 5.0),
        (1, 9.0, 14.0),
        (0, 11.0, 12.0),
        (2, 4.0, 3.0),
        (1, 2.5, 3.0),
    ]
    found = segment_metrics.true_events(instances(events), 10.0)
    assert [tuple(row)[1:] for row in found.tolist()] == [(0, 1.0, 2.0), (1, 2.0, 8.0), (1, 9.0, 10.0)]


def test_the_matching_is_the_largest_there_is():
    """Either of two actions could take the one segment that the other needs."""
    true = instances([(0, 1.0, 2.0), (0, 1.75, 2.5)])
    found = np.zeros(2, SEGMENT_DTYPE)
    found["start_seconds"], found["stop_seconds"] = [1.375, 2.125], [2.25, 2.75]
    hits, _, _ = segment_metrics.count_events(true, found, 1)
    assert hits.tolist() == [2]


def test_an_interval_is_over_videos():
    generator = np.random.default_rng(0)
    hits = generator.integers(0, 3, (20, 4))
    counts = segment_metrics.Counts(hits, hits + generator.integers(0, 2, (20, 4)), hits + 1)
    resampled = counts.resampled(np.ones((20, 3), np.float32))
    np.testing.assert_allclose(resampled, segment_metrics.mean_f1(counts), rtol=1e-6)
