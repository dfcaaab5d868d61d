"""Decoding: every container in step with its clock, and every known fault survived."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import chirp, decode_whole, make_media, make_wav

from egoaudio.errors import MediaError, Status
from egoaudio.inputs import decoder as media
from egoaudio.inputs.probe import Recording, probe

RATE = 16000


def _lag(samples, reference):
    """Return by how many samples ``samples`` come later than ``reference``."""
    size = 2 ** int(np.ceil(np.log2(len(samples) + len(reference))))
    correlation = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(reference, size)), size)
    lag = int(np.argmax(correlation))
    return lag - size if lag > size // 2 else lag


def _silences(samples, shortest=160):
    """Return ``(start, length)`` of the runs of zeros."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples == 0, [0]])))
    return [(start, stop - start) for start, stop in edges.reshape(-1, 2) if stop - start >= shortest]


# ------------------------------------------------------------------------------------------------- in step

# Container, codec, rate, video track, and how many samples at 16 kHz the sound is late: the encoder's delay, where the
# container cannot state it.
CONTAINERS = [
    ("mp4", "aac", 44100, True, 0), ("mp4", "aac", 48000, False, 0), ("m4a", "aac", 44100, False, 0),
    ("mov", "aac", 44100, True, 0),
    ("mp4", "ac3", 48000, True, 0), ("mp4", "libmp3lame", 44100, True, 0), ("mp4", "libopus", 48000, True, 0),
    ("mp4", "flac", 44100, False, 0),
    ("mp4", "alac", 44100, True, 0), ("mov", "pcm_s16le", 44100, True, 0), ("mkv", "aac", 44100, True, 0),
    ("mkv", "libopus", 48000, True, 0),
    ("mkv", "libmp3lame", 44100, True, 0), ("mkv", "flac", 44100, False, 0), ("webm", "libopus", 48000, True, 0),
    ("webm", "vorbis", 44100, False, 0),
    ("avi", "pcm_s16le", 44100, True, 0), ("avi", "libmp3lame", 44100, True, 401), ("avi", "ac3", 48000, True, 85),
    ("ts", "aac", 44100, True, 372),
    ("ts", "mp2", 48000, True, 160), ("ts", "ac3", 48000, False, 85), ("mpg", "mp2", 44100, True, 174),
    ("flv", "aac", 44100, True, 372),
    ("ogg", "vorbis", 44100, False, 0), ("ogg", "libopus", 48000, False, 0), ("ogg", "flac", 44100, False, 0),
    ("flac", "flac", 96000, False, 0),
    ("wav", "pcm_s16le", 11025, False, 0), ("wav", "pcm_u8", 32000, False, 0), ("wav", "pcm_s24le", 44100, False, 0),
    ("wav", "pcm_f32le", 48000, False, 0),
    ("aiff", "pcm_s16be", 44100, False, 0), ("au", "pcm_s16be", 16000, False, 0),
    ("caf", "pcm_s16le", 44100, False, 0), ("w64", "pcm_s16le", 8000, False, 0),
    ("mp3", "libmp3lame", 44100, False, 0), ("aac", "aac", 44100, False, 372), ("ac3", "ac3", 48000, False, 85),
    ("mp2", "mp2", 44100, False, 174),
    ("wv", "wavpack", 44100, False, 0), ("tta", "tta", 44100, False, 0),
]  # fmt: skip


@pytest.mark.parametrize(("extension", "codec", "rate", "video", "delay"), CONTAINERS)
def test_every_container_decodes_in_step_and_as_long_as_probed(tmp_path, extension, codec, rate, video, delay):
    path = make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=rate, video=video)
    samples, decoder = decode_whole(path)
    reference = chirp(RATE, 2.0)
    assert abs(_lag(samples, reference) - delay) <= 1
    heard = samples[delay : delay + len(reference)]
    assert np.corrcoef(heard, reference[: len(heard)])[0, 1] > 0.9  # a delay of half a sample costs 5 %
    assert decoder.lost_samples == 0
    recording = probe(path)
    assert (recording.status, recording.error, recording.sample_rate, recording.channels) == (Status.OK, "", rate, 2)
    # A Matroska clock ticks in milliseconds, and does not say how much of Vorbis' last packet is padding.
    assert abs(recording.duration_seconds * RATE - len(samples)) <= (320 if codec == "vorbis" else 20)
    # Frames make lossy sound longer, but for containers that say where it ends.
    assert 0 <= len(samples) - 2 * RATE - delay <= 800
    if extension in ("mp4", "m4a", "mov", "wav", "flac", "mp3", "ogg") and codec not in ("ac3", "libmp3lame", "vorbis"):
        assert len(samples) == 2 * RATE


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("rate", [7875, 8012, 11025, 16000, 32000, 44100, 48000, 96000])
def test_any_rate_and_number_of_channels_gives_the_mean_resampled(tmp_path, rate, channels):
    times = np.arange(rate) / rate
    tones = np.stack([np.sin(2 * np.pi * 300 * (channel + 1) * times) for channel in range(channels)], axis=1)
    samples, _ = decode_whole(make_wav(tmp_path / "a.wav", 0.9 * tones, rate))
    times = np.arange(RATE) / RATE
    expected = np.mean([0.9 * np.sin(2 * np.pi * 300 * (channel + 1) * times) for channel in range(channels)], axis=0)
    assert abs(len(samples) - RATE) <= 1
    assert np.abs(samples[400:15600] - expected[400:15600]).max() < 2e-3


def test_channels_without_known_places_are_averaged(tmp_path):
    samples, _ = decode_whole(
        make_wav(
            tmp_path / "a.wav", np.stack([np.full(RATE, value) for value in (0.1, 0.2, 0.3, 0.4, 0.0)], axis=1), RATE
        )
    )
    np.testing.assert_allclose(samples, 0.2, atol=1e-6)


def test_resampling_does_not_alias(tmp_path):
    above = np.sin(2 * np.pi * 11000 * np.arange(44100) / 44100)  # x[::3] would make it 3.7 kHz
    samples, _ = decode_whole(make_wav(tmp_path / "a.wav", above, 44100))
    assert np.abs(samples[500:-500]).max() < 1e-3


def test_the_same_rate_is_passed_through_bit_by_bit(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    samples, _ = decode_whole(make_wav(tmp_path / "a.wav", noise, RATE))
    np.testing.assert_array_equal(samples, noise)


def test_only_the_first_audio_track_is_decoded(tmp_path):
    path = make_media(tmp_path / "a.mkv", audio="flac", video=True, tracks=2, channels=1)
    assert _lag(decode_whole(path)[0], chirp(RATE, 2.0)) == 0


def test_video_is_not_read_from_disk(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        picture, sound = container.add_stream("rawvideo", rate=25), container.add_stream("pcm_s16le", rate=RATE)
        picture.width, picture.height, picture.pix_fmt, sound.layout = 320, 240, "yuv420p", "mono"
        for index in range(50):
            container.mux(picture.encode(av.VideoFrame(320, 240, "yuv420p")))
            frame = av.AudioFrame.from_ndarray(np.ones((1, 640), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = RATE, 640 * index
            container.mux(sound.encode(frame))
        container.mux(picture.encode(None))

    def bytes_read():
        return int(
            next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")).split()[1]
        )

    before = bytes_read()
    assert len(decode_whole(path)[0]) == 2 * RATE
    assert path.stat().st_size > 5_000_000
    assert bytes_read() - before < 0.5 * path.stat().st_size


# ------------------------------------------------------------------------------------------------ time line


def test_sound_that_starts_late_comes_after_silence(tmp_path):
    samples, decoder = decode_whole(make_media(tmp_path / "a.mkv", audio="flac", start_seconds=0.75, video=True))
    assert _silences(samples)[0] == (0, 12000)
    assert _lag(samples, chirp(RATE, 2.0)) == 12000
    assert decoder.lost_samples == 0  # nothing was there to lose


def test_a_file_cut_from_a_longer_one_starts_at_its_first_sample(tmp_path):
    path = make_media(tmp_path / "a.mkv", audio="flac", start_seconds=5000.0)
    assert len(decode_whole(path)[0]) == 2 * RATE
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.002)


@pytest.mark.parametrize(("extension", "codec"), [("mkv", "flac"), ("mp4", "aac"), ("ts", "mp2"), ("mkv", "libopus")])
def test_a_gap_in_the_timestamps_is_silence_of_its_length(tmp_path, extension, codec):
    def move(index, packet):
        if index >= 8:
            shift = round(0.5 / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        return packet

    path = make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=48000, edit=move)
    samples, decoder = decode_whole(path)
    ((start, length),) = _silences(samples, shortest=1000)
    assert abs(length - 8000) <= 60
    whole = decode_whole(make_media(tmp_path / f"b.{extension}", audio=codec, sample_rate=48000))[0]
    assert abs(len(samples) - len(whole) - 8000) <= 20
    after = start + length + 1600
    assert abs(_lag(samples[after : after + 6400], whole[after - 8000 : after - 1600])) <= 16
    assert abs(decoder.lost_samples - 8000) <= 60
    assert abs(probe(path).duration_seconds * RATE - len(samples)) <= 20


def test_sound_that_comes_twice_is_heard_once(tmp_path):
    def move(index, packet):
        if index >= 4:
            shift = round(0.25 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    whole = chirp(RATE, 2.0)
    samples, _ = decode_whole(make_media(tmp_path / "a.mkv", audio="pcm_s16le", sample_rate=RATE, edit=move))
    assert abs(len(samples) - len(whole) + 4000) <= 20
    assert abs(_lag(samples[-8000:], whole[-8000:])) <= 20
    assert not _silences(samples)


def test_timestamps_that_wander_by_milliseconds_leave_the_sound_whole(tmp_path):
    wander = np.random.default_rng(1).integers(-4, 5, 10_000)

    def shake(index, packet):
        packet.pts = packet.dts = packet.pts + 10 + round(int(wander[index]) / 1000 / packet.time_base)
        return packet

    samples, decoder = decode_whole(make_media(tmp_path / "a.mkv", audio="pcm_s16le", sample_rate=RATE, edit=shake))
    assert decoder.lost_samples == 0
    assert abs(len(samples) - 2 * RATE) <= 240
    assert np.corrcoef(samples[_lag(samples, chirp(RATE, 2.0)) :][:30000], chirp(RATE, 2.0)[:30000])[0, 1] > 0.9999


def test_an_absurd_timestamp_makes_no_hours_of_silence(tmp_path):
    def lie(index, packet):
        if index >= 5:
            shift = round(1e6 / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        return packet

    path = make_media(tmp_path / "a.mkv", audio="flac", edit=lie)
    assert abs(len(decode_whole(path)[0]) - 2 * RATE) <= 20
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.01)


# --------------------------------------------------------------------------------------------------- faults


def _garbage(packet, byte=b"\x55"):
    spoiled = av.Packet(byte * max(8, packet.size))
    spoiled.pts, spoiled.dts, spoiled.duration, spoiled.time_base = (
        packet.pts,
        packet.dts,
        packet.duration,
        packet.time_base,
    )
    return spoiled


@pytest.mark.parametrize("spoiled", [{20}, set(range(20, 40)), {1, 2}, {10, 30, 31, 50}])
@pytest.mark.parametrize(
    ("extension", "codec", "slack"),
    [("mkv", "aac", 20), ("mp4", "aac", 2), ("mkv", "libmp3lame", 20), ("mkv", "ac3", 20)],
)
def test_a_bad_packet_costs_that_packet(tmp_path, extension, codec, slack, spoiled):
    whole, _ = decode_whole(make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=48000))
    path = make_media(
        tmp_path / f"b.{extension}",
        audio=codec,
        sample_rate=48000,
        edit=lambda index, packet: _garbage(packet) if index in spoiled else packet,
    )
    samples, decoder = decode_whole(path)
    frame = {"aac": 1024, "libmp3lame": 1152, "ac3": 1536}[codec] * RATE // 48000
    assert (
        len(spoiled) * frame - 30 <= decoder.lost_samples <= 2 * len(spoiled) * frame + 30
    )  # MP3 packets lean on the ones before
    assert abs(len(samples) - len(whole)) <= slack
    touched = np.zeros(len(whole), bool)
    for index in spoiled:
        touched[max(0, (index - 3) * frame) : (index + 4) * frame] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[1], touched, [1]])))
    for start, stop in edges.reshape(-1, 2):
        if stop - start > 3000:
            assert abs(_lag(samples[start + 100 : stop - 100], whole[start + 100 : stop - 100])) <= slack
    assert abs(probe(path).duration_seconds * RATE - len(samples)) <= 20


def test_bad_packets_at_the_end_are_silence_up_to_their_end(tmp_path):
    path = make_media(tmp_path / "a.mkv", edit=lambda index, packet: _garbage(packet) if index >= 60 else packet)
    samples, decoder = decode_whole(path)
    assert abs(len(samples) - 2 * RATE) <= 800
    assert not samples[round(61 * 1024 / 44100 * RATE) :].any()
    assert decoder.lost_samples > 8000


def test_nine_bad_packets_in_ten_leave_the_tenth_in_its_place(tmp_path):
    def keep_tenth(index, packet):
        return packet if index % 10 == 5 else _garbage(packet)

    whole, _ = decode_whole(make_media(tmp_path / "a.mkv", audio="flac", seconds=20.0))
    path = make_media(tmp_path / "b.mkv", audio="flac", seconds=20.0, edit=keep_tenth)
    samples, decoder = decode_whole(path)
    frame = 4608 * RATE // 44100
    assert abs(len(samples) - len(whole)) <= frame  # the last one does not say how long it is
    assert abs(probe(path).duration_seconds * RATE - len(samples)) <= frame
    assert 0.85 < decoder.lost_samples / len(samples) < 0.95
    for index in (5, 95, 185):
        heard = slice(index * frame + 300, (index + 1) * frame)
        assert abs(_lag(samples[heard], whole[heard])) <= 16
        assert np.abs(samples[heard]).max() > 0.4


def test_a_file_of_nothing_but_bad_packets_cannot_be_decoded(tmp_path):
    path = make_media(tmp_path / "a.mkv", edit=lambda index, packet: _garbage(packet))
    with pytest.raises(MediaError, match="a.mkv: no sound in it can be decoded"):
        list(media.Decoder(path, RATE))


def test_rate_and_channels_that_change_in_mid_stream_do_not_stop_the_sound(tmp_path):
    first = make_media(tmp_path / "1.aac", seconds=1.0)
    second = make_media(tmp_path / "2.aac", seconds=1.0, sample_rate=22050, channels=1)
    path = tmp_path / "a.aac"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    samples, _ = decode_whole(path)
    length = len(decode_whole(first)[0])
    # FFmpeg makes up the timestamps of a raw stream, and they overlap by a frame where the rate changes.
    assert abs(_lag(samples[length:], chirp(RATE, 1.0)) - 1024 * RATE / 22050) <= 400
    assert abs(len(samples) - length - len(decode_whole(second)[0])) <= 400
    assert abs(probe(path).duration_seconds * RATE - len(samples)) <= 2


def test_peaks_are_clipped_and_what_is_no_number_is_lost(tmp_path):
    tone = 1.7 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE).astype(np.float32)
    tone[3000:3010], tone[5000], tone[6000] = np.nan, np.inf, -np.inf
    samples, decoder = decode_whole(make_wav(tmp_path / "a.wav", tone, RATE))
    assert samples.max() == 1.0
    assert samples.min() == -1.0
    assert decoder.lost_samples == 12
    assert not samples[[*range(3000, 3010), 5000, 6000]].any()
    resampled, decoder = decode_whole(make_wav(tmp_path / "b.wav", tone, 44100))
    assert np.isfinite(resampled).all()
    assert 12 * RATE / 44100 <= decoder.lost_samples < 400


def test_numbers_near_the_largest_float_raise_no_warning(tmp_path):
    samples, decoder = decode_whole(make_wav(tmp_path / "a.wav", np.full(RATE, 3e38, np.float32), RATE))
    assert (samples == 1.0).all()
    assert decoder.lost_samples == 0


def test_digital_silence_stays_silence(tmp_path):
    samples, decoder = decode_whole(make_media(tmp_path / "a.mp4", sound=np.zeros(44100, np.float32)))
    assert not samples.any()
    assert decoder.lost_samples == 0


def _patched(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_a_codec_without_a_decoder_is_named(tmp_path):
    path = _patched(make_media(tmp_path / "a.mp4", audio="alac"), b"alac", b"zzzz")
    assert probe(path) == Recording(Status.UNREADABLE, "there is no decoder for its audio track")
    with pytest.raises(MediaError, match="no decoder"):
        list(media.Decoder(path, RATE))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", 3),
        ("sample_rate", 2**31 - 1),
        ("sample_rate", 2**32 - 1),
        ("channels", 0),
        ("channels", 65535),
    ],
)
def test_absurd_rates_and_channels_are_refused(tmp_path, field, value):
    path = make_wav(tmp_path / "a.wav", np.zeros(1000), RATE, claims={field: value})
    assert probe(path).status == Status.UNREADABLE
    with pytest.raises(MediaError, match=r"a\.wav: "):
        list(media.Decoder(path, RATE))


@pytest.mark.parametrize("size", [2**32 - 1, 2**31, 0])
def test_a_wav_is_as_long_as_its_bytes(tmp_path, size):
    path = make_wav(tmp_path / "a.wav", np.ones(RATE), RATE, claims={"bytes": size})
    assert probe(path).duration_seconds == pytest.approx(1.0, abs=0.01)
    assert abs(len(decode_whole(path)[0]) - RATE) <= 160


def test_a_header_that_claims_a_billion_seconds_is_not_believed(tmp_path):
    path = make_media(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):  # 32-bit duration, in ticks
        place = data.index(box)
        data[place + offset : place + offset + 4] = struct.pack(">I", 2**32 - 1)
    path.write_bytes(data)
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.03)
    place = data.index(b"stts")  # and now each packet claims 13 hours
    data[place + 12 : place + 16] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(data)
    assert probe(path).duration_seconds < 70
    assert len(decode_whole(path)[0]) < 70 * RATE
