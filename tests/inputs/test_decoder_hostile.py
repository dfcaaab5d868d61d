"""Files that are not media, are cut, damaged or hostile: only the file itself is opened, in bounded memory and time."""

import os
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import decode_whole, make_media
from mutations import KINDS, mutate

from egoaudio.errors import MediaError, Status
from egoaudio.inputs import decoder as media
from egoaudio.inputs.probe import Recording, probe

RATE = 16000

# ---------------------------------------------------------------------------------------- what is no media


def _text(path):
    path.write_text("Not a film.\n" * 100)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.touch(), r"the file is empty \(0 bytes\)"),
        (_text, "not a media file, or cut off before its index"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be opened: No such file"),
        (lambda path: path.symlink_to(path.name), "cannot be opened: "),
    ],
)
def test_what_is_no_media_file_is_refused_with_the_reason(tmp_path, monkeypatch, make, reason):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    path = Path("a.mp4")
    make(path)
    recording = probe(path)
    assert recording.status == Status.UNREADABLE
    with pytest.raises(MediaError, match="a.mp4: .*" + reason) as caught:
        list(media.Decoder(path, RATE))
    assert str(caught.value) == f"a.mp4: {recording.error}"


def test_a_picture_is_no_film_without_sound(tmp_path):
    path = tmp_path / "a.gif"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("gif", rate=5)
        picture.width, picture.height, picture.pix_fmt = 16, 16, "rgb8"
        for _ in range(3):
            container.mux(picture.encode(av.VideoFrame(16, 16, "rgb8")))
        container.mux(picture.encode(None))
    assert probe(path.rename(tmp_path / "a.mp4")).status == Status.UNREADABLE


def test_a_path_with_nul_is_refused():
    assert probe("a\0b.mp4").status == Status.UNREADABLE


def test_a_film_without_sound_says_so(tmp_path):
    path = make_media(tmp_path / "a.mp4", audio=None, video=True)
    assert probe(path) == Recording(Status.NO_AUDIO, "it has no audio track")
    with pytest.raises(MediaError, match="no audio track"):
        list(media.Decoder(path, RATE))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_an_mp4_cut_off_before_its_index_is_unreadable(good_files, tmp_path, share):
    data = good_files["mp4"].read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(data[: round(share * len(data))])
    assert probe(path).status == Status.UNREADABLE


def test_an_mp4_cut_off_after_its_index_gives_what_is_there(tmp_path):
    whole = make_media(tmp_path / "a.mp4", options={"movflags": "faststart"})
    data = whole.read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(data[: round(0.6 * len(data))])
    samples, _ = decode_whole(path)
    assert 0.3 * RATE < len(samples) < 1.5 * RATE
    assert abs(probe(path).duration_seconds * RATE - len(samples)) <= 20
    np.testing.assert_array_equal(samples[: len(samples) - 800], decode_whole(whole)[0][: len(samples) - 800])


@pytest.mark.parametrize("size", [1 << 20, 1 << 30, (1 << 31) + 5])
def test_an_index_with_a_wrong_size_is_not_believed(tmp_path, size):
    path = make_media(tmp_path / "a.m4a")
    data = bytearray(path.read_bytes())
    place = data.index(b"stsz") + 16 + 4 * 30
    data[place : place + 4] = struct.pack(">I", size)
    path.write_bytes(data)
    samples, _ = decode_whole(path)
    assert len(samples) > 10_000  # the packets before it
    assert abs(probe(path).duration_seconds * RATE - len(samples)) <= 2


def test_a_fragmented_mp4_is_measured_whole(tmp_path):
    path = make_media(
        tmp_path / "a.mp4", video=True, options={"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}
    )
    assert probe(path).duration_seconds * RATE == pytest.approx(len(decode_whole(path)[0]), abs=2)
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.1)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{other}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{other}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "http": "#EXTM3U\n#EXTINF:2.0,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("extension", ["mp4", "m3u8", "ts"])
def test_playlists_are_not_followed(good_files, tmp_path, kind, extension):
    path = tmp_path / f"a.{extension}"
    path.write_text(PLAYLISTS[kind].format(other=good_files["ts"]))
    assert probe(path).status == Status.UNREADABLE
    with pytest.raises(MediaError):
        list(media.Decoder(path, RATE))


@pytest.mark.parametrize(
    "name",
    ["concat:a.mp4", "http:a.mp4", "file:a.mp4", "subfile,,start,0,end,0,,:a.mp4", "-a.mp4", "%d.mp4", "pipe:0.mp4"],
)
def test_a_name_that_looks_like_a_protocol_is_a_file_name(good_files, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(good_files["mp4"].read_bytes())
    assert probe(name).status == Status.OK
    assert len(decode_whole(name)[0]) == 2 * RATE


# ---------------------------------------------------------------------------------------- care with the machine


def test_broken_files_print_nothing(tmp_path, good_files, capfd):
    for kind, path in good_files.items():
        broken = tmp_path / f"a.{kind}"
        for seed in range(len(KINDS)):
            broken.write_bytes(mutate(path.read_bytes(), seed))
            probe(broken)
    assert capfd.readouterr() == ("", "")


def test_an_offset_that_no_file_has_prints_nothing(tmp_path, capfd):
    data = make_media(tmp_path / "a.w64", audio="pcm_s16le").read_bytes()
    path = tmp_path / "b.w64"
    path.write_bytes(data[:40] + 3 * (b"x" * 16 + struct.pack("<Q", 2**62)) + data[40:])  # chunks of four exabytes
    probe(path)
    assert capfd.readouterr() == ("", "")


def test_files_are_closed_and_no_threads_are_started(good_files):
    descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(5):
        for path in good_files.values():
            blocks = iter(media.Decoder(path, RATE))
            next(blocks)
            assert len(os.listdir("/proc/self/task")) == threads
            blocks.close()
            probe(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_decoder_can_be_run_again(good_files):
    decoder = media.Decoder(good_files["mp4"], RATE)
    first = np.concatenate(list(decoder))
    np.testing.assert_array_equal(np.concatenate(list(decoder)), first)
    assert decoder.num_samples == len(first)


_PEAK = """
import sys
from egoaudio.inputs import decoder as media
from egoaudio.inputs.probe import probe
recording = probe(sys.argv[1])
total = sum(len(block) for block in media.Decoder(sys.argv[1], 16000))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(recording.duration_seconds, total, peak.split()[1])
"""


@pytest.mark.parametrize(
    ("extension", "codec", "rate", "seconds"), [("flac", "flac", 8000, 3600), ("ogg", "libopus", 48000, 300)]
)
def test_hours_in_a_tiny_file_take_no_memory(tmp_path, extension, codec, rate, seconds):
    peaks = {}
    for length in (10, seconds):
        path = make_media(
            tmp_path / f"{length}.{extension}",
            audio=codec,
            sample_rate=rate,
            channels=1,
            sound=np.zeros((1, length * rate), np.float32),
        )
        output = subprocess.run(
            [sys.executable, "-c", _PEAK, str(path)], check=True, capture_output=True, text=True
        ).stdout
        duration, total, peaks[length] = (float(word) for word in output.split())
        assert duration == pytest.approx(length, abs=0.1)
        assert total == pytest.approx(length * RATE, abs=1600)
    assert path.stat().st_size < 1_500_000
    assert peaks[seconds] - peaks[10] < 8_000  # KiB; the samples alone would be 19,000 or 230,000


def test_damaged_files_end_in_sound_or_a_named_error(good_files, tmp_path):
    """A sample of what ``benchmarks/faults.py`` does: no crash, no other exception, no length out of thin air."""
    outcomes = {status: 0 for status in Status}
    for number, (kind, path) in enumerate(good_files.items()):
        data, damaged = path.read_bytes(), tmp_path / f"a.{kind}"
        for seed in range(3 * len(KINDS)):
            damaged.write_bytes(mutate(data, 100 * number + seed))
            recording = probe(damaged)
            outcomes[recording.status] += 1
            assert (recording.status == Status.OK) == (recording.error == "")
            assert recording.duration_seconds < 75
            try:
                samples, decoder = decode_whole(damaged)
            except MediaError as error:
                assert str(error).startswith(f"{damaged}: ")
            else:
                assert 0 <= decoder.lost_samples <= len(samples) < 75 * RATE
    assert outcomes[Status.OK] > 100
    assert outcomes[Status.UNREADABLE] > 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000
