"""Hostile CSV files: a clear error, or tolerated and counted; never a crash, never a way out of a folder."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate_text

from egoaudio.errors import AnnotationError
from egoaudio.inputs.annotations import read_annotations

CHARADES_EGO = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length,egocentric,charades_video"
)
EPIC = (
    "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,"
    "description,class,class_id"
)


def charades_csv(rows):
    """Return a Charades-Ego CSV of ``(id, subject, scene, script, actions)``, CRLF."""
    text = io.StringIO(newline="")
    cells = ([*row[:3], "6", "7", "Yes", row[3], "food", "", row[4], "30.00", "Yes", "00607"] for row in rows)
    csv.writer(text).writerows([CHARADES_EGO.split(","), *cells])
    return text.getvalue()


def generic_csv(video_id, label="x"):
    """Return a generic CSV of one row."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("video", "start", "end", "label"), (video_id, 0, 1, label)])
    return text.getvalue()


def assert_is_safe(video):
    """Check what every other module relies on."""
    assert 0 < len(video.video_id.encode()) <= 255
    assert not any(letter in video.video_id for letter in "/\\\0\r\n") and video.video_id not in (".", "..")
    for instance in video.instances:
        assert 0 <= instance.start_seconds <= 1e7 and 0 <= instance.stop_seconds <= 1e7


@pytest.fixture
def write(tmp_path):
    """Return a function that writes text or bytes to a file and returns its path."""

    def write(content):
        path = tmp_path / "a.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    "video_id",
    [
        *("../../etc/passwd", "/etc/passwd", "..", "a/b", "a\\b", "C:\\x", "a..b"),
        *("A\nB", "A\rB", "A\tB", "A\0B", "A\x7fB", "A\x9bB", "A\x1b[31mB"),
        *("x" * 256, "é" * 128, "x" * 10_000),
    ],
    ids=lambda video_id: ascii(video_id[:20]),
)
def test_ids_that_are_no_plain_names_are_refused(write, video_id):
    for content in (charades_csv([(video_id, "KFGP", "Kitchen", "", "")]), generic_csv(video_id)):
        with pytest.raises(AnnotationError, match="a.csv, row 2: ") as caught:
            read_annotations([write(content)])
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("video_id", ["00607EGO", "P01_01.mp4", "é" * 127, "a video (1)", "-rf", "東京"])
def test_other_ids_are_kept_as_they_are(write, video_id):
    for content in (charades_csv([(video_id, "KFGP", "Kitchen", "", "")]), generic_csv(video_id)):
        assert read_annotations([write(content)]).videos[0].video_id == video_id


@pytest.mark.parametrize("text", ["x" * 10_000, "a\0b", "a\nb"], ids=["long", "NUL", "newline"])
def test_other_text_that_is_stored_is_held_to_the_same(write, text):
    contents = [
        charades_csv([("A", text, "Kitchen", "", "")]),
        charades_csv([("A", "KFGP", text, "", "")]),
        generic_csv("A", label=text),
    ]
    for content in contents:
        with pytest.raises(AnnotationError, match="a.csv, row 2: "):
            read_annotations([write(content)])


CSVS = (
    charades_csv(
        [(f"{n:05d}EGO", "KFGP", "Kitchen", "é, é", "c075 0.00 10.30;c107 3.20 14.00") for n in range(8)]
    ).encode(),
    f"{EPIC}\n".encode()
    + b"".join(b"P_%d,P01,P01_%d,00:00:02.466,00:01:05.315,5,9,,rustle,4\r\n" % (n, n % 3) for n in range(8)),
)


def read_mutated(path, seed):
    """Write and read a damaged CSV; return ``read`` or ``refused``, and let anything else be raised."""
    path.write_bytes(mutate_text(CSVS[seed % len(CSVS)], seed))
    try:
        for video in read_annotations([path]).videos:
            assert_is_safe(video)
        return "read"
    except AnnotationError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable()
        return "refused"


def test_300_mutated_files_are_read_or_refused_and_never_crash(tmp_path):
    outcomes = [read_mutated(tmp_path / "a.csv", seed) for seed in range(300)]
    assert outcomes.count("read") > 20 and outcomes.count("refused") > 150


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=200),
    header=st.sampled_from([b"", b"video,start,end,label\n", CHARADES_EGO.encode() + b"\n"]),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, header):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(header + content)
    try:
        for video in read_annotations([path]).videos:
            assert_is_safe(video)
    except AnnotationError as error:
        assert str(error).startswith(str(path))
