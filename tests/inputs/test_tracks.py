"""Which track is decoded, what silences it, and what the disk does not give: nothing of that passes without a word."""

import errno

import av
import numpy as np
import pytest
from conftest import chirp, decode_whole, make_media, make_wav

from egoaudio.errors import MediaError, Status
from egoaudio.inputs import containers
from egoaudio.inputs.decoder import Decoder
from egoaudio.inputs.probe import probe

RATE = 16000
LOW, HIGH = 300, 2000  # Hz, of the first and the second track


def _tone(hz, seconds=2.0, rate=48000):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def _pitch(samples):
    return int(np.argmax(np.abs(np.fft.rfft(samples)))) * RATE / len(samples)


def _two_tracks(path, sounds, codecs=("aac", "aac"), default=None, spoil=()):
    """Write a file with an audio track for each sound; ``default`` is marked, ``spoil`` have damaged packets only."""
    with av.open(str(path), "w") as container:
        streams = []
        for number, codec in enumerate(codecs):
            stream = container.add_stream(codec, rate=48000)
            stream.layout = "mono"
            streams.append(stream)
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        packets = []
        for number, (stream, sound) in enumerate(zip(streams, sounds, strict=True)):
            for start in range(0, len(sound), 4096):
                frame = av.AudioFrame.from_ndarray(sound[None, start : start + 4096], "fltp", "mono")
                frame.sample_rate, frame.pts = 48000, start
                packets += [(number, packet) for packet in stream.encode(frame)]
            packets += [(number, packet) for packet in stream.encode(None)]
        for number, packet in packets:
            if number in spoil:
                bad = av.Packet(b"\x55" * max(8, packet.size))
                bad.pts, bad.dts, bad.duration, bad.time_base = (
                    packet.pts,
                    packet.dts,
                    packet.duration,
                    packet.time_base,
                )
                packet = bad
            packet.stream = streams[number]
            container.mux(packet)
    return path


# ---------------------------------------------------------------------------------------------------------- the track


@pytest.mark.parametrize(("default", "expected"), [(None, LOW), (0, LOW), (1, HIGH)])
@pytest.mark.parametrize("extension", ["mkv", "mp4"])
def test_the_track_that_is_marked_as_the_default_is_decoded_else_the_first(tmp_path, extension, default, expected):
    path = _two_tracks(tmp_path / f"a.{extension}", [_tone(LOW), _tone(HIGH)], default=default)
    assert _pitch(decode_whole(path)[0]) == pytest.approx(expected, abs=2)
    assert probe(path).status == Status.OK


def test_a_silent_first_track_beside_the_default_is_passed_over(tmp_path):
    path = _two_tracks(tmp_path / "a.mkv", [0 * _tone(LOW, 1.0), _tone(HIGH)], default=1)
    samples, decoder = decode_whole(path)
    assert _pitch(samples) == pytest.approx(HIGH, abs=2)
    assert decoder.peak > 0.4
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.05)


def test_a_first_track_that_does_not_decode_is_passed_over(tmp_path):
    path = _two_tracks(tmp_path / "a.mkv", [_tone(LOW, 1.0), _tone(HIGH)], spoil={0})
    assert _pitch(decode_whole(path)[0]) == pytest.approx(HIGH, abs=2)
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.05)


def test_a_first_track_without_a_decoder_is_passed_over(tmp_path):
    path = _two_tracks(tmp_path / "a.mp4", [_tone(LOW, 1.0), _tone(HIGH)], codecs=("alac", "aac"))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"alac", b"zzzz"))
    assert _pitch(decode_whole(path)[0]) == pytest.approx(HIGH, abs=2)
    assert probe(path).status == Status.OK


@pytest.mark.parametrize(("number", "expected"), [(0, LOW), (1, HIGH)])
def test_any_track_can_be_chosen(tmp_path, number, expected):
    path = _two_tracks(tmp_path / "a.mkv", [_tone(LOW, 1.0), _tone(HIGH)], default=1 - number)
    samples = np.concatenate(list(Decoder(path, RATE, audio_track=number)))
    assert _pitch(samples) == pytest.approx(expected, abs=2)
    assert abs(probe(path, audio_track=number).duration_seconds * RATE - len(samples)) < 50


def test_a_track_that_is_not_there_is_named(tmp_path):
    path = _two_tracks(tmp_path / "a.mkv", [_tone(LOW), _tone(HIGH)])
    with pytest.raises(MediaError, match="there is no `audio_track=2`: it has 2, numbered from 0"):
        list(Decoder(path, RATE, audio_track=2))
    assert probe(path, audio_track=2).status == Status.UNREADABLE


@pytest.mark.parametrize(("extension", "codec"), [("ts", "aac"), ("mpg", "mp2"), ("flv", "aac"), ("mkv", "aac")])
def test_sound_from_ten_seconds_on_is_found(tmp_path, extension, codec):
    """A picture of 5 MB and more comes before it, which is as far as FFmpeg looks by itself."""
    noise = np.random.default_rng(0).integers(0, 255, (480, 640), dtype=np.uint8)
    path = tmp_path / f"a.{extension}"
    with av.open(str(path), "w") as container:
        picture, sound = (
            container.add_stream("mpeg2video" if extension in ("ts", "mpg", "mkv") else "flv", rate=25),
            container.add_stream(codec, rate=48000),
        )
        picture.width, picture.height, picture.pix_fmt, sound.layout = 640, 480, "yuv420p", "mono"
        picture.bit_rate = 6_000_000
        for index in range(12 * 25):
            frame = av.VideoFrame(640, 480, "yuv420p")
            frame.planes[0].update(np.roll(noise, index, axis=1).tobytes())
            frame.pts = index
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for start in range(0, 2 * 48000, 1024):
            frame = av.AudioFrame.from_ndarray(_tone(LOW)[None, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = 48000, start + 10 * 48000
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert path.stat().st_size > 5_500_000
    recording = probe(path)
    assert (recording.status, recording.error) == (Status.OK, "")
    if extension != "flv":  # its header has no 48 kHz: the packets say so
        assert (recording.sample_rate, recording.channels) == (48000, 1)
    assert recording.duration_seconds == pytest.approx(12.0, abs=0.1)
    samples, _ = decode_whole(path)
    assert np.argmax(np.abs(samples) > 0.02) / RATE == pytest.approx(10.0, abs=0.05)


# ------------------------------------------------------------------------------------------------------- silent, told


def test_how_loud_a_recording_is(tmp_path):
    path = make_wav(tmp_path / "a.wav", _tone(LOW, rate=RATE), RATE)
    decoder = Decoder(path, RATE)
    list(decoder)
    assert decoder.peak == pytest.approx(0.5, abs=1e-3)
    assert decoder.rms == pytest.approx(0.5 / np.sqrt(2), abs=1e-3)
    assert not decoder.is_silent
    assert not decoder.cancels_out


@pytest.mark.parametrize(
    ("extension", "codec"), [("mp4", "aac"), ("wav", "pcm_s16le"), ("mkv", "libopus"), ("mp3", "libmp3lame")]
)
def test_a_muted_track_is_silent(tmp_path, extension, codec):
    path = make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=48000, sound=np.zeros(96000, np.float32))
    _, decoder = decode_whole(path)
    assert decoder.is_silent
    assert not decoder.cancels_out


@pytest.mark.parametrize(
    ("extension", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mkv", "libmp3lame"), ("mp4", "aac")]
)
def test_channels_that_cancel_out_are_told_from_silence(tmp_path, extension, codec):
    tone = chirp(48000, 2.0)
    path = make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=48000, sound=np.stack([tone, -tone]))
    _, decoder = decode_whole(path)
    assert decoder.peak < 0.003
    assert decoder.cancels_out


def test_a_faint_sound_is_not_silent(tmp_path):
    _, decoder = decode_whole(make_wav(tmp_path / "a.wav", 1e-3 * _tone(LOW, rate=RATE), RATE))
    assert not decoder.is_silent
    assert not decoder.cancels_out


# --------------------------------------------------------------------------------------------------------- read errors


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    ("extension", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("mkv", "aac"),
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("mp4", "aac"),
        ("ogg", "vorbis"),
        ("ts", "aac"),
        ("flv", "aac"),
    ],
)
def test_a_read_error_is_not_the_end_of_the_file(tmp_path, monkeypatch, extension, codec, share):
    path = make_media(tmp_path / f"a.{extension}", audio=codec, seconds=8.0)
    limit = share * path.stat().st_size

    def read(file, size=-1):
        if file.tell() + size > limit and file.tell() < path.stat().st_size:
            raise OSError(errno.EIO, "Input/output error")
        return super(containers._File, file).read(size)

    monkeypatch.setattr(containers._File, "read", read, raising=False)
    recording = probe(path)
    assert recording.status == Status.UNREADABLE
    assert "Input/output error" in recording.error
    with pytest.raises(MediaError, match=r"reading it failed after .* bytes: Input/output error"):
        list(Decoder(path, RATE))


# -------------------------------------------------------------------------------------------- chained recordings

LINKS = {"opus": "libopus", "oga": "flac", "ogg": "vorbis"}


def _link(path, codec, rate, channels):
    """Write a link of one second and return its bytes and its samples."""
    tone = np.broadcast_to(chirp(rate, 1.0), (channels, rate))
    path = make_media(path, audio=codec, sample_rate=rate, channels=channels, sound=tone)
    return path.read_bytes(), decode_whole(path)[0]


@pytest.mark.parametrize("extension", LINKS)
def test_the_links_of_a_chained_ogg_file_follow_one_another(tmp_path, extension):
    """Their rates and channels differ, which FFmpeg refuses or plays too fast."""
    codec = LINKS[extension]
    settings = [
        (48000, 2),
        (48000, 2),
        (24000 if codec == "libopus" else 44100, 2 if codec == "vorbis" else 1),
        (48000, 2),
    ]
    links = [_link(tmp_path / f"{number}.{extension}", codec, *setting) for number, setting in enumerate(settings)]
    path = tmp_path / f"a.{extension}"
    path.write_bytes(b"".join(data for data, _ in links))
    samples, decoder = decode_whole(path)
    np.testing.assert_array_equal(samples, np.concatenate([expected for _, expected in links]))
    assert decoder.lost_samples == decoder.bad_parts == 0
    assert abs(probe(path).duration_seconds * RATE - len(samples)) < 400


def test_a_link_that_does_not_decode_is_silent_and_counted(tmp_path):
    data, expected = _link(tmp_path / "a.opus", "libopus", 48000, 2)
    path = tmp_path / "b.opus"
    path.write_bytes(data + data.replace(b"OpusHead", b"OpusHeaX") + data)
    samples, decoder = decode_whole(path)
    np.testing.assert_array_equal(samples[: len(expected)], expected)
    np.testing.assert_array_equal(samples[-len(expected) :], expected)
    assert decoder.bad_parts == 1
    assert decoder.lost_samples == len(samples) - 2 * len(expected) == pytest.approx(len(expected), abs=100)
    assert abs(probe(path).duration_seconds * RATE - len(samples)) < 100


# ------------------------------------------------------------------------------------------------------ encoders' delay

# Container, codec, rate, and how late it is by itself: none of these states the delay.
DELAYED = [
    ("aac", "aac", 44100, 1024),
    ("ts", "aac", 48000, 1024),
    ("flv", "aac", 44100, 1024),
    ("avi", "libmp3lame", 44100, 1105),
    ("mp2", "mp2", 48000, 481),
    ("ac3", "ac3", 48000, 256),
    ("ts", "ac3", 48000, 256),
]
STATED = [
    ("mp4", "aac", 44100),
    ("mkv", "aac", 44100),
    ("mp3", "libmp3lame", 44100),
    ("webm", "libopus", 48000),
    ("flac", "flac", 44100),
    ("wav", "pcm_s16le", 44100),
]


def _lateness(samples, seconds=2.0):
    """Return by how many seconds samples come later than the chirp."""
    reference = chirp(RATE, seconds)
    size = 2**17
    correlation = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(reference, size)), size)
    lag = int(np.argmax(correlation))
    return (lag - size if lag > size // 2 else lag) / RATE


@pytest.mark.parametrize(("extension", "codec", "rate", "delay"), DELAYED)
def test_a_delay_that_is_not_stated_can_be_compensated(tmp_path, extension, codec, rate, delay):
    path = make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=rate)
    assert _lateness(decode_whole(path)[0]) == pytest.approx(delay / rate, abs=0.0005)
    samples = np.concatenate(list(Decoder(path, RATE, compensate_delay=True)))
    assert _lateness(samples) == pytest.approx(0.0, abs=0.0005)
    assert abs(probe(path, compensate_delay=True).duration_seconds * RATE - len(samples)) < 50


@pytest.mark.parametrize(("extension", "codec", "rate"), STATED)
def test_a_delay_that_is_stated_is_not_compensated_twice(tmp_path, extension, codec, rate):
    path = make_media(tmp_path / f"a.{extension}", audio=codec, sample_rate=rate)
    np.testing.assert_array_equal(
        np.concatenate(list(Decoder(path, RATE, compensate_delay=True))), decode_whole(path)[0]
    )
