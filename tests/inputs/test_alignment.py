"""Sound lands where ffmpeg puts it: late starts, pauses, wandering clocks; jumps that were not obeyed are counted.

Reference: ``ffmpeg -af aresample=async=1:first_pts=0``, which subtracts the container's start over all tracks;
``benchmarks/alignment.py`` compares with the program itself.
"""

import struct

import av
import numpy as np
import pytest
from conftest import chirp, decode_whole, make_media

from egoaudio.inputs.decoder import Decoder
from egoaudio.inputs.probe import probe

RATE = 16000
# Where the sound comes first in its container, time zero is the beginning of its encoder's delay.
DELAY_SECONDS = {
    "mp4": 1024 / 44100,
    "mkv": 0.0,
    "flv": 1024 / 44100,
    "ts": 1024 / 44100,
    "mpg": 481 / 48000,
    "webm": 0.0,
}
CODECS = {"webm": ("libopus", 48000), "mpg": ("mp2", 48000), "ogg": ("libopus", 48000)}  # the others have AAC


def _onset(samples):
    """Return where sound begins, in seconds."""
    return float(np.argmax(np.abs(samples) > 0.02)) / RATE


def _silences(samples, shortest=160):
    """Return ``(start, length)`` of the runs of zeros in the midst of sound, in seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples == 0, [0]])))
    return [
        (start / RATE, (stop - start) / RATE)
        for start, stop in edges.reshape(-1, 2)
        if stop - start >= shortest and 0 < start and stop < len(samples)
    ]


def _pauses(*pauses):
    """Return an ``edit`` that moves what comes after ``at`` seconds later by ``length``, for pairs of them."""

    def edit(index, packet):
        seconds = float(packet.pts * packet.time_base)
        shift = round(sum(length for at, length in pauses if seconds >= at) / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        return packet

    return edit


def _make(tmp_path, extension, **settings):
    codec, rate = CODECS.get(extension, ("aac", 44100))
    return make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=rate, channels=1, **settings)


# ---------------------------------------------------------------------------------------------- late and with pauses


@pytest.mark.parametrize("start", [30.0, 61.0, 200.0])
@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv", "webm", "flv", "ts", "mpg"])
def test_sound_that_starts_late_lands_beside_its_picture(tmp_path, extension, start):
    path = _make(tmp_path, extension, start_seconds=start, video=True, video_seconds=start + 4)
    samples, decoder = decode_whole(path)
    assert abs(_onset(samples) - start) < 0.0015
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05
    assert decoder.lost_samples == decoder.clock_jumps == 0


@pytest.mark.parametrize(("extension", "codec"), [("nut", "pcm_s16le"), ("mkv", "tta")])
def test_rarer_codecs_that_start_late_land_beside_their_picture(tmp_path, extension, codec):
    """Of NUT, FFmpeg misjudges the start without a decoder of pictures; TTA's packets last a second."""
    path = make_media(
        tmp_path / f"a.{extension}",
        audio=codec,
        sample_rate=48000,
        seconds=8.0,
        start_seconds=61.0,
        video=True,
        video_seconds=69.0,
    )
    samples, _ = decode_whole(path)
    assert abs(_onset(samples) - 61.0) < 0.015
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05


@pytest.mark.parametrize("pauses", [[(2, 120.0)], [(1, 45.0), (2, 45.0)], [(1, 45.0), (2, 45.0), (3, 300.0)]])
@pytest.mark.parametrize("extension", ["mp4", "mov", "m4a", "mkv", "webm", "flv"])
def test_pauses_last_as_long_as_they_do(tmp_path, extension, pauses):
    path = _make(tmp_path, extension, seconds=4.0, edit=_pauses(*pauses))
    samples, decoder = decode_whole(path)
    found = _silences(samples, shortest=RATE)
    assert [length for _, length in found] == pytest.approx([length for _, length in pauses], abs=0.01)
    assert [start for start, _ in found] == pytest.approx(
        [at + sum(length for before, length in pauses if before < at) for at, _ in pauses], abs=0.05
    )
    assert abs(len(samples) / RATE - 4.0 - sum(length for _, length in pauses)) < 0.06
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05
    assert (
        decoder.gap_samples
        == decoder.lost_samples
        == pytest.approx(sum(length for _, length in pauses) * RATE, abs=200)
    )
    assert decoder.clock_jumps == 0


@pytest.mark.parametrize("extension", ["mkv", "webm"])
def test_opus_that_rests_in_silence_does_not_drift(tmp_path, extension):
    """Discontinuous transmission: one packet every 400 ms while nothing is heard."""
    sound = chirp(48000, 150.0) * np.repeat(np.arange(30) % 3 == 0, 5 * 48000)
    path = make_media(
        tmp_path / f"a.{extension}", audio="libopus", sample_rate=48000, channels=1, sound=sound,
        edit=lambda index, packet: packet if index % 750 < 260 or index % 20 == 0 else None,
    )  # fmt: skip
    samples, decoder = decode_whole(path)
    heard = np.abs(samples[: 150 * RATE]).reshape(-1, RATE // 10).max(axis=1) > 0.1
    place = np.arange(1500) % 150
    np.testing.assert_array_equal(
        heard[place != 50], (place < 50)[place != 50]
    )  # the codec's window reaches into the silence
    assert abs(len(samples) - 150 * RATE) < 0.1 * RATE
    assert abs(probe(path).duration_seconds - 150) < 0.1
    assert decoder.gap_samples > 80 * RATE


def test_a_pause_in_a_stream_without_a_stated_length_is_borne_out_by_its_picture(tmp_path):
    """As browsers record: no length in the header, which is written before anything is recorded."""
    settings = {"options": {"live": "1"}, "seconds": 4.0, "edit": _pauses((2, 200.0))}
    with_picture = _make(tmp_path, "webm", video=True, video_seconds=204.0, **settings)
    with av.open(str(with_picture)) as container:
        assert container.duration is None
    samples, decoder = decode_whole(with_picture)
    assert [length for _, length in _silences(samples, shortest=RATE)] == pytest.approx([200.0], abs=0.01)
    assert decoder.clock_jumps == 0
    without = _make(tmp_path, "mkv", **settings)
    samples, decoder = decode_whole(without)
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.06)
    assert (decoder.clock_jumps, decoder.lost_samples) == (1, len(samples))  # told, and no more than there is
    assert abs(probe(without).duration_seconds - len(samples) / RATE) < 0.05


def test_a_stream_whose_clock_starts_anew_goes_on_without_silence(tmp_path):
    """Two recordings in one MPEG stream: without a picture in between, ffmpeg closes jumps of more than 10 s, too."""
    path = _make(tmp_path, "ts", seconds=4.0, video=True, edit=_pauses((2, 40.0)))
    samples, decoder = decode_whole(path)
    assert not _silences(samples, shortest=RATE // 2)
    assert decoder.clock_jumps == 1
    (tmp_path / "filmed").mkdir()
    path = _make(tmp_path / "filmed", "ts", seconds=4.0, video=True, video_seconds=44.0, edit=_pauses((2, 40.0)))
    samples, decoder = decode_whole(path)
    assert [length for _, length in _silences(samples, shortest=RATE)] == pytest.approx([40.0], abs=0.01)
    assert decoder.clock_jumps == 0


@pytest.mark.parametrize("claim", [3600.0, 86400.0, 1e6])
def test_no_claim_makes_hours_of_silence_in_a_small_file(tmp_path, claim):
    """The container states the length that its lying timestamps have: a bomb of zeros, were it believed."""
    path = _make(tmp_path, "mkv", edit=_pauses((1, claim)))
    samples, decoder = decode_whole(path)
    assert len(samples) < 3 * RATE
    assert decoder.clock_jumps == 1
    assert decoder.lost_samples == len(samples)
    assert probe(path).duration_seconds < 3


# ------------------------------------------------------------------------------------------------------ time zero


@pytest.mark.parametrize("late", [0.0, 1.3])
@pytest.mark.parametrize("offset", [5.0, 61.0])
@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm", "flv", "ts", "mpg"])
def test_time_zero_is_where_the_container_starts(tmp_path, extension, offset, late):
    path = _make(tmp_path, extension, start_seconds=offset + late, video=True, video_start_seconds=offset)
    samples, decoder = decode_whole(path)
    assert abs(_onset(samples) - (late or DELAY_SECONDS[extension])) < 0.0015
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05
    assert decoder.lost_samples == 0


def test_time_zero_is_that_of_pictures_which_come_long_before_the_sound_in_the_file(tmp_path):
    """As a muxer writes them that gets no sound for a while."""
    path = _make(tmp_path, "mkv", start_seconds=83.3, video=True, video_start_seconds=83.0, video_seconds=40.0)
    samples, decoder = decode_whole(path)
    assert abs(_onset(samples) - 0.3) < 0.0015
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05
    assert decoder.lost_samples == decoder.clock_jumps == 0


@pytest.mark.parametrize("late", [0.3, 1.3])
def test_time_zero_may_be_before_0(tmp_path, late):
    """As of a file that was cut out of a longer one with its timestamps left as they were."""
    path = make_media(
        tmp_path / "a.asf", audio="libmp3lame", seconds=3.0, video=True,
        start_seconds=late - 2.0, video_start_seconds=-2.0,
        options={"avoid_negative_ts": "disabled"},
    )  # fmt: skip
    with av.open(str(path)) as container:
        assert next(container.demux(video=0)).pts * container.streams.video[0].time_base == -2
    samples, decoder = decode_whole(path)
    assert abs(_onset(samples) - late) < 0.0015
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05
    assert decoder.lost_samples == decoder.clock_jumps == 0


def test_an_edit_list_is_obeyed(tmp_path):
    """An empty edit before the sound of an MP4, and one that cuts its beginning off."""
    path = _make(tmp_path, "mp4", start_seconds=0.5, video=True)
    assert _onset(decode_whole(path)[0]) == pytest.approx(0.5, abs=0.001)
    data = path.read_bytes()
    place = data.rindex(b"elst")  # the sound's: the empty edit, then the one that skips the encoder's delay
    count = struct.unpack(">I", data[place + 8 : place + 12])[0]
    entry = place + 12 + 12 * (count - 1)
    media_time = struct.unpack(">i", data[entry + 4 : entry + 8])[0]
    cut = data[: entry + 4] + struct.pack(">i", media_time + 4410) + data[entry + 8 :]
    path.write_bytes(cut)
    samples, _ = decode_whole(path)
    assert _onset(samples) == pytest.approx(0.476, abs=0.001)  # the edit begins with what was the encoder's delay
    heard = samples[8000:24000]
    correlations = [np.corrcoef(heard, chirp(RATE, 2.0)[shift : shift + 16000])[0, 1] for shift in range(1500, 1700)]
    assert abs(int(np.argmax(correlations)) + 1500 - 1600) <= 16  # an edit's times are in milliseconds
    assert max(correlations) > 0.95


# --------------------------------------------------------------------------------------------------------- wander


def _arrivals(wander, seed, pause_at=None, pause=0.0):
    """Return an ``edit`` that gives packets the time of their arrival, uniformly late by up to ``wander`` seconds."""
    generator, last = np.random.default_rng(seed), [-1]

    def edit(index, packet):
        seconds = float(packet.pts * packet.time_base) + generator.uniform(0, wander)
        if pause_at is not None and packet.pts * packet.time_base >= pause_at:
            seconds += pause
        last[0] = max(last[0] + 1, round(seconds / packet.time_base))
        packet.pts = packet.dts = last[0]
        return packet

    return edit


@pytest.mark.parametrize("wander", [0.03, 0.06, 0.12])
@pytest.mark.parametrize(
    ("extension", "codec", "rate"),
    [("mkv", "aac", 44100), ("webm", "libopus", 48000), ("mkv", "flac", 44100), ("flv", "aac", 44100)],
)
def test_a_clock_that_wanders_leaves_the_sound_whole(tmp_path, extension, codec, rate, wander):
    path = make_media(
        tmp_path / f"a.{extension}", audio=codec, sample_rate=rate, channels=1, seconds=30.0, edit=_arrivals(wander, 1)
    )
    samples, decoder = decode_whole(path)
    assert not _silences(samples, shortest=16)
    assert decoder.lost_samples == decoder.clock_jumps == 0
    start = _onset(samples)
    assert start < 0.8 * wander + 0.03
    assert abs(len(samples) / RATE - start - 30.0) < 0.07
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.002
    reference, size = chirp(RATE, 30.0), 2**20
    heard = samples[round(RATE * start) + 200 :][: 29 * RATE]
    products = np.fft.irfft(np.fft.rfft(reference, size) * np.conj(np.fft.rfft(heard, size)), size)[:600]
    correlation = products.max() / np.sum(np.square(heard, dtype=float))  # of sound that is as loud as the chirp
    assert correlation > 0.9  # half a sample costs 10 %


@pytest.mark.parametrize("wander", [0.03, 0.06, 0.12])
def test_a_jump_far_above_the_wander_counts(tmp_path, wander):
    path = _make(tmp_path, "mkv", seconds=20.0, edit=_arrivals(wander, 5, pause_at=8.0, pause=2.0))
    samples, decoder = decode_whole(path)
    (found,) = _silences(samples, shortest=RATE // 20)
    assert found == pytest.approx((8.0, 2.0), abs=wander)
    assert abs(probe(path).duration_seconds - len(samples) / RATE) < 0.05


def test_what_was_measured_is_forgotten_on_a_second_run(tmp_path):
    path = _make(tmp_path, "mp4", edit=_pauses((1, 2.0)))
    decoder = Decoder(path, RATE)
    for _ in range(2):
        list(decoder)
        assert decoder.gap_samples == pytest.approx(2 * RATE, abs=30)
        assert 0.4 < decoder.peak <= 1.0
        assert 0.1 < decoder.rms < decoder.peak
