"""A report is one page within its size, or an error that says what to do, and then nothing is written."""

import os
import re
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_wav
from report_files import SAMPLE_RATE, make_file, make_scores, rename

import egoaudio
from egoaudio import cli
from egoaudio.config.report import ReportConfig
from egoaudio.errors import ReportError, StoreError
from egoaudio.hdf5 import reader
from egoaudio.reporting.excerpts import StoredSounds
from egoaudio.reporting.gallery import Gallery
from egoaudio.reporting.pictures import Painter


class _Attributes(HTMLParser):
    """What a page would load, and which of its parts it refers to."""

    def __init__(self):
        super().__init__()
        self.found, self.ids, self.referred = [], [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            assert not name.startswith("on") and name != "style"
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.found.append((name, value))
            if name == "id":
                self.ids.append(value)
            if name in ("aria-labelledby", "data-filter", "data-status") or (name == "href" and value.startswith("#")):
                self.referred.append(value.lstrip("#"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("report") / "ego.h5", 12, 8)


def test_a_page_holds_all_that_was_asked_for_and_loads_nothing(path, tmp_path):
    made = egoaudio.report(path, output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert made.num_bytes == len(text.encode()) and made.notes == () and made.num_clips == text.count("<img ")
    assert "page.html: " in str(made)
    parser = _Attributes()
    parser.feed(text)
    assert {name for name, _ in parser.found} >= {"src", "href"}
    assert all(value.startswith(("data:", "#")) for _, value in parser.found)
    assert len(parser.ids) == len(set(parser.ids)) and set(parser.referred) <= set(parser.ids)


@pytest.mark.parametrize("max_mb", [0.2, 0.3])
def test_a_page_is_no_larger_than_asked_for_and_says_what_is_left_out(path, tmp_path, max_mb):
    made = egoaudio.report(path, output=tmp_path / "page.html", config=ReportConfig(max_mb=max_mb, examples=20))
    text = (tmp_path / "page.html").read_text()
    assert 0.7 * max_mb * 1e6 < made.num_bytes == os.path.getsize(tmp_path / "page.html") <= max_mb * 1e6
    assert "clips were left out" in made.notes[0]
    assert made.notes[0].replace("`max_mb`", "--max-mb") in text
    assert "clips were left out" in str(made)


def test_the_most_important_clips_are_kept(path):
    with reader.open(path) as file:
        gallery = Gallery(file, Painter.of_file(file), StoredSounds(file))
        gallery.ask([1, 2, 3])
        gallery.ask([11, 12, 13])
        gallery.ask([21, 22], rank=1)
        gallery.fill(30_000)
        order = [1, 11, 2, 12, 21, 3, 13, 22]
        assert list(gallery.shown) == order[: len(gallery.shown)] and 1 < len(gallery.shown) < 8
        gallery.fill(10**7)
        assert list(gallery.shown) == order and gallery.note == ""


def test_several_files_are_shown_as_one(path, tmp_path):
    other = make_file(tmp_path / "other.h5", 3, 8)
    with h5py.File(other, "r+") as file:
        rename(file, "videos", "video_id", ["OTHER0", "OTHER1", "OTHER2"])
    made = egoaudio.report(path, other, output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<bdi>Report on ego.h5 and 1 more</bdi>" in text and "of 15 videos" in text
    assert made.num_clips == text.count("<img ") > 0 and made.notes == ()


def test_the_same_file_gives_the_same_page(path, tmp_path):
    for name in ("one.html", "two.html"):
        egoaudio.report(path, output=tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_page_of_a_file_without_sound_says_so(path, tmp_path):
    copy = tmp_path / "ego.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        del file["waveform"]
    made = egoaudio.report(copy, output=tmp_path / "page.html")
    assert "the folder of the videos as `videos`" in made.notes[0] and made.num_clips > 0
    assert 'class="play"' not in (tmp_path / "page.html").read_text()


def _run(*words):
    return CliRunner().invoke(cli.report, [str(word) for word in words])


@pytest.mark.parametrize(
    "words, message",
    [
        (["nothing.h5"], "'nothing.h5' does not exist"),
        (["text.txt"], "neither HDF5 nor a checkpoint: expected an egoaudio file"),
        (["folder"], "is a folder without best.pt, last.pt or scores.h5"),
        (["ego.h5", "ego.h5"], "is given twice: give it once"),
        (["other.h5"], "is HDF5, but not an egoaudio file"),
        (["ego.h5", "--max-mb", "0"], "--max-mb 0.0: expected at least 0.2"),
        (["ego.h5", "--videos", "nowhere"], "--videos nowhere: there is no such folder"),
        (["ego.h5", "--output", "ego.h5"], "--output ego.h5: it is an input of this command"),
        (["ego.h5", "--output", "folder"], "--output folder: it is a folder"),
        (["ego.h5", "--output", ""], "its name is empty, as that of a variable that is not set"),
        (["ego.h5", "--split", "test"], "--split test has no effect without a run: give one, or leave it out"),
        (["ego.h5", "--device", "cpu"], "--device cpu has no effect without a run"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(path, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ego.h5").write_bytes(path.read_bytes())
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    h5py.File("other.h5", "w").close()
    before = sorted(tmp_path.iterdir()), (tmp_path / "ego.h5").read_bytes()
    result = _run("--output", "page.html", *words)
    assert result.exit_code == 2 and message in result.output.replace("\n", " "), result.output
    assert (sorted(tmp_path.iterdir()), (tmp_path / "ego.h5").read_bytes()) == before


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_read(path, tmp_path, monkeypatch):
    monkeypatch.setattr("egoaudio.reporting.report.reader.open", lambda paths: pytest.fail("it reads"))
    monkeypatch.setattr("egoaudio.system.files.os.access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(ReportError, match=f"the folder {tmp_path} cannot be written to: give a name in another one"):
        egoaudio.report(path, output=tmp_path / "page.html")


def test_a_recording_that_was_heard_is_not_replaced(tmp_path):
    sound = make_wav(tmp_path / "a.wav", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    before = sound.read_bytes()
    make_scores(tmp_path / "heard", [("a.wav", sound, np.zeros((1, 4)), [0.0])])
    with pytest.raises(ReportError, match="it is an input of this command"):
        egoaudio.report(tmp_path / "heard", output=sound)
    assert sound.read_bytes() == before


def test_features_that_are_no_numbers_are_drawn_and_heard_as_nothing(tmp_path):
    path = make_file(tmp_path / "ego.h5", 4, 4)
    with h5py.File(path, "r+") as file:
        file["logmel"][...], file["waveform"][3:] = np.nan, np.nan
    assert egoaudio.report(path, output=tmp_path / "page.html").num_clips > 0
    drawings = re.findall(r"<svg.*?</svg>", (tmp_path / "page.html").read_text(), re.DOTALL)
    assert drawings and not any("nan" in drawing for drawing in drawings)


def _move(name):
    def change(file, value):
        rows = file[name.split(".")[0]][()]
        rows[name.split(".")[1]][:] = value
        file[name.split(".")[0]][...] = rows

    return change


@pytest.mark.parametrize(
    "of_scores, change, value, words",
    [
        (False, _move("clips.start_seconds"), np.inf, "clip . is from inf to .* the file is damaged"),
        (False, _move("clips.stop_seconds"), np.nan, "the file is damaged"),
        (True, _move("clips.start_seconds"), -1.0, "the times of .* are not in order"),
        (True, _move("videos.duration_seconds"), np.nan, "the times of .* are not in order"),
        (True, _move("classes.slope"), 0.0, "its thresholds, calibration or options are none"),
        (True, _move("classes.offset"), 2.0, "its thresholds, calibration or options are none"),
        (
            True,
            lambda file, value: file["scores"].write_direct(np.full(file["scores"].shape, value, "f4")),
            1.5,
            "within 0 and 1",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, of_scores, change, value, words):
    path = make_file(tmp_path / "ego.h5", 2, 4)
    scores = make_scores(tmp_path / "heard", [("a", "", np.full((3, 4), 0.5), np.arange(3.0))])
    with h5py.File(scores if of_scores else path, "r+") as file:
        change(file, value)
    with pytest.raises(StoreError, match=words):
        egoaudio.report(path, scores, output=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_has_no_room_is_refused(tmp_path):
    path = make_file(tmp_path / "ego.h5", 12, 4, num_classes=1000, hostile=False)
    with h5py.File(path, "r+") as file:
        file["labels"][...] = np.random.default_rng(0).random(file["labels"].shape) < 0.5
    result = _run(path, "--output", tmp_path / "page.html", "--max-mb", "0.2")
    assert result.exit_code == 2 and re.search(
        r"--max-mb 0.2: the page has .* MB without any sound: give", result.output
    )
    assert not (tmp_path / "page.html").exists()


def test_the_command_makes_a_page(path, tmp_path):
    result = _run(path, "--output", tmp_path / "page.html", "--examples", 1)
    assert result.exit_code == 0 and "clips to look at; open it in a browser" in result.output
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
