"""Timestamps: obeyed where they can be true, and never trusted to make silence or to take sound away."""

import math

import numpy as np
import pytest

from egoaudio.inputs.timestamps import Ahead, TimeLine, look_ahead

FRAME = 0.02


def _lay(timestamps, seconds=FRAME, line=None):
    """Place sounds of equal length; return where each starts, None where it is dropped whole, and the line."""
    line = line or TimeLine(0.0)
    starts = []
    for (timestamp, _), upcoming in look_ahead((timestamp, seconds) for timestamp in timestamps):
        offset = line.place(timestamp, seconds, upcoming)
        starts.append(None if -offset >= seconds else line.start)
    return starts, line


def _next(sounds):
    upcoming = Ahead()
    upcoming.extend(sounds)
    return upcoming


def _clock(count, start=0.0):
    return [start + FRAME * index for index in range(count)]


def test_a_steady_clock_is_followed():
    starts, line = _lay(_clock(1000))
    np.testing.assert_allclose(starts, _clock(1000), atol=1e-9)
    assert line.end == pytest.approx(20.0)


def test_sounds_without_timestamps_follow_one_another():
    starts, line = _lay([None] * 50)
    np.testing.assert_allclose(starts, _clock(50), atol=1e-9)


@pytest.mark.parametrize("wander", [0.001, 0.01, 0.019])
def test_wandering_timestamps_are_let_be(wander):
    generator = np.random.default_rng(0)
    starts, line = _lay(
        [0.0, *(timestamp + generator.uniform(-wander / 2, wander / 2) for timestamp in _clock(500)[1:])]
    )
    np.testing.assert_allclose(starts, _clock(500), atol=1e-9)


@pytest.mark.parametrize("pause", [0.0, 0.7, 50.0])
@pytest.mark.parametrize("wander", [0.03, 0.12])
@pytest.mark.parametrize(
    ("seconds", "together"), [(0.02, 1), (0.064, 1), (0.02, 3), (0.021, 6), (0.064, 6), (0.032, 10)]
)
def test_arrival_times_move_nothing_but_a_pause_does(seconds, together, wander, pause):
    """``together``: so many sounds come in one packet, at one time."""
    generator, stamps = np.random.default_rng(1), []
    for index in range(round(30 / seconds)):
        if index % together == 0:
            place = index * seconds + generator.uniform(0, wander) + (pause if index * seconds >= 12 else 0.0)
        stamps.append(place + index % together * seconds)
    starts, line = _lay(stamps, seconds)
    steps = np.diff(starts) - seconds
    moved = np.flatnonzero(np.abs(steps) > 1e-6)
    assert len(moved) <= 2 + (pause > 0)
    found = steps[moved][np.abs(steps[moved]) > 0.4]
    assert found == pytest.approx([pause] if pause else [], abs=wander + 0.03)
    assert line.overruled == 0


def test_a_drift_is_caught_up_with_before_it_is_heard():
    drifting = [1.0005 * timestamp for timestamp in _clock(50_000)]  # half a millisecond a second
    starts, line = _lay(drifting)
    assert max(abs(start - timestamp) for start, timestamp in zip(starts, drifting, strict=True)) < 0.021


@pytest.mark.parametrize("gap", [0.021, 0.5, 10.0, 59.0])
def test_a_gap_is_silence_of_its_length(gap):
    starts, line = _lay(_clock(100) + _clock(100, start=2.0 + gap))
    assert starts[99] == pytest.approx(1.98)
    assert starts[100] == pytest.approx(2.0 + gap)
    assert line.end == pytest.approx(4.0 + gap)


def test_a_late_start_is_silence_and_an_early_one_is_dropped_to_the_sample():
    assert _lay(_clock(10, start=0.003))[0][0] == pytest.approx(0.003)
    line = TimeLine(0.0)
    assert line.place(-0.013, 0.02, _next([(0.007, 0.02)])) == pytest.approx(-0.013)
    assert (line.start, line.end) == (0.0, pytest.approx(0.007))


@pytest.mark.parametrize("overlap", [0.03, 0.2, 0.9])
def test_an_overlap_is_heard_once(overlap):
    starts, line = _lay(_clock(100) + _clock(100, start=2.0 - overlap))
    assert line.end == pytest.approx(4.0 - overlap, abs=1e-6)
    assert sum(start is None for start in starts) == math.floor(overlap / FRAME + 1e-9)


@pytest.mark.parametrize("slip", [-1000.0, -0.5, -0.03, 0.03, 0.5, 30.0, 1e9, 1e300])
def test_one_wrong_timestamp_moves_nothing(slip):
    clock = _clock(100)
    clock[50] += slip
    starts, line = _lay(clock)
    np.testing.assert_allclose(starts, _clock(100), atol=1e-9)


@pytest.mark.parametrize("jump", [-1e9, -3600.0, -2.0, 200.0, 1e9])
def test_a_clock_that_was_reset_goes_on(jump):
    starts, line = _lay(_clock(100) + _clock(100, start=2.0 + jump))
    np.testing.assert_allclose(starts, _clock(200), atol=1e-9)


@pytest.mark.parametrize("excursion", [-500.0, -30.0, -2.0, 500.0])
def test_a_clock_that_comes_back_is_recognised(excursion):
    starts, line = _lay(_clock(100) + _clock(10, start=2.0 + excursion) + _clock(100, start=2.2))
    np.testing.assert_allclose(starts, _clock(210), atol=1e-9)


def test_a_clock_that_is_mostly_wrong_is_not_asked():
    generator = np.random.default_rng(0)
    starts, line = _lay(list(generator.uniform(0, 100, 2000)))
    assert line.end < 40.0 + 70.0
    late = starts[200:]
    np.testing.assert_allclose(np.diff(late), FRAME, atol=1e-9)


def test_a_jump_of_a_clock_that_is_not_asked_any_more_is_told():
    wrong = np.random.default_rng(0).uniform(0, 6, 300).tolist()
    _, without = _lay(wrong + _clock(1700, start=6.0))
    _, line = _lay(wrong + _clock(700, start=6.0) + _clock(1000, start=70.0))
    assert line.end == pytest.approx(without.end, abs=1.0)
    assert line.overruled == without.overruled + 1
    assert line.closed_seconds == pytest.approx(without.closed_seconds + 50.0, abs=1.0)


def test_a_clock_that_counts_nothing_as_sound_is_not_asked():
    line = TimeLine(0.0)
    for _ in range(100):
        line.slip()
    _lay([0.3 * index for index in range(100)], line=line)
    assert line.end == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(20))
def test_no_timestamps_make_hours_of_silence_or_take_the_sound_away(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.uniform(0.001, 0.1, 500)
    stamps = np.cumsum(lengths) + np.cumsum(
        generator.standard_cauchy(500) * (generator.random(500) < 0.2) * 10.0 ** generator.integers(-3, 6)
    )
    line, heard = TimeLine(0.0), 0.0
    for (stamp, seconds), upcoming in look_ahead(zip(stamps.tolist(), lengths.tolist(), strict=True)):
        if generator.random() < 0.1:
            line.lose(stamp, seconds, upcoming)
        else:
            heard += max(0.0, seconds + min(0.0, line.place(stamp, seconds, upcoming)))
    assert line.end <= 2 * lengths.sum() + 60.0
    assert heard >= 0.5 * lengths.sum()


def test_what_is_lost_is_silent_and_the_next_sound_exact():
    line = TimeLine(0.0)
    line.place(0.0, 0.1, _next([(0.1, 0.1)]))
    line.lose(0.1, 0.1, _next([(0.205, 0.1)]))
    assert line.lost_until == pytest.approx(0.2)
    assert line.place(0.205, 0.1, _next([(0.305, 0.1)])) == pytest.approx(0.105)
    assert line.start == pytest.approx(0.205)


def test_after_a_loss_even_a_small_step_is_obeyed():
    line = TimeLine(0.0)
    line.place(0.0, 0.1, _next([(0.1, 0.1)]))
    line.lose(0.1, 0.01, _next([(0.112, 0.1)]))
    assert line.place(0.112, 0.1, _next([(0.212, 0.1)])) == pytest.approx(0.012)


def test_what_is_lost_without_timestamps_keeps_its_length():
    line = TimeLine(0.0)
    line.place(None, 0.1, Ahead())
    line.lose(None, 0.1, Ahead())
    line.lose(None, 0.1, Ahead())
    assert line.place(None, 0.1, Ahead()) == pytest.approx(0.2)
    assert line.end == pytest.approx(0.4)


def test_a_lost_packet_of_unknown_length_lasts_until_the_next():
    line = TimeLine(0.0)
    line.place(0.0, 0.1, _next([(0.1, 0.1)]))
    line.lose(0.1, 0.0, _next([(0.4, 0.1)]))
    assert line.lost_until == pytest.approx(0.4)
