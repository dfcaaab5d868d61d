"""Rows from the workers -> scores, whoever dies, in whatever pieces; and windows as a file gives them."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_file

from egoaudio.config.build import BuildConfig, ClipConfig, FeatureConfig
from egoaudio.config.options import to_json
from egoaudio.data.rows import RowSource
from egoaudio.errors import ConfigurationError, ResourceError
from egoaudio.hdf5 import reader
from egoaudio.models.steady_scorer import SteadyScorer
from egoaudio.prediction.channel import Address, Begun, Block, Disconnected, Ended, Receiver, Sender
from egoaudio.prediction.scoring import Scoring
from egoaudio.prediction.windows import WindowPlan, Windows, plan_windows

SHAPE = (3, 4)
PLAIN = WindowPlan(SHAPE, np.dtype(np.float32), 0.0, 1.0, 0, 1, None)


class _Sum(torch.nn.Module):
    """A network whose logits are the sum and the maximum of what it sees."""

    def forward(self, x):
        return torch.stack((x.flatten(1).sum(dim=1), x.flatten(1).amax(dim=1)), dim=1) / 10


def make_scorer(shape=SHAPE, batch_size=4, model=None):
    return SteadyScorer(model or _Sum(), shape, "multi", device=torch.device("cpu"), batch_size=batch_size)


def expected(rows):
    return torch.sigmoid(_Sum()(torch.from_numpy(rows))).numpy()


# --------------------------------------------------------------------------------------------------------- windows


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_windows_of_a_stream_are_those_that_a_file_gives(tmp_path_factory, data):
    context = data.draw(st.integers(0, 2), "context_clips")
    apart = data.draw(st.integers(1, 3), "rows_apart")
    num_clips = data.draw(st.integers(1, 9), "num_clips")
    silent = data.draw(st.lists(st.integers(0, num_clips - 1), max_size=3), "silent")
    config = BuildConfig(
        clips=ClipConfig(clip_seconds=0.3, hop_seconds={1: 0.3, 2: 0.15, 3: 0.1}[apart]),
        features=FeatureConfig(features=("logmel",)),
    )
    shape = (28, 128)
    path = make_file(
        tmp_path_factory.mktemp("windows") / "ego.h5", 1, num_clips, {"logmel": shape}, silent_clips=silent,
        clip_seconds=0.3, hop_seconds=config.clips.hop_seconds, config=to_json(config), test_fraction=0.0,
    )  # fmt: skip
    mean, std = data.draw(st.sampled_from([(0.0, 1.0), (-4.2, 2.5)]), "normalization")
    with reader.open(path) as file:
        usable, rows = file.usable, np.array(file["logmel"])
    source = RowSource(path, "logmel", context_clips=context)
    wanted = np.empty((usable.sum(), *source.joined_shape), np.float32)
    source.take(np.flatnonzero(usable), wanted, mean, std)
    stream = Windows(plan_windows(config, "logmel", shape, (mean, std), context), num_clips)
    found_clips, found, start = [], [], 0
    while start < num_clips:
        stop = data.draw(st.integers(start + 1, num_clips), "stop")
        some, windows = stream.add(usable[start:stop], rows[start:stop])
        found_clips += some.tolist()
        found.append(windows)
        start = stop
    assert found_clips == np.flatnonzero(usable).tolist()
    np.testing.assert_array_equal(np.concatenate(found), wanted)


def test_a_hop_after_which_no_neighbour_begins_is_refused_with_one_that_would_do():
    config = BuildConfig(clips=ClipConfig(hop_seconds=0.3), features=FeatureConfig(features=("logmel",)))
    with pytest.raises(ConfigurationError, match="hop_seconds=0.3.*give 1, or a whole fraction of it, such as 0.5"):
        plan_windows(config, "logmel", (98, 128), (0.0, 1.0), 1)
    assert (
        plan_windows(replace(config, clips=ClipConfig(hop_seconds=0.25)), "logmel", (98, 128), (0, 1), 1).rows_apart
        == 4
    )


# --------------------------------------------------------------------------------------------------------- channel


def send(address, number, rows, usable=None, pieces=2, ends=True):
    usable = np.ones(len(rows), bool) if usable is None else usable
    with Sender(address, number, len(rows)) as sender:
        for part in np.array_split(np.arange(len(rows)), pieces):
            sender.send(part[0] if len(part) else 0, usable[part], rows[part])
        if ends:
            sender.end()
    return sender.attempt


def test_what_is_sent_arrives_in_order():
    rows = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float16)
    with Receiver(SHAPE, np.float16) as receiver:
        attempt = send(receiver.address, 7, rows)
        messages = [receiver.get(5) for _ in range(4)]
        assert receiver.get(0.01) is None
    assert messages[0] == Begun(attempt, 7, 5) and messages[3] == Ended(attempt, True)
    assert [type(message) for message in messages[1:3]] == [Block, Block]
    np.testing.assert_array_equal(np.concatenate([message.rows for message in messages[1:3]]), rows)


def test_a_sender_that_stops_before_the_end_is_known_as_such():
    with Receiver(SHAPE, np.float32) as receiver:
        attempt = send(receiver.address, 0, np.zeros((2, *SHAPE), np.float32), pieces=1, ends=False)
        messages = [receiver.get(5) for _ in range(3)]
    assert messages[2] == Ended(attempt, False)


def test_who_does_not_know_the_secret_is_not_heard():
    with Receiver(SHAPE, np.float32) as receiver:
        stranger = Address(receiver.address.name, b"x" * 16)
        with pytest.raises(Disconnected), Sender(stranger, 0, 1) as sender:
            for _ in range(1000):
                sender.send(0, np.ones(1, bool), np.zeros((1, *SHAPE), np.float32))
        assert receiver.get(0.05) is None
    with pytest.raises(Disconnected, match="does not answer"):
        Sender(receiver.address, 0, 1)


def test_who_sends_faster_than_is_scored_waits_and_hears_when_nobody_scores_any_more():
    rows, sent, failures = np.zeros((4, 256, 256), np.float32), [], []
    receiver = Receiver((256, 256), np.float32)

    def work():
        try:
            with Sender(receiver.address, 0, 400) as sender:
                for number in range(100):
                    sender.send(4 * number, np.ones(4, bool), rows)
                    sent.append(number)
        except Disconnected as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(1.0)
    assert thread.is_alive() and len(sent) < 20
    receiver.close()
    thread.join(10)
    assert not thread.is_alive() and len(failures) == 1


# --------------------------------------------------------------------------------------------------------- scoring


def test_recordings_that_come_at_once_get_their_own_scores():
    generator, counted = np.random.default_rng(1), {}
    recordings = [generator.standard_normal((count, *SHAPE), np.float32) for count in (1, 2, 9, 0, 4, 1, 30)]
    usable = [generator.random(len(rows)) > 0.2 for rows in recordings]

    def advance(number, some, all_clips):
        counted[number] = counted.get(number, 0) + some
        assert all_clips == len(recordings[number])

    with Receiver(SHAPE, np.float32) as receiver, Scoring(receiver, make_scorer(), PLAIN, 2, advance) as scoring:
        attempts = {}

        def work(number):
            attempts[number] = send(receiver.address, number, recordings[number], usable[number], pieces=3)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(recordings))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, rows in enumerate(recordings):
            scores = scoring.take(attempts[number], wait=True)
            wanted = expected(rows)
            wanted[~usable[number]] = np.nan
            np.testing.assert_allclose(scores, wanted, rtol=1e-6)
    assert counted == {number: some.sum() for number, some in enumerate(usable) if some.any()}


def test_a_recording_whose_sender_died_is_taken_anew():
    rows = np.ones((6, *SHAPE), np.float32)
    with Receiver(SHAPE, np.float32) as receiver, Scoring(receiver, make_scorer(), PLAIN, 2) as scoring:
        dead = send(receiver.address, 3, 5 * rows[:4], ends=False)
        good = send(receiver.address, 3, rows)
        np.testing.assert_allclose(scoring.take(good, wait=True), expected(rows), rtol=1e-6)
        assert scoring.take(dead) is None


def test_what_the_network_fails_with_is_raised_where_somebody_waits_and_the_senders_hear_of_it():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise MemoryError("no more")

    with Receiver(SHAPE, np.float32) as receiver, Scoring(receiver, make_scorer(model=Broken()), PLAIN, 2) as scoring:
        attempt = send(receiver.address, 0, np.ones((4, *SHAPE), np.float32), pieces=1)
        with pytest.raises(ResourceError, match="batch_size=2"):
            scoring.take(attempt, wait=True)
        with pytest.raises(Disconnected):
            Sender(receiver.address, 0, 1)
