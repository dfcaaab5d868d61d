"""What would just be missing, or be there twice, is told: annotations beyond the sound, one recording under two ids."""

import os
import shutil
import sys
from pathlib import Path

import h5py
import pytest
from conftest import make_media

from egoaudio.builder import build
from egoaudio.builder.plan import Inputs
from egoaudio.config.build import BuildConfig, FeatureConfig
from egoaudio.errors import BuildError

sys.path.insert(0, str(Path(__file__).parents[2] / "bin"))

pytestmark = pytest.mark.usefixtures("kept_workers")
CONFIG = BuildConfig(features=FeatureConfig(features=("mfcc",)))


def _folder(tmp_path, *ids, seconds=3.0):
    for video_id in ids:
        (tmp_path / "videos").mkdir(exist_ok=True)
        make_media(tmp_path / "videos" / f"{video_id}.wav", seconds=seconds, audio="pcm_s16le")
    return tmp_path


def _csv(tmp_path, *rows, name="a.csv"):
    (tmp_path / name).write_text("\n".join(["video,start,end,label", *rows]) + "\n")
    return tmp_path / name


def _build(tmp_path, csv, test=(), **options):
    report = build.build(Inputs(csv, tmp_path / "videos", test), tmp_path / "ego.h5", CONFIG, **options)
    return str(report), report


@pytest.mark.parametrize(
    ("rows", "words", "attributes"),
    [
        (
            ["A,0,900,door", "A,3000,4000,door", "A,5000,6500,keys"],
            "2 of 3 instances start after the sound's end, 1 end more than 1 s after it, in 1 video, such as A; "
            "are the times in milliseconds?",
            (2, 1),
        ),
        (
            ["A,0,1,door", "A,3.0,4,keys", "A,1,2,keys"],
            "1 of 3 instances start after the sound's end, in 1 video, such as A; are these the recordings",
            (1, 0),
        ),
        (
            ["A,0,1,door", "A,2,9,keys", "B,0,8,keys"],
            "2 of 3 instances end more than 1 s after it, in 2 videos, such as A",
            (0, 2),
        ),
        (["A,0,1,door", "A,2,3.9,keys"], "", None),
    ],
)
def test_annotations_beyond_the_sound_are_counted_in_the_report_the_preview_and_the_file(
    tmp_path, rows, words, attributes
):
    csv = _csv(_folder(tmp_path, "A", "B"), *rows)
    preview = str(build.preview(Inputs(csv, tmp_path / "videos"), tmp_path / "ego.h5", CONFIG))
    text, _ = _build(tmp_path, csv)
    for page in (preview, text):
        assert (f"  beyond   {words}" in page) if words else ("  beyond " not in page), page
    with h5py.File(tmp_path / "ego.h5") as file:
        found = {name: int(value) for name, value in file["instances"].attrs.items()}
        assert found == (
            dict(zip(("starting_beyond_sound", "ending_beyond_sound"), attributes, strict=True)) if attributes else {}
        )


def test_a_charades_video_that_is_longer_in_the_table_than_its_sound_is_told(tmp_path):
    header = (
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length,egocentric,"
        "charades_video"
    )
    (_folder(tmp_path, "AAAAAEGO") / "c.csv").write_text(
        f"{header}\nAAAAAEGO,S,K,6,7,Yes,s,o,,c001 0.00 2.00;c002 10.00 12.00;c003 2.00 12.00,15,Yes,AAAAA\n"
    )
    text, _ = _build(tmp_path, tmp_path / "c.csv")
    assert (
        "1 of 3 instances start after the sound's end, 1 end more than 1 s after it, in 1 video, such as AAAAAEGO"
        in text
    )


def test_instances_of_epic_sounds_beyond_the_sound_are_told(tmp_path):
    header = "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample"
    rows = [
        "1,P01,P01_01,00:00:01.0,00:00:02.0,0,0,d,door,0",
        "2,P01,P01_01,00:16:40.0,00:16:41.0,0,0,d,door,0",  # 1.0 s and 1.0 s in milliseconds
    ]
    (_folder(tmp_path, "P01_01") / "e.csv").write_text("\n".join([f"{header},description,class,class_id", *rows]))
    text, _ = _build(tmp_path, tmp_path / "e.csv")
    assert "1 of 2 instances start after the sound's end, in 1 video, such as P01_01; are the" in text


@pytest.mark.parametrize("way", ["two ids", "hard link", "symbolic link"])
def test_one_recording_in_train_and_test_is_refused(tmp_path, way):
    _folder(tmp_path, "A")
    other = {"two ids": "A.wav"}.get(way, "B")
    if way == "hard link":
        os.link(tmp_path / "videos/A.wav", tmp_path / "videos/B.wav")
    elif way == "symbolic link":
        (tmp_path / "videos/B.wav").symlink_to("A.wav")
    train, test = _csv(tmp_path, "A,0,1,door"), _csv(tmp_path, f"{other},0,1,door", name="test.csv")
    with pytest.raises(
        BuildError,
        match=rf"videos 'A' \(train\) and '{other}' \(test\) are one recording, .*\.wav: a model would be tested on",
    ):
        _build(tmp_path, train, test)
    text, _ = _build(tmp_path, _csv(tmp_path, "A,0,1,door", f"{other},0,1,door"))
    assert (
        "1 videos with another's file" in text
        and "twice    1 video with the same recording as another, 0 of them in another split, such as A and" in text
    )


def test_copies_of_one_recording_are_told(tmp_path):
    _folder(tmp_path, "A", "C", seconds=3.0)
    make_media(tmp_path / "videos/C.wav", seconds=2.0, audio="pcm_s16le")
    shutil.copy(tmp_path / "videos/A.wav", tmp_path / "videos/B.wav")
    text, _ = _build(
        tmp_path, _csv(tmp_path, "A,0,1,door", "C,0,1,door"), _csv(tmp_path, "B,0,1,door", name="test.csv")
    )
    assert "twice    1 video with the same recording as another, 1 of them in another split, such as A and B" in text


def test_a_reason_that_many_videos_share_is_said_once(tmp_path):
    _folder(tmp_path, "A")
    csv = _csv(tmp_path, "A,0,1,door", *(f"M{number:04d},0,1,door" for number in range(500)), "X,0,1,door")
    (tmp_path / "videos/X.wav").write_bytes(b"no media")
    words = "M0000, M0001, M0002 and 497 more: no media file of this name in the folder of videos"
    plan = build.preview(Inputs(csv, tmp_path / "videos"), tmp_path / "ego.h5", CONFIG)
    assert words in str(plan) and len(str(plan).splitlines()) < 20
    assert len(plan.describe(list_all=True).splitlines()) > 500
    text, report = _build(tmp_path, csv)
    assert words in text and len(text.splitlines()) < 20 and "\n  X: " in text and "egoaudio-inspect --failed" in text
    assert len(report.failures) == 501
