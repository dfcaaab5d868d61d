"""Segments equal a plain reading of the rules, clip by clip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egoaudio.config.predict import SegmentConfig
from egoaudio.errors import ConfigurationError
from egoaudio.evaluation.calibration import Calibration
from egoaudio.evaluation.segments import SegmentRules, make_rules, smooth_scores

TOLERANCE = 1e-6


def plain_reading(scores, starts, stops, rules):
    """Return the segments ``(class, start, stop, peak, mean)`` by reading the rules one clip after the other."""
    clips = [index for index in range(len(scores)) if not np.isnan(scores[index]).any()]
    averaged = {}
    for index in clips:
        near = [other for other in range(index - rules.smooth_clips, index + rules.smooth_clips + 1) if other in clips]
        averaged[index] = np.mean([scores[other] for other in near], axis=0, dtype=np.float64).astype(np.float32)
    owned = {}
    for place, index in enumerate(clips):
        begin, end = starts[index], stops[index]
        if place and starts[index] <= stops[clips[place - 1]] + TOLERANCE:
            begin = (starts[index] + stops[clips[place - 1]]) / 2
        if place + 1 < len(clips) and starts[clips[place + 1]] <= stops[index] + TOLERANCE:
            end = (starts[clips[place + 1]] + stops[index]) / 2
        owned[index] = begin, end
    found = []
    for column in range(scores.shape[1]):
        pieces, piece = [], []
        for index in clips:
            value = averaged[index][column]
            if piece and (value < rules.offset[column] or owned[index][0] > owned[piece[-1]][1] + TOLERANCE):
                pieces.append(piece)
                piece = []
            if (piece and value >= rules.offset[column]) or value >= rules.onset[column]:
                piece.append(index)
        pieces += [piece] if piece else []
        merged = []
        for piece in pieces:
            if merged and owned[piece[0]][0] - owned[merged[-1][-1]][1] <= rules.merge_gap_seconds + TOLERANCE:
                merged[-1] += piece
            else:
                merged.append(list(piece))
        for piece in merged:
            start, stop = owned[piece[0]][0], owned[piece[-1]][1]
            if stop - start >= rules.min_seconds - TOLERANCE:
                values = [averaged[index][column] for index in piece]
                found.append((column, start, stop, max(values), float(np.mean(values, dtype=np.float64))))
    return sorted(found, key=lambda one: (one[1], one[0]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_segments_are_a_plain_reading_of_the_rules(data):
    num_clips, num_classes = data.draw(st.integers(0, 14)), data.draw(st.integers(1, 3))
    hop, length = data.draw(st.sampled_from([(1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (2.0, 1.0), (0.1, 0.1)]))
    grid = st.integers(0, 8).map(lambda eighths: eighths / 8)
    scores = np.array(
        data.draw(
            st.lists(
                st.lists(grid, min_size=num_classes, max_size=num_classes), min_size=num_clips, max_size=num_clips
            )
        ),
        np.float32,
    ).reshape(num_clips, num_classes)  # fmt: skip
    scores[
        data.draw(st.lists(st.integers(0, 13), max_size=4).map(lambda rows: [row for row in rows if row < num_clips]))
    ] = np.nan
    onset = np.array(data.draw(st.lists(grid | st.just(np.inf), min_size=num_classes, max_size=num_classes)))
    offset = onset * data.draw(st.sampled_from([0.5, 0.75, 1.0]))
    rules = SegmentRules(
        onset, offset, Calibration.none(num_classes), data.draw(st.sampled_from([0, 0, 1, 2])),
        data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])), data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    )  # fmt: skip
    starts = np.arange(num_clips) * hop
    stops = starts + length
    found, expected = rules.find(scores, starts, stops), plain_reading(scores, starts, stops, rules)
    assert [row["class_index"] for row in found] == [one[0] for one in expected]
    for name, place in (("start_seconds", 1), ("stop_seconds", 2), ("score", 3), ("mean_score", 4)):
        np.testing.assert_allclose(found[name], [one[place] for one in expected], rtol=1e-5, atol=1e-6)
    for column in range(num_classes):  # segments of a class never overlap
        own = found[found["class_index"] == column]
        assert (own["start_seconds"][1:] >= own["stop_seconds"][:-1] - TOLERANCE).all()


def test_a_score_that_wavers_makes_one_segment_and_what_touches_shares_time():
    scores = np.array([[0.1], [0.9], [0.5], [0.45], [0.8], [0.2]], np.float32)
    rules = make_rules(SegmentConfig(threshold=0.6, offset_ratio=0.7), None, 1, 0)
    (segment,) = rules.find(scores, np.arange(6) / 2, np.arange(6) / 2 + 1)
    assert (segment["start_seconds"], segment["stop_seconds"]) == (0.75, 2.75)
    assert segment["score"] == np.float32(0.9) and segment["mean_score"] == pytest.approx(0.6625)


def test_thresholds_are_the_validation_splits_unless_one_is_given():
    thresholds = np.array([0.25, np.inf, 0.75])
    own = make_rules(SegmentConfig(offset_ratio=0.5), thresholds, 3, 2)
    assert own.onset.tolist() == [0.25, np.inf, 0.75] and own.smooth_clips == 2
    np.testing.assert_allclose(own.offset, [0.125, np.inf, 0.375])
    assert make_rules(SegmentConfig(threshold=0.3), thresholds, 3, 0).onset.tolist() == [0.3] * 3
    assert make_rules(SegmentConfig(), None, 3, 0).onset.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"threshold": -0.1}, {"offset_ratio": 2.0}, {"min_seconds": -1.0}]
)
def test_thresholds_outside_of_what_scores_can_be_are_refused(options):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}=.*expected"):
        SegmentConfig(**options)


def test_clips_without_sound_are_left_out_of_the_means():
    scores = np.array([[0.25], [np.nan], [0.5], [1.0]], np.float32)
    np.testing.assert_array_equal(smooth_scores(scores, 1), np.array([[0.25], [np.nan], [0.75], [0.75]], np.float32))
