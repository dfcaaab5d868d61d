"""What is odd about recordings is told: in the report, in /videos, and left out on request."""

import numpy as np
import pytest
from conftest import chirp, make_media

import egoaudio
from egoaudio.builder.build import build
from egoaudio.builder.plan import Inputs
from egoaudio.builder.sound import describe_sound
from egoaudio.config.build import BuildConfig, DenoiseConfig, FeatureConfig, SoundConfig
from egoaudio.errors import Status

pytestmark = pytest.mark.usefixtures("kept_workers")
QUICK = {"denoise": DenoiseConfig(mode="none"), "features": FeatureConfig(features=("mfcc",))}


@pytest.fixture
def folder(tmp_path):
    """Five recordings: sounding, muted, cancelling out, with a pause of 90 s, and with a jump that nothing confirms."""
    (tmp_path / "videos").mkdir()
    tone = chirp(44100, 3.0)

    def pause(seconds):
        def edit(index, packet):
            shift = round(seconds / packet.time_base) if packet.pts * packet.time_base > 1.5 else 0
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            return packet

        return edit

    make_media(tmp_path / "videos" / "good.mp4", sound=tone)
    make_media(tmp_path / "videos" / "muted.mp4", sound=0 * tone)
    make_media(tmp_path / "videos" / "cancels.mp4", sound=np.stack([tone, -tone]))
    make_media(tmp_path / "videos" / "paused.mp4", sound=tone, edit=pause(90.0))
    make_media(tmp_path / "videos" / "jumps.mkv", sound=tone, edit=pause(1e6))
    rows = "".join(f"{name},0,1,sound\n" for name in ("good", "muted", "cancels", "paused", "jumps"))
    (tmp_path / "all.csv").write_text("video,start,end,label\n" + rows)
    return tmp_path


def _build(folder, **sound):
    output = folder / "ego.h5"
    report = build(
        Inputs((str(folder / "all.csv"),), str(folder / "videos")),
        output,
        BuildConfig(sound=SoundConfig(**sound), **QUICK),
        num_workers=1,
    )
    with egoaudio.open(output) as file:
        rows = {row["video_id"].decode(): row for row in file.video_table.copy()}
    return str(report), rows


def test_what_is_odd_about_the_sound_is_told(folder):
    text, rows = _build(folder)
    assert "silent videos: 1, such as muted" in text
    assert "channels cancel out: 1, such as cancels" in text
    assert "90.00 s without any packets (paused, or muted), in 1 videos; most in paused" in text
    assert "1 jumps of the timestamps that nothing confirms" in text
    assert "could not be decoded or placed, in 1 videos; most in jumps" in text
    assert all(row["status"] == Status.OK for row in rows.values())
    assert rows["paused"]["duration_seconds"] == pytest.approx(93.0, abs=0.1)
    assert rows["paused"]["gap_samples"] == rows["paused"]["lost_samples"] == pytest.approx(90 * 16000, abs=2)
    assert (rows["jumps"]["clock_jumps"], rows["good"]["clock_jumps"]) == (1, 0)
    assert rows["jumps"]["lost_samples"] > 0 == rows["good"]["lost_samples"]
    assert rows["good"]["peak_db"] == pytest.approx(20 * np.log10(0.5), abs=1)
    assert rows["good"]["rms_db"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=1)
    assert rows["muted"]["peak_db"] == -200
    assert (rows["cancels"]["cancels_out"], rows["muted"]["cancels_out"]) == (1, 0)


def test_silent_recordings_are_left_out_on_request(folder):
    text, rows = _build(folder, skip_silent=True)
    assert [name for name, row in rows.items() if row["status"] == Status.NO_AUDIO] == ["muted", "cancels"]
    assert rows["muted"]["error"] == b"it is silent: muted, or digital silence"
    assert rows["cancels"]["error"] == b"it is silent: its channels cancel out"
    assert "silent videos" not in text
    with egoaudio.open(folder / "ego.h5") as file:
        clips = file.clip_table
        left_out = np.isin(clips["video"], [1, 2])
        assert (clips["status"][left_out] == Status.NO_AUDIO).all()
        assert not file.usable[left_out].any()
        assert not file["mfcc"][: file.num_clips][left_out].any()


def test_a_file_from_before_the_columns_is_described_by_what_it_has():
    rows = np.zeros(2, [("video_id", "S4"), ("status", "u1"), ("lost_samples", "<i8")])
    rows["video_id"], rows["status"], rows["lost_samples"] = [b"A", b"B"], Status.OK, [0, 8000]
    assert describe_sound(rows, 16000) == ["lost     0.50 s could not be decoded or placed, in 1 videos; most in B"]


@pytest.mark.parametrize("number", [0, 1])
def test_the_track_is_an_option(tmp_path, number):
    (tmp_path / "videos").mkdir()
    make_media(tmp_path / "videos" / "A.mkv", tracks=2, sound=chirp(44100, 3.0))  # the second track is silent
    (tmp_path / "all.csv").write_text("video,start,end,label\nA,0,1,sound\n")
    _, rows = _build(tmp_path, audio_track=number)
    assert (rows["A"]["peak_db"] < -80) == (number == 1)
