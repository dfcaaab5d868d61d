"""What egoaudio-inspect shows: facts that are true, on a page that fits, and clips as sound and picture."""

import os
import wave

import numpy as np
import pytest
import synthetic

from egoaudio.errors import StoreError
from egoaudio.hdf5 import reader, summary
from egoaudio.hdf5.writer import RowWriter

FEATURES = {"spectrogram": (32, 1025), "mfcc": (32, 20), "logmel": (98, 128), "waveform": (16000,)}


@pytest.fixture
def file(tmp_path):
    path = synthetic.make_file(
        tmp_path / "ego.h5", num_videos=12, num_classes=7, features=FEATURES, failed=(2, 7), silent_clips=(5,)
    )
    with reader.open(path) as opened:
        yield opened


def rewrite(file, name, row, **columns):
    with RowWriter(file.path, file.extents) as writer:
        rows = writer.read(name, row, 1)
        for column, value in columns.items():
            rows[column] = value
        writer.write(name, row, rows)


def test_summary_is_a_page_of_true_facts(file):
    text = summary.summary(file)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 50
    size = os.path.getsize(file.path) / 1e6
    for words in (
        f"ego.h5: {size:.1f} MB, complete",
        "by egoaudio",
        "1 s every 1 s, 16,000 Hz",
        "mode=nonstationary",
        "features=spectrogram,mfcc",
        "videos 12: 10 with sound, 2 unreadable",
        "clips 120: 99 with sound, 20 unreadable, 1 beyond the end of the sound",
        "0.03 hours",
        f"to train on {file.trainable.sum()} clips",
        "spectrogram 120 x 32 x 1,025 float32 15.7 MB dB clip, frame_seconds, frequency_hz",
        "7 classes, 7 of them in clips",
        "most frequent",
        "least frequent",
    ):
        assert words in " ".join(text.split()), words


def test_summary_counts_splits(file):
    lines = [line.split() for line in summary.summary(file).splitlines()]
    train = file.videos["split"] == "train"
    clips = file.clips[file.usable]
    for split, chosen in (("train", train), ("test", ~train)):
        rows = clips[clips["video"].isin(np.flatnonzero(chosen))]
        expected = [
            split,
            chosen.sum(),
            file.videos["subject"][chosen].nunique(),
            len(rows),
            (rows["labelled"] == 1).sum(),
        ]
        assert [str(value) for value in expected] in lines


def test_summary_ranks_classes(file):
    text = summary.summary(file)
    counts = file.classes.set_index("class_id")["num_clips"]
    ranked = [line for line in text.splitlines() if line.startswith(tuple(counts.index))]
    assert ranked[0].split()[0] == counts.idxmax()
    assert f" {counts.max()} " in ranked[0]
    table = text[text.index("most frequent") :]
    assert all(table.count(identity) == 1 for identity in counts.index)  # seven classes: none is both frequent and rare
    assert ranked[0].split()[-1] == str(counts.min())
    assert f"{counts.sum()} labels" in text


def test_summary_of_an_unfinished_file_says_so_and_counts_what_is_there(tmp_path):
    path = synthetic.make_file(
        tmp_path / "ego.h5.partial", features={"mfcc": (32, 20)}, planned=(1, 2, 3), complete=False
    )
    with reader.EgoAudioFile(path) as file:
        text = summary.summary(file)
    assert "NOT COMPLETE: run the same egoaudio-build again" in text
    assert "8: 5 with sound, 3 planned, not done yet" in text


@pytest.mark.parametrize(
    ("num_videos", "clips_per_video", "features"),
    [(1, 0, {"mfcc": (32, 20)}), (2, 3, {}), (0, 0, {"waveform": (1600,)})],
)
def test_summary_of_almost_nothing(tmp_path, num_videos, clips_per_video, features):
    path = synthetic.make_file(
        tmp_path / "ego.h5", num_videos=num_videos, clips_per_video=clips_per_video, features=features
    )
    with reader.open(path) as file:
        assert f"{num_videos}: {f'{num_videos} with sound' if num_videos else 'none'}" in summary.summary(file)
        assert summary.verify(file) == []


def test_summary_says_which_arrays_are_slow(file):
    import h5py

    values = np.array(file["mfcc"])
    path = file.path
    file.close()
    with h5py.File(path, "r+", libver=("v110", "v110")) as other:
        del other["mfcc"]
        other.create_dataset("mfcc", data=values, compression="gzip")
    with reader.open(path) as again, pytest.warns(UserWarning, match="repacked"):
        assert "(repacked: slow)" in summary.summary(again)


def test_failed_lists_each_video_with_its_reason(file):
    lines = summary.failed(file).splitlines()
    assert lines == [f"unreadable   V{v:04d}EGO   V{v:04d}EGO.mp4   moov atom not found" for v in (2, 7)]


def test_failed_lists_lost_sound(file):
    rewrite(file, "videos", 4, lost_samples=8000)
    assert (
        "sound lost   V0004EGO   V0004EGO.mp4   0.50 s of 10.00 s are silent: paused, muted, or not decodable"
        in summary.failed(file)
    )
    assert "of which 0.5 s in 1 videos are silent: paused, muted, or not decodable" in summary.summary(file)


def test_failed_without_failures_says_so(tmp_path):
    with reader.open(synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (2, 3)})) as file:
        assert summary.failed(file) == "no video failed"


def test_text_in_a_file_does_not_drive_the_terminal(file):
    rewrite(file, "videos", 2, video_id=b"\x1b[2J\nx", error=b"\x07bell \xff\xfe")
    text = summary.failed(file)
    assert "?[2J?x" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_exported_sound_is_the_clip(file, tmp_path):
    summary.export_clip(file, 31, tmp_path / "clip.wav")
    with wave.open(str(tmp_path / "clip.wav")) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate(), sound.getnframes()) == (
            1,
            2,
            16000,
            16000,
        )
        samples = np.frombuffer(sound.readframes(16000), "<i2") / 32767
    np.testing.assert_allclose(samples, np.clip(file["waveform"][31], -1, 1), atol=1 / 32767)


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_exported_picture_is_a_png(file, tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    summary.export_clip(file, 31, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (120, "a.wav", "has no clip 120: give 0 to 119"),
        (-1, "a.wav", "has no clip -1"),
        (20, "a.wav", r"clip 20 of .* has no data: unreadable \(video V0002EGO\). See egoaudio-inspect --failed"),
        (5, "a.png", r"clip 5 of .* has no data: beyond the end of the sound"),
        (0, "a.mp3", r"a.mp3: expected a name that ends in .wav \(the waveform\) or .png"),
        (0, "nowhere/a.wav", "a.wav: cannot be written: No such file"),
        (0, "nowhere/a.png", "a.png: the picture cannot be written: No such file"),
    ],
)
def test_clip_that_cannot_be_exported_says_why_and_leaves_nothing(file, tmp_path, number, name, words):
    with pytest.raises(StoreError, match=words):
        summary.export_clip(file, number, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["ego.h5"]


def test_file_without_waveform_says_how_to_get_one(tmp_path):
    with (
        reader.open(synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (32, 20)})) as file,
        pytest.raises(StoreError, match="`features=..waveform.,.`"),
    ):
        summary.export_clip(file, 0, tmp_path / "a.wav")
