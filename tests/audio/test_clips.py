"""The plan and the cutting, against a reading of the rules one clip and one sample at a time."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egoaudio.audio.clips import count_samples, cut, place_clips, plan_clips, take_clips
from egoaudio.config.build import ClipConfig
from egoaudio.errors import ConfigurationError

HOUR = 3600
RATES = (1000, 7875, 8012, 11025, 16000, 22050, 44100)


# ------------------------------------------------------------------------------------- the rules, read slowly


def exact(seconds):
    return Fraction(str(seconds))


def slow_starts(recording_samples, config, sample_rate):
    """List the clips' first samples, and how long a clip is, clip by clip."""
    hop = exact(config.clip_seconds if config.hop_seconds is None else config.hop_seconds) * sample_rate
    length = -(-exact(config.clip_seconds) * sample_rate // 1)
    starts = []
    while True:
        start = round(len(starts) * hop)
        left = recording_samples - start
        if left >= length or 2 * left >= length:
            starts.append(start)
        if left <= length:
            return starts, length


def windows_of(blocks, plan):
    """Collect all that ``cut`` yields; check that the groups follow each other."""
    windows, arrived = [], []
    for first, group, counts in cut(blocks, plan):
        assert first == len(windows)
        assert group.dtype == np.float32 and group.flags.writeable and len(group) == len(counts)
        windows.extend(group)
        arrived.extend(counts.tolist())
    return np.array(windows).reshape(-1, plan.context_samples), arrived


def in_blocks(samples, sizes):
    """Yield the samples in blocks of the given sizes, again and again."""
    position = turn = 0
    while position < len(samples):
        size = sizes[turn % len(sizes)]
        yield samples[position : position + size]
        position, turn = position + size, turn + 1


lengths = st.sampled_from([0.1, 0.25, 1.0, 1 / 3, 0.96, 2.5])


@st.composite
def configs(draw):
    clip = draw(lengths)
    return ClipConfig(
        clip_seconds=clip,
        hop_seconds=draw(st.none() | lengths),
        context_seconds=draw(st.none() | st.sampled_from([clip * 1.5, clip + 1])),
        min_overlap_seconds=draw(st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0, 3.0])),
        no_action=draw(st.sampled_from(["all", "interior", "none"])),
    )


# -------------------------------------------------------------------------------------------------- the plan


@settings(max_examples=200, deadline=None)
@given(config=configs(), sample_rate=st.sampled_from(RATES), recording_samples=st.integers(0, 200_000))
def test_plan_equals_the_rules_clip_by_clip(config, sample_rate, recording_samples):
    plan = plan_clips(recording_samples, config, sample_rate)
    starts, length = slow_starts(recording_samples, config, sample_rate)
    assert plan.starts.tolist() == starts and plan.clip_samples == length
    assert plan.num_samples.tolist() == [min(length, recording_samples - start) for start in starts]


@settings(max_examples=100, deadline=None)
@given(
    config=configs(),
    sample_rate=st.sampled_from(RATES),
    recordings=st.lists(st.integers(0, 60_000) | st.just(0), max_size=6),
)
def test_many_recordings_are_placed_as_each_by_itself(config, sample_rate, recordings):
    placed = place_clips(np.array(recordings, np.int64), config, sample_rate)
    alone = [plan_clips(samples, config, sample_rate) for samples in recordings]
    assert np.diff(placed.first).tolist() == [plan.num_clips for plan in alone]
    assert placed.starts.tolist() == [start for plan in alone for start in plan.starts.tolist()]
    assert placed.num_samples.tolist() == [samples for plan in alone for samples in plan.num_samples.tolist()]


@settings(max_examples=200, deadline=None)
@given(clip=lengths, sample_rate=st.sampled_from(RATES), recording_samples=st.integers(0, 200_000))
def test_every_sample_is_in_the_clip_it_belongs_to(clip, sample_rate, recording_samples):
    plan = plan_clips(recording_samples, ClipConfig(clip_seconds=clip), sample_rate)
    covered = np.zeros(recording_samples, bool)
    for start, samples in zip(plan.starts.tolist(), plan.num_samples.tolist(), strict=True):
        covered[start : start + samples] = True
    uncovered = np.flatnonzero(~covered)
    assert len(uncovered) == 0 or (
        uncovered[0] == recording_samples - len(uncovered) and 2 * len(uncovered) < plan.clip_samples
    )


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("hop", [0.1, 0.3, 1 / 3, 0.123456789012345])
def test_boundaries_do_not_drift_over_an_hour(hop, sample_rate):
    plan = plan_clips(HOUR * sample_rate, ClipConfig(clip_seconds=0.1, hop_seconds=hop), sample_rate)
    step = exact(hop) * sample_rate
    assert plan.num_clips in (int(HOUR / hop), int(HOUR / hop) + 1)
    for clip in (*range(0, plan.num_clips, 1009), plan.num_clips - 1):
        assert abs(int(plan.starts[clip]) - clip * step) <= Fraction(1, 2)


def test_an_hour_in_tenths_has_36000_clips_of_1600_samples():
    plan = plan_clips(HOUR * 16000, ClipConfig(clip_seconds=0.1), 16000)
    assert plan.starts.tolist() == list(range(0, HOUR * 16000, 1600))
    assert set(plan.num_samples.tolist()) == {1600}
    assert plan.start_seconds[12345] == 1234.5 and plan.stop_seconds[-1] == HOUR


@pytest.mark.parametrize(
    ("recording_samples", "clip_lengths"),
    [
        (0, []),
        (499, []),
        (500, [500]),
        (999, [999]),
        (1000, [1000]),
        (1499, [1000]),
        (1500, [1000, 500]),
        (2000, [1000, 1000]),
        (2001, [1000, 1000]),
    ],
)
def test_the_last_shorter_clip_is_kept_from_half_a_clip_on(recording_samples, clip_lengths):
    assert plan_clips(recording_samples, ClipConfig(), 1000).num_samples.tolist() == clip_lengths


def test_clips_end_with_the_first_that_reaches_the_end_even_when_they_overlap():
    plan = plan_clips(2100, ClipConfig(clip_seconds=1.0, hop_seconds=0.25), 1000)
    assert plan.starts.tolist() == [0, 250, 500, 750, 1000, 1250]
    assert plan.num_samples.tolist() == [1000, 1000, 1000, 1000, 1000, 850]


def test_a_clip_that_is_no_whole_number_of_samples_is_rounded_up():
    assert count_samples(ClipConfig(clip_seconds=0.1, context_seconds=1.1), 11025) == (1103, 12128)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            ClipConfig(hop_seconds=1e-5),
            "`hop_seconds=1e-05` is less than one sample at 16000 Hz: give at least 6.25e-05",
        ),
        (ClipConfig(clip_seconds=1e9), "did you give milliseconds"),
        (ClipConfig(context_seconds=1e6), "`context_seconds`"),
    ],
)
def test_lengths_that_make_no_clips_are_refused(config, words):
    with pytest.raises(ConfigurationError, match=words.replace("+", "[+]")):
        plan_clips(16000, config, 16000)


# ------------------------------------------------------------------------------------------------- the cutting


@settings(max_examples=150, deadline=None)
@given(
    config=configs(),
    planned=st.integers(0, 20_000),
    arriving=st.integers(0, 22_000),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
def test_windows_are_the_recording_around_each_clip_whatever_the_blocks(config, planned, arriving, sizes):
    plan = plan_clips(planned, config, 1000)
    sound = np.arange(1, arriving + 1, dtype=np.float32)
    windows, arrived = windows_of(in_blocks(sound, sizes), plan)

    real = sound[:planned]  # what arrives beyond the planned end is not part of the recording
    padded = np.concatenate([np.zeros(plan.context_samples), real, np.zeros(planned + 2 * plan.context_samples)])
    assert len(windows) == plan.num_clips
    for start, samples, window, count in zip(
        plan.starts.tolist(), plan.num_samples.tolist(), windows, arrived, strict=True
    ):
        first = start - (plan.context_samples - plan.clip_samples) // 2
        np.testing.assert_array_equal(window, padded[first + plan.context_samples :][: plan.context_samples])
        assert count == min(max(arriving - start, 0), samples)


def test_a_clip_is_the_middle_of_its_window():
    config = ClipConfig(clip_seconds=0.1, context_seconds=0.55)
    plan = plan_clips(1000, config, 1000)
    sound = np.arange(1000, dtype=np.float32)
    windows, _ = windows_of([sound], plan)
    clips = take_clips(windows, plan)
    np.testing.assert_array_equal(clips, sound.reshape(10, 100))
    assert np.shares_memory(clips, windows)


def test_an_early_end_still_gives_every_window_and_says_what_arrived():
    plan = plan_clips(5000, ClipConfig(), 1000)
    windows, arrived = windows_of([np.ones(1500, np.float32), np.ones(800, np.float32)], plan)
    assert arrived == [1000, 1000, 300, 0, 0]
    assert windows.sum(axis=1).tolist() == [1000, 1000, 300, 0, 0]


def test_a_stream_of_nothing_gives_silent_windows():
    windows, arrived = windows_of([], plan_clips(2000, ClipConfig(), 1000))
    assert arrived == [0, 0] and not windows.any()


def test_the_stream_is_read_to_its_end_so_that_its_source_can_sum_up():
    source = iter([np.ones(100, np.float32)] * 50)
    assert len(windows_of(source, plan_clips(1000, ClipConfig(hop_seconds=3.0), 1000))[0]) == 1
    assert next(source, None) is None


def test_a_failure_of_the_source_comes_through():
    def failing():
        yield np.ones(1200, np.float32)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        windows_of(failing(), plan_clips(3000, ClipConfig(), 1000))


def test_the_receiver_may_overwrite_windows_without_harm_to_the_next():
    plan = plan_clips(160_000, ClipConfig(clip_seconds=1.0, hop_seconds=0.1, context_seconds=8.0), 16000)
    kept, _ = windows_of([np.ones(160_000, np.float32)], plan)
    for first, windows, _ in cut([np.ones(160_000, np.float32)], plan):
        np.testing.assert_array_equal(windows, kept[first : first + len(windows)])
        windows[:] = np.nan


@pytest.mark.parametrize(
    "config",
    [ClipConfig(), ClipConfig(clip_seconds=0.1, context_seconds=1.0), ClipConfig(hop_seconds=600.0)],
    ids=["clips", "context", "sparse"],
)
def test_memory_does_not_grow_with_the_recording(config):
    num_blocks = HOUR * 16000 // 2 // 65536
    plan = plan_clips(num_blocks * 65536, config, 16000)
    tracemalloc.start()
    try:
        num_windows = sum(
            len(windows) for _, windows, _ in cut((np.ones(65536, np.float32) for _ in range(num_blocks)), plan)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_windows == plan.num_clips
    assert peak < 8e6  # the recording has 115 MB


def test_windows_come_out_before_the_stream_has_ended():
    taken = []
    blocks = (taken.append(1) or np.ones(16000, np.float32) for _ in range(1000))
    next(cut(blocks, plan_clips(1000 * 16000, ClipConfig(), 16000)))
    assert len(taken) <= 32
